"""Options of an evaluation: checks, and refusals before heavy libraries load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flowllm.errors import UserError
from flowllm.evaluation.config import EvaluationConfig
from flowllm.evaluation.evaluate import evaluate
from flowllm.system.options import specs
from support import MP20_SAMPLE


def test_values_are_brought_to_one_form():
    config = EvaluationConfig(train="a.csv", reference="b.csv", potential="CHGNet", hull="h.csv")
    assert config.train == (Path("a.csv"),) and config.reference == Path("b.csv")
    assert config.potential == "chgnet"
    assert EvaluationConfig(train=None) == EvaluationConfig()
    assert EvaluationConfig(train=["a", Path("b")]).train == (Path("a"), Path("b"))
    assert EvaluationConfig(potential="chgnet", hull="materials-project").hull_is_online
    assert not EvaluationConfig().needs_features


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature_novelty": True}, "feature_novelty needs a training set"),
        ({"composition_scale": "s.json"}, "composition_scale needs a reference set"),
        ({"hull": "h.csv"}, "hull needs a potential"),
        ({"references": "r.json", "potential": "chgnet"}, "references need a hull"),
        ({"potential": "mace"}, "unknown potential 'mace'"),
        ({"oxidation_states": "mine"}, "choose one of smact14"),
        ({"min_elements": 0}, "min_elements is 0; give a whole number at least 1"),
        ({"seed": -1}, "seed is -1"),
        ({"train": 3}, "train is 3, of the type int; give another one"),
        ({"train": ["a.csv", None]}, "train is .'a.csv', None., of the type list; give another"),
        ({"hull": 2.5, "potential": "chgnet"}, "hull is 2.5, of the type float; give another one"),
        ({"submission": "matbench"}, "choose one of lemat, matbench-discovery"),
        ({"submission": "matbench-discovery"}, "give potential and hull"),
    ],
)
def test_a_bad_option_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        EvaluationConfig(**options)


@pytest.mark.parametrize(
    ("samples", "options", "message"),
    [
        ([], {}, "no samples are given"),
        ("nowhere.csv", {}, "nowhere.csv: no such file or folder"),
        (Path(__file__), {}, "cannot read '.py' files"),
        (MP20_SAMPLE, {"train": [MP20_SAMPLE, "nowhere.csv"]}, "nowhere.csv: no such file"),
        (MP20_SAMPLE, {"potential": "chgnet", "hull": "nowhere.csv"}, "nowhere.csv: no such file"),
        (MP20_SAMPLE, {"potentail": "chgnet"}, "unknown option 'potentail'; known are"),
    ],
)
def test_a_bad_call_is_refused_before_the_folder_is_made(tmp_path, samples, options, message):
    with pytest.raises(UserError, match=message):
        evaluate(samples, out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_refused_before_anything_is_computed(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        evaluate(MP20_SAMPLE, out=tmp_path, potential="operator:neg")  # a potential that fails


def test_a_refusal_loads_no_heavy_library():
    code = (
        "import sys; from flowllm.evaluation.evaluate import evaluate\n"
        "try: evaluate('.', out='out', potential='mace')\n"
        "except ValueError: pass\n"
        "print({'torch', 'matminer', 'pymatgen', 'scipy', 'pandas', 'ase'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


def test_options_replace_those_of_a_config(tmp_path):
    config = EvaluationConfig(train="nowhere.csv", seed=3)
    with pytest.raises(UserError, match="elsewhere.csv"):
        evaluate(MP20_SAMPLE, out=tmp_path / "out", config=config, train="elsewhere.csv")


def test_every_option_has_help_and_a_section():
    for name, (_, spec) in specs(EvaluationConfig).items():
        assert spec.help.endswith(".") and spec.section, name
