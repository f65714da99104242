"""JSON of Materials Project, WBM, pandas, JARVIS and ASE."""

from __future__ import annotations

import json
from collections import Counter

import ase.db
import ase.io
import numpy as np
import orjson
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.entries.computed_entries import ComputedStructureEntry

from flowllm.crystals.documents import structure_dict
from flowllm.crystals.io import read, to_atoms
from flowllm.errors import InvalidCrystal, UserError
from support import CSCL, SALT, SHARED

CASES = SHARED / "cases" / "12-json-of-materials-project"
ONE, OTHER = CSCL.as_dict(), SALT.get_primitive_structure().as_dict()
ENTRY = ComputedStructureEntry(CSCL, -6.8, correction=-0.5, entry_id="mp-1", data={"e_form": -1.5})
SUMMARY = {
    **{"material_id": "mp-1", "formula_pretty": "CsCl", "band_gap": 5.0, "deprecated": False},
    **{"energy_above_hull": 0.0, "symmetry": {"number": 221, "symbol": "Pm-3m"}, "structure": ONE},
}
JARVIS = {
    **{"jid": "JVASP-1", "spg_number": "221", "optb88vdw_bandgap": 5.0, "ehull": "na"},
    "atoms": {
        **{"lattice_mat": CSCL.lattice.matrix.tolist(), "elements": ["Cs", "Cl"]},
        **{"coords": [[0, 0, 0], [0.5, 0.5, 0.5]], "cartesian": False},
    },
}


def files() -> dict[str, tuple[object, list[str]]]:
    """Content, and the ids of the crystals."""
    named = {"material_id": {"0": "a", "1": "b"}}
    return {
        "one structure": (ONE, ["t"]),
        "text in text": (json.dumps(ONE), ["t"]),
        "list of structures": ([ONE, OTHER], ["1", "2"]),
        "by id": ({"mp-1": ONE, "mp-2": OTHER}, ["mp-1", "mp-2"]),
        "summary": (SUMMARY, ["mp-1"]),
        "summaries": ([SUMMARY, SUMMARY | {"material_id": "mp-2"}], ["mp-1", "mp-2"]),
        "response": ({"data": [SUMMARY], "meta": {"total_doc": 1}}, ["mp-1"]),
        "summaries by id": ({"x": {"structure": ONE}, "y": {"structure": OTHER}}, ["x", "y"]),
        "structure as text": ([{"id": "a", "structure": json.dumps(ONE)}], ["a"]),
        "entry": (ENTRY.as_dict(), ["mp-1"]),
        "entries": ([ENTRY.as_dict()], ["mp-1"]),
        "alexandria": ({"entries": [ENTRY.as_dict() | {"data": {"mat_id": "agm1"}}]}, ["mp-1"]),
        "wbm": ([{"material_id": "wbm-1", "initial_structure": ONE}], ["wbm-1"]),
        "wbm entries": (
            [{"material_id": "wbm-1", "computed_structure_entry": {"structure": ONE}}],
            ["wbm-1"],
        ),
        "pandas columns": (named | {"initial_structure": {"0": ONE, "1": OTHER}}, ["a", "b"]),
        "pandas columns without ids": ({"structure": {"x": ONE, "y": OTHER}}, ["x", "y"]),
        "pandas split": (
            {"columns": ["structure", "gap"], "index": [7, 8], "data": [[ONE, 1], [OTHER, 2]]},
            ["7", "8"],
        ),
        "frames of MPtrj": (
            {"mp-1": {"mp-1-0": {"structure": ONE}, "mp-1-1": {"structure": OTHER}}},
            ["mp-1-0", "mp-1-1"],
        ),
        "own key": ([{"id": "a", "opt_structure": ONE}], ["a"]),
        "cif": ([{"id": "a", "cif": CSCL.to(fmt="cif")}], ["a"]),
        "jarvis": ([JARVIS], ["JVASP-1"]),
    }


@pytest.mark.parametrize("case", files())
def test_structures_are_found_with_their_ids(tmp_path, case):
    content, ids = files()[case]
    path = tmp_path / "t.json"
    path.write_text(json.dumps(content))
    back = read(path, reduce=False)
    assert [crystal.id for crystal in back] == ids
    formulas = [crystal.structure.composition.reduced_formula for crystal in back]
    assert formulas == ["CsCl", "CsCl" if case == "summaries" else "NaCl"][: len(ids)]
    assert np.allclose(back[0].structure.lattice.matrix, CSCL.lattice.matrix)
    assert np.allclose(back[0].structure.frac_coords, CSCL.frac_coords)
    if isinstance(content, list):
        (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, content)) + "\n")
        assert [crystal.id for crystal in read(tmp_path / "t.jsonl")] == ids


def test_the_properties_beside_a_structure_are_read(tmp_path):
    path = tmp_path / "t.json"
    path.write_text(json.dumps([SUMMARY | {"material_id": "mp-2"}, ENTRY.as_dict(), JARVIS]))
    summary, entry, jarvis = (crystal.properties for crystal in read(path))
    assert summary == {
        **{"formula_pretty": "CsCl", "band_gap": 5.0, "deprecated": False},
        **{"e_above_hull": 0.0, "spacegroup": 221},
    }
    assert entry == {"formation_energy_per_atom": -1.5, "energy": -6.8, "correction": -0.5}
    assert jarvis == {"spacegroup": 221, "band_gap": 5.0}


def test_of_two_structures_the_final_one_is_read_and_the_other_named(tmp_path, caplog):
    path = tmp_path / "t.json"
    item = {"id": "a", "initial_structure": OTHER, "computed_structure_entry": {"structure": ONE}}
    path.write_text(json.dumps([item]))
    (crystal,) = read(path)
    assert crystal.structure.composition.reduced_formula == "CsCl"
    assert "initial_structure is not used in 1 of 1 rows" in caplog.text


def test_other_forms_of_a_structure(tmp_path):
    cartesian = json.loads(json.dumps(ONE))
    for site in cartesian["sites"]:
        site.pop("abc")
        site["species"][0].pop("occu")
    lengths = json.loads(json.dumps(ONE))
    lengths["lattice"].pop("matrix")
    ions = json.loads(json.dumps(ONE))
    ions["sites"][0]["species"][0] |= {"element": "Cs", "oxidation_state": 1}
    path = tmp_path / "t.json"
    path.write_text(json.dumps([cartesian, lengths, ions]))
    for crystal in read(path, reduce=False):
        assert crystal.structure.matches(CSCL)
        assert np.allclose(crystal.structure.frac_coords, CSCL.frac_coords)


@pytest.mark.parametrize(
    ("item", "reason", "message"),
    [
        ({"formula": "NaCl"}, "unreadable", "neither a structure nor .* with the keys formula"),
        (7, "unreadable", "neither a structure nor a document: 7"),
        (ONE | {"sites": [{"species": [], "abc": [0, 0, 0]}]}, "disorder", "empty"),
        (ONE | {"sites": [{"abc": [0, 0, 0]}]}, "unreadable", "it has no 'species'"),
        (ONE | {"lattice": {"matrix": [[1, 2]]}}, "unreadable", "not a pymatgen structure"),
        ({"@class": "Molecule", "sites": []}, "not_periodic", "a molecule"),
        ({"a": ONE, "b": OTHER, "id": "x"}, "unreadable", "several structures, a, b"),
        ({"structure": ONE | {"sites": []}}, "unreadable", "no atoms"),
    ],
)
def test_a_bad_item_has_its_reason(tmp_path, item, reason, message):
    path = tmp_path / "t.json"
    path.write_text(json.dumps([ONE, item]))
    with pytest.raises(InvalidCrystal, match=f"structure 2 .*{message}"):
        read(path)
    assert read(path, skip_invalid=True).skipped == Counter({reason: 1})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            [{"formula": "NaCl", "energy": 1}],
            "a list of 1 items, the first an object with the keys",
        ),
        ({"a": {"b": 1}}, "holds no crystals but an object with the keys a"),
        ([], "holds no crystals but an empty list"),
        ([1, 2], "holds no crystals but a list of 2 items, the first 1"),
        ("text", "holds no crystals|not JSON"),
        (None, "holds no crystals but None"),
    ],
)
def test_a_file_without_crystals_says_what_it_holds(tmp_path, content, message):
    path = tmp_path / "t.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        read(path)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[" * 900 + "]" * 900, '{"a":' * 900 + "1" + "}" * 900]
)
def test_deep_json_is_one_line(tmp_path, text):
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(UserError):
        read(path)


def test_files_and_databases_of_ase(tmp_path):
    atoms = [to_atoms(CSCL), to_atoms(SALT)]
    ase.io.write(tmp_path / "t.json", atoms[0])
    assert read(tmp_path / "t.json")[0].structure.matches(CSCL)
    with ase.db.connect(tmp_path / "t.db") as database:
        database.write(atoms[0], band_gap=5.0, space_group="Pm-3m", name="a", n=3)
        database.write(atoms[1], data={"x": [1, 2]})
        atoms[0].pbc = [True, True, False]
        database.write(atoms[0])
    content = (tmp_path / "t.db").read_bytes()
    back = read(tmp_path / "t.db", skip_invalid=True, reduce=False)
    assert [crystal.id for crystal in back] == ["1", "2"]
    assert back.skipped == Counter(not_periodic=1)
    assert back[0].properties == {"band_gap": 5.0, "spacegroup": 221, "name": "a", "n": 3}
    assert np.allclose(back[1].structure.frac_coords, SALT.frac_coords)
    assert (tmp_path / "t.db").read_bytes() == content
    assert len(read(tmp_path / "t.db", limit=1)) == 1


def test_a_database_of_something_else_is_refused(tmp_path):
    import sqlite3

    path = tmp_path / "t.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE other (id INTEGER)")
    connection.close()
    with pytest.raises(UserError, match="no database of ASE, .* it holds other"):
        read(path)
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE VIEW systems AS SELECT * FROM other")
    connection.close()
    with pytest.raises(UserError, match="no database of ASE"):
        read(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UserError, match="not a readable database|no database of ASE"):
        read(path)
    path.write_text("x")
    with pytest.raises(UserError, match="not a readable database"):
        read(path)
    path.with_name("t.db-wal").write_text("x")
    with pytest.raises(UserError, match="some of its rows are in t.db-wal; close the database"):
        read(path)


def test_a_layer_in_json_is_refused(tmp_path):
    layer = Structure(Lattice.cubic(4, pbc=(True, True, False)), ["Cs", "Cl"], CSCL.frac_coords)
    (tmp_path / "t.json").write_text(json.dumps({"a": {"structure": layer.as_dict()}}))
    with pytest.raises(InvalidCrystal, match=r"\(id a\): structure: not periodic .* T T F"):
        read(tmp_path / "t.json")


@pytest.mark.skipif(not CASES.is_dir(), reason="needs the cases at ../shared/cases")
@pytest.mark.parametrize("name", ["by_id.json", "docs.json", "entries.json", "wbm.jsonl"])
def test_the_cases_of_materials_project(name):
    (crystal,) = read(CASES / name)
    assert crystal.id == ("wbm-1-1" if name == "wbm.jsonl" else "mp-22862")
    assert crystal.structure.composition.reduced_formula == "NaCl"
    if name == "docs.json":
        assert crystal.properties["spacegroup"] == 225 and crystal.properties["band_gap"] == 5.0


def test_a_structure_dict_is_that_of_pymatgen():
    mixed = Structure(
        Lattice.from_parameters(3, 4, 5, 80, 85, 95),
        [{"Na+": 0.5, "K+": 0.25}, "Cl-", "D"],
        [[0.1, 0.2, 0.3], [0.5, -0.5, 1.5], [0.7, 0.7, 0.7]],
        charge=-0.25,
        site_properties={"magmom": [1.0, None, 2.0]},
        properties={"source": "test"},
        labels=["A", "B", "C"],
    )
    for structure in (SALT, CSCL, mixed):
        assert orjson.dumps(structure_dict(structure)).decode() == structure.to(fmt="json")
        light = structure.as_dict(verbosity=0)
        assert json.dumps(structure_dict(structure, verbosity=0)) == json.dumps(light)
