"""Records of a pairing, one for each base crystal, and the file of pairs that is made from them."""

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
from flowllm.training.pairing.config import PAIRS_FILE
from flowllm.training.pairing.table import ARRAYS, write_pairs
from rfm import PairedCrystal, RefinerError
from rfm.alignment import align

SUMMARY_FILE = "summary.json"
# Origin of the base crystals -> its key in the manifest, and advice where there is no pair.
_ORIGINS = {"llm": "prior", "file": "samples", "templates": "templates"}
_REMEDY = {
    "llm": "train the prior longer, or allow more max_attempts (--max-attempts)",
    "templates": "give a library with compounds of the same stoichiometries and other elements",
    "file": "give samples of the same atoms as crystals of the data, or name the targets by id",
}


@dataclass(frozen=True, kw_only=True)
class PairingOutcome:
    """Result of a pairing.

    Attributes:
        file: the file of pairs.
        requested: number of samples: for a prior, targets times `samples_per_target`; for a file of
            samples, its crystals, each counted once for each of its targets. For templates, those
            asked for.
        kept: pairs in the file.
        first_try: pairs whose sample was accepted at the first attempt; for a file, all pairs.
        rejects: refused samples by reason. A prior can have several for one request. Samples of a
            file without a target are `no_target` or `other_composition`, and samples that could not
            be aligned `not_aligned`. Templates that were asked for and that a target does not have
            are `no_template`, each counted once.
    """

    file: Path
    requested: int
    kept: int
    first_try: int
    rejects: dict[str, int]


def pair_record(
    name: str,
    base: Structure | None,
    target: Structure | None,
    *,
    attempts: int = 1,
    rejects: Mapping[str, int],
) -> dict[str, Any]:
    """Return the record of a base crystal, aligned to its target.

    Args:
        name: id of the target, or of the base crystal if there is no target.
        base: start of the flow, in its Niggli cell; None if no sample was accepted.
        target: end of the flow, with the same atoms; None if there is no target.
        attempts: texts that were drawn for the base crystal.
        rejects: number of refused texts or samples by reason.

    Returns:
        Plain JSON with the keys `id`, `attempts`, `rejects` and `pair`, which is None if base or
        target is, or if the two cannot be aligned.
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
    except RefinerError:  # a cell that cannot be reduced costs one pair, not the whole run
        found["rejects"]["not_aligned"] = 1
        return found
    found["pair"] = {
        "atomic_numbers": aligned.atomic_numbers.tolist(),
        **{name: getattr(aligned, name).tolist() for name in ARRAYS},
    }
    return found


def publish_pairs(folder: RunFolder) -> PairingOutcome:
    """Write `pairs.parquet` and `summary.json` from the shards.

    Args:
        folder: a complete run.

    Returns:
        The file of pairs and the counts.

    Raises:
        UserError: if there is no pair.
    """
    (base,) = (kind for kind, key in _ORIGINS.items() if key in folder.run)
    records = list(folder.parsed(_counts))
    rejects: Counter[str] = Counter()
    for _, _, of_record in records:
        rejects.update(of_record)
    outcome = PairingOutcome(
        file=folder.path / PAIRS_FILE,
        requested=len(records),
        kept=sum(is_pair for is_pair, _, _ in records),
        first_try=sum(is_pair and attempts == 1 for is_pair, attempts, _ in records),
        rejects=dict(rejects.most_common()),
    )
    counts = {k: v for k, v in vars(outcome).items() if k != "file"}
    folder.publish(SUMMARY_FILE, lambda path: path.write_text(json.dumps(counts, indent=2) + "\n"))
    if not outcome.kept:
        reasons = ", ".join(f"{reason} {count}" for reason, count in outcome.rejects.items())
        raise UserError(
            f"none of {outcome.requested} samples could be paired (refused: {reasons}); "
            f"{_REMEDY[base]}; {folder.path} keeps the counts in {SUMMARY_FILE}"
        )
    folder.publish(PAIRS_FILE, lambda path: write_pairs(_pairs(folder), path, base=base))
    return outcome


def _counts(entry: dict[str, Any]) -> tuple[bool, int, Counter[str]]:
    """Return whether a record has a pair, its attempts and its refused samples."""
    return entry["pair"] is not None, int(entry["attempts"]), Counter(dict(entry["rejects"]))


def _pair(entry: dict[str, Any]) -> PairedCrystal | None:
    if entry["pair"] is None:
        return None
    arrays = {name: np.array(entry["pair"][name], dtype=np.float64) for name in ARRAYS}
    numbers = np.array(entry["pair"]["atomic_numbers"], dtype=np.int64)
    return PairedCrystal(id=entry["id"], atomic_numbers=numbers, **arrays)


def _pairs(folder: RunFolder) -> Iterator[PairedCrystal]:
    return (pair for pair in folder.parsed(_pair) if pair is not None)
