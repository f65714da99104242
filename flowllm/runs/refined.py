"""What refining gives: the structure or why there is none, and its trajectory and its score, in the
shards of a run and in the files made of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from pymatgen.core import Structure

from rfm import Refinement

# Nats, see `rfm.LogLikelihood`; the standard error is that of random signs, 0 where there are none.
SCORE_COLUMNS = ("log_likelihood", "log_likelihood_error", "log_likelihood_per_degree")
_DIGITS = 6  # of coordinates and Angstrom in a trajectory, as many as a float32 has


def structure_or_failure(result: Refinement) -> tuple[Structure | None, str | None]:
    """The structure of a refinement, or why there is none, as a `Sample` says it."""
    return result.structure, f"refiner: {result.failure}" if result.failure else None


def extras(result: Refinement) -> dict[str, Any]:
    """`trajectory` and `score` of a refinement as plain JSON, those that it has."""
    found: dict[str, Any] = {}
    path = result.trajectory
    if path is not None:
        found["trajectory"] = {
            name: np.round(array, _DIGITS).tolist() for name, array in vars(path).items()
        }
    score = result.log_likelihood
    if score is not None:
        values = (score.total, score.standard_error, score.per_degree)
        # As text, because JSON has no minus infinity.
        found["score"] = dict(zip(SCORE_COLUMNS, map(str, values), strict=True))
    return found


def take_score(record: dict[str, Any]) -> dict[str, float]:
    """Take the extras out of a record of a shard; the score's columns, or none."""
    record.pop("trajectory", None)
    return {name: float(value) for name, value in record.pop("score", {}).items()}


def write_trajectories(records: Iterable[dict[str, Any]], names: list[str], path: Path) -> None:
    """A folder with an extxyz file for each record that has a trajectory, a frame for each state.

    A frame has its time `t` from 0, the base with its noise, to 1; a lies along x and b in the xy
    plane.
    """
    path.mkdir()
    for name, record in zip(names, records, strict=True):
        steps = record.get("trajectory")
        if steps is None:
            continue
        symbols = [site["species"][0]["element"] for site in record["prior_structure"]["sites"]]
        frames = [
            Atoms(symbols, scaled_positions=coords, cell=lattice, pbc=True, info={"t": t})
            for t, coords, lattice in zip(
                steps["t"], steps["frac_coords"], steps["lattice"], strict=True
            )
        ]
        ase.io.write(path / f"{name}.extxyz", frames, format="extxyz")
