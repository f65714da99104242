"""Names that are no text: escaped wherever they are written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pytest
from cli_support import process
from hypothesis import given
from hypothesis import strategies as st

from flowllm.crystals.io import Crystal, read, write
from flowllm.evaluation.evaluate import evaluate
from flowllm.system.files import sha256_folder, write_atomic
from flowllm.system.names import printable
from support import SALT, same

LATIN = os.fsdecode(b"caf\xe9")


@given(st.binary().map(os.fsdecode) | st.text(st.characters()))
def test_every_string_becomes_text_and_text_stays(name: str) -> None:
    text = printable(name)
    assert text.encode().decode() == text == printable(text)
    if name.encode(errors="replace").decode() == name:
        assert text == name


def test_undecoded_bytes_are_decoded_or_escaped() -> None:
    assert printable(LATIN) == r"caf\xe9"
    assert printable("caf\u00e9".encode().decode("ascii", "surrogateescape")) == "caf\u00e9"
    assert printable("\ud800") == r"\ud800"


def test_files_and_hashes_take_such_names(tmp_path: Path) -> None:
    file = write_atomic(tmp_path / LATIN, f"id {LATIN}")
    assert file.read_text() == r"id caf\udce9"
    assert len(sha256_folder(tmp_path)) == 64


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".extxyz", ".json", ".cif"])
def test_crystals_are_written_and_read_under_such_names(suffix: str, tmp_path: Path) -> None:
    first = write(SALT, tmp_path / f"{LATIN}.cif")
    (found,) = read(first, reduce=False)
    assert found.id == r"caf\xe9"
    again = write(found, tmp_path / LATIN / f"{LATIN}{suffix}")
    (found,) = read(again, reduce=False)
    assert found.id == r"caf\xe9"
    assert sorted(found.structure.species) == sorted(SALT.species)


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".extxyz"])
def test_a_half_character_in_a_file_is_escaped(suffix: str, tmp_path: Path) -> None:
    content = {**SALT.as_dict(), "properties": {"material_id": "a\ud800", "note": "\udfff"}}
    file = tmp_path / "salt.json"
    file.write_text(json.dumps(content))
    (found,) = read(file, reduce=False)
    assert (found.id, found.properties["note"]) == (r"a\ud800", r"\udfff")
    (again,) = read(write(found, tmp_path / f"out{suffix}"), reduce=False)
    assert again.id == found.id and again.properties == found.properties
    assert same(again.structure, found.structure, atol=1e-6) or suffix == ".csv"


def test_an_evaluation_escapes_them_in_tables_and_report(tmp_path: Path) -> None:
    pytest.importorskip("smact")
    crystals = [Crystal(id="1", structure=SALT)]
    file = write(crystals, tmp_path / f"{LATIN}.jsonl")
    found = evaluate(file, out=tmp_path / f"out-{LATIN}", progress=False)
    assert found.sets[0].name == r"caf\xe9.jsonl"
    with open(found.folder / "structures.parquet", "rb") as table:
        assert set(pd.read_parquet(table)["set"]) == {r"caf\xe9.jsonl"}
    assert r"caf\xe9.jsonl" in (found.folder / "report.html").read_text("utf-8")


@pytest.mark.parametrize("environment", [{}, {"LC_ALL": "POSIX"}])
def test_commands_print_them_in_every_locale(environment: dict[str, str], tmp_path: Path) -> None:
    if environment:
        environment |= {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    write(SALT, tmp_path / f"{LATIN}.cif")
    write(SALT, tmp_path / "\u00fc.cif")
    for name, written in ((LATIN, LATIN), ("\u00fc", "out-\u00fc")):
        ended = process("data", f"{name}.cif", f"{written}.csv", cwd=tmp_path, **environment)
        assert (ended.code, "Traceback" in ended.stderr) == (0, False), ended.stderr
        assert (tmp_path / f"{written}.csv").is_file()
