"""Samples of a prior as an evaluation judges them: the texts that were written, each in a class.

Every class is a `SampleClass`. Novel means novel to the training sets of the evaluation in every
sense that it knows: by the structure matcher before and after relaxing, and by the gene (space
group, Wyckoff letters and elements, `flowllm.metrics.prototypes`). So neither a distortion nor a
broken symmetry makes a known crystal new. Of stable and novel crystals that are equal in one of
these senses (across runs: by the gene), the one with the lowest energy is `new` and the others are
`repeated`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import pyarrow as pa

from flowllm.errors import UserError
from flowllm.system.documents import parse_json
from flowllm.system.parquet import read_parquet

_MANIFEST = "manifest.json"
_SAMPLES = "samples.parquet"
_EVALUATION = "evaluation.json"
_METRICS = "metrics.json"
_JUDGED = "structures.parquet"
_TEXT_COLUMNS = ("id", "prompt", "text", "failure")
_CUT_OFF = "truncated"  # reason for which a text without its end was refused


class SampleClass(StrEnum):
    """What a sample is worth.

    `new`, `known` and `repeated` samples are stable: below the threshold of energy above the hull.
    `unjudged` ones have no energy above the hull though they were relaxed, or no whole text.
    """

    NEW = "new"
    KNOWN = "known"
    UNSTABLE = "unstable"
    INVALID = "invalid"
    REPEATED = "repeated"
    UNJUDGED = "unjudged"


@dataclass(frozen=True, kw_only=True)
class JudgedSample:
    """A text that the prior wrote, and what became of it.

    Attributes:
        run: name of its run, or of its set in the evaluation.
        id: its name in the run.
        prompt: text that the prior continued.
        text: what the prior wrote.
        kind: its class.
        e_above_hull: of the relaxed crystal, eV/atom; None if unknown.
        gene: of the generated crystal; None if unknown.
        equal_to: id of the first crystal of the run that the matcher takes for the same.
    """

    run: str
    id: str
    prompt: str
    text: str
    kind: SampleClass
    e_above_hull: float | None
    gene: str | None
    equal_to: str

    @property
    def num_words(self) -> int:
        """Number of fields of the text, each about one token of the compact tokenizer."""
        return len(self.text.split())


def read_runs(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the manifests of runs whose texts can be learnt from.

    Args:
        runs: run folders of `flowllm sample`.

    Returns:
        The section `run` of each manifest.

    Raises:
        UserError: if a folder is no finished run of a prior's samples.
    """
    return [_manifest(run) for run in runs]


def _manifest(run: Path) -> dict[str, Any]:
    wanted = "tuning needs the texts that a prior wrote; give a run of flowllm sample"
    if not run.exists():
        raise UserError(f"there is no file or folder {run}; check the path")
    if not (run / _MANIFEST).is_file():
        raise UserError(f"{run} is not a run folder: {wanted}")
    manifest = _json(run / _MANIFEST).get("run", {})
    command = manifest.get("command")
    if command != "sample":
        raise UserError(f"{run} is a run of flowllm {command}: {wanted}")
    if manifest.get("prior") is None:
        raise UserError(f"{run} was drawn without a prior (--like): {wanted}")
    if not (run / _SAMPLES).is_file():
        raise UserError(f"{run}: the run is not finished; repeat its command to go on with it")
    return dict(manifest)


def read_judged(
    runs: Sequence[Path], evaluation: Path, *, stable_below: float
) -> list[JudgedSample]:
    """Return all samples of runs with their classes.

    Args:
        runs: run folders that `read_runs` accepts.
        evaluation: folder of `flowllm evaluate` of these runs, with a training set, a potential
            and a hull.
        stable_below: energy above the hull below which a crystal is stable, eV/atom.

    Returns:
        The samples in the order of the runs.

    Raises:
        UserError: if the evaluation is not one of these runs, or lacks something.
    """
    identity = _evaluation(evaluation)
    names = [one["name"] for one in _json(evaluation / _METRICS)["sets"]]
    try:
        rows = read_parquet(evaluation / _JUDGED).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{evaluation / _JUDGED} is missing or damaged; repeat the evaluation"
        ) from error
    samples: list[JudgedSample] = []
    for run in runs:
        name = names[_place(run, evaluation, identity)]
        judged = [row for row in rows if row["set"] == name]
        samples += _samples(run, name, evaluation, judged, stable_below)
    return _without_repeats(samples)


def _evaluation(folder: Path) -> dict[str, Any]:
    """Return the identity of an evaluation that has all that a judgement needs."""
    if not (folder / _EVALUATION).is_file():
        raise UserError(
            f"{folder} is no folder of flowllm evaluate (it has no {_EVALUATION}); evaluate the "
            "samples with --train, --potential and --hull first"
        )
    identity = dict(_json(folder / _EVALUATION).get("run", {}))
    if not identity.get("train"):
        raise UserError(
            f"{folder} does not say what is novel; evaluate the samples again in another folder, "
            "with --train"
        )
    for key in ("potential", "hull"):
        if identity.get(key) is None:
            raise UserError(
                f"{folder} has no energies above a hull (no {key}); repeat the evaluation with "
                "--potential and --hull, which extends it"
            )
    for name in (_METRICS, _JUDGED):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: the evaluation is not finished; repeat it to go on with it")
    return identity


def _place(run: Path, evaluation: Path, identity: Mapping[str, Any]) -> int:
    """Return the number of a run among the sets of an evaluation, by the hash of its samples."""
    from flowllm.crystals.run_folders import input_hash

    found = input_hash(run)
    hashes = [one["sha256"] for one in identity["samples"]]
    if found not in hashes:
        judged = ", ".join(one["name"] for one in identity["samples"])
        raise UserError(
            f"{evaluation} is not an evaluation of {run} (it is one of {judged}, and the hashes "
            "of the samples differ); evaluate these samples"
        )
    return hashes.index(found)


def _samples(
    run: Path,
    name: str,
    evaluation: Path,
    judged: Sequence[Mapping[str, Any]],
    stable_below: float,
) -> list[JudgedSample]:
    try:
        written = read_parquet(run / _SAMPLES, list(_TEXT_COLUMNS)).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{run / _SAMPLES} holds no texts of a prior; draw the samples again with this version"
        ) from error
    if [row["id"] for row in written] != [row["id"] for row in judged]:
        raise UserError(
            f"the crystals of {evaluation} are not those of {run}; evaluate these samples"
        )
    return [
        JudgedSample(
            run=name,
            id=text["id"],
            prompt=text["prompt"] or "",
            text=text["text"] or "",
            kind=_kind(text, row, stable_below),
            e_above_hull=row.get("e_above_hull"),
            gene=row.get("gene"),
            equal_to=row.get("duplicate_of") or text["id"],
        )
        for text, row in zip(written, judged, strict=True)
    ]


def _kind(text: Mapping[str, Any], row: Mapping[str, Any], stable_below: float) -> SampleClass:
    """Return the class of a sample, where `new` still includes some repeated ones."""
    energy = row.get("e_above_hull")
    if not text["text"] or _CUT_OFF in (text["failure"] or ""):
        return SampleClass.UNJUDGED
    if text["failure"] or not row["structural_validity"] or row.get("relaxation_failure"):
        return SampleClass.INVALID
    if energy is None:
        return SampleClass.UNJUDGED
    if energy >= stable_below:
        return SampleClass.UNSTABLE
    # Absent are the gene of a crystal in which no symmetry was found, and the comparison of relaxed
    # crystals in older evaluations.
    if not row["novel"] or False in (row.get("gene_novel"), row.get("relaxed_novel")):
        return SampleClass.KNOWN
    return SampleClass.REPEATED if row.get("relaxed_unique") is False else SampleClass.NEW


def _without_repeats(samples: Sequence[JudgedSample]) -> list[JudgedSample]:
    """Return the samples with the class `repeated` for equal ones among the new."""

    def energy(place: int) -> float:
        value = samples[place].e_above_hull
        return math.inf if value is None else value

    new = [place for place, sample in enumerate(samples) if sample.kind is SampleClass.NEW]
    seen: set[object] = set()
    repeated = set()
    for place in sorted(new, key=energy):
        sample = samples[place]
        names: set[object] = {(sample.run, sample.equal_to)}
        if sample.gene is not None:
            names.add(sample.gene)
        if seen & names:
            repeated.add(place)
        seen |= names
    return [
        replace(sample, kind=SampleClass.REPEATED) if place in repeated else sample
        for place, sample in enumerate(samples)
    ]


def _json(file: Path) -> dict[str, Any]:
    try:
        return dict(parse_json(file.read_bytes()))
    except (ValueError, TypeError, OSError) as error:
        raise UserError(f"{file} is missing or damaged; repeat the run that wrote it") from error
