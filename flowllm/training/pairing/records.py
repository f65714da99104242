"""The shards of a pairing, a record for each base crystal, and the file of pairs made of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Structure

from flowllm.errors import UserError
from flowllm.runs.sharded import RunFolder
from flowllm.training.pairing.table import ARRAYS, write_pairs
from rfm import PairedCrystal, RefinerError
from rfm.alignment import align

PAIRS_FILE = "pairs.parquet"
SUMMARY_FILE = "summary.json"


@dataclass(frozen=True, kw_only=True)
class PairingOutcome:
    """A finished pairing.

    Attributes:
        file: the pairs.
        requested: samples asked for, one per target and repetition; of samples from a file those
            in it, each as often as there are targets for it.
        kept: pairs in the file.
        first_try: of them, accepted on the first attempt; all of those from a file.
        rejects: refused answers of the prior, by reason, where several may belong to one request;
            samples from a file that belong to no target (`no_target`, `other_composition`); and
            what could not be aligned.
    """

    file: Path
    requested: int
    kept: int
    first_try: int
    rejects: dict[str, int]


def record(
    name: str,
    base: Structure | None,
    target: Structure | None,
    *,
    attempts: int = 1,
    rejects: Mapping[str, int],
) -> dict[str, Any]:
    """The record of a base crystal in its Niggli cell, aligned to its target; either may be None.

    Args:
        name: id of the target, or of the base crystal where there is no target.
        base: the crystal that the flow starts from.
        target: the one that it should end at, of the same atoms.
        attempts: answers that were drawn for it.
        rejects: how many were refused, by reason.
    """
    found: dict[str, Any] = {
        "id": name,
        "attempts": attempts,
        "rejects": dict(rejects),
        "pair": None,
    }
    if base is None or target is None:
        return found
    try:
        aligned = align(base, target)
    except RefinerError:  # a cell too odd to be reduced: one pair less, not the end of the job
        found["rejects"]["not_aligned"] = 1
        return found
    found["pair"] = {
        "atomic_numbers": aligned.atomic_numbers.tolist(),
        **{name: getattr(aligned, name).tolist() for name in ARRAYS},
    }
    return found


def publish_pairs(folder: RunFolder, *, base: str, mend: str) -> PairingOutcome:
    """Write `pairs.parquet` and `summary.json` from the shards.

    Args:
        folder: a complete run.
        base: what the base crystals are, `llm` or `file`.
        mend: what to do where there is not one pair.

    Raises:
        UserError: there is not one pair.
    """
    records = list(folder.records())
    rejects: Counter[str] = Counter()
    for entry in records:
        rejects.update(entry["rejects"])
    outcome = PairingOutcome(
        file=folder.path / PAIRS_FILE,
        requested=len(records),
        kept=sum(entry["pair"] is not None for entry in records),
        first_try=sum(entry["pair"] is not None and entry["attempts"] == 1 for entry in records),
        rejects=dict(rejects.most_common()),
    )
    counts = {k: v for k, v in vars(outcome).items() if k != "file"}
    folder.publish(SUMMARY_FILE, lambda path: path.write_text(json.dumps(counts, indent=2) + "\n"))
    if not outcome.kept:
        reasons = ", ".join(f"{reason} {count}" for reason, count in outcome.rejects.items())
        raise UserError(
            f"none of {outcome.requested} samples could be paired (refused: {reasons}); {mend}; "
            f"{folder.path} keeps the counts in {SUMMARY_FILE}"
        )
    folder.publish(PAIRS_FILE, lambda path: write_pairs(_pairs(folder), path, base=base))
    return outcome


def _pairs(folder: RunFolder) -> Iterator[PairedCrystal]:
    for entry in folder.records():
        if entry["pair"] is not None:
            arrays = {name: np.array(entry["pair"][name]) for name in ARRAYS}
            numbers = np.array(entry["pair"]["atomic_numbers"])
            yield PairedCrystal(id=entry["id"], atomic_numbers=numbers, **arrays)
