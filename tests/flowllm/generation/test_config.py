"""Configurations of sampling and refining."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowllm import PriorError, RefinementConfig, SamplingConfig, UserError
from flowllm.generation.config import DrawingConfig
from flowllm.system.options import OptionError, specs
from llm_prior import propose
from rfm.config import IntegrationConfig
from support import ROOT, SALT

# A value of each option that is not its default, with what it needs.
OTHERS: dict[str, dict[str, Any]] = {
    "conditions": {"conditions": {"spacegroup": 225}},
    "composition": {"composition": "NaCl"},
    "crystal_system": {"crystal_system": "cubic"},
    "exclude_elements": {"exclude_elements": "Pb"},
    "novel_to": {"novel_to": "train.csv"},
    "like": {"like": "known.cif", "formula": "NaCl"},
    "best_of": {"best_of": 2},
    "rank": {"rank": "flow", "best_of": 2},
    "potential": {"potential": "matgl:x", "rank": "energy", "best_of": 2},
    "temperature": {"temperature": 1},
    "top_p": {"top_p": 1},
    "guidance": {"guidance": 2, "formula": "NaCl"},
    "max_attempts": {"max_attempts": 1},
    "constrain": {"constrain": False},
    "engine": {"engine": "vllm"},
    "batch_size": {"batch_size": 1},
    "seed": {"seed": 1},
    "refine": {"refine": False},
    "volume": {"volume": "prior"},
    "steps": {"steps": 1},
    "method": {"method": "heun"},
    "position_slope": {"position_slope": 0},
    "cell_slope": {"cell_slope": 1},
    "symmetry": {"symmetry": "free"},
    "trajectory": {"trajectory": True},
    "score": {"score": True},
}


# Conditions


def test_requests_that_mean_the_same_have_the_same_conditions() -> None:
    numbers = SamplingConfig.of(
        formula="NaCl", spacegroup=np.int64(225), band_gap=5, elements=None
    ).conditions
    texts = SamplingConfig.of(formula="Cl2Na2", band_gap="5.001", spacegroup="225").conditions
    assert list(numbers.items()) == list(texts.items())
    assert json.loads(json.dumps(numbers)) == numbers
    assert SamplingConfig.of(elements="Na,Na").conditions == {"elements": "Na"}
    assert SamplingConfig.of(composition="Na4Cl4").conditions == {
        "formula": "NaCl",
        "num_atoms": "8",
    }


@pytest.mark.parametrize("value", [225, "225", "Fm-3m", "F m -3 m", "fm-3m", "Fm3m", 225.0])
def test_a_space_group_is_a_number_or_a_symbol(value: Any) -> None:
    assert SamplingConfig.of(spacegroup=value).conditions == {"spacegroup": "225"}


@pytest.mark.parametrize("value", ["5-10", " 5 - 10 ", (5, 10), [5, 10]])
def test_a_number_of_atoms_may_be_a_range(value: Any) -> None:
    config = SamplingConfig.of(num_atoms=value, spacegroup=1)
    assert config.conditions == {"num_atoms": "5-10", "spacegroup": "1"}
    assert config.prompt_conditions == {"spacegroup"}
    assert SamplingConfig.of(num_atoms="5-5").conditions == {"num_atoms": "5"}


def test_the_prompts_of_candidates_state_the_composition() -> None:
    config = SamplingConfig.of(band_gap=1, best_of=2)
    assert config.prompt_conditions == {"band_gap", "formula", "num_atoms"}
    assert SamplingConfig.of(band_gap=1).prompt_conditions == {"band_gap"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"band_gap": -0.5}, "band_gap -0.5 is below 0 eV; give 0 or more"),
        (
            {"spacegroup": "cubic"},
            "spacegroup 'cubic' is not a whole number from 1 to 230 or a kno",
        ),
        ({"spacegroup": 231}, "spacegroup 231 is not a whole number from 1 to 230"),
        ({"num_atoms": "10-5"}, "num_atoms '10-5' is an empty range; .* as in 5-10"),
        ({"num_atoms": "0-5"}, "num_atoms '0-5' is a range that starts below 1"),
        ({"num_atoms": "few"}, "num_atoms 'few' is not a whole number"),
        ({"formula": "NaQ"}, "unknown element Q in formula 'NaQ'"),
        ({"composition": "NaQ"}, "unknown element Q in formula 'NaQ'"),
        ({"exclude_elements": "Na,Q"}, "unknown element 'Q'; write elements like Na,Cl"),
        ({"conditions": {"colour": "red"}}, "unknown condition 'colour'"),
    ],
)
def test_a_bad_condition_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(PriorError, match=message):
        SamplingConfig.of(**arguments)


# Arguments


def test_options_and_conditions_are_taken_alike() -> None:
    config = SamplingConfig.of(formula="NaCl", temperature=1, exclude_elements="Pb-Cd")
    assert (config.conditions, config.temperature) == ({"formula": "NaCl"}, 1.0)
    assert config.exclude_elements == ("Cd", "Pb")
    assert config == SamplingConfig.of(
        conditions={"formula": "NaCl"}, temperature=1.0, exclude_elements=["Pb", "Cd", "Pb"]
    )
    assert SamplingConfig.of(conditions=None) == SamplingConfig.of() == SamplingConfig()


def test_arguments_replace_those_of_a_config() -> None:
    config = SamplingConfig.of(formula="NaCl", spacegroup=225, seed=3, steps=4)
    assert SamplingConfig.of(config) == config
    other = SamplingConfig.of(config, formula="KCl", seed=4)
    assert other.conditions == {"formula": "KCl", "spacegroup": "225"}
    assert (other.seed, other.steps) == (4, 4)
    assert SamplingConfig.of(config, formula=None).conditions == {"spacegroup": "225"}
    assert (config.conditions["formula"], config.seed) == ("NaCl", 3)


def test_a_composition_of_a_config_can_be_replaced() -> None:
    config = SamplingConfig.of(composition="Na4Cl4", spacegroup=225)
    assert SamplingConfig.of(config) == config
    other = SamplingConfig.of(config, composition="K2Cl2")
    assert other.conditions == {"formula": "KCl", "num_atoms": "4", "spacegroup": "225"}
    free = SamplingConfig.of(config, composition=None, formula="KCl")
    assert free.conditions == {"formula": "KCl", "spacegroup": "225"}
    with pytest.raises(UserError, match="formula and composition exclude each other"):
        SamplingConfig.of(config, formula="KCl")


def test_a_crystal_system_is_a_set_of_groups() -> None:
    config = SamplingConfig.of(crystal_system="cubic", formula="NaCl")
    assert config.conditions == {"formula": "NaCl", "spacegroup": "195-230"}
    assert config.identity() == SamplingConfig.of(formula="NaCl", spacegroup="195-230").identity()
    assert SamplingConfig.of(config) == config
    other = SamplingConfig.of(config, crystal_system="hexagonal")
    assert other.conditions["spacegroup"] == "168-194"
    assert SamplingConfig.of(config, crystal_system=None, spacegroup="P1").conditions == {
        "formula": "NaCl",
        "spacegroup": "1",
    }


def test_an_unknown_argument_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="unknown condition or option 'colour'; known are") as error:
        SamplingConfig.of(colour="red")
    words = str(error.value).replace(",", "").split()
    assert {"formula", "spacegroup", "temperature", "refine", "steps"} <= set(words)


def test_novel_to_takes_one_file_or_several() -> None:
    files = (Path("a.csv"), Path("b.csv"))
    assert SamplingConfig.of(novel_to="a.csv").novel_to == files[:1]
    assert SamplingConfig.of(novel_to=["a.csv", Path("b.csv")]).novel_to == files


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SamplingConfig().seed = 1  # type: ignore[misc]  # the error is the point


def test_crystals_are_refined_by_default() -> None:
    assert SamplingConfig().refine
    assert not SamplingConfig(refine=False).refine


# Values


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; give a whole number at least 1"),
        ({"seed": -1}, "seed is -1; give a whole number at least 0"),
        ({"seed": 0.5}, "seed is 0.5; give a whole number at least 0"),
        ({"temperature": -1}, "temperature is -1; give a number at least 0"),
        ({"temperature": math.nan}, "temperature is nan; give a number at least 0"),
        ({"top_p": 0}, "top_p is 0; give a number above 0 and at most 1"),
        ({"top_p": math.inf}, "top_p is inf; give a number above 0 and at most 1"),
        ({"guidance": -1}, "guidance is -1; give a number at least 0 and at most 100"),
        ({"guidance": math.nan}, "guidance is nan; give a number at least 0 and at most 100"),
        ({"guidance": 101}, "guidance is 101; give a number at least 0 and at most 100"),
        ({"max_attempts": 0}, "max_attempts is 0; give a whole number at least 1"),
        ({"best_of": 0}, "best_of is 0; give a whole number at least 1"),
        (
            {"best_of": 2, "rank": "loudest"},
            "rank 'loudest' is unknown; choose one of prior, energy, flow",
        ),
        ({"crystal_system": "cubical"}, "'cubical' is unknown; choose one of triclinic, mono"),
        ({"constrain": "no"}, "constrain is 'no'; give a value of type bool"),
        ({"refine": None}, "refine is None; give a value of type bool"),
    ],
)
def test_a_value_out_of_range_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        SamplingConfig.of(**arguments)


@pytest.mark.parametrize("config", [SamplingConfig, RefinementConfig])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps is 0; give a whole number at least 1"),
        (
            {"method": "leapfrog"},
            "method 'leapfrog' is unknown; choose one of euler, midpoint, heun",
        ),
        ({"position_slope": math.nan}, "position_slope is nan; give a number at least 0"),
        ({"cell_slope": -1.0}, "cell_slope is -1.0; give a number at least 0"),
        ({"symmetry": "lose"}, "symmetry 'lose' is unknown; choose one of keep, free"),
    ],
)
def test_an_impossible_integration_is_refused(
    config: type[RefinementConfig], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        config(**arguments)


def test_a_temperature_at_which_the_logits_overflow_is_refused() -> None:
    with pytest.raises(PriorError, match="temperature 1e-09 is too small; 0 takes the likeliest"):
        SamplingConfig(temperature=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"formula": "NaCl", "composition": "Na4Cl4"},
            "formula and composition exclude each other",
        ),
        ({"crystal_system": "cubic", "spacegroup": 225}, "spacegroup and crystal_system exclude"),
        ({"composition": "Na4Cl4", "num_atoms": 8}, "composition fixes the number of atoms; leave"),
        ({"refine": False, "steps": 3}, "steps is an option of refining; leave it out, or refine"),
        ({"refine": False, "volume": "prior"}, "volume is an option of refining"),
        ({"refine": False, "cell_slope": 0}, "cell_slope is an option of refining"),
        ({"refine": False, "trajectory": True}, "trajectory is an option of refining"),
        ({"refine": False, "score": True}, "score is an option of refining"),
        ({"refine": False, "symmetry": "free"}, "symmetry is an option of refining"),
        ({"best_of": 2, "temperature": 0}, "best_of 2 at temperature 0 draws one crystal 2 times"),
        (
            {"best_of": 2, "rank": "flow", "refine": False},
            "rank flow ranks refined crystals; refine, or choose another rank",
        ),
        ({"guidance": 2}, "guidance 2 weighs conditions, and the request has none; give one such"),
        ({"guidance": 0, "best_of": 2}, "guidance 0 weighs conditions, and the request has none"),
        ({"guidance": 2, "formula": "KBr", "like": "x.cif"}, "like uses no prior and so no guida"),
        ({"rank": "flow"}, "rank flow chooses among candidates; give best_of 2 or more"),
        ({"rank": "energy"}, "rank energy chooses among candidates; give best_of 2 or more"),
        ({"best_of": 2, "potential": "chgnet"}, "potential belongs to rank energy; give that, or"),
        ({"best_of": 2, "rank": "energy", "potential": "nonsense"}, "unknown potential 'nonsense'"),
        ({"best_of": 2, "rank": "energy", "potential": "matgl:./no"}, "no potential folder ./no"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        SamplingConfig.of(**arguments)


def test_energies_rank_with_the_potential_that_is_named_in_any_case() -> None:
    ranking = {"best_of": 2, "rank": "energy"}
    assert SamplingConfig.of(**ranking).ranking_potential == "chgnet"
    assert SamplingConfig.of(**ranking, potential="CHGNet").ranking_potential == "chgnet"
    assert SamplingConfig.of(best_of=2).ranking_potential is None


# Uses


def test_the_drawing_options_are_arguments_of_propose() -> None:
    config = SamplingConfig.of(
        temperature=1, top_p=0.5, guidance=2, band_gap=1, max_attempts=3, constrain=False
    )
    assert config.drawing == {
        "temperature": 1.0,
        "top_p": 0.5,
        "guidance": 2.0,
        "max_attempts": 3,
        "constrain": False,
    }
    assert propose.__kwdefaults__.keys() >= config.drawing.keys()
    defaults = {name: propose.__kwdefaults__[name] for name in config.drawing}
    assert DrawingConfig().drawing == defaults


def test_the_settings_of_the_integration_replace_those_of_the_refiner() -> None:
    own = IntegrationConfig()
    assert own.but(**RefinementConfig().integration) == own
    changed = RefinementConfig(steps=3, cell_slope=2).integration
    assert own.but(**changed) == dataclasses.replace(own, steps=3, cell_slope=2.0)


@pytest.mark.parametrize("config", [SamplingConfig, RefinementConfig])
def test_every_option_has_a_help_text_and_a_section(config: type[RefinementConfig]) -> None:
    for name, (_, spec) in specs(config).items():
        assert spec.help.endswith(".") and spec.help[0].isupper(), name
        assert spec.hidden or spec.section, name


# Identity


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"formula": "Cl2Na2", "num_atoms": 8}, {"composition": "Na4Cl4"}),
        ({"spacegroup": "Fm-3m"}, {"spacegroup": 225}),
        ({"num_atoms": (5, 10)}, {"num_atoms": "5-10"}),
        ({"exclude_elements": "Pb,Cd"}, {"exclude_elements": ("Cd", "Pb", "Pb")}),
        ({"temperature": 1, "seed": np.int64(2)}, {"temperature": np.float64(1), "seed": 2}),
        ({"band_gap": 1, "formula": "NaCl"}, {"formula": "NaCl", "band_gap": "1.001"}),
        (
            {"best_of": 2, "rank": "energy"},
            {"best_of": 2, "rank": "energy", "potential": "CHGNet"},
        ),
        ({"batch_size": 1}, {"batch_size": 2}),
    ],
)
def test_equal_requests_have_equal_identities(one: dict[str, Any], other: dict[str, Any]) -> None:
    texts = [json.dumps(SamplingConfig.of(**a).identity()) for a in (one, other)]
    assert texts[0] == texts[1]


def test_every_option_has_another_value_here() -> None:
    assert OTHERS.keys() == specs(SamplingConfig).keys()


@pytest.mark.parametrize("name", sorted(OTHERS.keys() - {"batch_size", "novel_to", "like"}))
def test_every_option_that_changes_the_crystals_is_in_the_identity(name: str) -> None:
    needed = {key: value for key, value in OTHERS[name].items() if key != name}
    changed = SamplingConfig.of(**OTHERS[name]).identity()
    assert changed != SamplingConfig.of(**needed).identity()
    assert json.loads(json.dumps(changed, allow_nan=False)) == changed


def test_another_condition_is_another_identity() -> None:
    plain = SamplingConfig().identity()
    for name, value in {"formula": SALT.formula, "spacegroup": 1, "num_atoms": "1-2"}.items():
        found = SamplingConfig.of(**{name: value}).identity()
        assert found != plain and found["conditions"].keys() == {name}


def test_the_identity_is_a_copy() -> None:
    config = SamplingConfig.of(formula="NaCl")
    config.identity()["conditions"]["formula"] = "KCl"
    assert config.conditions == {"formula": "NaCl"}


def test_settings_need_neither_torch_nor_transformers() -> None:
    program = """
import sys
from flowllm import SamplingConfig
SamplingConfig.of(formula="NaCl", spacegroup="Fm-3m", best_of=2, rank="energy")
assert not {"torch", "transformers"} & sys.modules.keys()
"""
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_large_priors_draw_smaller_batches() -> None:
    config = SamplingConfig.of()
    assert [config.batch_size_for(n, 5_200_000) for n in (1, 100, 800, 5000)] == [32, 32, 200, 256]
    assert config.batch_size_for(5000, 7_000_000_000) == 16
    assert SamplingConfig.of(batch_size=3).batch_size_for(5000, 7_000_000_000) == 3
    for slow in ({"score": True}, {"best_of": 4}):
        assert SamplingConfig.of(**slow).batch_size_for(5000, 5_200_000) == 16
