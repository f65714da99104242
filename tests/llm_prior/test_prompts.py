"""Prompts and conditions: sentences, formulas, elements, numbers, space groups."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import spglib
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Composition, Lattice, Structure
from pymatgen.symmetry.groups import SpaceGroup

from llm_prior.errors import PriorError
from llm_prior.prompts import (
    ATTRIBUTES,
    BY_NAME,
    generation_prompt,
    infill_prompt,
    known_conditions,
    parse_composition,
    render_elements,
    render_formula,
    stated_conditions,
)
from llm_prior.spacegroups import (
    CRYSTAL_SYSTEMS,
    parse_spacegroup,
    parse_spacegroups,
    render_spacegroups,
)
from llm_prior.text import SYMBOLS

HEAD = "Below is a description of a bulk material. "
TAIL = (
    "Generate a description of the lengths and angles of the lattice vectors and then the element "
    "type and coordinates for each atom within the lattice:\n"
)
SENTENCES = {
    "formula": ("Pm2ZnRh", "The chemical formula is Pm2ZnRh. "),
    "elements": ("Zn,Pm-Rh", "The elements are Pm, Rh, Zn. "),
    "num_atoms": (4, "The number of atoms is 4. "),
    "spacegroup": (225, "The spacegroup number is 225. "),
    "e_above_hull": (0.0149, "The energy above the convex hull is 0.01. "),
    "formation_energy_per_atom": (-0.5, "The formation energy per atom is -0.50. "),
    "band_gap": (1, "The band gap is 1.00. "),
}

# pymatgen orders formulas by electronegativity, which some elements lack; it says so once each.
ignores_electronegativity = pytest.mark.filterwarnings("ignore:No Pauling electronegativity")


@pytest.fixture
def rock_salt() -> Structure:
    return Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0] * 3, [0.5] * 3]
    )


# --- sentences -----------------------------------------------------------------------------------


def test_the_unconditional_prompt_is_the_papers() -> None:
    assert generation_prompt({}) == HEAD + TAIL


def test_the_infill_prompt_is_the_papers() -> None:
    masked = "4.0 4.0 4.0\n90 90 90\n[MASK]\n0.00 0.00 0.00"
    assert infill_prompt(masked) == (
        "Below is a partial description of a bulk material where one element has been replaced "
        'with the string "[MASK]":\n'
        "4.0 4.0 4.0\n90 90 90\n[MASK]\n0.00 0.00 0.00\n"
        "Generate an element that could replace [MASK] in the bulk material:\n"
    )


def test_the_sentences_cover_the_table() -> None:
    assert list(SENTENCES) == [attribute.name for attribute in ATTRIBUTES]


@given(st.lists(st.sampled_from(list(SENTENCES)), unique=True))
@settings(deadline=None)
def test_any_subset_in_any_order_is_written_in_the_order_of_the_table(names: list[str]) -> None:
    prompt = generation_prompt({name: SENTENCES[name][0] for name in names})
    expected = "".join(text for name, (_, text) in SENTENCES.items() if name in names)
    assert prompt == HEAD + expected + TAIL


def test_an_unknown_condition_is_refused_with_the_known_ones() -> None:
    with pytest.raises(PriorError, match="unknown condition 'bandgap'; known are formula, .*gap$"):
        generation_prompt({"bandgap": 1})


# --- formulas ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_formula", "rendered"),
    [
        ("NaCl", "NaCl"),
        ("ClNa", "NaCl"),
        ("Na4Cl4", "NaCl"),
        ("Na4 Cl4\n", "NaCl"),
        ("Fe(OH)2", "Fe(HO)2"),
        ("K3[Fe(CN)6]", "K3Fe(CN)6"),
        ("Na2.0Cl2.0", "NaCl"),
        ("NaN", "NaN"),  # a formula, not a missing number
        ("O", "O2"),  # Materials Project's names of the diatomic elements
        ("Si8", "Si"),
        (Composition("Ba2Ti2O6"), "BaTiO3"),
    ],
)
def test_a_formula_is_rendered_reduced_in_pymatgens_order(given_formula, rendered) -> None:
    assert render_formula(given_formula) == rendered


@ignores_electronegativity
@given(st.dictionaries(st.sampled_from(SYMBOLS), st.integers(1, 20), min_size=1, max_size=6))
@settings(deadline=None)
def test_rendering_a_formula_again_changes_nothing(amounts: dict[str, int]) -> None:
    formula = "".join(f"{symbol}{amount}" for symbol, amount in amounts.items())
    rendered = render_formula(formula)
    assert render_formula(rendered) == rendered
    divisor = math.gcd(*amounts.values())
    reduced = {symbol: amount // divisor for symbol, amount in amounts.items()}
    again = parse_composition(rendered).as_dict()
    assert again == reduced or again == {symbol: 2 * n for symbol, n in reduced.items()}


@given(st.dictionaries(st.sampled_from(SYMBOLS), st.integers(1, 20), min_size=1, max_size=6))
@settings(deadline=None)
def test_a_composition_keeps_its_amounts(amounts: dict[str, int]) -> None:
    formula = " ".join(f"{symbol}{amount}" for symbol, amount in amounts.items())
    assert parse_composition(formula).as_dict() == amounts


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("", "'' is not a chemical formula"),
        ("  ", "is not a chemical formula"),
        ("()", "is not a chemical formula"),
        ("Xx2", "unknown element Xx in formula 'Xx2'"),
        ("Ln2O3", "unknown element Ln"),
        ("NACL", "unknown element A"),
        ("nacl", "'nacl' is not a chemical formula"),
        ("NaCl)", "is not a chemical formula"),
        ("(NaCl", "is not a chemical formula"),
        ("Na0.5Cl", "'Na0.5Cl' needs whole amounts"),
        ("Na1.5Cl1.5", "needs whole amounts"),
        ("Na1.2.3", "is not a chemical formula"),
        ("Na.", "is not a chemical formula"),
        ("Na0", "needs amounts above 0"),
        ("Na0Cl", "needs amounts above 0"),
        ("Na-1", "is not a chemical formula"),
        ("Na+Cl-", "is not a chemical formula"),
        ("Na@Cl", "is not a chemical formula"),
        ("Na1e3", "is not a chemical formula"),
        ("Na\u0663Cl", "is not a chemical formula"),
        ("Na" + "9" * 5000, "an amount that is too large"),
        ("Na1000001", "needs whole amounts"),
        (None, "None is not a chemical formula"),
        (float("nan"), "nan is not a chemical formula"),
        (11, "11 is not a chemical formula"),
    ],
)
def test_what_is_no_formula_is_refused(formula, message: str) -> None:
    with pytest.raises(PriorError, match=message) as caught:
        render_formula(formula)
    assert len(str(caught.value).splitlines()) == 1


@ignores_electronegativity
@given(
    st.one_of(
        st.text(),
        st.text(alphabet="NaClHeOD0123.()[]{}+-*@ \n", max_size=30),
        st.integers(1, 200).map(lambda depth: "(" * depth + "Na" + ")" * depth),
        st.integers(1, 200).map("(".__mul__),
    )
)
@settings(deadline=None, max_examples=500)
def test_any_text_is_a_formula_or_refused(text: str) -> None:
    try:
        rendered = render_formula(text)
    except PriorError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert render_formula(rendered) == rendered


# --- elements and numbers ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        "Na-Cl",
        "Cl,Na",
        " Na , Cl ",
        "Cl, Na",
        ["Na", "Cl"],
        ("Cl", "Na", "Na"),
        {"Na", "Cl"},
        np.array(["Na", "Cl"]),
        Composition("NaCl").elements,
    ],
    ids=["dash", "comma", "spaces", "sorted", "list", "tuple", "set", "array", "elements"],
)
def test_elements_are_sorted_by_symbol(value) -> None:
    assert render_elements(value) == "Cl, Na"


@given(st.lists(st.sampled_from(SYMBOLS), min_size=1, max_size=7))
@settings(deadline=None)
def test_rendering_elements_again_changes_nothing(symbols: list[str]) -> None:
    rendered = render_elements(symbols)
    assert render_elements(rendered) == rendered
    assert rendered.split(", ") == sorted(set(symbols))


@pytest.mark.parametrize("value", ["", "NaCl", "Na,,Cl", "Xx", "na", [], (), None, 3, ["Na", None]])
def test_what_is_no_set_of_elements_is_refused(value) -> None:
    with pytest.raises(PriorError, match="write elements like Na,Cl"):
        generation_prompt({"elements": value})


@pytest.mark.parametrize(
    ("name", "value", "rendered"),
    [
        ("spacegroup", 1, "1"),
        ("spacegroup", "230", "230"),
        ("spacegroup", 225.0, "225"),
        ("spacegroup", np.int64(62), "62"),
        ("num_atoms", "8", "8"),
        ("num_atoms", "5-10", "5-10"),
        ("num_atoms", " 5 - 10 ", "5-10"),
        ("num_atoms", (5, 10), "5-10"),
        ("num_atoms", [np.int64(5), "10"], "5-10"),
        ("num_atoms", "7-7", "7"),
        ("spacegroup", "Fm-3m", "225"),
        ("e_above_hull", 0, "0.00"),
        ("e_above_hull", -0.001, "0.00"),
        ("e_above_hull", "0.126", "0.13"),
        ("band_gap", np.float32(1.5), "1.50"),
        ("formation_energy_per_atom", -3.999, "-4.00"),
    ],
)
def test_a_number_is_rendered_in_one_way(name: str, value, rendered: str) -> None:
    assert BY_NAME[name].render(value) == rendered
    assert BY_NAME[name].render(rendered) == rendered


@pytest.mark.parametrize("name", ["num_atoms", "spacegroup"])
@pytest.mark.parametrize(
    "value",
    [0, -1, 12.5, "12.5", float("nan"), "nan", float("inf"), "-inf", "1e400", 10**400, "x", "",
     None, [0]],
    ids=lambda value: str(value)[:8],
)  # fmt: skip
def test_what_is_no_whole_number_in_range_is_refused(name: str, value) -> None:
    with pytest.raises(PriorError, match=f"{name} .* is not a (whole )?number"):
        generation_prompt({name: value})


def test_there_are_230_space_groups() -> None:
    with pytest.raises(PriorError, match="spacegroup 231 is not a whole number from 1 to 230"):
        generation_prompt({"spacegroup": 231})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("10-5", "'10-5' is an empty range; write the smaller number first, as in 5-10"),
        ("0-5", "'0-5' is a range that starts below 1; give one such as 1-5"),
        ((-3, 5), "is a range that starts below 1"),
        ((2.5, 4), "is not a whole number from 1 to 1000000 or a range of them such as 5-10"),
        ("5-10-15", "is not a whole number"),
        ("5-", "is not a whole number"),
        ("5-x", "is not a whole number"),
        ((1, 2, 3), "is not a whole number"),
        ("1-" + "9" * 5000, "is not a whole number"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_what_is_no_range_of_atoms_is_refused(value: Any, message: str) -> None:
    with pytest.raises(PriorError, match=message):
        generation_prompt({"num_atoms": value})


def test_a_range_of_atoms_is_not_stated_and_judges_a_crystal(rock_salt: Structure) -> None:
    conditions = {"formula": "NaCl", "num_atoms": "5-10"}
    assert generation_prompt(conditions) == generation_prompt({"formula": "NaCl"})
    assert stated_conditions(conditions) == ["formula"]
    num_atoms = BY_NAME["num_atoms"]
    met = {value: num_atoms.holds_for(rock_salt, value) for value in ("5-10", "8-9", "1-7", 8)}
    assert met == {"5-10": True, "8-9": True, "1-7": False, 8: True}
    with pytest.raises(ValueError, match="a structure does not tell its band_gap"):
        BY_NAME["band_gap"].holds_for(rock_salt, 1)


# --- space groups --------------------------------------------------------------------------------


def test_the_standard_symbols_are_those_of_spglib() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # spglib's old error handling
        settings = [spglib.get_spacegroup_type(hall) for hall in range(1, 531)]
    standard = {group.number: group.international_short for group in reversed(settings)}
    assert len(standard) == 230
    for number, symbol in standard.items():
        assert parse_spacegroup(symbol) == number
        assert parse_spacegroup(symbol.replace("_", "")) == number
        assert parse_spacegroup(f" {symbol.lower()} ") == number
    unknown = 0
    for group in settings:  # a few are unknown, none is taken for another
        try:
            assert parse_spacegroup(group.international_short) == group.number
        except PriorError:
            unknown += 1
    assert unknown < 10


@pytest.mark.parametrize(
    ("symbol", "number"),
    [
        ("F m -3 m", 225),
        ("P 1 21/c 1", 14),
        ("P2_1/n", 14),  # another setting
        ("P6_3/mmc", 194),
        ("R-3m:H", 166),
        ("Fd-3m:2", 227),
        ("F4/m-32/m", 225),  # full symbol
        ("Fm3m", 225),  # International Tables until 1983
        ("Ia3", 206),
        ("Im3", 204),
        ("Cmca", 64),  # until 1992
        ("Abm2", 39),
    ],
)
def test_other_ways_to_write_a_symbol_are_known(symbol: str, number: int) -> None:
    assert parse_spacegroup(symbol) == number


@pytest.mark.parametrize(
    ("value", "numbers", "text"),
    [
        ("225,227", (225, 227), "225, 227"),
        ("F d -3 m, 225,Fm-3m", (225, 227), "225, 227"),
        ("195-197, 199", (195, 196, 197, 199), "195-197, 199"),
        (["Fm-3m", np.int64(227)], (225, 227), "225, 227"),
        (range(1, 3), (1, 2), "1-2"),
        ({225}, (225,), "225"),
        ("7-7", (7,), "7"),
    ],
)
def test_a_set_of_groups_is_a_list_or_a_range(
    value: Any, numbers: tuple[int, ...], text: str
) -> None:
    assert parse_spacegroups(value) == numbers
    assert BY_NAME["spacegroup"].render(value) == text


@given(st.sets(st.integers(1, 230), min_size=1))
def test_the_short_text_of_a_set_of_groups_is_read_back(numbers: set[int]) -> None:
    assert parse_spacegroups(render_spacegroups(sorted(numbers))) == tuple(sorted(numbers))


def test_a_prompt_states_no_set_of_groups() -> None:
    assert generation_prompt({"spacegroup": "225,227"}) == generation_prompt({})
    assert generation_prompt({"spacegroup": "225,Fm-3m"}) == generation_prompt({"spacegroup": 225})
    assert stated_conditions({"spacegroup": range(195, 231), "formula": "NaCl"}) == ["formula"]


def test_crystal_systems_are_those_of_pymatgen() -> None:
    for system, numbers in CRYSTAL_SYSTEMS.items():
        for number in numbers:
            symbol = SpaceGroup.from_int_number(number).symbol
            assert SpaceGroup(symbol).crystal_system == system
    assert [n for numbers in CRYSTAL_SYSTEMS.values() for n in numbers] == list(range(1, 231))


@pytest.mark.parametrize("name", ["e_above_hull", "formation_energy_per_atom", "band_gap"])
@pytest.mark.parametrize(
    "value",
    [float("nan"), "nan", float("inf"), "-inf", "1e400", 10**400, 1e7, "x", "", None, [1]],
    ids=lambda value: str(value)[:8],
)
def test_what_is_no_finite_energy_is_refused(name: str, value) -> None:
    with pytest.raises(PriorError, match=f"{name} .* is not a (number|finite number of eV)"):
        generation_prompt({name: value})


# --- what is known of a crystal ------------------------------------------------------------------


def test_what_can_be_read_off_a_structure_is_known(rock_salt: Structure) -> None:
    known = known_conditions(rock_salt, {})
    assert generation_prompt(known) == (
        HEAD + "The chemical formula is NaCl. The elements are Cl, Na. The number of atoms is 8. "
        + TAIL
    )  # fmt: skip


def test_missing_values_are_left_out_and_the_structure_beats_the_table(
    rock_salt: Structure,
) -> None:
    properties = {
        "formula": "KBr",
        "num_atoms": 1,
        "spacegroup": 225,
        "e_above_hull": 0.0,
        "band_gap": float("nan"),
        "formation_energy_per_atom": None,
        "colour": "white",
    }
    known = known_conditions(rock_salt, properties)
    assert set(known) == {"formula", "elements", "num_atoms", "spacegroup", "e_above_hull"}
    assert known["formula"] == "NaCl" and known["num_atoms"] == 8


@ignores_electronegativity
@given(st.lists(st.sampled_from(SYMBOLS), min_size=1, max_size=20))
@settings(deadline=None, max_examples=50)
def test_what_is_read_off_a_structure_can_always_be_asked_for(symbols: list[str]) -> None:
    structure = Structure(Lattice.cubic(9), symbols, np.linspace(0, 1, 3 * len(symbols) + 3)[
        : 3 * len(symbols)
    ].reshape(-1, 3))  # fmt: skip
    known = known_conditions(structure, {})
    for name, value in known.items():
        rendered = BY_NAME[name].render(value)
        assert BY_NAME[name].render(rendered) == rendered
