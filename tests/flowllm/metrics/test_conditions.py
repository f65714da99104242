from __future__ import annotations

import pytest
from pymatgen.core import Lattice, Structure

from flowllm.metrics import conditions
from flowllm.metrics.conditions import condition_rates, conditions_met
from support import SALT

ASKED = {
    "formula": "Na2Cl2",
    "elements": "Cl, Na",
    "num_atoms": "8",
    "spacegroup": "225",
    "e_above_hull": "0.00",
    "band_gap": "5.00",
}


def test_each_condition_is_met_or_not():
    judged = conditions_met(SALT, ASKED, e_above_hull=0.05)
    assert judged == dict.fromkeys(
        ("formula", "elements", "num_atoms", "spacegroup", "spacegroup_0.1", "e_above_hull"), True
    )
    assert "e_above_hull" not in conditions_met(SALT, ASKED)  # not known
    other = conditions_met(
        SALT, {"formula": "NaCl2", "elements": ["Na"], "num_atoms": 2, "spacegroup": 1}
    )
    assert not any(other.values())
    assert not conditions_met(SALT, ASKED, e_above_hull=0.11)["e_above_hull"]
    assert not any(conditions_met(None, ASKED).values())


def test_a_range_of_atoms_and_the_symbol_of_a_group_are_judged_as_requested():
    judged = conditions_met(SALT, {"num_atoms": "5-10", "spacegroup": "Fm-3m"})
    assert judged == {"num_atoms": True, "spacegroup": True, "spacegroup_0.1": True}
    assert conditions_met(SALT, {"num_atoms": "9-12"}) == {"num_atoms": False}
    assert conditions_met(SALT, {"num_atoms": (8, 8)}) == {"num_atoms": True}
    assert conditions_met(None, {"num_atoms": "5-10"}) == {"num_atoms": False}
    assert not any(conditions_met(SALT, {"spacegroup": "P6_3/mmc"}).values())
    assert all(conditions_met(SALT, {"spacegroup": "195-230"}).values())
    assert not any(conditions_met(SALT, {"spacegroup": "221, 227"}).values())
    assert not any(conditions_met(None, {"spacegroup": "221, 227"}).values())


def test_the_space_group_is_checked_at_two_tolerances():
    perovskite = Structure.from_spacegroup(
        "Pm-3m", Lattice.cubic(3.9), ["Sr", "Ti", "O"], [[0, 0, 0], [0.5] * 3, [0.5, 0.5, 0]]
    )
    perovskite.translate_sites([1], [0, 0, 0.08 / 3.9])
    judged = conditions_met(perovskite, {"spacegroup": 221})
    assert judged == {"spacegroup": True, "spacegroup_0.1": False}


def test_a_group_that_is_known_is_not_searched_again(monkeypatch: pytest.MonkeyPatch):
    searched = []

    def search(structure: Structure, *, symprec: float) -> int:
        searched.append(symprec)
        return 225

    monkeypatch.setattr(conditions, "spacegroup_number", search)
    judged = conditions_met(SALT, {"spacegroup": 225}, spacegroup=221)
    assert judged == {"spacegroup": True, "spacegroup_0.1": False}
    assert searched == [0.2]
    conditions_met(SALT, {"spacegroup": 225})
    assert searched == [0.2, 0.2, 0.1]
    assert not any(conditions_met(None, {"spacegroup": 225}, spacegroup=None).values())


def test_rates_are_given_by_number_of_atoms_as_well():
    small = SALT.get_primitive_structure()
    judged = [conditions_met(s, {"formula": "NaCl", "num_atoms": 8}) for s in (SALT, small, None)]
    found = condition_rates(judged, [8, 2, None])
    assert found["formula"].value == 2 / 3
    assert found["num_atoms"].value == 1 / 3
    assert found["num_atoms[num_atoms=8]"].value == 1
    assert found["num_atoms[num_atoms=2]"].value == 0
