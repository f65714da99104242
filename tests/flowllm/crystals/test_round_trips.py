"""Crystals that are written and read again, in every format."""

from __future__ import annotations

import json
from collections import Counter

import ase.io
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pymatgen.core import Composition, Lattice, Structure
from pymatgen.io.cif import CifParser

from flowllm.crystals.io import Crystal, read, write
from support import perovskite, same, skewed

SUFFIXES = [".csv", ".parquet", ".extxyz", ".xyz", ".json", ".jsonl", ".optimade.json", ".db"]

NEW = [".optimade.json", ".db"]


def crystals() -> list[Crystal]:
    return [
        Crystal(
            id="a-1",
            structure=perovskite(),
            properties={
                "formation_energy_per_atom": -3.5501234567890123,
                "band_gap": 0.0,
                "spacegroup": 221,
                "pretty_formula": "NaN",
                "count": 3,
            },
        ),
        Crystal(
            id="b-2",
            structure=skewed(),
            properties={
                "e_above_hull": 0.034442185152504814,
                "band_gap": 2.0,
                "pretty_formula": "LiFePO2",
            },
        ),
    ]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_round_trip(tmp_path, suffix):
    path = write(crystals(), tmp_path / f"new folder/set{suffix}")
    back = read(path)
    assert [c.id for c in back] == ["a-1", "b-2"]
    assert back.skipped == Counter()
    for before, after in zip(crystals(), back, strict=True):
        assert same(before.structure, after.structure, atol=1e-7)
        assert after.properties == before.properties
        for key, value in before.properties.items():
            if not (suffix == ".csv" and key == "count"):  # beside an empty cell: 3.0
                assert type(after.properties[key]) is type(value), key


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_json_keeps_every_bit_without_reduction(tmp_path, suffix):
    structure = Structure(
        Lattice.cubic(4).matrix * (1 / 3), ["Cl", "Na"], [[1 / 3] * 3, [-0.7] * 3]
    )
    path = write([Crystal(id="x", structure=structure)], tmp_path / f"x{suffix}")
    assert read(path, reduce=False)[0].structure == structure


def test_folder_of_cifs_round_trip(tmp_path):
    folder = write(crystals(), tmp_path / "cif")
    assert sorted(p.name for p in folder.iterdir()) == ["a-1.cif", "b-2.cif"]
    (folder / "notes.txt").write_text("not a crystal")
    back = read(folder)
    assert [c.id for c in back] == ["a-1", "b-2"]
    assert all(same(a.structure, b.structure, 1e-7) for a, b in zip(crystals(), back, strict=True))
    assert [c.id for c in read(folder, limit=1)] == ["a-1"]


def test_one_cif_file(tmp_path):
    path = write(crystals()[:1], tmp_path / "SrTiO3.cif")
    (crystal,) = read(path)
    assert crystal.id == "SrTiO3" and crystal.properties == {}
    assert same(crystal.structure, perovskite(), 1e-7)
    assert path.stat().st_mode & 0o044 == 0o044  # not the private mode of a temporary file


words = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=9
)


@pytest.mark.parametrize("suffix", [".extxyz", ".json", ".jsonl", ".parquet", *NEW])
@example(value="\\")
@example(value="=")
@example(value='007 "\\"')
@given(
    value=words
    | st.sampled_from(["007", "T", "1e5", "1 2 3", "1,2", 'say "a"', "a\\b", "['Hg', 'Mg']", "nan"])
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.booleans()
)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_property_comes_back(tmp_path, suffix, value):
    crystal = Crystal(id="007", structure=perovskite(), properties={"note": value})
    (back,) = read(write([crystal], tmp_path / f"p{suffix}", overwrite=True), reduce=False)
    assert back.id == "007"
    assert back.properties == {"note": value}
    assert type(back.properties["note"]) is type(value)


def test_files_are_what_other_programs_read(tmp_path):
    atoms = ase.io.read(write(crystals(), tmp_path / "a.extxyz"), index=0)
    assert atoms.get_chemical_formula() == "O3SrTi" and atoms.info["spacegroup"] == 221
    items = json.loads(write(crystals(), tmp_path / "a.json").read_text())
    assert same(Structure.from_dict(items[1]), skewed(), atol=0)
    frame = pd.read_csv(write(crystals(), tmp_path / "a.csv"))
    assert (
        CifParser.from_str(frame.cif[0]).parse_structures(primitive=False)[0].matches(perovskite())
    )


def test_limit_counts_rows(tmp_path):
    rows = [Crystal(id=str(i), structure=perovskite()) for i in range(5)]
    for suffix in SUFFIXES:
        path = write(rows, tmp_path / f"t{suffix}")
        assert [c.id for c in read(path, limit=2)] == ["0", "1"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_unknown_values_are_left_out(tmp_path, suffix):
    values = {"band_gap": float("nan"), "e_above_hull": float("inf"), "note": "kept"}
    crystal = Crystal(id="x", structure=perovskite(), properties=values)
    assert read(write([crystal], tmp_path / f"t{suffix}"))[0].properties == {"note": "kept"}


def test_helium_is_read_although_it_has_no_electronegativity(tmp_path):
    solid = Structure(Lattice.cubic(4), ["He", "O"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    back = read(write([Crystal(id="x", structure=solid)], tmp_path / "x.csv"))
    assert back[0].structure.composition == Composition("HeO")
