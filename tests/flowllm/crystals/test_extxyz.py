"""Extended XYZ: frames one by one, values of the comment line, and agreement with ASE."""

from __future__ import annotations

import io
from collections import Counter

import ase.io
import numpy as np
import pytest
from ase import Atoms
from hypothesis import given, settings
from hypothesis import strategies as st

from flowllm.crystals.crystal import geometry_of_atoms
from flowllm.crystals.extxyz import frames
from flowllm.crystals.io import read
from support import SHARED

CASE = SHARED / "cases" / "20-deuterium-in-extxyz"
OCCUPANCY = r'occupancy="_JSON {\"0\": {\"Cs\": 0.5, \"K\": 0.5}}"'
CELL = 'Lattice="4 0 0 0 4 0 0 0 4"'


def frame(comment=f"{CELL} Properties=species:S:1:pos:R:3", atoms="Cs 0 0 0\nCl 2 2 2\n") -> str:
    return f"{atoms.count(chr(10))}\n{comment}\n{atoms}"


@pytest.mark.parametrize(
    "text",
    [
        frame(),
        frame(CELL),
        frame(CELL.replace('"', "'")),
        frame(CELL.replace('"4', "{4").replace('4"', "4}")),
        frame(f'{CELL} pbc="T T T"'),
        frame(f"{CELL} pbc=T"),
        frame(f'{CELL} pbc="1 1 1"'),
        frame(atoms="CS 0 0 0\nCL 2 2 2\n"),
        frame(atoms="Cs+ 0 0 0 9 9\nCl-1 2 2 2 9 9\n"),
        frame(f"{CELL} Properties=pos:R:3:Z:I:1", "0 0 0 55\n2 2 2 17\n"),
        frame(
            f"{CELL} Properties=species:S:1:forces:R:3:pos:R:3", "Cs 9 9 9 0 0 0\nCl 9 9 9 2 2 2\n"
        ),
        "\n" + frame() + "\n \n",
        frame(f'{CELL} stress="1 2 3 4 5 6" virial="x" note="a \\"b\\" = c" odd=[[1,2],[3,4]]'),
    ],
)
def test_one_crystal_in_many_spellings(tmp_path, text):
    (found,) = frames(text)
    assert found.source.atomic_numbers.tolist() == [55, 17]
    assert np.allclose(found.source.lattice, 4 * np.eye(3))
    assert np.allclose(found.source.frac_coords, [[0, 0, 0], [0.5] * 3])


@pytest.mark.parametrize(
    ("text", "reason", "message"),
    [
        (
            frame(atoms="Cs1 0 0 0\nCl2 2 2 2\n"),
            "unknown_element",
            "site 1: there is no element 'Cs1'",
        ),
        (frame(atoms="Cs 0 0 0\nX 2 2 2\n"), "unknown_element", "site 2: there is no element 'X'"),
        (frame(f"{CELL} Properties=Z:I:1:pos:R:3", "0 0 0 0\n"), "unknown_element", "ASE's 'X'"),
        (frame(f'{CELL} pbc="T T F"'), "not_periodic", r"\(pbc T T F\)"),
        (frame(f'{CELL} pbc="F F F"'), "not_periodic", r"\(pbc F F F\)"),
        (frame("a molecule"), "not_periodic", r"\(pbc F F F\)"),
        (frame('Lattice="4 4 4"'), "unreadable", "Lattice needs nine numbers, not 3"),
        (frame('Lattice="0 0 0 0 0 0 0 0 0"'), "bad_cell", "a volume of 0"),
        (frame('Lattice="a 0 0 0 4 0 0 0 4"'), "unreadable", "could not convert"),
        (frame(atoms="Cs nan 0 0\nCl 2 2 2\n"), "bad_cell", "not a finite number"),
        (frame(atoms="Cs 0 0\nCl 2 2 2\n"), "unreadable", "too few columns in the line 'Cs 0 0'"),
        (frame(f"{CELL} Properties=pos:R:3", "0 0 0\n"), "unreadable", "need a column 'species'"),
        (
            frame(f"{CELL} Properties=species:S:1:pos:R:2"),
            "unreadable",
            "column 'pos' of width 3",
        ),
        (frame(f"{CELL} Properties=species:S"), "unreadable", "is not name:type:number"),
        ("3\n" + frame().split("\n", 1)[1], "unreadable", "2 lines of atoms, but 3 atoms"),
        ("0\n" + CELL + "\n", "unreadable", "no atoms"),
        (
            frame(f'{CELL} occupancy="_JSON {{\\"0\\": {{\\"Cs\\": 0.5, \\"K\\": 0.5}}}}"'),
            "disorder",
            "kind 0",
        ),
    ],
)
def test_a_bad_frame_has_its_reason_and_costs_only_itself(tmp_path, text, reason, message):
    path = tmp_path / "t.extxyz"
    path.write_text(frame() + text.rstrip("\n") + "\n" * (1 if text[:2] != "3\n" else 0))
    back = read(path, skip_invalid=True)
    assert len(back) == 1 and back.skipped == Counter({reason: 1})
    with pytest.raises(ValueError, match=rf"frame 2 \(id 2\): .*{message}"):
        read(path)
    if text[:2] != "3\n":
        path.write_text(text.rstrip("\n") + "\n" + frame())
        back = read(path, skip_invalid=True)
        assert [crystal.id for crystal in back] == ["2"]


def test_isotopes_are_hydrogen():
    (found,) = frames(frame(atoms="D 0 0 0\nT 2 2 2\n"))
    assert found.source.atomic_numbers.tolist() == [1, 1]


def test_words_stay_words_where_they_look_like_numbers(tmp_path):
    path = tmp_path / "t.extxyz"
    comment = f'{CELL} formula=NaN pretty_formula="InF" material_id=1e5 composition=F energy=1e1'
    path.write_text(frame(comment + " relaxed converged=F other=NaN name='a b' uid=007"))
    (crystal,) = read(path)
    assert crystal.id == "1e5"
    assert crystal.properties == {
        **{"formula": "NaN", "pretty_formula": "InF", "composition": "F", "energy": 10.0},
        **{"relaxed": True, "converged": False, "name": "a b", "uid": 7},
    }


keys = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True).filter(
    lambda key: key not in ("Lattice", "Properties", "pbc", "uid", "stress", "virial", "occupancy")
)
plain = st.text(st.characters(codec="ascii", exclude_categories=("Cc",)), min_size=1, max_size=12)


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 2**32 - 1),
    info=st.dictionaries(
        keys,
        st.one_of(st.integers(-(10**6), 10**6), st.floats(-1e6, 1e6), st.booleans(), plain),
        max_size=4,
    ),
)
def test_ase_reads_the_same(seed, info):
    rng = np.random.default_rng(seed)
    atoms = Atoms(
        numbers=rng.integers(1, 100, 3),
        cell=4 * np.eye(3) + rng.random((3, 3)),
        scaled_positions=rng.random((3, 3)),
        pbc=True,
    )
    atoms.info = info
    buffer = io.StringIO()
    ase.io.write(buffer, atoms, format="extxyz")
    try:
        theirs = ase.io.read(io.StringIO(buffer.getvalue()), format="extxyz")
    except (ValueError, KeyError, IndexError, OSError):
        return  # ASE wrote what it cannot read
    (found,) = frames(buffer.getvalue())
    expected = geometry_of_atoms(theirs)
    assert np.array_equal(found.source.lattice, expected.lattice)
    assert np.array_equal(found.source.atomic_numbers, expected.atomic_numbers)
    assert np.allclose(found.source.frac_coords, expected.frac_coords, atol=1e-12)


@pytest.mark.skipif(not CASE.is_dir(), reason="needs the cases at ../shared/cases")
def test_the_case_of_deuterium():
    (crystal,) = read(CASE / "d.extxyz")
    assert crystal.structure.formula == "Cs1 H1"
    with pytest.raises(ValueError, match="there is no element 'Cs1'"):
        read(CASE / "labels.extxyz")
