"""Writing: files that stay, and crystals that cannot be written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Structure

from flowllm.crystals.cells import reduce_cell
from flowllm.crystals.io import Crystal, check_input, read, to_atoms, write
from flowllm.errors import UserError
from support import CSCL, SALT, disordered, perovskite, run_command, same, skewed

SUFFIXES = [".csv", ".parquet", ".extxyz", ".xyz", ".json", ".jsonl"]


def crystals() -> list[Crystal]:
    return [
        Crystal(id="a-1", structure=perovskite(), properties={"band_gap": 0.0}),
        Crystal(id="b-2", structure=skewed()),
    ]


def test_nothing_is_overwritten_unasked(tmp_path):
    for name in ("t.csv", "folder"):
        path = write(crystals()[:1], tmp_path / name)
        with pytest.raises(UserError, match="exists; .* overwrite=True .--overwrite"):
            write(crystals(), path)
        assert len(read(path)) == 1
        write(crystals(), path, overwrite=True)
        assert len(read(path)) == 2


def test_folder_with_other_things_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="is more than a folder of CIFs and stays"):
        write(crystals(), tmp_path, overwrite=True)
    with pytest.raises(UserError, match="is more than a folder of CIFs and stays"):
        write(crystals(), (tmp_path / "thesis.tex").rename(tmp_path / "thesis"), overwrite=True)
    assert (tmp_path / "thesis").read_text() == "years of work"


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("t.extxyz", "extxyz cannot hold the property 'pbc' = 1"),
        ("t.parquet", "the property 'mixed' has values of several types"),
        ("t.cif", "a .cif file holds one crystal, not 2"),
    ],
)
def test_failed_write_leaves_what_was_there(tmp_path, name, match):
    path = write(crystals()[:1], tmp_path / name)
    before = sorted(tmp_path.rglob("*"))
    broken = [
        Crystal(id="x", structure=perovskite(), properties={"mixed": 1}),
        Crystal(id="y/..", structure=skewed(), properties={"mixed": "a", "pbc": 1}),
    ]
    with pytest.raises(UserError, match=match):
        write(broken, path, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before
    assert len(read(path)) == 1


def test_what_cannot_be_written(tmp_path):
    path = tmp_path / "t.csv"
    with pytest.raises(UserError, match="there are no crystals to write"):
        write([], path)
    with pytest.raises(UserError, match="the id 'x' occurs twice"):
        write([Crystal(id="x", structure=perovskite())] * 2, path)
    with pytest.raises(UserError, match="cannot write crystal x: site 1 is disordered"):
        write([Crystal(id="x", structure=disordered())], path)
    with pytest.raises(UserError, match="crystal x: rename its property 'cif'"):
        write([Crystal(id="x", structure=perovskite(), properties={"cif": "?"})], path)
    with pytest.raises(UserError, match="cannot write '.pkl' files; known are .cif"):
        write(crystals(), tmp_path / "t.pkl")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["POSCAR", "CONTCAR.2", "mixed.vasp"])
def test_a_poscar_keeps_16_decimals_and_groups_the_sites_by_element(tmp_path, name):
    structure = Structure(
        skewed().lattice.matrix / 3,
        ["O", "He", "Li", "O", "Li"],
        np.random.default_rng(1).random((5, 3)) * 3 - 1,
    )
    path = write([Crystal(id="mixed", structure=structure)], tmp_path / name)
    expected = Structure.from_sites([structure[i] for i in (0, 3, 1, 2, 4)])
    (back,) = read(path, reduce=False)
    assert back.structure.species == expected.species
    for a, b in (
        (back.structure.lattice.matrix, expected.lattice.matrix),
        (back.structure.frac_coords, expected.frac_coords),
    ):
        assert np.allclose(a, b, rtol=0, atol=1e-16)
    assert back.id == name.removesuffix(".vasp")
    comment, scale, *_ = lines = path.read_text().splitlines()
    assert (comment, float(scale)) == ("mixed", 1)
    assert [line.split() for line in lines[5:7]] == [["O", "He", "Li"], ["2", "1", "2"]]


def test_a_left_handed_cell_is_written_right_handed_without_mirroring_the_crystal(tmp_path):
    mirrored = Structure(-skewed().lattice.matrix, skewed().species, skewed().frac_coords)
    path = write([Crystal(id="x", structure=mirrored)], tmp_path / "POSCAR")
    (back,) = read(path, reduce=False)
    assert np.linalg.det(back.structure.lattice.matrix) > 0
    assert np.allclose(back.structure.cart_coords, mirrored.cart_coords, rtol=0, atol=1e-14)
    assert same(read(path)[0].structure, reduce_cell(mirrored), atol=1e-9)
    assert not same(read(path)[0].structure, reduce_cell(skewed()), atol=1e-3)


def test_a_poscar_holds_one_crystal(tmp_path):
    with pytest.raises(UserError, match="a POSCAR holds one crystal, not 2"):
        write(crystals(), tmp_path / "POSCAR")
    with pytest.raises(UserError, match="POSCAR exists; .* overwrite=True"):
        write(crystals()[:1], write(crystals()[:1], tmp_path / "POSCAR"))


def test_the_data_command_writes_poscar(tmp_path):
    salt = write(crystals()[:1], tmp_path / "salt.json")
    for name in ("POSCAR", "x.vasp"):
        result = run_command("data", salt, tmp_path / name)
        assert result.exit_code == 0, result.output
        assert same(read(tmp_path / name)[0].structure, perovskite(), atol=1e-12)


def test_structures_and_atoms_are_written_like_crystals(tmp_path: Path) -> None:
    file = write([SALT, to_atoms(CSCL)], tmp_path / "two.json")
    assert [(c.id, c.structure.composition.reduced_formula) for c in read(file)] == [
        ("1", "NaCl"),
        ("2", "CsCl"),
    ]
    write(SALT, tmp_path / "POSCAR")
    assert read(tmp_path / "POSCAR")[0].structure.composition.reduced_formula == "NaCl"
    with pytest.raises(UserError, match="must be a pymatgen Structure or ASE Atoms, not str"):
        write(["NaCl"], tmp_path / "words.json")
    with pytest.raises(UserError, match="file or folder of crystals is needed, not a Structure"):
        check_input(SALT)
