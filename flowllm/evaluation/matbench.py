"""Files for the leaderboard of Matbench Discovery (Riebesell et al. 2023, arXiv 2308.14920).

Its contributing guide (github.com/janosh/matbench-discovery) asks for the relaxed structures of the
WBM set as JSON lines (`geo-opt.jsonl.gz`) and for their formation energies as CSV
(`discovery.csv.gz`). The leaderboard measures potentials: `flowllm evaluate` on
`wbm-initial-structures` relaxes with the potential that is to be submitted.
"""

from __future__ import annotations

import functools
import gzip
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowllm.evaluation.config import MATBENCH
from flowllm.evaluation.energies import RelaxedSet
from flowllm.evaluation.leaderboards import set_names
from flowllm.evaluation.sets import GeneratedSet
from flowllm.system.files import publish

logger = logging.getLogger(__name__)


def write_matbench(
    sets: Sequence[GeneratedSet], relaxed: Sequence[RelaxedSet], folder: Path
) -> list[Path]:
    """Write two files for each set, gzip-compressed.

    `matbench-discovery-NAME-discovery.csv.gz` has the columns `material_id` and `e_form_per_atom`
    (eV/atom, with MP2020 corrections where the potential's scale needs them), empty for a crystal
    that could not be relaxed. `matbench-discovery-NAME-geo-opt.jsonl.gz` has the relaxed crystals:
    `material_id`, `structure` (pymatgen), `energy` (eV), `converged` and `n_steps`.

    Args:
        sets: the generated sets; their names without suffix become file names.
        relaxed: the same sets after relaxation, with distances to a hull.
        folder: folder to write into.

    Returns:
        The paths of the files.
    """
    paths = []
    for name, generated, found in zip(set_names(sets), sets, relaxed, strict=True):
        start = f"{MATBENCH}-{name}"
        lines = [json.dumps(row) + "\n" for row in _relaxed_rows(generated, found)]
        for suffix, text in (
            ("discovery.csv.gz", _table(generated, found)),
            ("geo-opt.jsonl.gz", "".join(lines)),
        ):
            content = gzip.compress(text.encode(), mtime=0)  # the same bytes at any time
            path = folder / f"{start}-{suffix}"
            paths.append(publish(path, functools.partial(Path.write_bytes, data=content)))
        missing = len(generated.crystals) - len(lines)
        if missing:
            logger.warning(
                "%s: %d of %d crystals could not be relaxed and have no energy",
                *(generated.name, missing, len(generated.crystals)),
            )
    return paths


def _table(generated: GeneratedSet, relaxed: RelaxedSet) -> str:
    assert relaxed.distances is not None  # `EvaluationConfig` wants a hull for this
    rows = ["material_id,e_form_per_atom"]
    for crystal, distance in zip(generated.crystals, relaxed.distances, strict=True):
        energy = distance.formation_energy_per_atom
        rows.append(f"{_quoted(crystal.id)},{'' if energy is None else repr(float(energy))}")
    return "\n".join(rows) + "\n"


def _quoted(text: str) -> str:
    if not set(text) & set(',"\r\n'):
        return text
    return '"' + text.replace('"', '""') + '"'


def _relaxed_rows(generated: GeneratedSet, relaxed: RelaxedSet) -> list[dict[str, Any]]:
    return [
        {
            "material_id": crystal.id,
            "structure": structure.as_dict(),
            "energy": energy * len(structure),
            "converged": True,  # `flowllm.energy.relaxation` fails the others
            "n_steps": change.steps,
        }
        for crystal, structure, energy, change in zip(
            generated.crystals,
            relaxed.relaxed,
            relaxed.energies_per_atom,
            relaxed.changes,
            strict=True,
        )
        if structure is not None and energy is not None
    ]
