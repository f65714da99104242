"""Long jobs in shards: resumable after `kill -9`, the same result for any number of workers.

A run folder holds `manifest.json` (what was asked), `shards/NNNNN.jsonl` (a batch each, a JSON
record a line) and, once all shards are there, whatever the caller publishes from them. A shard is
a function of the manifest and its own index and appears whole or not at all, so restarting comes
down to computing the shards that are absent.
"""

from __future__ import annotations

import functools
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from flowllm.errors import UserError
from flowllm.runs.identity import claimed, locked, read_identity
from flowllm.system.executors import for_each
from flowllm.system.files import publish, remove_temporaries, write_atomic

logger = logging.getLogger(__name__)

Record = dict[str, Any]
Setup = Callable[[], Any]
Work = Callable[[Any, int, int, int], list[Record]]

_MANIFEST = "manifest.json"
_LOG_EVERY = 30.0  # seconds


class Batch(NamedTuple):
    """Records `start` to `start + count - 1` of a run; they make shard number `index`."""

    index: int
    start: int
    count: int


def batch_seed(seed: int, index: int) -> int:
    """Seed of batch `index` in a run with `seed`, in [0, 2**63): numpy and torch both take it.

    Batches of one run and runs with neighbouring seeds are statistically independent (numpy's
    `SeedSequence` with a spawn key).

    Raises:
        UserError: `seed` is negative.
    """
    if seed < 0:
        raise UserError(f"seed {seed} is negative; give 0 or more")
    words = np.random.SeedSequence(seed, spawn_key=(index,)).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


@dataclass(frozen=True)
class RunFolder:
    """A folder of shards, finished or not.

    Attributes:
        path: the folder.
        run: what was asked, with `total` and `batch_size`, as plain JSON: the identity of the run.
        info: recorded and never compared (versions, time, host).
    """

    path: Path
    run: dict[str, Any]
    info: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Open an existing run folder for reading.

        Raises:
            UserError: `path` is not a run folder, or its manifest is damaged.
        """
        run, info = read_identity(Path(path), _MANIFEST)
        if not (isinstance(run.get("total"), int) and isinstance(run.get("batch_size"), int)):
            raise UserError(f"{path}/{_MANIFEST} is of another program; choose another folder")
        return cls(Path(path), run, info)

    @property
    def total(self) -> int:
        """Number of records asked for."""
        return self.run["total"]

    @property
    def batches(self) -> list[Batch]:
        """All batches of the run, done or not."""
        size = self.run["batch_size"]
        starts = range(0, self.total, size)
        return [Batch(i, start, min(size, self.total - start)) for i, start in enumerate(starts)]

    @property
    def missing(self) -> list[Batch]:
        """The batches that have no shard yet."""
        return [batch for batch in self.batches if not self.shard(batch.index).exists()]

    @property
    def complete(self) -> bool:
        """Whether all shards are there."""
        return not self.missing

    def shard(self, index: int) -> Path:
        """The file of batch `index`."""
        return self.path / "shards" / f"{index:05d}.jsonl"

    def read_shard(self, batch: Batch) -> list[Record]:
        """The records of one finished batch.

        Raises:
            UserError: the file is not what was written (disk trouble, or edited by hand).
        """
        file = self.shard(batch.index)
        mend = "delete it and run again to have it made again"
        *lines, end = file.read_bytes().split(b"\n")
        if end or len(lines) != batch.count:
            found = f"{len(lines)} whole lines" + (" and a broken one" if end else "")
            raise UserError(f"{file} is damaged: {found}, not {batch.count}; {mend}")
        records = []
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if not isinstance(record, dict):
                raise UserError(f"{file} is damaged: line {number} is no JSON object; {mend}")
            records.append(record)
        return records

    def records(self) -> Iterator[Record]:
        """All records in the order of their ids 0 ... total - 1, shard by shard from the disk.

        Raises:
            UserError: shards are missing or damaged.
        """
        self._require_complete()
        for batch in self.batches:
            yield from self.read_shard(batch)

    def publish(self, name: str, write: Callable[[Path], object]) -> Path:
        """Make the output `name` (a file or a folder) of a complete run once and for all.

        `write(temporary path)` is called only where the output is absent; a kill leaves the output
        whole or absent. See `flowllm.system.files.publish`.

        Raises:
            UserError: shards are missing, or another process works in the folder.
        """
        self._require_complete()
        with locked(self.path):
            remove_temporaries(self.path)
            if not (self.path / name).exists():
                publish(self.path / name, write)
        return self.path / name

    def _require_complete(self) -> None:
        if missing := self.missing:
            done = len(self.batches) - len(missing)
            raise UserError(
                f"{self.path} is not finished ({done} of {len(self.batches)} shards); "
                "run the command that made it again"
            )


def run_job(
    out: str | Path,
    *,
    manifest: Mapping[str, Any],
    total: int,
    batch_size: int,
    work: Work,
    setup: Setup | None = None,
    info: Mapping[str, Any] | None = None,
    workers: int = 1,
    progress: bool = True,
    description: str = "",
) -> RunFolder:
    """Compute the missing shards of a run of `total` records and return the complete folder.

    `work(context, index, start, count)` returns the `count` records with the ids `start`,
    `start + 1`, ... of batch `index`, each a dict of plain JSON without NaN. It must be a function
    of the manifest and `index` alone: draw random numbers from `batch_seed(seed, index)`.
    `setup()` makes the context (loads the models); it is called once per process, and not at all
    where nothing is missing.

    With `workers` > 1 both run in that many spawned processes and must be picklable (top-level
    functions or `functools.partial` of them). Every process computes with one torch thread,
    a single one as well: another number of threads sums in another order, and then the number of
    workers would show in the result.

    Args:
        out: the run folder; made if absent, resumed if it holds this run.
        manifest: what was asked (models with their hashes, seed, arguments), plain JSON; `total`
            and `batch_size` are added.
        info: recorded with the manifest but not compared upon resume (versions, time).
        progress: show a bar on stderr, or where that is no terminal a log line now and then.

    Raises:
        UserError: `out` holds another run or other files, is in use by another process, or has a
            damaged shard; a worker process was killed.
        ValueError: `work` returned another number of records, or records that are not plain JSON.
        Exception: whatever `setup` or `work` raises. Batches that other workers have begun are
            finished first and all finished shards stay; where there are none, the folder is given
            back.
    """
    sizes = {"total": (total, 0), "batch_size": (batch_size, 1), "workers": (workers, 1)}
    for name, (value, minimum) in sizes.items():
        if value < minimum:
            raise UserError(f"{name} is {value}; give {minimum} or more")
    out = Path(out)
    run = {**manifest, "total": total, "batch_size": batch_size}
    with claimed(out, _MANIFEST, run, info=info or {}):
        folder = RunFolder.open(out)
        _resume(folder)
        missing = folder.missing
        done = total - sum(batch.count for batch in missing)
        if done:
            logger.info("%s: %d of %d records are there already", out, done, total)
        with tqdm(
            total=total,
            initial=done,
            desc=description or None,
            unit=" records",
            disable=None if progress else True,  # None: silent where stderr is no terminal
        ) as bar:
            pace = _Pace(total, done)

            def save(batch: Batch, shard: bytes) -> None:
                write_atomic(folder.shard(batch.index), shard)
                bar.update(batch.count)
                if bar.disable and progress:
                    pace.add(batch.count)

            # Only this process, which holds the lock, writes: a worker that outlives its killed
            # parent for a moment cannot touch a folder that somebody else has resumed by then.
            make_shard = functools.partial(_make_shard, work)
            for_each(missing, make_shard, save, setup=setup, workers=workers)
    return folder


class _Pace:
    """Log lines now and then, where there is no terminal for a bar."""

    def __init__(self, total: int, done: int) -> None:
        self.total, self.before, self.done = total, done, done
        self.start = self.told = time.monotonic()

    def add(self, count: int) -> None:
        """Count finished records."""
        self.done += count
        now = time.monotonic()
        if now - self.told >= _LOG_EVERY:
            self.told = now
            rate = (self.done - self.before) / (now - self.start)
            left = (self.total - self.done) / rate
            logger.info("%d of %d records, %.1f/s, %.0f s left", self.done, self.total, rate, left)


def _resume(folder: RunFolder) -> None:
    """Clear what a kill left among the shards, and look at every finished one."""
    shards = folder.path / "shards"
    shards.mkdir(exist_ok=True)
    remove_temporaries(shards)
    missing = set(folder.missing)
    for batch in folder.batches:
        if batch not in missing:
            folder.read_shard(batch)  # a damaged shard is reported now and not hours later


def _make_shard(work: Work, context: Any, batch: Batch) -> bytes:
    """Compute one batch, as the bytes of its file."""
    records = work(context, *batch)
    if len(records) != batch.count:
        raise ValueError(f"batch {batch.index}: {len(records)} records returned, not {batch.count}")
    try:
        lines = [json.dumps(record, allow_nan=False) + "\n" for record in records]
    except (TypeError, ValueError) as error:
        raise ValueError(f"batch {batch.index}: a record is not plain JSON: {error}") from error
    return "".join(lines).encode()
