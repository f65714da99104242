"""Files for public leaderboards of crystal generators.

LeMat-GenBench (arXiv 2512.04562; github.com/LeMaterial/lemat-genbench, README,
"Input formats") reads a CSV with a column `structure` of pymatgen Structures as JSON, or CIF files.
Its leaderboard (huggingface.co/spaces/LeMaterial/LeMat-GenBench) asks for exactly 2,500 structures
and scores them as they are, without relaxing them again.
"""

from __future__ import annotations

import csv
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from flowllm.errors import UserError
from flowllm.evaluation.sets import GeneratedSet
from flowllm.runs.outputs import file_names
from flowllm.system.files import publish

logger = logging.getLogger(__name__)

LEMAT = "lemat"
LEMAT_SIZE = 2500
# Of the file that a set came from, also where the set got a number as it has the name of another.
_SUFFIX = re.compile(r"\.(csv|parquet|json|extxyz|zip|cif)(?=$| \(\d+\)$)", re.IGNORECASE)


def check_submission(submission: str) -> None:
    """See that a leaderboard is known.

    Raises:
        UserError: it is not.
    """
    if submission != LEMAT:
        raise UserError(f"there is no submission {submission!r}; known is {LEMAT}")


def write_submission(sets: Sequence[GeneratedSet], folder: Path) -> list[Path]:
    """Write `lemat-NAME.csv` for each set, by its name without a file's suffix.

    Columns are `material_id` and `structure`.

    The crystals are those of the set as they came, in its order: to submit relaxed ones, evaluate
    these. Failed ones are left out; of more than 2,500 the first are taken; of fewer all, with a
    warning, as the leaderboard refuses them.

    Args:
        sets: what the generators made.
        folder: to write into.
    """
    names = file_names([_SUFFIX.sub("", s.name) for s in sets])
    return [
        publish(folder / f"{LEMAT}-{name}.csv", lambda path, of_set=of_set: _write(of_set, path))
        for of_set, name in zip(sets, names, strict=True)
    ]


def _write(generated: GeneratedSet, path: Path) -> None:
    there = [c for c in generated.crystals if c.structure is not None]
    if len(there) < LEMAT_SIZE:
        logger.warning(
            "%s: LeMat-GenBench takes exactly %d structures and there are %d; generate %d more",
            generated.name, LEMAT_SIZE, len(there), LEMAT_SIZE - len(there),
        )  # fmt: skip
    elif len(there) > LEMAT_SIZE:
        logger.warning(
            "%s: LeMat-GenBench takes exactly %d structures; the first of %d are written",
            generated.name, LEMAT_SIZE, len(there),
        )  # fmt: skip
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["material_id", "structure"])
        for crystal in there[:LEMAT_SIZE]:
            writer.writerow([crystal.id, json.dumps(crystal.structure.as_dict())])
