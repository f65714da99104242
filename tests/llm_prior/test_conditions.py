"""Conditions of a request: composition, ranges, requests that no crystal meets, warnings."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from llm_prior import (
    Prior,
    PriorError,
    TaskMix,
    check_conditions,
    composition_conditions,
    propose,
    warn_of_untrained,
)
from llm_prior.prompts import generation_prompt
from llm_prior.text import SYMBOLS, encode
from prior_support import FMT, NACL, Script, ask

# --- compositions --------------------------------------------------------------------------------

# pymatgen writes the reduced formula of these with twice the atoms (O2, K2O2), so that a reduced
# formula is not always the smallest unit.
AMOUNTS = st.dictionaries(
    st.sampled_from(["H", "O", "N", "F", "Cl", "K", "Na", "Hg"]) | st.sampled_from(SYMBOLS),
    st.integers(1, 5),
    min_size=1,
    max_size=4,
)


def text_of(amounts: dict[str, int]) -> str:
    species = [symbol for symbol, count in amounts.items() for _ in range(count)]
    coords = np.arange(len(species))[:, None] / len(species) * np.ones(3)
    return encode(Structure(Lattice.cubic(5), species, coords), FMT)


@pytest.mark.filterwarnings("ignore:No Pauling electronegativity")  # He, Ne, Ar
@settings(max_examples=60, deadline=None)
@given(amounts=AMOUNTS, other=AMOUNTS)
def test_composition_conditions_fix_every_atom(
    amounts: dict[str, int], other: dict[str, int]
) -> None:
    formula = "".join(f"{symbol}{count}" for symbol, count in amounts.items())
    conditions = composition_conditions(formula)
    assert conditions["num_atoms"] == sum(amounts.values())
    check_conditions(conditions, FMT)
    exact, another = ask(
        Script([text_of(amounts), text_of(other)]), [conditions] * 2, max_attempts=1
    )
    assert exact.structure is not None
    assert (another.structure is not None) == (amounts == other)


@pytest.mark.parametrize(
    ("formula", "atoms"),
    [("O", ["O"]), ("O", ["O"] * 3), ("K1O1", ["K", "O"]), ("KO", ["K", "K", "O", "O"])],
)
def test_a_formula_that_pymatgen_doubles_can_be_asked_for(formula: str, atoms: list[str]) -> None:
    check_conditions({"formula": formula, "num_atoms": len(atoms)}, FMT)
    script = Script([text_of(Counter(atoms))])
    (proposal,) = ask(script, [{"formula": formula}], max_attempts=1)
    assert proposal.structure is not None


# --- what no crystal can meet --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"formula": "Na11Cl10"}, "formula Na11Cl10 has 21 atoms, this model writes at most 20"),
        ({"num_atoms": 21}, "21 atoms are too many, this model writes at most 20"),
        ({"num_atoms": "5-30"}, "num_atoms 5-30 ends at 30 atoms, this model writes at most 20"),
        ({"num_atoms": "10-5"}, "num_atoms '10-5' is an empty range; .* as in 5-10"),
        ({"num_atoms": (9, 8)}, r"num_atoms \(9, 8\) is an empty range; .* as in 8-9"),
        ({"num_atoms": "0-5"}, "num_atoms '0-5' is a range that starts below 1; .* as 1-5"),
        ({"num_atoms": (-2, 5)}, r"num_atoms \(-2, 5\) is a range that starts below 1"),
        ({"formula": "TiO2", "num_atoms": "4-5"}, "4-5 atoms are no whole .* TiO2; .* range"),
        ({"spacegroup": "Fm-5m"}, "spacegroup 'Fm-5m' is not .* symbol such as Fm-3m"),
        ({"spacegroup": "P-3m"}, "spacegroup 'P-3m' stands for the groups 162, 164; give the num"),
        ({"formula": "TiO2", "num_atoms": 4}, "4 atoms are no whole .* units of TiO2; .* of 3"),
        ({"formula": "TiO2", "elements": "Na,Cl"}, "formula TiO2 is not of the elements Cl, Na"),
        ({"elements": "Na,Cl", "num_atoms": 1}, "1 atoms cannot have the elements Cl, Na; give"),
        ({"colour": "red"}, "unknown condition 'colour'; known are formula, elements"),
        ({"spacegroup": 231}, "spacegroup 231 is not a whole number from 1 to 230"),
        ({"spacegroup": "225, 231"}, "spacegroup ' 231' is not a whole number from 1 to 230"),
        ({"spacegroup": "9-5"}, "spacegroup '9-5' is an empty range; .* as in 5-9"),
        ({"spacegroup": []}, r"spacegroup \[\] names no group; give one, such as 225"),
        (
            {"formula": "NaCl", "num_atoms": 2, "spacegroup": "Ia-3d"},
            "primitive cell, has exactly space group 230; groups that can: .*225",
        ),
        (
            {"formula": "SrTiO3", "num_atoms": 5, "spacegroup": "222-230"},
            "exactly one of the space groups 222-230; groups that can: .*221$",
        ),
    ],
)
def test_what_no_crystal_can_meet_is_refused_before_a_draw(
    conditions: dict[str, Any], message: str
) -> None:
    with pytest.raises(PriorError, match=message):
        check_conditions(conditions, FMT)
    with pytest.raises(PriorError, match=message):
        ask(Script(), [{}, conditions])


@pytest.mark.parametrize(
    "conditions",
    [
        {"formula": "Na10Cl10"},
        {"formula": "NaCl", "num_atoms": 20},
        {"formula": "TiO2", "elements": ["Ti", "O"], "num_atoms": "6"},
        {"elements": "Na,Cl", "num_atoms": 2},
        {"num_atoms": "5-10"},
        {"num_atoms": (1, 20), "formula": "TiO2"},
        {"elements": "Na,Cl", "num_atoms": [1, 2]},
        {"spacegroup": "Fm-3m"},
        {"formula": "SrTiO3", "num_atoms": 5, "spacegroup": "221-230"},
    ],
)
def test_what_a_crystal_can_meet_passes(conditions: dict[str, Any]) -> None:
    check_conditions(conditions, FMT)


# --- ranges of atoms -----------------------------------------------------------------------------


def test_a_range_is_not_stated_in_the_prompt_and_is_met_by_every_crystal(prior: Prior) -> None:
    requests = [{"num_atoms": "3-5"}, {"num_atoms": (3, 5), "elements": "Ti,O"}] * 4
    requests += [{"formula": "TiO2", "num_atoms": "5-8"}] * 2
    found = propose(prior, requests, seed=0)
    for conditions, proposal in zip(requests, found, strict=True):
        others = {name: value for name, value in conditions.items() if name != "num_atoms"}
        assert proposal.prompt == generation_prompt(others)
        assert proposal.structure is not None and proposal.attempts == 1
        if "formula" in conditions:
            assert len(proposal.structure) == 6
        else:
            assert 3 <= len(proposal.structure) <= 5


@pytest.mark.parametrize(("num_atoms", "accepted"), [("2-3", True), ((1, 2), True), ("3-9", False)])
def test_a_crystal_outside_the_range_is_drawn_again_without_constraint(
    num_atoms: Any, accepted: bool
) -> None:
    (proposal,) = ask(Script([NACL] * 2), [{"num_atoms": num_atoms}], max_attempts=2)
    assert (proposal.structure is not None) == accepted
    assert proposal.rejects == ({} if accepted else {"other_num_atoms": 2})


def test_a_range_of_one_number_is_that_number(prior: Prior) -> None:
    one, other = (
        propose(prior, [{"num_atoms": "4-4"}], seed=1),
        propose(prior, [{"num_atoms": 4}], seed=1),
    )
    assert one == other and "The number of atoms is 4. " in one[0].prompt


# --- sets of space groups ------------------------------------------------------------------------


def test_each_prompt_states_a_group_of_the_set_that_can_hold_the_atoms() -> None:
    """Of these cubic groups only 215 and 221 hold SrTiO3, whatever the batch."""
    request = {"formula": "SrTiO3", "num_atoms": 5, "spacegroup": "214, 215, 221-230"}
    holding = [g for g in (214, 215, *range(221, 231)) if _holds({**request, "spacegroup": g})]
    assert 221 in holding and len(holding) < 12
    script = Script(["no crystal"] * 40)
    found = ask(script, [request] * 40, max_attempts=1)
    prompts = Counter(proposal.prompt for proposal in found)
    expected = [generation_prompt({**request, "spacegroup": group}) for group in holding]
    assert prompts.keys() == set(expected)
    alone = ask(Script(["no crystal"]), [request], indices=[17], max_attempts=1)
    assert alone[0].prompt == found[17].prompt


def _holds(conditions: dict[str, Any]) -> bool:
    try:
        check_conditions(conditions, FMT)
    except PriorError:
        return False
    return True


# --- what the model was not trained with ---------------------------------------------------------


def test_a_condition_that_the_model_never_saw_is_named(caplog: pytest.LogCaptureFixture) -> None:
    prior = Prior(model=torch.nn.Identity(), tokenizer=None, fmt=FMT)
    warn_of_untrained(prior, {"band_gap": 1.0})  # nothing is recorded
    prior.info["conditions"] = ["formula", "num_atoms"]
    warn_of_untrained(prior, {"formula": "NaCl", "num_atoms": 2})
    assert not caplog.records
    warn_of_untrained(prior, {"formula": "NaCl", "band_gap": 1.0, "spacegroup": 1})
    (record,) = caplog.records
    assert "never trained with band_gap and spacegroup" in record.getMessage()


def test_a_task_that_the_model_never_saw_is_named(caplog: pytest.LogCaptureFixture) -> None:
    prior = Prior(model=torch.nn.Identity(), tokenizer=None, fmt=FMT)
    prior.info["recipe"] = {"tasks": asdict(TaskMix())}
    warn_of_untrained(prior)
    warn_of_untrained(prior, infill=True)
    assert not caplog.records
    mix = TaskMix(infill=0, unconditional=0, formula=0.5, composition=0.5)
    prior.info["recipe"] = {"tasks": asdict(mix)}
    warn_of_untrained(prior, {"formula": "NaCl"})
    assert not caplog.records
    warn_of_untrained(prior, infill=True)
    warn_of_untrained(prior)
    assert [record.getMessage().split(" and will")[0] for record in caplog.records] == [
        "this model was never trained with infilling",
        "this model was never trained with a prompt without conditions",
    ]


def test_a_range_counts_as_no_condition(caplog: pytest.LogCaptureFixture) -> None:
    """It constrains the text and is not in the prompt, so the model need not know it."""
    prior = Prior(model=torch.nn.Identity(), tokenizer=None, fmt=FMT)
    prior.info["conditions"] = ["formula"]
    warn_of_untrained(prior, {"num_atoms": "5-10", "formula": "NaCl"})
    assert not caplog.records
    mix = TaskMix(infill=0, unconditional=0, formula=0.5, composition=0.5)
    prior.info["recipe"] = {"tasks": asdict(mix)}
    warn_of_untrained(prior, {"num_atoms": "5-10"})
    assert "a prompt without conditions" in caplog.records[0].getMessage()
