from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path

import ase.io
import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pymatgen.core import Composition, DummySpecies, Element, Lattice, Structure
from pymatgen.io.cif import CifParser, CifWriter

from flowllm.crystals import cif as cif_module
from flowllm.crystals.io import Crystal, read, to_atoms, to_structure, write
from flowllm.errors import InvalidCrystal, UserError
from support import SHARED

VAL = SHARED / "data" / "mp20" / "val.parquet"
needs_mp20 = pytest.mark.skipif(not VAL.exists(), reason="MP-20 is not at ../shared/data/mp20")

SUFFIXES = [".csv", ".parquet", ".extxyz", ".xyz", ".json", ".jsonl"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWLLM_CACHE", str(tmp_path / "cache"))


def perovskite(a: float = 3.905) -> Structure:
    return Structure(
        Lattice.cubic(a),
        ["Sr", "Ti", "O", "O", "O"],
        [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]],
    )


def skewed() -> Structure:
    """A reduced cell (so that reading leaves it alone) without any symmetry."""
    return Structure(
        Lattice.from_parameters(3.1, 4.2, 5.3, 85, 80, 75),
        ["Li", "Fe", "P", "O", "O"],
        np.random.default_rng(0).random((5, 3)),
    )


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


def same(one: Structure, other: Structure, atol: float) -> bool:
    """The same species in the same order, the same cell, the same positions modulo 1."""
    difference = one.frac_coords - other.frac_coords
    return (
        one.species == other.species
        and np.allclose(one.lattice.parameters, other.lattice.parameters, atol=atol)
        and np.allclose(difference, np.round(difference), atol=atol)
    )


def cif(structure: Structure) -> str:
    return str(CifWriter(structure))


def table(path: Path, rows: list[dict]) -> Path:
    frame = pd.DataFrame(rows)
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    return path


# --- round trips ----------------------------------------------------------------------------------


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


@pytest.mark.parametrize("suffix", [".extxyz", ".json", ".jsonl", ".parquet"])
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


# --- reading --------------------------------------------------------------------------------------


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


def test_symmetric_cif_with_charges_gives_plain_elements_and_quiet_notes(tmp_path, caplog):
    path = tmp_path / "salt.cif"
    path.write_text(
        "data_NaCl\n_cell_length_a 5.64(1)\n_cell_length_b 5.64\n_cell_length_c 5.64\n"
        "_cell_angle_alpha 90\n_cell_angle_beta 90\n_cell_angle_gamma 90\n"
        "_symmetry_space_group_name_H-M 'F m -3 m'\nloop_\n_atom_type_symbol\n"
        "_atom_type_oxidation_number\nNa+ 1\nCl- -1\nloop_\n_atom_site_label\n"
        "_atom_site_type_symbol\n_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z\n"
        "Na1 Na+ 0 0 0\nCl1 Cl- 0.5 0.5 0.5\n"
    )
    with caplog.at_level(logging.INFO, logger="flowllm.crystals.io"):
        (crystal,) = read(path, reduce=False)
    assert crystal.structure.composition == Composition("Na4Cl4")
    assert all(isinstance(site.specie, Element) for site in crystal.structure)
    assert crystal.structure.site_properties == {}
    assert "file salt.cif: No _symmetry_equiv_pos_as_xyz type key found" in caplog.text
    assert read(path)[0].structure.lattice.volume == pytest.approx(5.64**3)


def test_helium_is_read_although_it_has_no_electronegativity(tmp_path):
    solid = Structure(Lattice.cubic(4), ["He", "O"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    back = read(write([Crystal(id="x", structure=solid)], tmp_path / "x.csv"))
    assert back[0].structure.composition == Composition("HeO")


def test_limit_counts_rows(tmp_path):
    rows = [Crystal(id=str(i), structure=perovskite()) for i in range(5)]
    for suffix in SUFFIXES:
        path = write(rows, tmp_path / f"t{suffix}")
        assert [c.id for c in read(path, limit=2)] == ["0", "1"]


# --- bad rows -------------------------------------------------------------------------------------


def disordered() -> Structure:
    return Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]])


def bad_cifs() -> dict[str, tuple[str | None, str]]:
    good = cif(perovskite())
    return {
        "no text": (None, "unreadable"),
        "words": ("this is no CIF", "unreadable"),
        "truncated number": (good[: good.index("_cell_length_c") + 16], "unreadable"),
        "truncated sites": (good[: good.rindex("  O  ")], "wrong_formula"),
        "two sites on one spot": (
            good.replace("0.50000000  0.50000000  0.00000000", "0.00001000  0.0  0.0"),
            "unreadable",
        ),
        "two structures": (good + cif(skewed()), "unreadable"),
        "disorder": (cif(disordered()), "disorder"),
        "dummy": (good.replace("Sr", "Qq"), "unknown_element"),
        "flat cell": (good.replace("3.90500000\n", "0.00000000\n", 1), "unreadable"),
        "not a number": (good.replace("3.90500000\n", "nan\n", 1), "bad_cell"),
        "missing hydrogen": (good.replace("'Sr1 Ti1 O3'", "'Sr1 Ti1 O3 H2'"), "wrong_formula"),
    }


@pytest.mark.parametrize("case", bad_cifs())
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_bad_row_stops_with_its_place_or_is_counted(tmp_path, suffix, case, caplog):
    text, reason = bad_cifs()[case]
    assert text != cif(perovskite())
    rows = [{"material_id": n, "cif": c} for n, c in (("ok", cif(perovskite())), ("bad", text))]
    path = table(tmp_path / f"t{suffix}", rows)
    with pytest.raises(UserError, match=r"row 2 \(id bad\): column 'cif': \w") as error:
        read(path)
    assert error.value.reason == reason and str(error.value).count("column") == 1
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert "skip_invalid (--skip-invalid)" in str(error.value)
    back = read(path, skip_invalid=True)
    assert [c.id for c in back] == ["ok"]
    assert back.skipped == Counter({reason: 1})
    assert f"left out: {reason} 1" in caplog.text


def test_too_many_atoms_and_repeated_ids(tmp_path):
    path = table(
        tmp_path / "t.csv",
        [
            {"id": "x", "cif": cif(Structure(Lattice.cubic(3), ["Po"], [[0, 0, 0]]))},
            {"id": "x", "cif": cif(Structure(Lattice.cubic(3), ["Fe"], [[0, 0, 0]]))},
            {"id": "y", "cif": cif(perovskite())},
        ],
    )
    with pytest.raises(UserError, match=r"row 2 \(id x\): an earlier crystal has the id 'x'"):
        read(path)
    with pytest.raises(UserError, match=r"row 2"):
        read(path, max_atoms=4)
    back = read(path, skip_invalid=True, max_atoms=4)
    assert back.skipped == Counter({"duplicate_id": 1, "too_many_atoms": 1})
    assert [c.structure.formula for c in back] == ["Po1"]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("spacegroup", "Fm-3m", "column 'spacegroup': 'Fm-3m' is not a space group number"),
        ("spacegroup.number", 231, "not a space group number"),
        ("spacegroup.number", 2.5, "not a space group number"),
        ("band_gap", "wide", "column 'band_gap': 'wide' is not a number"),
        ("band_gap", "1" + 400 * "0", "is not a number"),
        ("band_gap", -0.5, "column 'band_gap': -0.5 is below 0"),
    ],
)
def test_property_that_is_no_number(tmp_path, column, value, message):
    rows = [{"cif": cif(perovskite()), column: value}, {"cif": cif(skewed())}]
    path = table(tmp_path / "t.csv", rows)
    with pytest.raises(UserError, match=rf"row 1 \(id 1\): .*{message}") as error:
        read(path)
    assert str(error.value).count("column") == 1
    assert read(path, skip_invalid=True).skipped == Counter({"bad_property": 1})


def test_columns_that_contradict_each_other(tmp_path):
    row = {"cif": cif(perovskite()), "e_above_hull": 0.1, "energy_above_hull": 0.2}
    with pytest.raises(UserError, match="'energy_above_hull': contradicts another column"):
        read(table(tmp_path / "t.csv", [row]))
    row["energy_above_hull"] = 0.1
    assert read(table(tmp_path / "t.csv", [row]))[0].properties == {"e_above_hull": 0.1}


def test_bad_json_structures(tmp_path):
    good = perovskite().as_dict()
    partial = json.loads(json.dumps(good))
    partial["sites"][0]["species"][0]["occu"] = 0.5
    unknown = json.loads(json.dumps(good))
    unknown["sites"][0]["species"][0]["element"] = "Xx"
    endless = json.loads(json.dumps(good))
    endless["lattice"]["matrix"][0][0] = float("inf")
    empty = good | {"sites": []}
    odd = good | {"properties": [1, 2]}
    items = [good, partial, unknown, endless, empty, {"formula": "NaCl"}, 7, "text", None, odd]
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(map(json.dumps, items)) + "\n\n")
    back = read(path, skip_invalid=True)
    assert back.skipped == Counter(disorder=1, unknown_element=1, bad_cell=1, unreadable=5)
    assert [c.id for c in back] == ["1", "10"]
    path.write_text(json.dumps(good))
    assert read(path)[0].structure.composition == Composition("SrTiO3")


def test_json_does_not_build_the_classes_it_names(tmp_path):
    item = perovskite().as_dict()
    item["sites"][0]["properties"] = {"x": {"@module": "no.such.module", "@class": "Danger"}}
    path = tmp_path / "t.json"
    path.write_text(json.dumps(item))
    assert len(read(path)[0].structure) == 5


def test_bad_extxyz_frames(tmp_path):
    path = tmp_path / "t.extxyz"
    good = Atoms("Po", cell=[3, 3, 3], pbc=True)
    molecule = Atoms("N2", positions=[[0, 0, 0], [0, 0, 1.1]])
    slab = Atoms("Po", cell=[3, 3, 3], pbc=[True, True, False])
    ghost = Atoms("X", cell=[3, 3, 3], pbc=True)
    ase.io.write(path, [good, molecule, slab, ghost])
    back = read(path, skip_invalid=True)
    assert back.skipped == Counter(not_periodic=2, unknown_element=1)
    path.write_text(path.read_text() + "two\natoms\n")
    with pytest.raises(UserError, match="not readable as extxyz .* header but got: .*two"):
        read(path, skip_invalid=True)


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


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("absent.csv", None, "no such file or folder; check the path"),
        ("t.pkl", "x", "cannot read '.pkl' files; known are"),
        ("t", "x", "cannot read '' files"),
        ("t.csv", "", "not a readable .csv file"),
        ("t.csv", "formula,CIF\nNaCl,x\n", "no column 'cif'; the columns are formula, CIF"),
        ("t.csv", "cif,id\n", "holds no crystals"),
        ("t.csv", b"cif\n\xff\xfe\n", "not a readable .csv file"),
        ("t.parquet", "PAR1", "not a readable .parquet file"),
        ("t.json", "{", "not a readable .json file"),
        ("t.json", "[]", "holds no crystals"),
        ("t.jsonl", "{}\n{", "not a readable .jsonl file"),
        ("t.extxyz", "", "holds no crystals"),
        ("t.cif", "", r"file t.cif \(id t\): not a readable CIF"),
    ],
)
def test_bad_file(tmp_path, name, content, match):
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=match) as error:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


def test_nothing_to_read(tmp_path):
    with pytest.raises(UserError, match="the folder holds no .cif files"):
        read(tmp_path)
    path = table(tmp_path / "t.csv", [{"cif": "nonsense"}])
    with pytest.raises(UserError, match=r"holds no valid crystal \(unreadable 1\)"):
        read(path, skip_invalid=True)
    for argument in ("limit", "max_atoms", "workers"):
        with pytest.raises(UserError, match=f"{argument} must be at least 1, not 0"):
            read(path, **{argument: 0})


SYMMETRIC_CIF = """data_NaCl
_symmetry_space_group_name_H-M 'P m -3 m'
_cell_length_a 5.64
_cell_length_b 5.64
_cell_length_c 5.64
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_chemical_formula_sum 'Cs1 Cl1'
loop_
 _symmetry_equiv_pos_as_xyz
 'x, y, z'
 '-x, -y, -z'
loop_
 _atom_site_type_symbol
 _atom_site_label
 _atom_site_fract_x
 _atom_site_fract_y
 _atom_site_fract_z
 _atom_site_occupancy
  Cs Cs1 0.0 0.0 0.0 1
  Cl Cl1 0.5 0.5 0.5 1
"""


def test_deuterium_becomes_hydrogen(tmp_path):
    path = tmp_path / "x.cif"
    path.write_text(SYMMETRIC_CIF.replace("Cs", "D"))
    assert read(path)[0].structure.composition == Composition("HCl")


@needs_mp20
def test_mp20_reads():
    back = read(VAL, limit=600, max_atoms=20)
    assert len(back) == 600 and not back.skipped
    first = back[0]
    assert (first.id, first.properties["spacegroup"]) == ("mp-865981", 225)
    assert first.structure.composition == Composition("TmMgHg2")
    assert first.structure.lattice.parameters == pytest.approx((5.0488004,) * 3 + (60,) * 3)
    for crystal in back:
        formula = Composition(crystal.properties["pretty_formula"])
        assert crystal.structure.composition.reduced_formula == formula.reduced_formula


# --- worker processes ---------------------------------------------------------------------------


def test_worker_processes_give_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(cif_module, "_CHUNK", 2)
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

    monkeypatch.setattr(cif_module, "for_each", in_this_process)
    monkeypatch.setattr(cif_module.os, "cpu_count", lambda: 7)
    path = table(tmp_path / "t.csv", [{"cif": SYMMETRIC_CIF}] * 3 + [{"cif": cif(perovskite())}])
    for threshold, workers, expected in ((4, None, 1), (3, None, 7), (3, 2, 2)):
        monkeypatch.setattr(cif_module, "_WORTH_WORKERS", threshold)
        assert len(read(path, workers=workers)) == 4
        assert asked.pop() == expected


# --- writing --------------------------------------------------------------------------------------


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
        ("folder", "the id 'y/..' cannot be a file name"),
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


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_unknown_values_are_left_out(tmp_path, suffix):
    values = {"band_gap": float("nan"), "e_above_hull": float("inf"), "note": "kept"}
    crystal = Crystal(id="x", structure=perovskite(), properties=values)
    assert read(write([crystal], tmp_path / f"t{suffix}"))[0].properties == {"note": "kept"}


# --- pymatgen and ASE -----------------------------------------------------------------------------


def test_structures_of_both_libraries_come_in():
    charged = Structure(
        Lattice.cubic(4), ["Cl-", "Na+"], [[0, 0, 0], [0.5] * 3], site_properties={"m": [1, 2]}
    )
    expected = Structure(Lattice.cubic(4), ["Cl", "Na"], [[0, 0, 0], [0.5] * 3])
    assert to_structure(charged) == expected
    assert to_structure(charged).site_properties == {}
    assert to_structure(to_atoms(charged)) == expected
    assert to_atoms(charged).pbc.all()
    assert same(to_structure(to_atoms(skewed())), skewed(), atol=1e-12)


@pytest.mark.parametrize(
    ("crystal", "reason"),
    [
        (disordered(), "disorder"),
        (Structure(Lattice.cubic(4), [DummySpecies("Xx")], [[0, 0, 0]]), "unknown_element"),
        (Structure(np.zeros((3, 3)), ["Na"], [[0, 0, 0]]), "bad_cell"),
        (Structure(Lattice.cubic(4), ["Na"], [[0, 0, np.nan]]), "bad_cell"),
        (Structure(Lattice.cubic(4), [], []), "unreadable"),
        (Atoms("X", cell=[3, 3, 3], pbc=True), "unknown_element"),
        (Atoms("Na", cell=[3, 3, 3]), "not_periodic"),
        (Atoms("Na", pbc=True), "bad_cell"),
        (Atoms(cell=[3, 3, 3], pbc=True), "unreadable"),
    ],
)
def test_structures_that_are_refused(crystal, reason):
    with pytest.raises(InvalidCrystal) as error:
        to_structure(crystal)
    assert error.value.reason == reason


def test_other_objects_are_refused():
    with pytest.raises(UserError, match="pymatgen Structure or ASE Atoms, not str"):
        to_structure("NaCl")
