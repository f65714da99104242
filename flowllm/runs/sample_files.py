"""The files for people that a run of samples ends with, made from its shards."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from flowllm.crystals.cif import cif_text
from flowllm.crystals.io import Crystal, write
from flowllm.generation.sample import Sample
from flowllm.runs.outcome import Outcome, file_names, write_cifs
from flowllm.runs.refined import SCORE_COLUMNS, take_score, write_trajectories
from flowllm.runs.sharded import RunFolder

# A row a requested crystal, the failed ones included; the structures as pymatgen JSON.
SAMPLES_SCHEMA = pa.schema(
    {
        **dict.fromkeys(("id", "formula"), pa.string()),
        "num_atoms": pa.int64(),
        "cif": pa.string(),
        **dict.fromkeys(("structure", "prior_structure", "prompt", "text"), pa.string()),
        "attempts": pa.int64(),
        **dict.fromkeys(("rejects", "failure"), pa.string()),
    }
)


def publish_samples(folder: RunFolder) -> Outcome:
    """Write `samples.parquet`, `samples.extxyz`, `cif/` and, where they were asked for,
    `trajectories/` from the shards of a complete run, each whole or not at all."""
    samples, scores = [], []
    for record in folder.records():
        scores.append(take_score(record))
        samples.append(Sample.from_record(record))
    crystals = [
        Crystal(id=s.id, structure=s.structure, properties=dict(score))
        for s, score in zip(samples, scores, strict=True)
        if s.structure is not None
    ]
    scored = folder.run.get("score") or folder.run.get("rank") == "flow"
    columns = SCORE_COLUMNS if scored else ()
    if folder.run.get("best_of", 1) > 1:
        columns = ("rank_score", *columns)
    folder.publish("samples.parquet", lambda path: _write_table(samples, scores, columns, path))
    if folder.run.get("trajectory"):
        names = file_names([s.id for s in samples])
        folder.publish(
            "trajectories", lambda path: write_trajectories(folder.records(), names, path)
        )
    if crystals:
        folder.publish("samples.extxyz", lambda path: write(crystals, path))
        folder.publish("cif", lambda path: write_cifs(crystals, path))
    failures = Counter(s.failure for s in samples if s.failure is not None)
    rejects = sum((Counter(s.rejects) for s in samples), Counter())
    return Outcome(folder.path, crystals, failures, rejects)


def _write_table(
    samples: Sequence[Sample],
    scores: Sequence[dict[str, float]],
    columns: Sequence[str],
    path: Path,
) -> None:
    schema = SAMPLES_SCHEMA
    for name in columns:
        schema = schema.append(pa.field(name, pa.float64()))
    rows = []
    for sample, score in zip(samples, scores, strict=True):
        final = sample.structure
        row = {**vars(sample), "rejects": json.dumps(sample.rejects), **score}
        for name in ("structure", "prior_structure"):
            row[name] = None if row[name] is None else row[name].to(fmt="json")
        if final is not None:
            row["cif"] = cif_text(final)
            row["formula"] = final.composition.reduced_formula
            row["num_atoms"] = len(final)
        rows.append(row)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, compression="zstd")
