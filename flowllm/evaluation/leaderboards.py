"""Files for public leaderboards of crystal generators.

LeMat-GenBench (arXiv 2512.04562; github.com/LeMaterial/lemat-genbench, README,
"Input formats") reads a CSV with a column `structure` of pymatgen Structures as JSON, or CIF files.
Its leaderboard (huggingface.co/spaces/LeMaterial/LeMat-GenBench) takes exactly 2,500 structures
and scores them as they are, without relaxing them again.
"""

from __future__ import annotations

import csv
import functools
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from flowllm.evaluation.config import LEMAT
from flowllm.evaluation.sets import GeneratedSet
from flowllm.system.files import file_names, publish

logger = logging.getLogger(__name__)

LEMAT_SIZE = 2500
# Suffix of the file of a set, also before the number of a set with the name of another one.
_SUFFIX = re.compile(r"\.(csv|parquet|json|extxyz|zip|cif)(?=$| \(\d+\)$)", re.IGNORECASE)


def write_submission(sets: Sequence[GeneratedSet], folder: Path) -> list[Path]:
    """Write `lemat-NAME.csv` for each set, with the columns `material_id` and `structure`.

    The crystals are the generated ones, in the order of the set: to submit relaxed crystals,
    evaluate these. Failed crystals are left out. Of more than 2,500 the first 2,500 are written;
    fewer are written with a warning, as the leaderboard refuses them.

    Args:
        sets: the generated sets; their names without suffix become file names.
        folder: folder to write into.

    Returns:
        The paths of the files.
    """
    return [
        publish(folder / f"{LEMAT}-{name}.csv", functools.partial(_write, of_set))
        for of_set, name in zip(sets, set_names(sets), strict=True)
    ]


def set_names(sets: Sequence[GeneratedSet]) -> list[str]:
    """Return the name of each set without suffix, as part of a file name.

    Args:
        sets: the generated sets.
    """
    return file_names([_SUFFIX.sub("", s.name) for s in sets])


def _write(generated: GeneratedSet, path: Path) -> None:
    existing = generated.existing
    if len(existing) < LEMAT_SIZE:
        logger.warning(
            "%s: LeMat-GenBench takes exactly %d structures and there are %d; generate %d more",
            generated.name,
            LEMAT_SIZE,
            len(existing),
            LEMAT_SIZE - len(existing),
        )
    elif len(existing) > LEMAT_SIZE:
        logger.warning(
            "%s: LeMat-GenBench takes exactly %d structures; the first of %d are written",
            generated.name,
            LEMAT_SIZE,
            len(existing),
        )
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["material_id", "structure"])
        for i, structure in list(existing.items())[:LEMAT_SIZE]:
            writer.writerow([generated.crystals[i].id, json.dumps(structure.as_dict())])
