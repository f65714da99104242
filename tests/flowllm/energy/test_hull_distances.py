"""Distances of relaxed crystals to a hull, by hand."""

from __future__ import annotations

import pytest
from pymatgen.core import Lattice, Structure

from flowllm.energy.formation import References
from flowllm.energy.hull import Hull, hull_distances
from flowllm.errors import UserError

CHGNET = {"name": "chgnet", "version": "0.4.2"}
REFERENCES = References(energies={"Na": -1.0, "Cl": -2.0}, potential=None, source="mp.json")
HULL = Hull(["NaCl"], [-2.0], source="hull.parquet")


def salt(first: str = "Na") -> Structure:
    return Structure(Lattice.cubic(3.5), [first, "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def test_a_distance_is_the_formation_energy_less_the_hull() -> None:
    found = hull_distances(
        [salt(), None, salt(first="K"), Structure(Lattice.cubic(4), ["Na"], [[0, 0, 0]])],
        [-3.4, None, -3.0, -0.9],
        HULL,
        scheme="mp2020",
        potential=CHGNET,
        references=REFERENCES,
    )
    assert [f.failure for f in found] == [
        *(None, "not relaxed", "no elemental reference for K", None)
    ]
    assert found[0].formation_energy_per_atom == pytest.approx(-1.9)
    assert found[0].e_above_hull == pytest.approx(0.1)
    assert found[3].e_above_hull == pytest.approx(0.1)


def test_absolute_energies_need_references() -> None:
    with pytest.raises(UserError, match="hull.parquet holds formation energies and chgnet gives"):
        hull_distances([], [], HULL, scheme="mp2020", potential=CHGNET)
    with pytest.raises(UserError, match="scheme matpes-pbe"):
        hull_distances([], [], HULL, scheme="matpes-pbe", potential={}, references=REFERENCES)
    hull = Hull(["NaCl"], [-2.0], references=REFERENCES)
    (found,) = hull_distances([salt()], [-3.6], hull, scheme="mp2020", potential=CHGNET)
    assert found.e_above_hull == pytest.approx(-0.1)
