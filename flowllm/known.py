"""Training sets of tens of thousands of crystals, read for the novelty of a few."""

from __future__ import annotations

from pathlib import Path

from flowllm import cells
from flowllm.crystal import Crystal, Geometry
from flowllm.data import read, read_all
from flowllm.errors import UserError
from flowllm.formulas import Ratios, formula_ratios
from flowllm.measure import reference_prints
from flowllm.measured import Known, Reading


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
        path: anything that `flowllm.data.read` reads.
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
