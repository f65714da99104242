"""Stability, S.U.N. and the refinement figures, by hand."""

from __future__ import annotations

import pytest
from pymatgen.core import Lattice, Structure

from flowllm.energy.formation import References
from flowllm.energy.hull import Hull
from flowllm.errors import UserError
from flowllm.metrics.refinement import Refinement, refinement, refinement_figures
from flowllm.metrics.stability import hull_distances, is_stable, stability_rates

CHGNET = {"name": "chgnet", "version": "0.4.2"}
REFERENCES = References(energies={"Na": -1.0, "Cl": -2.0}, potential=None, source="mp.json")
HULL = Hull(["NaCl"], [-2.0], source="hull.parquet")
ABOVE = [-0.01, 0.0, 0.02, 0.05, 0.2, None, -0.3]
ELEMENTS = [2, 2, 2, 3, 2, 0, 1]


def salt(a: float = 3.5, x: float = 0.5, first: str = "Na") -> Structure:
    return Structure(Lattice.cubic(a), [first, "Cl"], [[0, 0, 0], [x, 0.5, 0.5]])


def test_distances_of_relaxed_crystals() -> None:
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


def test_stable_means_below_the_threshold() -> None:
    assert is_stable(ABOVE).tolist() == [True, False, False, False, False, False, True]
    below = is_stable(ABOVE, threshold=0.1, num_elements=ELEMENTS, min_elements=2)
    assert below.tolist() == [True, True, True, True, False, False, False]
    with pytest.raises(UserError, match="min_elements needs"):
        is_stable(ABOVE, min_elements=2)


def test_rates_count_what_has_no_energy() -> None:
    unique = [True, True, True, False, True, True, True]
    novel = [True, True, False, True, True, True, False]
    rates = stability_rates(ABOVE, unique=unique, novel=novel)
    assert {name: r.successes for name, r in rates.items()} == {
        **{"stable_0": 2, "stable_0.03": 4, "stable_0.1": 5},
        **{"sun": 1, "metastable_sun": 2},
    }
    assert {r.count for r in rates.values()} == {7}
    compounds = stability_rates(ABOVE, num_elements=ELEMENTS, min_elements=2)
    assert compounds["stable_0"].successes == 1
    assert "sun" not in compounds
    assert stability_rates([])["stable_0"].value is None


def test_a_crystal_that_relaxed_little_matches_itself() -> None:
    found = refinement(
        salt(3.6, 0.45), salt(), initial_energy_per_atom=-3.0, energy_per_atom=-3.4, steps=12
    )
    # One atom is off by 0.05 a; the best common translation halves it for each of the two, and
    # (V/N)^(1/3) = a / 2^(1/3).
    assert found.rmsd == pytest.approx(0.025 * 2 ** (1 / 3), abs=1e-3)
    assert found.energy_drop_per_atom == pytest.approx(0.4)
    lost = refinement(salt(), None, initial_energy_per_atom=-3.0, energy_per_atom=None, steps=500)
    assert lost == Refinement(rmsd=None, energy_drop_per_atom=None, steps=None)
    figures = refinement_figures([found, lost])
    assert figures["relaxed_match_rate"].value == 0.5
    assert figures["relaxation_steps"].value == 12
    assert figures["energy_drop"].count == 1
    assert refinement_figures([])["relaxed_rmsd"].value is None
