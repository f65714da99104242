"""Reading: columns, ids, cells, symmetric CIFs, POSCAR, worker processes."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Composition, Element, Lattice, Structure

from flowllm.crystals.cif import parsing
from flowllm.crystals.io import Crystal, read, write
from flowllm.errors import InvalidCrystal
from support import MP20_SAMPLE, SYMMETRIC_CIF, cif, perovskite, skewed, table

SUFFIXES = [".csv", ".parquet", ".extxyz", ".xyz", ".json", ".jsonl"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_columns_get_our_names_and_types(tmp_path, suffix):
    rows = [
        {
            "material_id": "mp-1",
            "energy_above_hull": 0.25,
            "spacegroup.number": 221.0,
            "band_gap": "0.5" if suffix == ".csv" else 0.5,
            "pretty_formula": "SrTiO3",
            "cif": cif(perovskite()),
        },
        {"material_id": "mp-2", "pretty_formula": "NaN", "cif": cif(skewed())},
    ]
    back = read(table(tmp_path / f"t{suffix}", rows))
    assert back[0].properties == {
        "e_above_hull": 0.25,
        "spacegroup": 221,
        "band_gap": 0.5,
        "pretty_formula": "SrTiO3",
    }
    assert isinstance(back[0].properties["spacegroup"], int)
    assert back[1].properties == {"pretty_formula": "NaN"}


def test_csv_as_pandas_writes_it(tmp_path):
    frame = pd.DataFrame(
        {"cif": [cif(perovskite())] * 3, "x": ["1", "nan", "2.5"], "id": [7, 8, 9]}
    )
    frame.to_csv(tmp_path / "t.csv")  # with a nameless index column
    back = read(tmp_path / "t.csv")
    assert [(c.id, c.properties) for c in back] == [("7", {"x": 1.0}), ("8", {}), ("9", {"x": 2.5})]


def test_rows_without_an_id_get_their_number_and_lists_are_left_out(tmp_path):
    path = table(tmp_path / "t.parquet", [{"cif": cif(perovskite()), "sites": [1, 2]}] * 2)
    assert [(c.id, c.properties) for c in read(path)] == [("1", {}), ("2", {})]


def test_cells_are_reduced_unless_told_otherwise(tmp_path):
    hexagonal = Structure(Lattice.from_parameters(3, 3, 5, 90, 90, 60), ["Mg"], [[0.9, 0.2, 0.3]])
    path = write([Crystal(id="x", structure=hexagonal)], tmp_path / "x.json")
    assert read(path)[0].structure.lattice.gamma == pytest.approx(120)
    assert read(path, reduce=False)[0].structure.lattice.gamma == pytest.approx(60)


def test_symmetric_cif_with_charges_gives_plain_elements_without_a_warning(tmp_path, caplog):
    path = tmp_path / "salt.cif"
    path.write_text(
        "data_NaCl\n_cell_length_a 5.64(1)\n_cell_length_b 5.64\n_cell_length_c 5.64\n"
        "_cell_angle_alpha 90\n_cell_angle_beta 90\n_cell_angle_gamma 90\n"
        "_symmetry_space_group_name_H-M 'F m -3 m'\nloop_\n_atom_type_symbol\n"
        "_atom_type_oxidation_number\nNa+ 1\nCl- -1\nloop_\n_atom_site_label\n"
        "_atom_site_type_symbol\n_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z\n"
        "Na1 Na+ 0 0 0\nCl1 Cl- 0.5 0.5 0.5\n"
    )
    (crystal,) = read(path, reduce=False)
    assert crystal.structure.composition == Composition("Na4Cl4")
    assert all(isinstance(site.specie, Element) for site in crystal.structure)
    assert crystal.structure.site_properties == {}
    assert not caplog.text
    assert read(path)[0].structure.lattice.volume == pytest.approx(5.64**3)


def test_json_does_not_build_the_classes_it_names(tmp_path):
    item = perovskite().as_dict()
    item["sites"][0]["properties"] = {"x": {"@module": "no.such.module", "@class": "Danger"}}
    path = tmp_path / "t.json"
    path.write_text(json.dumps(item))
    assert len(read(path)[0].structure) == 5


@pytest.mark.parametrize("name", ["POSCAR", "CONTCAR.17", "salt.vasp"])
def test_poscar(tmp_path, name):
    text = "salt\n5.64\n0 .5 .5\n.5 0 .5\n.5 .5 0\nNa Cl\n1 1\nDirect\n0 0 0\n.5 .5 .5\n"
    path = tmp_path / name
    path.write_text(text)
    (crystal,) = read(path)
    assert crystal.id == name.removesuffix(".vasp")
    assert crystal.structure.composition == Composition("NaCl")
    assert crystal.structure.lattice.volume == pytest.approx(5.64**3 / 4)
    # VASP 4 has no line of elements, and nothing says which they are.
    for broken in (text.replace("Na Cl\n", ""), text[:40], ""):
        path.write_text(broken)
        with pytest.raises(InvalidCrystal, match="not a readable POSCAR") as error:
            read(path)
        assert str(path) in str(error.value)


def test_energy_of_an_extxyz_frame_is_a_property(tmp_path):
    path = tmp_path / "t.extxyz"
    path.write_text(
        '1\nLattice="3 0 0 0 3 0 0 0 3" pbc="T T T" energy=-1.5 spacegroup=221\nPo 0 0 0\n'
    )
    assert read(path)[0].properties == {"energy": -1.5, "spacegroup": 221}


def test_deuterium_becomes_hydrogen(tmp_path):
    path = tmp_path / "x.cif"
    path.write_text(SYMMETRIC_CIF.replace("Cs", "D"))
    assert read(path)[0].structure.composition == Composition("HCl")


def test_mp20_reads():
    back = read(MP20_SAMPLE, max_atoms=20)
    assert len(back) == 72 and not back.skipped
    first = back[0]
    assert (first.id, first.properties["spacegroup"]) == ("mp-1005753", 12)
    assert first.structure.composition == Composition("Sm4Al2Ge12")
    niggli = (6.03243043, 6.03243043, 10.61940486, 98.19770108, 98.19770108, 92.15599959)
    assert first.structure.lattice.parameters == pytest.approx(niggli)
    for crystal in back:
        formula = Composition(crystal.properties["pretty_formula"])
        assert crystal.structure.composition.reduced_formula == formula.reduced_formula


def test_worker_processes_give_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(parsing, "_CHUNK", 2)
    rows = [{"cif": SYMMETRIC_CIF.replace("5.64", f"5.{i}")} for i in range(10, 16)]
    rows[0]["cif"] = "nonsense"
    path = table(tmp_path / "t.csv", rows)
    one = read(path, skip_invalid=True, workers=1)
    two = read(path, skip_invalid=True, workers=2)
    assert [c.id for c in two] == ["2", "3", "4", "5", "6"]
    assert [c.structure.lattice.a for c in two] == pytest.approx([5.11, 5.12, 5.13, 5.14, 5.15])
    for a, b in zip(one, two, strict=True):
        assert (a.id, a.structure.species) == (b.id, b.structure.species)
        assert np.array_equal(a.structure.lattice.matrix, b.structure.lattice.matrix)
        assert np.array_equal(a.structure.frac_coords, b.structure.frac_coords)
    assert one.skipped == two.skipped


def test_processes_are_started_only_where_they_pay(tmp_path, monkeypatch):
    asked = []

    def in_this_process(chunks, work, save, *, workers):
        asked.append(workers)
        for chunk in chunks:
            save(chunk, work(None, chunk))

    monkeypatch.setattr(parsing, "for_each", in_this_process)
    monkeypatch.setattr(parsing.os, "cpu_count", lambda: 7)
    path = table(tmp_path / "t.csv", [{"cif": SYMMETRIC_CIF}] * 3 + [{"cif": cif(perovskite())}])
    for threshold, workers, expected in ((4, None, 1), (3, None, 7), (3, 2, 2)):
        monkeypatch.setattr(parsing, "_WORTH_WORKERS", threshold)
        assert len(read(path, workers=workers)) == 4
        assert asked.pop() == expected
