"""Recipes: names, paths, overrides, and messages for bad ones."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowllm.errors import UserError
from flowllm.training import recipes
from flowllm.training.config import TrainingConfig
from flowllm.training.recipes import (
    PriorRecipe,
    RefinerRecipe,
    TuningRecipe,
    load_recipe,
    named_recipes,
)
from support import ROOT

COMMANDS = {PriorRecipe: "train-llm", RefinerRecipe: "train-rfm", TuningRecipe: "tune-llm"}
SMALL = """
model:
  architecture: {hidden_size: 32}
training:
  learning_rate: 5e-4
  epochs: 3
"""


def kind(name: str) -> type:
    if name == "llm/tune":
        return TuningRecipe
    return {"llm": PriorRecipe, "rfm": RefinerRecipe}[name.split("/")[0]]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def test_recipes_of_both_stages_ship() -> None:
    assert {"llm/small", "rfm/uniform"} <= set(named_recipes())
    assert named_recipes() == sorted(named_recipes())


@pytest.mark.parametrize("name", named_recipes())
def test_every_shipped_recipe_loads_and_is_recorded_as_json(name: str) -> None:
    recipe = load_recipe(kind(name), name)
    assert recipe.training == type(recipe.training)(**asdict(recipe.training))
    assert json.loads(json.dumps(asdict(recipe), allow_nan=False)) == asdict(recipe)


@pytest.mark.parametrize("name", named_recipes())
def test_every_value_in_a_shipped_recipe_has_a_comment(name: str) -> None:
    lines = (ROOT / "configs" / f"{name}.yaml").read_text().splitlines()
    assert lines[0].startswith("# ")  # on the recipe itself
    for before, line in pairwise(lines):
        if ": " in line and not line.lstrip().startswith("#"):
            assert " # " in line or before.lstrip().startswith("# "), line


@pytest.mark.parametrize("name", named_recipes())
def test_a_recipe_of_another_stage_is_refused(name: str) -> None:
    for other in COMMANDS.keys() - {kind(name)}:
        command = COMMANDS[kind(name)]
        with pytest.raises(UserError, match=f"^{name} is a recipe for .*; .* it with {command}"):
            load_recipe(other, name)


def test_a_path_does_what_a_name_does(tmp_path: Path) -> None:
    copy = shutil.copy(ROOT / "configs" / "llm" / "small.yaml", tmp_path)
    assert load_recipe(PriorRecipe, copy) == load_recipe(PriorRecipe, "llm/small")
    assert load_recipe(PriorRecipe, str(copy)) == load_recipe(PriorRecipe, "llm/small")


def test_numbers_become_the_type_of_their_field(small: Path) -> None:
    training = load_recipe(PriorRecipe, small).training
    assert training.learning_rate == 0.0005  # a string to YAML 1.1
    assert type(training.epochs) is float and training.epochs == 3
    recipe = load_recipe(PriorRecipe, small, ["training.weight_decay=1e-2", "training.epochs=2"])
    assert recipe.training.weight_decay == 0.01 and recipe.training.epochs == 2.0


def test_what_is_not_given_has_its_default(small: Path) -> None:
    training = load_recipe(PriorRecipe, small).training
    assert training == TrainingConfig(learning_rate=0.0005, epochs=3)


def test_overrides_apply_in_order_and_reach_absent_sections(small: Path) -> None:
    recipe = load_recipe(
        PriorRecipe,
        small,
        [
            "training.batch_size=8",
            "training.batch_size=16",
            "tasks.infill=0.5",
            "model.architecture=null",
            "model.name=folder=with=signs",
            "model.lora.target_modules=[q_proj, v_proj]",
            "training.bf16=false",
        ],
    )
    assert recipe.training == TrainingConfig(
        learning_rate=0.0005, epochs=3, batch_size=16, bf16=False
    )
    assert recipe.tasks.infill == 0.5
    assert recipe.model.name == "folder=with=signs" and recipe.model.architecture is None
    assert recipe.model.lora.target_modules == ["q_proj", "v_proj"]


@given(st.floats(1e-12, 1e3))
def test_any_number_survives_the_trip_through_an_override(value: float) -> None:
    recipe = load_recipe(RefinerRecipe, "rfm/uniform", [f"training.learning_rate={value!r}"])
    assert recipe.training.learning_rate == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epoch=3", "small.yaml: unknown key training.epoch; .* training are .*epochs"),
        ("trainning.epochs=3", "small.yaml: unknown key trainning; the keys of a recipe are model"),
        ("model.architecture.width=3", "key model.architecture.width; .* are .*hidden_size"),
        ("training.batch_size=large", 'small.yaml: .*"training.batch_size".*"int".*"large"'),
        ("training.batch_size=2.5", 'small.yaml: .*"training.batch_size".*2.5'),
        ("training.learning_rate=fast", 'small.yaml: .*"training.learning_rate".*"fast"'),
        ("training.learning_rate=[1]", 'small.yaml: .*"training.learning_rate".*"float"'),
        ("training.bf16=yes please", 'small.yaml: .*"training.bf16".*"bool"'),
        ("training=3", 'small.yaml: .*"training"'),
        ("model.architecture=null", "small.yaml: model needs exactly one of"),
        ("model.quantization=2bit", 'small.yaml: .*"model.quantization"'),
        ("tasks.infill=2", "small.yaml: task mix"),
        ("training.epochs=0", "small.yaml: training.epochs is 0.0; give a number above 0"),
        ("training.epochs=.nan", "small.yaml: training.epochs is nan; give a number above 0"),
        ("training.epochs=.inf", "small.yaml: training.epochs is inf; give a number above 0"),
        (
            "training.learning_rate=-1",
            "training.learning_rate is -1.0; give a number above 0",
        ),
        (
            "training.save_steps=0",
            "training.save_steps is 0; give a whole number at least 1",
        ),
        ("training.warmup_steps=-1", "training.warmup_steps is -1.0; give a number at least 0"),
        ("training.num_workers=-1", "training.num_workers is -1; give a whole number at least 0"),
        ("training.beta2=1", "training.beta2 is 1.0; give a number at least 0 and below 1"),
        (
            "training.ema_decay=1",
            "training.ema_decay is 1.0; give a number at least 0 and below 1",
        ),
        ("training.max_steps=0", "training.max_steps is 0; give 1 or more, or -1 for no limit"),
        ("training.report_to=paper", "training.report_to 'paper' is unknown; choose one of none, "),
        ("training.epochs", "override 'training.epochs' is not of the form key=value"),
        ("=3", "override '=3' is not of the form key=value"),
        ("training.epochs.more=3", "override 'training.epochs.more=3': epochs is no section"),
        ("training.epochs={", "override 'training.epochs={': "),
    ],
)
def test_a_bad_setting_is_refused_by_name(small: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        load_recipe(PriorRecipe, small, [override])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"training: {", "bad.yaml is not valid YAML"),
        (b"\xff\xff\xff", "bad.yaml is not valid YAML"),
        (b"", "bad.yaml holds no settings"),
        (b"- a\n- b\n", "bad.yaml holds no settings"),
        (b"training: {}\n", 'bad.yaml: missing value for field "model"'),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "bad.yaml").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        load_recipe(PriorRecipe, tmp_path / "bad.yaml")
    assert "\n" not in str(error.value)


def test_an_unknown_recipe_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no config 'llm/huge'; known are .*llm/small.*rfm/uniform"):
        load_recipe(PriorRecipe, "llm/huge")
    with pytest.raises(UserError, match="no config '../configs/llm/small'"):
        load_recipe(PriorRecipe, "../configs/llm/small")
    with pytest.raises(UserError, match="there is no config file .*absent.yaml"):
        load_recipe(PriorRecipe, tmp_path / "absent.yaml")


def test_recipes_are_found_in_the_package_once_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_the_tree = {name: load_recipe(kind(name), name) for name in named_recipes()}
    # A wheel holds flowllm/configs, and no configs beside the package.
    package = tmp_path / "site-packages" / "flowllm"
    shutil.copytree(ROOT / "configs", package / "configs")
    changed = (package / "configs" / "llm" / "small.yaml").read_text().replace("2e-3", "4e-3")
    (package / "configs" / "llm" / "small.yaml").write_text(changed)
    monkeypatch.setattr(recipes, "__file__", str(package / "training" / "recipes.py"))
    monkeypatch.setattr(recipes.resources, "files", {"flowllm": package}.__getitem__)
    monkeypatch.chdir(tmp_path)  # names do not depend on the working directory

    assert named_recipes() == sorted(in_the_tree)
    expected = in_the_tree["llm/small"]
    training = replace(expected.training, learning_rate=4e-3)
    assert load_recipe(PriorRecipe, "llm/small") == replace(expected, training=training)
    assert load_recipe(RefinerRecipe, "rfm/uniform") == in_the_tree["rfm/uniform"]
