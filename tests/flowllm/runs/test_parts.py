"""Parts of one run, computed by several processes in one folder."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from flowllm import run_sampling
from flowllm.errors import UserError
from flowllm.merging import merge
from flowllm.runs.identity import locked
from flowllm.runs.parts import Part, Unfinished
from flowllm.runs.sharded import RunFolder
from flowllm.system.options import OptionError
from run_jobs import contents, run
from support import run_command


@pytest.mark.parametrize("text", ["5/4", "0/4", "1/0", "-1/4", "1", "a/b", "1/2/3", " 1/2", "1/x"])
def test_what_is_no_part_is_refused(job: ModuleType, tmp_path: Path, text: str) -> None:
    with pytest.raises(OptionError, match=f"part is '{text}'; give I/N with I from 1 to N"):
        run(job, tmp_path / "run", part=text)
    assert not (tmp_path / "run").exists()


def test_every_shard_belongs_to_one_part() -> None:
    parts = [Part.parse(f"{number}/3") for number in (1, 2, 3)]
    assert [[part.has(index) for part in parts].count(True) for index in range(10)] == [1] * 10


def test_parts_in_any_order_make_the_run(job: ModuleType, tmp_path: Path) -> None:
    whole = run(job, tmp_path / "whole")
    out = tmp_path / "parts"
    for number in (2, 4, 1):
        with pytest.raises(Unfinished, match=f"part {number}/4 is done; [0-9]+ of 20 shards"):
            run(job, out, part=f"{number}/4")
        assert (out / "shards" / f"{number - 1:05d}.jsonl").exists()
    assert [batch.index for batch in RunFolder.open(out).missing] == [2, 6, 10, 14, 18]
    assert run(job, out, part="3/4").complete
    assert contents(out) == contents(whole.path)
    assert run(job, out, part="1/4").complete  # again: nothing is left to do


def test_a_part_leaves_alone_what_another_one_writes(job: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(Unfinished):
        run(job, tmp_path, part="1/2")
    half = tmp_path / "shards" / ".00001.jsonl.12345678.flowllm-tmp"
    half.mkdir()
    assert run(job, tmp_path, part="2/2").complete
    assert half.exists()
    RunFolder.open(tmp_path).publish("result.txt", lambda path: path.write_text("done"))
    assert not half.exists()


def test_more_parts_than_shards(job: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(Unfinished, match="20 of 20 shards"):
        run(job, tmp_path, part="30/30")


def test_parts_of_different_requests_are_refused(job: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(Unfinished):
        run(job, tmp_path, part="1/2")
    before = contents(tmp_path)
    with pytest.raises(UserError, match="holds another run .seed is 7 there, 8 here.;"):
        run(job, tmp_path, part="2/2", manifest={"seed": 8})
    assert contents(tmp_path) == before


def test_a_part_beside_the_whole_run_is_refused(
    job: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowllm.runs.identity.JOIN_WAIT", 0.1)
    with locked(tmp_path), pytest.raises(UserError, match="in use by another process"):
        run(job, tmp_path, part="1/2")


def test_a_part_holds_no_lock_while_it_works(job: ModuleType, tmp_path: Path) -> None:
    seen = []

    def work(context, batch, progress):  # noqa: ANN001, ANN202
        with locked(tmp_path):
            seen.append(batch.index)
        return job.work(context, batch, progress)

    with pytest.raises(Unfinished):
        run(job, tmp_path, work=work, part="1/10")
    assert seen == [0, 10]


def test_merge_writes_the_results_of_the_parts(tmp_path: Path) -> None:
    request = {"formula": "NaCl", "seed": 3, "steps": 3, "batch_size": 2, "device": "cpu"}
    sample = partial(run_sampling, 6, progress=False, **request)
    whole = sample(out=tmp_path / "whole")
    out = tmp_path / "parts"
    with pytest.raises(Unfinished):
        sample(out=out, part="1/2")
    lacking = "lacks 1 of 3 shards .the first is 1.; run the parts again that have not ended"
    with pytest.raises(UserError, match=lacking):
        merge(out)
    sample(out=out, part="2/2")
    assert contents(out) == contents(whole.folder)  # the last part has written them
    for name in ("samples.parquet", "samples.extxyz"):
        (out / name).unlink()
    result = run_command("merge", out)
    assert result.exit_code == int(len(whole.crystals) < 6), result.output
    assert f"{len(whole.crystals)} of 6 crystals in {out}" in result.output
    assert contents(out) == contents(whole.folder)


def test_a_part_of_the_command_says_what_is_missing(tmp_path: Path) -> None:
    asked = ["sample", "-n", "4", "--batch-size", "2", "--formula", "NaCl", "--steps", "3"]
    result = run_command(*asked, "--device", "cpu", "--out", tmp_path / "run", "--part", "1/2")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("part 1/2 is done; 1 of 2 shards of the other parts are miss")
    assert not (tmp_path / "run" / "samples.parquet").exists()


def test_only_runs_with_parts_can_be_merged(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        merge(tmp_path)
    manifest = {"command": "infill", "layout": 2, "total": 1, "batch_size": 1}
    (tmp_path / "manifest.json").write_text(json.dumps({"run": manifest, "info": {}}))
    with pytest.raises(UserError, match="is a run of infill, whose results merge does not write"):
        merge(tmp_path)
