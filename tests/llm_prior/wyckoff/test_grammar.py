"""Fields that may follow: whatever is written has the composition and the group, and goes on."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from llm_prior.composition import CompositionRule
from llm_prior.errors import PriorError
from llm_prior.text import SYMBOLS
from llm_prior.wyckoff import WyckoffFormat, actual_group, decode, encode, space_group, to_text
from llm_prior.wyckoff.feasibility import assignments
from llm_prior.wyckoff.grammar import Cursor, Grammar, fields_of
from llm_prior.wyckoff.spacing import MIN_DISTANCE
from llm_prior.wyckoff.supergroups import keeps_group

FMT = WyckoffFormat()


def grammar(conditions, groups=None, **kwargs) -> Grammar:
    rule = CompositionRule.from_conditions(conditions, FMT.max_atoms, **kwargs)
    return Grammar(FMT, rule, groups)


def write(grammar: Grammar, rng: np.random.Generator) -> Cursor:
    """A crystal of random legal fields; lengths are drawn near 6 Angstrom."""
    cursor = grammar.cursor()
    while not cursor.finished:
        choices = cursor.legal()
        assert all(len(choice.values) for choice in choices)
        kind, values = choices[rng.integers(len(choices))]
        weights = np.ones(len(values))
        if kind == "length":
            weights = np.exp(-(((values / 10 - 6) / 3) ** 2)) + 1e-9
        cursor.advance(kind, int(rng.choice(values, p=weights / weights.sum())))
    return cursor


def nearest(cursor: Cursor) -> float:
    structure = cursor.crystal().conventional()
    distances = structure.distance_matrix + 99 * np.eye(len(structure))
    return min(distances.min(), *structure.lattice.abc)


@pytest.mark.parametrize(
    ("formula", "counts", "groups"),
    [
        ("NaCl", {"Na": 1, "Cl": 1}, [225, 221, 186, 1]),
        ("TiO2", {"Ti": 1, "O": 2}, [136, 141, 61, 60, 205]),
        ("SrTiO3", {"Sr": 1, "Ti": 1, "O": 3}, [221, 62, 140, 99]),
        ("LiFePO4", {"Li": 1, "Fe": 1, "P": 1, "O": 4}, [2, 4, 5, 7]),
        ("Fe", {"Fe": 1}, [229, 194, 58, 63]),
        ("Mg2SiO4", {"Mg": 2, "Si": 1, "O": 4}, [227, 159, 134, 12]),
        ("CaF2", {"Ca": 1, "F": 2}, [225, 14, 8, 166]),
    ],
)
def test_samples_have_the_formula_and_the_group(formula, counts, groups):
    rng = np.random.default_rng(0)
    for number in groups:
        of_group = grammar({"formula": formula}, [number])
        for _ in range(3):
            cursor = write(of_group, rng)
            crystal = cursor.crystal()
            assert decode(to_text(crystal, FMT), FMT) == crystal
            units = crystal.num_atoms // sum(counts.values())
            assert crystal.composition == {e: units * n for e, n in counts.items()}
            assert crystal.spacegroup == number
            if not cursor.crowded:
                assert actual_group(crystal) == number
                analyzer = SpacegroupAnalyzer(crystal.primitive())
                assert analyzer.get_space_group_number() == number
                assert nearest(cursor) >= MIN_DISTANCE


def test_what_a_grammar_keeps_is_bounded(monkeypatch):
    monkeypatch.setattr("llm_prior.wyckoff.grammar._MOST_KNOWN", 20)
    of_request, rng = grammar({"num_atoms": "8"}), np.random.default_rng(0)
    for _ in range(20):
        write(of_request, rng)
    kept = [len(value) for value in vars(of_request).values() if isinstance(value, dict)]
    assert len(kept) == 4 and 1 < max(kept) <= 20


def test_few_cells_are_too_crowded():
    rng = np.random.default_rng(1)
    of_group = grammar({"formula": "SrTiO3"}, [62])
    assert sum(write(of_group, rng).crowded for _ in range(30)) <= 3


@pytest.mark.parametrize(
    ("conditions", "groups"),
    [({}, [225, 62, 1]), ({"num_atoms": 5}, [221, 99]), ({"elements": "Na-Cl"}, [194, 2])],
)
def test_conditions_without_a_formula_are_met(conditions, groups):
    rng = np.random.default_rng(0)
    of_groups = grammar(conditions, groups)
    for _ in range(6):
        crystal = write(of_groups, rng).crystal()
        assert actual_group(crystal) == crystal.spacegroup
        assert crystal.spacegroup in groups
        assert crystal.num_atoms <= FMT.max_atoms
        if "num_atoms" in conditions:
            assert crystal.num_atoms == conditions["num_atoms"]
        if "elements" in conditions:
            assert set(crystal.composition) == {"Na", "Cl"}


def test_excluded_elements_are_not_offered():
    of_group = grammar({}, [225], exclude_elements=["H", "O"])
    cursor = of_group.cursor()
    cursor.advance("group", 225)
    (choice,) = cursor.legal()
    offered = {SYMBOLS[value] for value in choice.values}
    assert len(offered) == 116
    assert not offered & {"H", "O"}


def test_real_crystals_are_legal_in_every_field(mp20_structures):
    for structure in mp20_structures:
        crystal = decode(encode(structure, FMT), FMT)
        formula = structure.composition.reduced_formula
        conditions = {"formula": formula, "num_atoms": crystal.num_atoms}
        cursor = grammar(conditions, [crystal.spacegroup]).cursor()
        for kind, value in fields_of(crystal, FMT):
            cursor.advance(kind, value)
        assert cursor.finished
        assert not cursor.crowded
        assert cursor.crystal() == crystal


def test_groups_offered_are_those_with_an_exact_assignment():
    # Na and Cl, one atom each: by enumeration of all assignments.
    expected = [
        number
        for number in range(1, 231)
        if any(keeps_group(number, tuple(sorted(c))) for c in assignments(number, (1, 1)))
    ]
    of_groups = grammar({"formula": "NaCl", "num_atoms": 2})
    assert of_groups.groups == expected
    assert 225 in expected and 221 in expected and 229 not in expected


def test_letters_offered_are_those_of_some_exact_assignment():
    # In Fm-3m one element cannot stand on a and b: that is simple cubic.
    cursor = grammar({"formula": "Fe", "num_atoms": 2}, [225, 194]).cursor()
    (choice,) = cursor.legal()
    assert choice.values.tolist() == [194]
    cursor.advance("group", 194)
    cursor.advance("element", SYMBOLS.index("Fe"))
    (choice,) = cursor.legal()
    # hcp on c or d; a and b alone are a simple hexagonal lattice.
    assert choice.values.tolist() == [2, 3]


def test_a_special_position_is_offered_once():
    cursor = grammar({"formula": "NaCl", "num_atoms": 2}, [225]).cursor()
    cursor.advance("group", 225)
    cursor.advance("element", SYMBOLS.index("Na"))
    cursor.advance("letter", 0)
    cursor.advance("element", SYMBOLS.index("Cl"))
    (choice,) = cursor.legal()
    assert [space_group(225).positions[value].letter for value in choice.values] == ["b"]


def test_coordinates_keep_off_special_positions_and_other_atoms():
    # Rutile with a = 4.6: O at (x, x, 0) is 0.5 Angstrom or more from Ti at 0 and (1/2, 1/2, 1/2),
    # and from its own image at (-x, -x, 0).
    cursor = grammar({"formula": "TiO2", "num_atoms": 6}, [136]).cursor()
    for kind, value in [
        ("group", 136),
        ("element", SYMBOLS.index("Ti")),
        ("letter", 0),
        ("element", SYMBOLS.index("O")),
        ("letter", 5),
        ("length", 46),
        ("length", 30),
    ]:
        cursor.advance(kind, value)
    (choice,) = cursor.legal()
    assert choice.kind == "coord"
    by_hand = [
        x
        for x in range(100)
        if min(2 * min(x, 100 - x), abs(100 - 2 * x), min(x, 100 - x)) / 100 * 4.6 * 2**0.5 >= 0.5
    ]
    assert set(choice.values.tolist()) <= set(by_hand)
    assert {30, 31, 69, 70} <= set(choice.values.tolist())


def test_a_cell_of_a_higher_lattice_is_not_offered_where_the_atoms_fit_it():
    # Po in P4/mmm: c = a would be simple cubic.
    cursor = grammar({"formula": "Po", "num_atoms": 1}, [123]).cursor()
    for kind, value in [("group", 123), ("element", SYMBOLS.index("Po")), ("letter", 0)]:
        cursor.advance(kind, value)
    cursor.advance("length", 34)
    (choice,) = cursor.legal()
    assert 34 not in choice.values
    assert {33, 35} <= set(choice.values.tolist())


def test_a_field_that_is_not_legal_is_refused():
    cursor = grammar({"formula": "NaCl"}, [225]).cursor()
    with pytest.raises(ValueError, match="group 221 may not come here"):
        cursor.advance("group", 221)
    with pytest.raises(ValueError, match="not finished"):
        cursor.crystal()


def test_a_formula_that_the_group_cannot_hold_is_refused_with_those_that_can():
    with pytest.raises(PriorError, match=r"exactly space group 230; groups that can: .*221, 225"):
        grammar({"formula": "NaCl", "num_atoms": 2}, [230])


def test_an_unknown_group_is_refused():
    with pytest.raises(PriorError, match="231 is not a space group"):
        grammar({"formula": "NaCl"}, [231])


def test_cells_are_not_so_slender_that_spglib_takes_long() -> None:
    """One atom of tin in R-3m, whose shortest edges allow any height for its volume alone."""
    rule = CompositionRule.from_conditions({"formula": "Sn", "num_atoms": 1}, 20)
    cursor = Grammar(WyckoffFormat(), rule, [166]).cursor()
    cursor.advance("group", 166)
    cursor.advance("element", SYMBOLS.index("Sn"))
    cursor.advance("letter", 0)
    cursor.advance("length", 27)
    (choice,) = cursor.legal()
    assert choice.kind == "length" and 10 * 27 < choice.values.max() <= 40 * 27


def test_fields_are_accepted_one_by_one_as_they_are_legal(mp20_structures):
    """Along real crystals, every candidate of a short list and some values of a long one."""
    rng = np.random.default_rng(0)
    refused = 0
    for structure in mp20_structures[::4]:
        crystal = decode(encode(structure, FMT), FMT)
        conditions = {"formula": structure.composition.reduced_formula}
        of_groups = grammar(conditions, [crystal.spacegroup, 1])
        written = []
        for kind, value in fields_of(crystal, FMT):
            exact = _after(of_groups, written).legal()
            for choice in _after(of_groups, written).candidates():
                legal = {v for c in exact if c.kind == choice.kind for v in c.values.tolist()}
                assert legal <= set(choice.values.tolist())
                for other in rng.permutation(choice.values)[:12].tolist():
                    accepted = _after(of_groups, written).accepts(choice.kind, other)
                    assert accepted == (other in legal), (written, choice.kind, other)
                    refused += not accepted
            written.append((kind, value))
    assert refused > 100


def _after(of_groups: Grammar, written: list[tuple[str, int]]) -> Cursor:
    cursor = of_groups.cursor()
    for kind, value in written:
        cursor.advance(kind, value)
    return cursor
