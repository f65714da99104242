"""Relaxation figures, by hand."""

from __future__ import annotations

import pytest
from pymatgen.core import Lattice, Structure

from flowllm.metrics.relaxation import RelaxationChange, relaxation_change, relaxation_metrics


def salt(a: float = 3.5, x: float = 0.5) -> Structure:
    return Structure(Lattice.cubic(a), ["Na", "Cl"], [[0, 0, 0], [x, 0.5, 0.5]])


def test_a_crystal_that_relaxes_little_matches_itself() -> None:
    found = relaxation_change(
        salt(3.6, 0.45), salt(), initial_energy_per_atom=-3.0, energy_per_atom=-3.4, steps=12
    )
    # One atom is off by 0.05 a; the best common translation halves it for each of the two, and
    # (V/N)^(1/3) = a / 2^(1/3).
    assert found.rmsd == pytest.approx(0.025 * 2 ** (1 / 3), abs=1e-3)
    assert found.energy_drop_per_atom == pytest.approx(0.4)
    lost = relaxation_change(
        salt(), None, initial_energy_per_atom=-3.0, energy_per_atom=None, steps=500
    )
    assert lost == RelaxationChange(rmsd=None, energy_drop_per_atom=None, steps=None)
    figures = relaxation_metrics([found, lost])
    assert figures["relaxed_match_rate"].value == 0.5
    assert figures["relaxation_steps"].value == 12
    assert figures["energy_drop"].count == 1
    assert relaxation_metrics([])["relaxed_rmsd"].value is None
