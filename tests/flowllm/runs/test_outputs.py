"""The files that a run ends with: each whole or absent, made once, the same for every command."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import ase.io
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from flowllm.crystals.cif import cif_text
from flowllm.crystals.io import read
from flowllm.crystals.symmetrized_cif import symmetrized_cif
from flowllm.errors import UserError
from flowllm.runs import outputs
from flowllm.runs import records as records_module
from flowllm.runs.cif_form import CIF_FORMS
from flowllm.runs.outputs import CORE_COLUMNS, Outcome, publish_crystals
from flowllm.runs.records import CrystalRecord, Frame, read_records
from flowllm.runs.sharded import Batch, RunFolder, run_job
from flowllm.system.files import file_names
from run_jobs import TOTAL, contents, run

SALT = Structure(Lattice.cubic(5.69), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
WIDE = Structure(Lattice.cubic(7), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
HELIUM = Structure(Lattice.cubic(4), ["He"], [[0.1, 0.2, 0.3]])
FRAMES = [
    Frame(
        lattice=np.diag([4.0, 5.0, 6.0 + k]),
        frac_coords=np.array([[0.0, 0, 0], [0.5, 0.5, 1.25]]),
        info={"t": k / 2, "energy": -1.5 - k},
    )
    for k in range(3)
]
RECORDS = [
    CrystalRecord(
        id="a/b",
        structure=SALT,
        initial_structure=WIDE,
        properties={"swap": "K->Na", "steps": 3, "energy": -math.inf, "unlisted": 1},
        rejects={"line_count": 2},
        trajectory=FRAMES,
    ),
    CrystalRecord(id="a_b", structure=None, initial_structure=SALT, failure="refiner: no_cell"),
    CrystalRecord(id="nothing", structure=None, failure="prior: bad_cell", rejects={"x": 1}),
    CrystalRecord(id="he", structure=HELIUM, properties={"energy": -0.25}),
]
COLUMNS = {"swap": pa.string(), "steps": pa.int64(), "energy": pa.float64()}


def crystals(out: Path, records: list[CrystalRecord] = RECORDS) -> RunFolder:
    """Return a finished run of these records, two in a shard."""
    return run_job(
        out,
        manifest={},
        total=len(records),
        batch_size=2,
        work=lambda _, batch, progress: [r.to_json() for r in records[batch.start : batch.stop]],
    )


def published(out: Path) -> Outcome:
    return publish_crystals(crystals(out), COLUMNS, cif="symmetrized", table_only=("steps",))


def test_an_output_is_published_once(job: ModuleType, tmp_path: Path) -> None:
    folder = run(job, tmp_path)

    def write(path: Path) -> None:
        path.mkdir()
        for record in folder.records():
            (path / f"{record['id']}.json").write_text(json.dumps(record))

    published = folder.publish("cif", write)
    assert published == tmp_path / "cif"
    assert len(list(published.iterdir())) == TOTAL
    folder.publish("cif", partial(job.fail_in_setup, AssertionError("written again")))


def test_a_failed_output_leaves_nothing_and_is_made_again(job: ModuleType, tmp_path: Path) -> None:
    folder = run(job, tmp_path)
    before = contents(tmp_path)

    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        folder.publish("samples.extxyz", fail)
    assert contents(tmp_path) == before
    folder.publish("samples.extxyz", lambda path: path.write_text("whole"))
    assert (tmp_path / "samples.extxyz").read_text() == "whole"


def test_an_unfinished_run_has_no_records_and_no_outputs(job: ModuleType, tmp_path: Path) -> None:
    folder = run(job, tmp_path)
    folder.shard(3).unlink()
    with pytest.raises(UserError, match=r"not finished \(19 of 20 shards\)"):
        next(folder.records())
    with pytest.raises(UserError, match="not finished"):
        folder.publish("samples.extxyz", lambda path: path.write_text("some"))


# Crystals


def test_the_table_has_a_row_for_every_record(tmp_path: Path) -> None:
    published(tmp_path)
    table = pq.read_table(tmp_path / "samples.parquet")
    assert table.column_names == [*CORE_COLUMNS, *COLUMNS]
    salt, lost, nothing, helium = table.to_pylist()
    assert (salt["id"], salt["formula"], salt["num_atoms"]) == ("a/b", "NaCl", 2)
    assert Structure.from_str(salt["structure"], fmt="json") == SALT
    assert Structure.from_str(salt["initial_structure"], fmt="json") == WIDE
    assert salt["cif"] == cif_text(SALT)
    assert (salt["spacegroup"], salt["wyckoff"]) == (221, "Na:a Cl:b")
    assert (salt["failure"], json.loads(salt["rejects"])) == (None, {"line_count": 2})
    assert (salt["swap"], salt["steps"], salt["energy"]) == ("K->Na", 3, -math.inf)
    assert (lost["formula"], lost["num_atoms"]) == ("NaCl", 2)  # of the initial crystal
    assert (lost["cif"], lost["structure"], lost["failure"]) == (None, None, "refiner: no_cell")
    assert (lost["spacegroup"], lost["wyckoff"]) == (None, None)
    assert {name for name, value in nothing.items() if value is not None} == {
        *("id", "failure", "rejects")
    }
    assert (helium["formula"], helium["energy"], helium["swap"]) == ("He", -0.25, None)


def test_the_crystals_come_with_the_values_that_are_not_for_the_table_alone(tmp_path: Path) -> None:
    outcome = published(tmp_path)
    assert [c.id for c in outcome.crystals] == ["a/b", "he"]
    assert outcome.crystals[0].properties == {"swap": "K->Na", "energy": -math.inf}
    assert outcome.failures == Counter({"refiner: no_cell": 1, "prior: bad_cell": 1})
    assert outcome.rejects == Counter({"line_count": 2, "x": 1})
    salt, helium = read(tmp_path / "samples.extxyz", reduce=False)
    assert (salt.id, salt.properties) == ("a/b", {"swap": "K->Na"})
    assert (helium.id, helium.properties) == ("he", {"energy": -0.25})


def test_a_trajectory_has_its_times_and_energies_where_ase_looks_for_them(tmp_path: Path) -> None:
    published(tmp_path)
    (file,) = (tmp_path / "trajectories").iterdir()
    assert file.name == "a_b.extxyz"
    frames = ase.io.read(file, ":")
    assert [frame.info["t"] for frame in frames] == [0, 0.5, 1]
    assert [frame.get_potential_energy() for frame in frames] == [-1.5, -2.5, -3.5]
    assert frames[1].cell.lengths().tolist() == [4, 5, 7]
    assert frames[1].positions[1] == pytest.approx([2, 2.5, 1.25 * 7])  # not wrapped


def test_a_record_comes_back_with_every_bit(tmp_path: Path) -> None:
    odd = CrystalRecord(
        id="nan",
        structure=Structure(Lattice.cubic(0.1 + 0.2 + 4), ["Na"], [[1 / 3, 0, 0]]),
        properties={"parent": "nan", "low": -math.inf, "n": 1, "x": 0.1},
    )
    for record, known in zip(read_records(crystals(tmp_path, [odd])), [odd], strict=True):
        assert record == known
        assert record.structure is not None and known.structure is not None
        there, here = record.structure, known.structure
        assert there.lattice.matrix.tobytes() == here.lattice.matrix.tobytes()
        assert there.frac_coords.tobytes() == here.frac_coords.tobytes()


def test_the_states_can_be_left_out_but_not_that_there_were_some(tmp_path: Path) -> None:
    found = [r.trajectory for r in read_records(crystals(tmp_path), trajectories=False)]
    assert found == [[], None, None, None]


def test_every_output_is_made_again_alone_with_the_same_bytes(tmp_path: Path) -> None:
    outcome = published(tmp_path)
    before = contents(tmp_path)
    for name in ("samples.parquet", "samples.extxyz", "cif", "trajectories"):
        path = tmp_path / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        assert published(tmp_path) == outcome
        assert contents(tmp_path) == before


def test_the_files_have_the_form_that_was_asked_for(tmp_path: Path) -> None:
    texts = {"p1": cif_text(SALT), "symmetrized": symmetrized_cif(SALT)}
    assert len(set(texts.values())) == 2
    for form in CIF_FORMS:
        publish_crystals(crystals(tmp_path / form), COLUMNS, cif=form)
        assert (tmp_path / form / "cif" / "a_b.cif").read_text() == texts[form]
    tables = [pq.read_table(tmp_path / form / "samples.parquet") for form in CIF_FORMS]
    assert tables[0].equals(tables[1])


def test_the_tolerance_of_the_symmetry_is_recorded(tmp_path: Path) -> None:
    published(tmp_path)
    schema = pq.read_schema(tmp_path / "samples.parquet")
    for name in ("spacegroup", "wyckoff"):
        assert schema.field(name).metadata == {b"symprec": b"0.1"}


def test_a_crystal_whose_symmetry_search_fails_has_none_in_the_table(tmp_path: Path) -> None:
    piled = Structure(Lattice.cubic(4), ["Na", "Na"], [[0, 0, 0], [0, 0, 1e-3]])
    record = CrystalRecord(id="piled", structure=piled)
    publish_crystals(crystals(tmp_path, [record]), COLUMNS, cif="symmetrized")
    (row,) = pq.read_table(tmp_path / "samples.parquet").to_pylist()
    assert (row["formula"], row["spacegroup"], row["wyckoff"]) == ("Na", None, None)
    assert (tmp_path / "cif" / "piled.cif").read_text() == cif_text(piled)


def test_cif_and_symmetry_of_a_crystal_are_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counted(name: str, function: Callable[..., Any], structure: Structure, *rest: Any) -> Any:
        calls.append((name, structure.formula))
        return function(structure, *rest)

    for module, name in (
        (outputs, "cif_text"), (records_module, "symmetry_of"), (records_module, "symmetrized_cif")
    ):  # fmt: skip
        monkeypatch.setattr(module, name, partial(counted, name, getattr(module, name)))
    published(tmp_path)
    assert len(calls) == len(set(calls)) == 6
    published(tmp_path)
    assert len(calls) == 6


def test_a_crystal_that_its_worker_described_is_written_as_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = contents(published(tmp_path / "plain").folder)
    described = crystals(tmp_path / "described", [record.described() for record in RECORDS])

    def refused(*_: object) -> None:
        raise AssertionError("the worker has done this")

    monkeypatch.setattr(records_module, "symmetry_of", refused)
    monkeypatch.setattr(records_module, "symmetrized_cif", refused)
    publish_crystals(described, COLUMNS, cif="symmetrized", table_only=("steps",))
    found = contents(described.path)
    assert [r.description is None for r in read_records(described)] == [False, True, True, False]
    assert {name: content for name, content in found.items() if "shards" not in name} == {
        name: content for name, content in expected.items() if "shards" not in name
    }


def test_publishing_holds_few_records_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: weakref.WeakSet[CrystalRecord] = weakref.WeakSet()
    most = 0

    def watched(folder: RunFolder) -> Iterator[CrystalRecord]:
        nonlocal most
        for record in read_records(folder):
            alive.add(record)
            most = max(most, len(alive))
            yield record

    monkeypatch.setattr(CrystalRecord, "__hash__", object.__hash__)
    monkeypatch.setattr(outputs, "read_records", watched)
    records = [dataclasses.replace(RECORDS[0], id=f"salt-{k}") for k in range(40)]
    outcome = publish_crystals(crystals(tmp_path, records), COLUMNS, cif="symmetrized")
    assert len(outcome.crystals) == 40 and 0 < most <= 3


def test_the_crystals_of_a_run_are_read_where_they_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [
        dataclasses.replace(RECORDS[2 if k % 3 == 1 else 0], id=f"salt-{k}") for k in range(12)
    ]
    made = publish_crystals(crystals(tmp_path, records), COLUMNS, cif="p1").crystals
    ids = [record.id for record in records if record.structure is not None]
    read_shards: list[int] = []
    whole = RunFolder.read_shard

    def counted(folder: RunFolder, batch: Batch) -> list[dict[str, Any]]:
        read_shards.append(batch.index)
        return whole(folder, batch)

    monkeypatch.setattr(RunFolder, "read_shard", counted)
    assert len(made) == 8 and not read_shards
    assert [crystal.id for crystal in made[:2]] == ids[:2] and read_shards == [0, 1]
    assert [made[k].id for k in range(-8, 8)] == ids + ids
    assert [crystal.id for crystal in made] == ids
    for part in (slice(2, 5), slice(None, None, 2), slice(5, 2, -1), slice(7, 3), slice(-3, None)):
        assert [crystal.id for crystal in made[part]] == ids[part]
    with pytest.raises(IndexError):
        made[8]
    assert made == list(made) and made != list(made)[:-1] and made != []
    read_shards.clear()
    assert [made[k].id for k in range(8)] == ids and read_shards == list(range(6))
    made[7].structure.scale_lattice(1.0)
    assert made[7] == list(made)[7]


def test_a_table_of_many_rows_is_written_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "_ROWS", 3)
    published(tmp_path)
    assert pq.ParquetFile(tmp_path / "samples.parquet").num_row_groups == 2
    assert pq.read_table(tmp_path / "samples.parquet")["id"].to_pylist() == [r.id for r in RECORDS]


def test_a_run_of_another_layout_is_refused(tmp_path: Path) -> None:
    folder = crystals(tmp_path)
    content = json.loads((tmp_path / "manifest.json").read_text())
    del content["run"]["layout"]  # as version 0.1 has it
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="is a run of another version of flowllm"):
        publish_crystals(RunFolder.open(tmp_path), COLUMNS, cif="p1")
    with pytest.raises(UserError, match="holds another run .*layout is not given there"):
        crystals(tmp_path)
    assert folder.complete


# Names of files


@settings(deadline=None)
@given(ids=st.lists(st.text(min_size=1), unique=True, max_size=30))
def test_any_ids_give_file_names_of_their_own(ids: list[str]) -> None:
    names = file_names(ids)
    assert len(names) == len(ids) == len({name.casefold() for name in names})
    assert all(re.fullmatch(r"\w[\w.-]{0,150}", name, re.ASCII) for name in names)
