"""Damage real files of crystals for some minutes and check what the reader makes of them.

    python tools/fuzz.py --minutes 10 --seed 0 --out findings/

What counts as a fault is described in `tests/fuzzing.py`. Every file that shows a new fault is
written to the folder of `--out`; the exit code is 1 if there is one.
"""

from __future__ import annotations

import logging
import random
import re
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fuzzing import SUFFIXES, damaged, fault, random_damage, whole_files  # noqa: E402

_SECONDS = 20  # for one file
_MEMORY = 8 << 30  # bytes of addresses


class _Hung(BaseException):
    pass


def _hung(*_: Any) -> None:
    raise _Hung


@click.command(help=__doc__)
@click.option("--minutes", type=float, required=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("findings"), show_default=True)
def main(minutes: float, seed: int, out: Path) -> None:
    logging.disable()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    signal.signal(signal.SIGALRM, _hung)
    rng = random.Random(seed)
    end = time.monotonic() + 60 * minutes
    tried: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < end:
            suffix = rng.choice(SUFFIXES)
            changes = [random_damage(rng) for _ in range(rng.choice((1, 1, 2, 3, 5)))]
            content = damaged(rng.choice(whole_files(suffix)), changes)
            signal.alarm(_SECONDS)
            try:
                found = fault(content, suffix, Path(folder))
            except _Hung:
                found = f"no end after {_SECONDS} s"
            signal.alarm(0)
            tried[suffix] += 1
            if found is None:
                continue
            kind = f"{suffix} {re.sub(r'([A-Z][a-z]?)?[0-9.]+ ?', '', found)[:60]}"
            faults[kind] += 1
            if faults[kind] == 1:
                out.mkdir(parents=True, exist_ok=True)
                file = out / f"{len(faults):03d}{suffix}"
                file.write_bytes(content)
                click.echo(f"{file}: {found[:200]}")
    click.echo(f"{tried.total()} files: {dict(tried)}")
    click.echo(f"{faults.total()} faults of {len(faults)} kinds")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
