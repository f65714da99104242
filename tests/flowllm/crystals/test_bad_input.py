"""Bad rows and files: refused with their place, or counted by reason."""

from __future__ import annotations

import json
from collections import Counter

import ase.io
import pytest
from ase import Atoms
from pymatgen.core import Composition, Lattice, Structure

from flowllm.crystals.io import read
from flowllm.errors import UserError
from support import cif, disordered, perovskite, skewed, table

SUFFIXES = [".csv", ".parquet", ".extxyz", ".xyz", ".json", ".jsonl"]


def bad_cifs() -> dict[str, tuple[str | None, str]]:
    good = cif(perovskite())
    return {
        "no text": (None, "unreadable"),
        "words": ("this is no CIF", "unreadable"),
        "truncated number": (good[: good.index("_cell_length_c") + 16], "unreadable"),
        "truncated sites": (good[: good.rindex("  O  ")], "wrong_formula"),
        "two sites on one spot": (
            good.replace("0.50000000  0.50000000  0.00000000", "0.00001000  0.0  0.0"),
            "coinciding_atoms",
        ),
        "two structures": (good + cif(skewed()), "unreadable"),
        "disorder": (cif(disordered()), "disorder"),
        "dummy": (good.replace("Sr", "Qq"), "unknown_element"),
        "flat cell": (good.replace("3.90500000\n", "0.00000000\n", 1), "bad_cell"),
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
    assert read(path, skip_invalid=True).skipped["unreadable"] == 1
    path.write_text("two\natoms\n" + "1\nLattice='3 0 0 0 3 0 0 0 3'\nPo 0 0 0\n")
    with pytest.raises(UserError, match="line 1: the number of atoms expected, but got: 'two'"):
        read(path)
    assert len(read(path, skip_invalid=True)) == 1


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("absent.csv", None, "no such file or folder; check the path"),
        ("t.pkl", "x", "cannot read '.pkl' files; known are"),
        ("t", "x", "cannot read '' files"),
        ("t.csv", "", "not a readable .csv file"),
        ("t.csv", "formula,CIF\nNaCl,x\n", "no column 'cif'; the columns are formula, CIF"),
        ("t.csv", "cif,id\n", "holds no crystals"),
        ("t.csv", b"cif\n\xff\xfe\n", "not a readable CSV file.*save it as UTF-8"),
        ("t.parquet", "PAR1", "not a readable .parquet file"),
        ("t.json", "{", "not a readable JSON file"),
        ("t.json", "[]", "holds no crystals"),
        ("t.jsonl", "{}\n{", "not a readable JSON lines file"),
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
    with pytest.raises(
        UserError, match="the folder holds no files of crystals .*; it holds no files"
    ):
        read(tmp_path)
    path = table(tmp_path / "t.csv", [{"cif": "nonsense"}])
    with pytest.raises(UserError, match=r"holds no valid crystal \(unreadable 1; row 1: column"):
        read(path, skip_invalid=True)
    for argument in ("limit", "max_atoms", "workers"):
        with pytest.raises(UserError, match=f"{argument} must be at least 1, not 0"):
            read(path, **{argument: 0})
