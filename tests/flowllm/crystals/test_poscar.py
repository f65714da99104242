"""POSCAR files: scales, selective dynamics, labels, and agreement with ASE."""

from __future__ import annotations

import io

import ase.io
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowllm.crystals.crystal import geometry_of_atoms
from flowllm.crystals.io import read
from flowllm.crystals.poscar import parse_poscar
from flowllm.errors import InvalidCrystal
from support import SHARED

CASE = SHARED / "cases" / "01-poscar-negative-scale-cartesian"


def poscar(
    scale="5.64",
    elements="Na Cl\n",
    mode="Direct\n",
    positions="0 0 0\n.5 .5 .5\n",
    cell="0 .5 .5\n.5 0 .5\n.5 .5 0\n",
    amounts="1 1\n",
) -> str:
    return f"salt\n{scale}\n{cell}{elements}{amounts}{mode}{positions}"


@pytest.mark.parametrize(
    "text",
    [
        poscar(),
        poscar(scale="-44.851536"),
        poscar(scale="-44.851536", mode="Cartesian\n", positions="0 0 0\n.5 .5 .5\n"),
        poscar(mode="cart\n"),
        poscar(mode="K\n"),
        poscar(scale="5.64 5.64 5.64", mode="C\n"),
        poscar(scale="5.64d0 ! the lattice constant"),
        poscar(mode="Selective dynamics\nDirect\n", positions="0 0 0 T T F\n.5 .5 .5 F F F\n"),
        poscar(mode="sel\nCartesian\n", positions="0 0 0 T T F Na1\n.5 .5 .5 F F F Cl1\n"),
        poscar(positions="0 0 0 Na\n.5 .5 .5 Cl\n"),
        poscar(positions="0 0 0 Mg\n.5 .5 .5 O  a comment\n"),
        poscar(elements="Na_pv Cl/6a2f546d\n"),
        poscar(elements="Na\nCl\n", amounts="1\n1\n"),
        poscar(elements="NA CL ! elements\n", amounts="1 1 ! amounts\n"),
        poscar(elements="", positions="0 0 0 Na\n.5 .5 .5 Cl\n"),
        poscar(positions="0 0 0\n.5 .5 .5\n\n0 0 0\n1 1 1\n"),
        poscar(positions="0 0 0\n.5 .5 .5\nCartesian\n0 0 0\n1 1 1\n"),
        poscar(positions="1d0 0 0\n5D-1 .5 .5"),
        poscar().replace("\n", " \n"),
    ],
)
def test_salt_is_salt_however_it_is_written(text):
    lattice, numbers, frac_coords = parse_poscar(text)
    assert numbers.tolist() == [11, 17]
    assert abs(np.linalg.det(lattice)) == pytest.approx(5.64**3 / 4)
    assert np.allclose((frac_coords - [[0, 0, 0], [0.5, 0.5, 0.5]] + 1e-9) % 1, 0, atol=1e-6) or (
        # Cartesian (.5, .5, .5) in this cell
        np.allclose(frac_coords @ lattice, [[0, 0, 0], [2.82] * 3], atol=1e-6)
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it ends after 1 lines"),
        (poscar(elements=""), r"no line of elements before their amounts \(VASP 4\)"),
        (poscar(elements="", positions="0 0 0 T T F\n.5 .5 .5 T T T\n"), "no line of elements"),
        (poscar(elements="Na\n"), r"1 elements \(Na\), 2 amounts"),
        (poscar(amounts="1\n"), r"2 elements \(Na Cl\), 1 amounts"),
        (poscar(scale="1 2"), "the scale '1 2' is neither a factor, nor a negative volume, nor"),
        (poscar(scale="1 -2 3"), "the scale"),
        (poscar(scale="0"), "the scale"),
        (poscar(scale="nan"), "the scale"),
        (poscar(scale="x"), "the scale"),
        (poscar(cell="1 0\n0 1 0\n0 0 1\n"), "line 3 needs three numbers: '1 0'"),
        (poscar(mode=""), "no line Direct or Cartesian"),
        (poscar(positions="0 0 0\n"), "line 10 needs three numbers: ''"),
        (poscar(positions="0 0 0\n.5 .5\n"), "line 10 needs three numbers"),
        (poscar(amounts="3 1\n"), "it ends before the last of 4 atoms"),
        (poscar(positions="0 0 0\n.5 .5 .5\n.2 .2 .2\n"), "more positions than 2 atoms"),
    ],
)
def test_what_is_no_poscar_is_refused(text, message):
    with pytest.raises(InvalidCrystal, match=f"not a readable POSCAR: .*{message}") as error:
        parse_poscar(text)
    assert error.value.reason == "unreadable"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (poscar(elements="Na Qq\n"), "unknown_element"),
        (poscar(cell="1 0 0\n2 0 0\n0 0 1\n", scale="-9"), "bad_cell"),
        (poscar(cell="1 0 0\n2 0 0\n0 0 1\n", mode="C\n"), "bad_cell"),
    ],
)
def test_the_rules_name_the_reason(text, reason):
    with pytest.raises(InvalidCrystal) as error:
        parse_poscar(text)
    assert error.value.reason == reason


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from(["one", "volume", "three"]),
    cartesian=st.booleans(),
    selective=st.booleans(),
)
def test_ase_reads_the_same(seed, scale, cartesian, selective):
    rng = np.random.default_rng(seed)
    cell = rng.normal(size=(3, 3)) + 3 * np.eye(3)
    if np.linalg.det(cell) < 1:
        cell = 3 * np.eye(3)
    factors = {
        "one": f"{rng.uniform(0.5, 2):.6f}",
        "volume": f"{-rng.uniform(20, 100):.6f}",
        "three": " ".join(f"{x:.6f}" for x in rng.uniform(0.5, 2, 3)),
    }[scale]
    amounts = rng.integers(1, 4, 2)
    rows = rng.random((amounts.sum(), 3)) @ (cell if cartesian else np.eye(3))
    text = poscar(
        scale=factors,
        cell="".join("{:.9f} {:.9f} {:.9f}\n".format(*row) for row in cell),
        amounts="{} {}\n".format(*amounts),
        mode="Selective\n" * selective + ("Cartesian\n" if cartesian else "Direct\n"),
        positions="".join(
            "{:.9f} {:.9f} {:.9f}".format(*row) + " T F T" * selective + "\n" for row in rows
        ),
    )
    ours = parse_poscar(text)
    theirs = geometry_of_atoms(ase.io.read(io.StringIO(text), format="vasp"))
    assert np.allclose(ours.lattice, theirs.lattice)
    assert ours.atomic_numbers.tolist() == theirs.atomic_numbers.tolist()
    assert np.allclose(ours.frac_coords, theirs.frac_coords)


@pytest.mark.skipif(not CASE.is_dir(), reason="needs the cases at ../shared/cases")
def test_the_case_of_a_negative_scale():
    (crystal,) = read(CASE / "POSCAR", reduce=False)
    assert crystal.structure[1].frac_coords == pytest.approx([0.5] * 3)
    assert crystal.structure.volume == pytest.approx(44.85)
