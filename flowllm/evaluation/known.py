"""Training sets of tens of thousands of crystals, read for the novelty of a few."""

from __future__ import annotations

from pathlib import Path

from flowllm.crystals import cells
from flowllm.crystals.crystal import Crystal, Geometry
from flowllm.crystals.formulas import Ratios, formula_ratios
from flowllm.crystals.io import read, read_all
from flowllm.errors import UserError
from flowllm.evaluation.measured import Known, Reading
from flowllm.evaluation.measurement import reference_prints


def read_known(
    path: Path,
    formulas: set[Ratios],
    with_features: bool,
    reading: Reading,
    *,
    workers: int,
    progress: bool,
) -> Known:
    """The crystals of a training set that a generated one could be; the rest is never built.

    Args:
        path: anything that `flowllm.crystals.io.read` reads.
        formulas: of the generated crystals.
        with_features: fingerprints of all crystals as well.
        reading: says which of them.
        workers, progress: for the fingerprints.

    Raises:
        UserError: there is no valid crystal.
    """
    rows = [row for row in read_all(path) if isinstance(row.source, Geometry)]
    if not rows:
        raise UserError(f"{path}: holds no valid crystal")
    prints = None
    if with_features:
        # In the cells of the file, as samples and reference: fingerprints feel the last bit.
        structures = [c.structure for c in read(path, skip_invalid=True, reduce=False)]
        prints = reference_prints(
            path.name, structures, reading, workers=workers, progress=progress
        )
    return Known(
        name=path.name,
        crystals=[
            Crystal(id=row.id, structure=cells.make_structure(*row.source))
            for row in rows
            if formula_ratios(row.source.atomic_numbers) in formulas
        ],
        prints=prints,
    )
