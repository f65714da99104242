"""Long jobs in shards: resumable after `kill -9`, the same result for any number of workers.

A run folder holds `manifest.json` (the identity of the run), `shards/NNNNN.jsonl` (a batch each, a
JSON record per line) and, once all shards exist, the files that the caller publishes from them. A
shard is a function of the manifest and its own index and appears whole or not at all. To resume a
run is to compute the shards that are absent.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from flowllm.errors import UserError, one_line
from flowllm.runs.identity import JOIN_WAIT, claimed, join, locked, read_identity
from flowllm.runs.parts import Part, Unfinished
from flowllm.system.documents import parse_json
from flowllm.system.executors import for_each, in_process
from flowllm.system.files import publish, publish_together, remove_temporaries, write_atomic
from flowllm.system.memory import return_free_memory
from flowllm.system.pools import LOCAL
from flowllm.system.progress import progress_bar

logger = logging.getLogger(__name__)

LAYOUT = 2  # of the records and the draws in shards; a run of another layout is another run

Record = dict[str, Any]
Parsed = TypeVar("Parsed")
Setup = Callable[[], Any]
Progress = Callable[[int], None]
"""Takes the number of records that were finished since its last call."""

MANIFEST = "manifest.json"
_LOG_EVERY = 30.0  # seconds
_SMALLEST, _LARGEST = 32, 256  # records in a shard by default


@dataclass(frozen=True)
class Batch:
    """Records `start` to `start + count - 1` of a run; they make shard number `index`."""

    index: int
    start: int
    count: int

    @property
    def stop(self) -> int:
        """The record after the last one."""
        return self.start + self.count

    def __str__(self) -> str:
        return f"batch {self.index} (records {self.start} to {self.stop - 1})"


Work = Callable[[Any, Batch, Progress], list[Record]]


def default_batch_size(total: int) -> int:
    """Return the number of records in a shard: a quarter of the run, from 32 to 256.

    A killed run loses the shards at work; larger batches are faster.

    Args:
        total: number of records of the run.

    Returns:
        The number.
    """
    return min(max(-(-total // 4), _SMALLEST), _LARGEST)


def batch_seed(seed: int, index: int) -> int:
    """Return the seed of batch `index` in a run with `seed`, in [0, 2**63), for numpy and torch.

    The batches of one run and runs with neighbouring seeds are statistically independent (numpy's
    `SeedSequence` with a spawn key).

    Args:
        seed: of the run, 0 or more.
        index: of the batch.

    Returns:
        The seed.

    Raises:
        UserError: if `seed` is negative.
    """
    return _spawned(seed, (index,))


def sample_seed(seed: int, index: int) -> int:
    """Return the seed of record `index` in a run with `seed`, in [0, 2**63), for numpy and torch.

    Draws from it do not depend on how the records are cut into batches. Independent of
    `batch_seed`.

    Args:
        seed: of the run, 0 or more.
        index: place of the record in the run.

    Returns:
        The seed.

    Raises:
        UserError: if `seed` is negative.
    """
    return _spawned(seed, (index, 0))


def _spawned(seed: int, key: tuple[int, ...]) -> int:
    if seed < 0:
        raise UserError(f"seed {seed} is negative; give 0 or more")
    words = np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


@dataclass(frozen=True)
class RunFolder:
    """A folder of shards, finished or not.

    Attributes:
        path: the folder.
        run: identity of the run with `layout`, `total` and `batch_size`, plain JSON.
        info: recorded and never compared (versions).
    """

    path: Path
    run: dict[str, Any]
    info: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Open an existing run folder for reading.

        Args:
            path: the folder.

        Returns:
            The folder with its identity.

        Raises:
            UserError: if `path` is not a run folder, or its manifest is damaged.
        """
        run, info = read_identity(Path(path), MANIFEST)
        if not (isinstance(run.get("total"), int) and isinstance(run.get("batch_size"), int)):
            raise UserError(f"{path}/{MANIFEST} is of another program; choose another folder")
        return cls(Path(path), run, info)

    @property
    def total(self) -> int:
        """Number of records of the finished run."""
        return int(self.run["total"])

    @property
    def batches(self) -> list[Batch]:
        """All batches of the run, finished or not."""
        size = self.run["batch_size"]
        starts = range(0, self.total, size)
        return [Batch(i, start, min(size, self.total - start)) for i, start in enumerate(starts)]

    @property
    def missing(self) -> list[Batch]:
        """The batches that have no shard yet."""
        return [batch for batch in self.batches if not self.shard(batch.index).exists()]

    @property
    def complete(self) -> bool:
        """True if all shards exist."""
        return not self.missing

    def shard(self, index: int) -> Path:
        """Return the path of the shard of batch `index`."""
        return self.path / "shards" / f"{index:05d}.jsonl"

    def read_shard(self, batch: Batch) -> list[Record]:
        """Return the records of one finished batch.

        Args:
            batch: one of `batches`.

        Returns:
            One record for each crystal of the batch, in order.

        Raises:
            UserError: if the file is not as it was written (disk trouble, or edited by hand).
        """
        file = self.shard(batch.index)
        if not file.is_file():
            raise _damaged(file, "it is no file")
        *lines, end = file.read_bytes().split(b"\n")
        if end or len(lines) != batch.count:
            found = f"{len(lines)} whole lines" + (" and a broken one" if end else "")
            raise _damaged(file, f"{found}, not {batch.count}")
        records = []
        for number, line in enumerate(lines, start=1):
            try:
                record = parse_json(line)
            except ValueError:
                record = None
            if not isinstance(record, dict):
                raise _damaged(file, f"line {number} is no JSON object")
            records.append(record)
        return records

    def records(self) -> Iterator[Record]:
        """Yield all records in the order 0 ... total - 1, shard by shard from the disk.

        Raises:
            UserError: if shards are missing or damaged.
        """
        return self.parsed(lambda record: record)

    def parsed(self, parse: Callable[[Record], Parsed]) -> Iterator[Parsed]:
        """Yield what a function makes of each of `records`.

        Args:
            parse: makes a value of a record; what it raises on one without a key, or with another
                type than it expects, counts as damage.

        Raises:
            UserError: if shards are missing or damaged.
        """
        self._require_complete()
        for batch in self.batches:
            for number, record in enumerate(self.read_shard(batch), start=1):
                try:
                    parsed = parse(record)
                except (ValueError, LookupError, TypeError, AttributeError) as error:
                    what = f"has no {error}" if isinstance(error, KeyError) else one_line(error)
                    raise _damaged(self.shard(batch.index), f"line {number}: {what}") from error
                yield parsed

    def publish(self, name: str, write: Callable[[Path], object]) -> Path:
        """Make an output of a complete run, unless it exists; a kill leaves it whole or absent.

        Args:
            name: of the file or folder.
            write: makes it at the temporary path that it is given; see
                `flowllm.system.files.publish`.

        Returns:
            The path of the output.

        Raises:
            UserError: if shards are missing, or another process works in the folder.
        """
        self._require_complete()
        with locked(self.path, wait=JOIN_WAIT):  # two parts may end together
            remove_temporaries(self.path)
            remove_temporaries(self.path / "shards")  # of killed parts
            if not (self.path / name).exists():
                publish(self.path / name, write)
        return self.path / name

    def publish_together(
        self, names: Sequence[str], write: Callable[[Path, Collection[str]], object]
    ) -> None:
        """Make several outputs of a complete run in one go; see `publish`.

        Args:
            names: of the files or folders.
            write: is given a temporary folder and the names that do not exist yet, and makes them
                there. It is called if there are none, too.

        Raises:
            UserError: if shards are missing, or another process works in the folder.
        """
        self._require_complete()
        with locked(self.path, wait=JOIN_WAIT):
            remove_temporaries(self.path)
            remove_temporaries(self.path / "shards")
            absent = [name for name in names if not (self.path / name).exists()]
            if absent:
                publish_together(self.path, absent, lambda path: write(path, absent))
            else:
                write(self.path, ())

    def _require_complete(self) -> None:
        if missing := self.missing:
            done = len(self.batches) - len(missing)
            raise UserError(
                f"{self.path} is not finished ({done} of {len(self.batches)} shards); "
                "run the command that made it again"
            )


def _damaged(shard: Path, what: str) -> UserError:
    return UserError(f"{shard} is damaged: {what}; delete it and run again to have it made again")


def run_job(
    out: str | Path,
    *,
    manifest: Mapping[str, Any],
    total: int,
    batch_size: int,
    work: Work,
    setup: Setup | None = None,
    info: Mapping[str, Any] | None = None,
    loaded: Any = None,
    workers: int = 1,
    executor: str = LOCAL,
    device: str = "cpu",
    part: str | None = None,
    progress: bool = True,
    description: str = "",
) -> RunFolder:
    """Compute the missing shards of a run of `total` records and return the complete folder.

    With several workers or another executor, `work` and `setup` run in other processes and must be
    picklable (top-level functions or `functools.partial` of them). Every process computes with one
    torch thread, a single one as well: another number of threads sums in another order, and the
    number of workers would show in the result.

    Args:
        out: the run folder; made if absent, resumed if it holds this run.
        manifest: identity of the run (models with their hashes, seed, arguments), plain JSON;
            `layout`, `total` and `batch_size` are added.
        total: number of records.
        batch_size: records in a shard; a killed run loses the shards at work.
        work: `work(context, batch, progress)` returns the `batch.count` records of a batch, each a
            dict of plain JSON without NaN. It must be a function of the manifest and the batch
            alone: draw random numbers from `sample_seed` or `batch_seed`. It may call
            `progress(count)` when it has finished `count` further records; with several workers
            the bar moves by shards instead.
        setup: makes the context (loads the models); called once per process, and not at all if
            nothing is missing. None: the context is None.
        info: recorded with the manifest and not compared on resume (versions).
        loaded: the context, if this process has made it already; used if this process does the
            work.
        workers: number of batches at work at a time; with the executor `local`, of processes.
        executor: where they work; see `flowllm.system.pools.check_executor`.
        device: of the work; with `cuda` each of several workers gets a GPU of its own.
        part: `I/N` computes every N-th shard, beside other parts in the same folder. None: all.
        progress: show a bar on stderr, or where that is no terminal a log line now and then.
        description: stands before the bar.

    Returns:
        The folder with all shards.

    Raises:
        UserError: if `out` holds another run or other files, is in use by another process, or has a
            damaged shard, or if a batch has lost its worker too often.
        Unfinished: if this part is computed, and shards of other parts are missing.
        ValueError: if `work` returned another number of records, or records that are not plain
            JSON.
        Exception: as `setup` or `work` raises it. Batches that other workers have begun are
            finished first, and all finished shards stay; if there are none, the folder is given
            back. Ctrl-C leaves the finished shards as well.
    """
    sizes = {"total": (total, 0), "batch_size": (batch_size, 1), "workers": (workers, 1)}
    for name, (value, minimum) in sizes.items():
        if value < minimum:
            raise UserError(f"{name} is {value}; give {minimum} or more")
    out = Path(out)
    share = None if part is None else Part.parse(part)
    run = {**manifest, "layout": LAYOUT, "total": total, "batch_size": batch_size}
    if loaded is not None and in_process(workers, executor):
        setup = lambda: loaded  # noqa: E731
    with contextlib.ExitStack() as stack:
        if share is None:
            stack.enter_context(claimed(out, MANIFEST, run, info=info or {}))
        else:
            join(out, MANIFEST, run, info=info or {})
        folder = RunFolder.open(out)
        batches = [b for b in folder.batches if share is None or share.has(b.index)]
        missing = _resume(folder, batches, alone=share is None)
        asked = sum(batch.count for batch in batches)
        done = asked - sum(batch.count for batch in missing)
        if done:
            logger.info("%s: %d of %d records exist already", out, done, asked)
        bar = stack.enter_context(
            progress_bar(
                total=asked, initial=done, description=description, unit="crystals", show=progress
            )
        )
        meter = _Meter(bar, _Pace(asked, done) if bar.disable and progress else None)

        def save(batch: Batch, shard: bytes) -> None:
            write_atomic(folder.shard(batch.index), shard)
            meter.end(batch)

        # Only this process writes: a worker that outlives its killed parent for a moment cannot
        # touch a folder that another process has resumed by then.
        report = meter.add if in_process(workers, executor) else no_progress
        for_each(
            missing,
            functools.partial(_make_shard, work, report),
            save,
            setup=setup,
            workers=workers,
            executor=executor,
            device=device,
            label=str,
        )
    if share is not None and (left := len(folder.missing)):
        raise Unfinished(
            f"part {part} is done; {left} of {len(folder.batches)} shards of the other parts are "
            f"missing in {out}; the part that ends last writes the results"
        )
    return folder


class _Meter:
    """The records that are finished, shown as they come."""

    def __init__(self, bar: tqdm, pace: _Pace | None) -> None:
        self.bar = bar
        self.pace = pace
        self.in_batch = 0  # of the batch at work, already counted

    def add(self, count: int) -> None:
        """Count records of the batch at work."""
        self.in_batch += count
        self._show(count)

    def end(self, batch: Batch) -> None:
        """Count the rest of a batch."""
        self._show(batch.count - self.in_batch)
        self.in_batch = 0

    def _show(self, count: int) -> None:
        if count == 0:
            return
        self.bar.update(count)
        if self.pace is not None:
            self.pace.add(count)


class _Pace:
    """Log lines now and then, where there is no terminal for a bar."""

    def __init__(self, total: int, done: int) -> None:
        self.total, self.before, self.done = total, done, done
        self.start = self.logged = time.monotonic()

    def add(self, count: int) -> None:
        """Count finished records."""
        self.done += count
        now = time.monotonic()
        if now - self.logged >= _LOG_EVERY:
            self.logged = now
            rate = (self.done - self.before) / (now - self.start)
            left = (self.total - self.done) / rate
            logger.info("%d of %d records, %.1f/s, %.0f s left", self.done, self.total, rate, left)


def no_progress(count: int) -> None:
    """Ignore the number of finished records: nobody watches, or a worker cannot reach the bar."""


def _resume(folder: RunFolder, batches: Sequence[Batch], *, alone: bool) -> list[Batch]:
    """Check the finished ones of some batches and return the others.

    Args:
        folder: the run.
        batches: of it.
        alone: no other process writes in the folder; what a kill left among the shards is removed.
    """
    shards = folder.path / "shards"
    if not shards.is_dir() and (shards.exists() or shards.is_symlink()):
        raise UserError(f"{shards} is no folder; remove it, or choose another folder for the run")
    shards.mkdir(exist_ok=True)
    if alone:
        remove_temporaries(shards)
    missing = [batch for batch in batches if not folder.shard(batch.index).exists()]
    for batch in set(batches) - set(missing):
        folder.read_shard(batch)  # a damaged shard is reported now and not hours later
    return missing


def _make_shard(work: Work, progress: Progress, context: Any, batch: Batch) -> bytes:
    """Compute one batch and return the bytes of its file."""
    records = work(context, batch, progress)
    if len(records) != batch.count:
        raise ValueError(f"batch {batch.index}: {len(records)} records returned, not {batch.count}")
    try:
        lines = [json.dumps(record, allow_nan=False) + "\n" for record in records]
    except (TypeError, ValueError) as error:
        raise ValueError(f"batch {batch.index}: a record is not plain JSON: {error}") from error
    del records
    return_free_memory()
    return "".join(lines).encode()
