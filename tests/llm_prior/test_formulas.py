"""Formulas as people write them: exact amounts, or the reason why there are none."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Composition

from llm_prior.errors import PriorError
from llm_prior.formulas import parse_formula
from llm_prior.prompts import parse_composition, render_elements, render_formula
from llm_prior.text import SYMBOLS

BLUE_VITRIOL = {"Cu": 1, "S": 1, "O": 9, "H": 10}


@pytest.mark.parametrize(
    "formula",
    [
        "CuSO4.5H2O",
        "CuSO4·5H2O",
        "CuSO4 · 5 H2O",
        "CuSO4•5H2O",
        "CuSO4∙5H2O",
        "CuSO4⋅5H2O",
        "CuSO4*5H2O",
        "CuSO₄·5H₂O",
        "CuSO4.5D2O",
        "CuSO4.5 H2O",
        "CuSO4.(H2O)5",
        "CuSO4(H2O)5",
        "5H2O.CuSO4",
        "(CuSO4).5(H2O)",
    ],
)
def test_a_hydrate_is_read_in_every_notation(formula):
    assert parse_formula(formula) == BLUE_VITRIOL
    assert parse_composition(formula) == Composition(BLUE_VITRIOL)


@pytest.mark.parametrize(
    ("formula", "amounts"),
    [
        ("LiFePO₄", {"Li": 1, "Fe": 1, "P": 1, "O": 4}),
        ("MgSO4.H2O", {"Mg": 1, "S": 1, "O": 5, "H": 2}),
        ("CaSO4.0.5H2O", {"Ca": 1, "S": 1, "O": "9/2", "H": 1}),
        ("CaSO4·0.5H2O", {"Ca": 1, "S": 1, "O": "9/2", "H": 1}),
        ("Na2S2O3.1.5H2O", {"Na": 2, "S": 2, "O": "9/2", "H": 3}),
        ("3CdSO4.8H2O", {"Cd": 3, "S": 3, "O": 20, "H": 16}),
        ("Al2(SO4)3.18H2O", {"Al": 2, "S": 3, "O": 30, "H": 36}),
        ("(NH4)2Fe(SO4)2.6H2O", {"N": 2, "H": 20, "Fe": 1, "S": 2, "O": 14}),
        ("CaO.Al2O3", {"Ca": 1, "O": 4, "Al": 2}),
        ("K2O.Al2O3.6SiO2", {"K": 2, "O": 16, "Al": 2, "Si": 6}),
        ("CaCl2·6NH3", {"Ca": 1, "Cl": 2, "N": 6, "H": 18}),
        ("Li0.5CoO2", {"Li": "1/2", "Co": 1, "O": 2}),
        ("Li1.5 Co1 O2", {"Li": "3/2", "Co": 1, "O": 2}),
        ("LiNi0.5Mn1.5O4", {"Li": 1, "Ni": "1/2", "Mn": "3/2", "O": 4}),
        ("YBa2Cu3O6.5", {"Y": 1, "Ba": 2, "Cu": 3, "O": "13/2"}),
        ("Na0.5H2O", {"Na": "1/2", "H": 2, "O": 1}),
        ("Li0.5CoO2.H2O", {"Li": "1/2", "Co": 1, "O": 3, "H": 2}),
        ("K3[Fe(CN)6]", {"K": 3, "Fe": 1, "C": 6, "N": 6}),
        ("D2O", {"H": 2, "O": 1}),
        ("NaN", {"Na": 1, "N": 1}),
        ("2H2O", {"H": 4, "O": 2}),
    ],
)
def test_amounts_are_exact(formula, amounts):
    assert parse_formula(formula) == {symbol: Fraction(n) for symbol, n in amounts.items()}


@pytest.mark.parametrize(
    ("formula", "reason"),
    [
        ("(Fe,Mn)O", "a comma or slash leaves the share of each element open"),
        ("(Fe0.5,Mn0.5)O", "a comma or slash"),
        ("Ca5(PO4)3(OH,F)", "a comma or slash"),
        ("Fe/Mn", "a comma or slash"),
        ("Fe3+", "charges are not read"),
        ("Fe³⁺", "charges are not read"),
        ("SO4 2-", "charges are not read"),
        ("[Fe(CN)6]3-", "charges are not read"),
        ("Na+Cl-", "charges are not read"),
        ("Li1-xCoO2", "an amount is unknown"),
        ("YBa2Cu3O7-δ", "an amount is unknown"),
        ("Fe2O3-x", "an amount is unknown"),
        ("NaCl:Ce", "dopants and inclusions are not read"),
        ("H2@C60", "dopants and inclusions are not read"),
        ("Li1.5CoO2", "the full stop may separate compounds or be a decimal point"),
        ("CaCl2.6NH3", "the full stop may separate compounds"),
        ("Ni1.5H2O", "the full stop may separate compounds or be a decimal point"),
        ("(NH4)1.5H2O", "the full stop may separate compounds"),
        ("Na2O.2SiO2", "the full stop may separate compounds"),
        ("Li.5CoO2", "the full stop may separate compounds"),
        ("BaTiO3-PbTiO3", "is not a chemical formula"),
        ("NaCl (s)", "is not a chemical formula"),
        ("Na(Cl]", "is not a chemical formula"),
        ("CaSO4.½H2O", "is not a chemical formula"),
        ("Qq2O", "unknown element"),
        ("CuSO4.0H2O.", "is not a chemical formula|amounts above 0"),
        ("Na" + "9" * 5000, "an amount that is too large"),
        ("(" * 500 + "Na" + ")" * 500, "is not a chemical formula"),
    ],
)
def test_what_is_open_is_refused_with_the_reason(formula, reason):
    for parse in (parse_formula, parse_composition, render_formula):
        with pytest.raises(PriorError, match=reason) as error:
            parse(formula)
        assert "\n" not in str(error.value)


def test_fractions_of_atoms_are_refused_with_the_whole_formula():
    with pytest.raises(PriorError, match="'Li0.5CoO2' needs whole amounts, such as Li1Co2O4"):
        parse_composition("Li0.5CoO2")
    with pytest.raises(PriorError, match="'CaSO4.0.5H2O' needs whole amounts, such as Ca2S2O9H2"):
        parse_composition("CaSO4.0.5H2O")


def test_isotopes_are_hydrogen_among_the_elements():
    assert render_elements("D,O") == "H, O"
    assert render_formula("D2O") == "H2O"


@settings(deadline=None)
@given(
    parts=st.lists(
        st.dictionaries(st.sampled_from(SYMBOLS), st.integers(1, 30), min_size=1, max_size=4),
        min_size=1,
        max_size=3,
    ),
    factors=st.lists(st.integers(1, 12), min_size=3, max_size=3),
    bracket=st.sampled_from(["()", "[]", "{}"]),
)
def test_parts_and_brackets_add_up(parts, factors, bracket):
    total: dict[str, int] = {}
    written = []
    in_brackets = []
    for part, factor in zip(parts, factors, strict=False):
        text = "".join(f"{s}{n}" for s, n in part.items())
        written.append(f"{factor}{text}")
        in_brackets.append(f"{bracket[0]}{text}{bracket[1]}{factor}")
        for symbol, amount in part.items():
            total[symbol] = total.get(symbol, 0) + factor * amount
    assert parse_formula("·".join(written)) == total
    assert parse_formula("".join(in_brackets)) == total


@settings(deadline=None, max_examples=300)
@given(st.text(alphabet="NaClHeOD0125.·()[]{}+-*@x,/ \n₂½", max_size=25))
def test_any_text_is_read_or_refused(text):
    try:
        amounts = parse_formula(text)
    except PriorError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert amounts and all(amount > 0 for amount in amounts.values())


@pytest.mark.parametrize("text", ["Ti02", "Pu02", "Na2Si03", "Al2(S04)3"])
def test_a_zero_in_place_of_an_oxygen_is_named(text: str) -> None:
    with pytest.raises(PriorError, match="letter O"):
        parse_formula(text)
