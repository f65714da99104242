"""The rules that every crystal obeys: elements, occupancies, periodicity, coinciding atoms."""

from __future__ import annotations

import json

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.spacegroup import crystal as ase_crystal
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Species, Structure

from flowllm.crystals.io import read, to_structure
from flowllm.crystals.rules import (
    COINCIDENCE,
    atomic_number,
    check_numbers,
    check_periodic,
    coinciding_pair,
    site_element,
)
from flowllm.errors import InvalidCrystal
from support import CSCL

HERE = "site 1"


@pytest.mark.parametrize(
    ("symbol", "number"),
    [
        ("Na", 11),
        ("NA", 11),
        ("na", 11),
        ("D", 1),
        ("T", 1),
        ("H", 1),
        ("Fe3+", 26),
        ("Fe+3", 26),
        ("O2-", 8),
        ("O-2", 8),
        ("Na+", 11),
        ("D+", 1),
        ("Og", 118),
    ],
)
def test_symbols_of_elements(symbol, number):
    assert atomic_number(symbol, HERE) == number


@pytest.mark.parametrize(
    "symbol", ["Cs1", "X", "Xx", "Q", "", "Wat", "OH", "Fe3", "3+", None, 11, "Na ", "2H", "Vac"]
)
def test_symbols_of_no_element_are_refused_by_name(symbol):
    with pytest.raises(InvalidCrystal, match="site 1: there is no element") as error:
        atomic_number(symbol, HERE)
    assert error.value.reason == "unknown_element"
    assert repr(symbol) in str(error.value)


def test_a_site_is_full_and_of_one_element():
    assert site_element([("Na", 1)], HERE) == 11
    assert site_element([("Fe2+", 0.5), ("Fe3+", 0.5)], HERE) == 26
    assert site_element([("D", 0.75), ("H", 0.25)], HERE) == 1
    nothing: list[tuple[str, float]] = []
    for bad in ([("Na", 0.5)], [("Na", 0.5), ("K", 0.5)], nothing, [("Na", float("nan"))]):
        with pytest.raises(InvalidCrystal, match="site 1 is disordered") as error:
            site_element(bad, HERE)
        assert error.value.reason == "disorder"


@pytest.mark.parametrize("numbers", [[0], [119], [1, -1], [300], [1.5]])
def test_numbers_of_no_element_are_refused(numbers):
    with pytest.raises(InvalidCrystal, match=f"site {len(numbers)} has no element"):
        check_numbers(numbers)


@pytest.mark.parametrize("pbc", [(1, 1, 0), (False,) * 3, (True, False, True), (True,), ()])
def test_what_is_not_periodic_is_refused(pbc):
    with pytest.raises(InvalidCrystal, match="not periodic in all three") as error:
        check_periodic(pbc)
    assert error.value.reason == "not_periodic"
    check_periodic(np.array([1, 1, 1]))


lattices = st.builds(
    Lattice.from_parameters,
    *[st.floats(2, 12)] * 3,
    *[st.floats(50, 90)] * 3,
).filter(lambda lattice: lattice.volume > 0.1 * lattice.a * lattice.b * lattice.c)


@settings(max_examples=60, deadline=None)
@given(
    lattice=lattices,
    num_atoms=st.sampled_from([2, 3, 7, 40, 128, 129, 300]),
    seed=st.integers(0, 2**32 - 1),
    distance=st.floats(0, 0.9 * COINCIDENCE) | st.floats(1.1 * COINCIDENCE, 0.1),
    image=st.tuples(*[st.integers(-2, 2)] * 3),
)
def test_a_pair_is_found_exactly_if_it_is_nearer_than_the_limit(
    lattice, num_atoms, seed, distance, image
):
    rng = np.random.default_rng(seed)
    # No other pair coincides: the atoms are on a grid.
    steps = round(num_atoms ** (1 / 3) + 0.5) + 1
    places = rng.choice(steps**3, num_atoms, replace=False)
    frac = np.stack(np.unravel_index(places, (steps,) * 3), axis=1) / steps
    frac = frac + rng.random(3)
    first, second = sorted(rng.choice(num_atoms, 2, replace=False).tolist())
    direction = rng.normal(size=3)
    step = lattice.get_fractional_coords(direction / np.linalg.norm(direction) * distance)
    frac[second] = frac[first] + step + image
    found = coinciding_pair(lattice.matrix, frac)
    assert found == ((first, second) if distance < COINCIDENCE else None)


def test_a_large_crystal_is_checked_in_little_memory():
    """Ten thousand atoms: all pairs would take 2.4 GB."""
    steps = np.arange(22) / 22
    frac = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    assert coinciding_pair(100 * np.eye(3), frac) is None
    frac[-1] = frac[5] - 1
    assert coinciding_pair(100 * np.eye(3), frac) == (5, len(frac) - 1)


BROKEN = {
    "layer": (
        Structure(Lattice.cubic(4, pbc=(True, True, False)), ["Cs", "Cl"], CSCL.frac_coords),
        "not_periodic",
    ),
    "coinciding": (
        Structure(Lattice.cubic(4), ["Cs", "Cl", "Cl"], [[0, 0, 0], [0.5] * 3, [-0.5] * 3]),
        "coinciding_atoms",
    ),
    "not finite": (
        Structure(Lattice.cubic(4), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, np.nan]]),
        "bad_cell",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_objects_and_files_are_refused_for_the_same_reason(tmp_path, case):
    structure, reason = BROKEN[case]
    atoms = Atoms(
        numbers=[site.specie.Z for site in structure],
        cell=structure.lattice.matrix,
        positions=structure.cart_coords,
        pbc=structure.lattice.pbc,
    )
    ase.io.write(tmp_path / "x.extxyz", atoms, format="extxyz")
    (tmp_path / "x.json").write_text(json.dumps(structure.as_dict()))
    found = []
    for load in (
        lambda: to_structure(structure),
        lambda: to_structure(atoms),
        lambda: read(tmp_path / "x.extxyz"),
        lambda: read(tmp_path / "x.json"),
    ):
        with pytest.raises(InvalidCrystal) as error:
            load()
        found.append(error.value.reason)
    assert found == [reason] * 4


def test_ions_of_one_element_on_one_site_are_that_element():
    mixed = Structure(
        Lattice.cubic(4),
        [{Species("Fe", 2): 0.5, Species("Fe", 3): 0.5}, "O"],
        [[0, 0, 0], [0.5] * 3],
    )
    assert to_structure(mixed).formula == "Fe1 O1"


def test_disorder_that_ase_dropped_is_refused():
    atoms = ase_crystal(["Na"], [(0, 0, 0)], spacegroup=221, cellpar=[4, 4, 4, 90, 90, 90])
    atoms.info["occupancy"] = {"0": {"Na": 1.0}}
    assert to_structure(atoms).formula == "Na1"
    atoms.info["occupancy"] = {"0": {"Na": 0.5, "K": 0.5}}
    with pytest.raises(InvalidCrystal, match=r"kind 0 is disordered \(Na:0.5 K:0.5\)"):
        to_structure(atoms)
