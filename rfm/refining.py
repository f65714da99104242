"""Refine pymatgen structures: batch, draw the base, integrate, and back."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from pymatgen.core import Lattice, Structure

from rfm.batch import CrystalBatch, atomic_numbers
from rfm.errors import RefinerError
from rfm.integration import integrate
from rfm.model import Refiner

logger = logging.getLogger(__name__)

# What no crystal is: the bound of Xie et al. 2021 (arXiv 2110.06197) on distances, in Angstrom, and
# volumes per atom, in Angstrom^3, five times beyond those of MP-20 (5.8 to 202).
MIN_DISTANCE = 0.5
MIN_VOLUME, MAX_VOLUME = 1.0, 1000.0


class Failure(StrEnum):
    """Why a structure has no refined form."""

    BAD_INPUT = "bad_input"  # disordered, empty, not an element, no volume, not finite
    TOO_MANY_ATOMS = "too_many_atoms"  # larger than any crystal the refiner was trained on
    NOT_FINITE = "not_finite"  # left the finite numbers while integrating
    NO_CELL = "no_cell"  # the final cell does not close
    BAD_VOLUME = "bad_volume"  # the final volume per atom is that of no crystal
    CLOSE_ATOMS = "close_atoms"  # two atoms of the final crystal nearly coincide


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """The outcome for one structure: either `structure`, or `failure` with a line of `detail`."""

    structure: Structure | None = None
    failure: Failure | None = None
    detail: str = ""


def refine(
    refiner: Refiner,
    structures: Sequence[Structure],
    *,
    seed: int = 0,
    first_index: int = 0,
    batch_size: int = 64,
    steps: int | None = None,
    method: str | None = None,
    position_slope: float | None = None,
    cell_slope: float | None = None,
) -> list[Refinement]:
    """Refine structures; the result has one entry per structure, in order.

    A refiner moves crystals as rough as the base it was trained on, such as samples of a prior. A
    crystal that is relaxed already gets the same noise and usually comes out worse.

    A refined structure has the species of the input in the same order, coordinates in [0, 1) and a
    lattice with a along x and b in the xy plane, left-handed where the input's was. Site properties
    are dropped, as they belong to the old positions.

    Args:
        refiner: the model.
        structures: ordered crystals in the cell convention the refiner was trained on.
        seed: structure k draws its noise from a generator of its own, spawned from `seed` as
            number first_index + k, so neither the batch size nor the other structures change it.
        first_index: the place of the first structure in a larger run.
        batch_size: structures per batch.
        steps, method, position_slope, cell_slope: see `rfm.integrate`; by default those
            of the refiner's config.

    Raises:
        RefinerError: a batch size below one, a negative seed, or settings `integrate` refuses. A
            structure that cannot be refined is no error, it is reported in its `Refinement`.
    """
    if seed < 0:
        raise RefinerError(f"seed {seed} is negative; give 0 or more")
    if batch_size < 1:
        raise RefinerError(f"batch_size is {batch_size}; at least one is needed")
    defaults = refiner.config.integration
    settings = {
        "steps": defaults.steps if steps is None else steps,
        "method": defaults.method if method is None else method,
        "position_slope": defaults.position_slope if position_slope is None else position_slope,
        "cell_slope": defaults.cell_slope if cell_slope is None else cell_slope,
    }
    results = [_refuse(refiner, structure, k) for k, structure in enumerate(structures)]
    good = [k for k, result in enumerate(results) if result is None]
    for start in range(0, len(good), batch_size):
        chunk = good[start : start + batch_size]
        sources = [structures[k] for k in chunk]
        given = CrystalBatch.from_structures(sources, refiner.cell).to(refiner.device)
        rngs = [_generator(seed, first_index + k) for k in chunk]
        end = integrate(refiner, refiner.draw_base(given, rngs), **settings)
        matrices = refiner.cell.decode(end.state.lattice.double()).cpu().numpy()
        cuts = np.cumsum(end.state.num_atoms.cpu().numpy())[:-1]
        coords = np.split(end.state.frac_coords.double().cpu().numpy(), cuts)
        for place, k in enumerate(chunk):
            if not end.finite[place]:
                results[k] = Refinement(
                    failure=Failure.NOT_FINITE, detail="the state became non-finite"
                )
            else:
                results[k] = _finish(sources[place], matrices[place], coords[place])
    failed = [result for result in results if result.failure]
    if failed:
        logger.warning("%d of %d structures were not refined", len(failed), len(structures))
    return results


def _generator(seed: int, index: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index,)))


def _refuse(refiner: Refiner, structure: Structure, index: int) -> Refinement | None:
    """A failure for a structure that cannot enter a batch, else None."""
    try:
        numbers = atomic_numbers(structure, index)
    except RefinerError as error:
        return Refinement(failure=Failure.BAD_INPUT, detail=str(error))
    largest = refiner.config.max_atoms
    if largest is not None and len(numbers) > largest:
        detail = f"structure {index} has {len(numbers)} atoms; the refiner knows up to {largest}"
        return Refinement(failure=Failure.TOO_MANY_ATOMS, detail=detail)
    heaviest = refiner.config.network.max_atomic_number
    matrix = structure.lattice.matrix
    if numbers.max() > heaviest:
        detail = f"structure {index} has an element above the network's limit Z = {heaviest}"
    elif not (np.isfinite(structure.frac_coords).all() and np.isfinite(matrix).all()):
        detail = f"structure {index} holds a number that is not finite"
    elif not abs(np.linalg.det(matrix)) > 0:
        detail = f"structure {index} has a cell without volume"
    else:
        return None
    return Refinement(failure=Failure.BAD_INPUT, detail=detail)


def _finish(source: Structure, matrix: np.ndarray, coords: np.ndarray) -> Refinement:
    """The refined structure, with the species and handedness of its source, if it is a crystal."""
    if not np.isfinite(matrix).all() or not abs(np.linalg.det(matrix)) > 0:
        return Refinement(failure=Failure.NO_CELL, detail="the final cell does not close")
    if np.linalg.det(source.lattice.matrix) < 0:
        # The metric cannot tell a crystal from its mirror image; the mirror z -> -z keeps it.
        matrix = matrix * np.array([1.0, 1.0, -1.0])
    structure = Structure(Lattice(matrix), source.species, coords)
    volume = structure.volume / len(structure)
    if not MIN_VOLUME <= volume <= MAX_VOLUME:
        detail = f"the final cell has {volume:.3g} Angstrom^3 per atom"
        return Refinement(failure=Failure.BAD_VOLUME, detail=detail)
    # An atom and its own images are as far apart as the shortest vector of the lattice.
    images = min(structure.lattice.get_lll_reduced_lattice().abc)
    if images < MIN_DISTANCE or not structure.is_valid(MIN_DISTANCE):
        detail = f"two atoms are closer than {MIN_DISTANCE} Angstrom in the end"
        return Refinement(failure=Failure.CLOSE_ATOMS, detail=detail)
    return Refinement(structure=structure)
