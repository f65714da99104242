"""Refine pymatgen structures: batch, draw the base, integrate, and back."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from pymatgen.core import Lattice, Structure

from rfm.batch import CrystalBatch
from rfm.errors import RefinerError
from rfm.failures import Failure, refusal
from rfm.integration import integrate
from rfm.likelihood import LogLikelihood, batch_log_likelihood
from rfm.model import Refiner
from rfm.packing import MAX_EDGES, pack
from rfm.seeds import crystal_generator
from rfm.trajectory import Recorder, Trajectory

logger = logging.getLogger(__name__)

# What no crystal is: the bound of Xie et al. 2021 (arXiv 2110.06197) on distances, in Angstrom, and
# volumes per atom, in Angstrom^3, five times beyond those of MP-20 (5.8 to 202).
MIN_DISTANCE = 0.5
MIN_VOLUME, MAX_VOLUME = 1.0, 1000.0


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """The outcome for one structure: either `structure`, or `failure` with a line of `detail`.

    log_likelihood: of the refined structure, if it was asked for and is finite.
    trajectory: from base to end, if it was asked for and the structure entered a batch.
    """

    structure: Structure | None = None
    failure: Failure | None = None
    detail: str = ""
    log_likelihood: LogLikelihood | None = None
    trajectory: Trajectory | None = None


def refine(
    refiner: Refiner,
    structures: Sequence[Structure],
    *,
    seed: int = 0,
    first_index: int = 0,
    max_edges: int = MAX_EDGES,
    steps: int | None = None,
    method: str | None = None,
    position_slope: float | None = None,
    cell_slope: float | None = None,
    trajectory: bool = False,
    score: bool = False,
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
            number first_index + k, so the other structures change it by rounding errors at most.
        first_index: the place of the first structure in a larger run.
        max_edges: what bounds memory: the sum of n^2 over the crystals of n atoms at a time (a
            larger crystal is alone).
        steps, method, position_slope, cell_slope: see `rfm.integrate`; by default those
            of the refiner's config.
        trajectory: keep the states between base and end.
        score: give every refined structure its log-likelihood (`rfm.likelihood`), which takes many
            times as long as refining. Compare it among crystals of one composition.

    Raises:
        RefinerError: max_edges below one, a negative seed, or settings `integrate` refuses. A
            structure that cannot be refined is no error, it is reported in its `Refinement`.
    """
    if seed < 0:
        raise RefinerError(f"seed {seed} is negative; give 0 or more")
    settings = refiner.config.integration.but(
        steps=steps, method=method, position_slope=position_slope, cell_slope=cell_slope
    )
    results = [_refused(refiner, structure, k) for k, structure in enumerate(structures)]
    good = [k for k, result in enumerate(results) if result is None]
    for places in pack([len(structures[k]) for k in good], max_edges):
        chunk = [good[place] for place in places]
        sources = [structures[k] for k in chunk]
        given = CrystalBatch.from_structures(sources, refiner.cell).to(refiner.device)
        rngs = [crystal_generator(seed, first_index + k) for k in chunk]
        recorder = Recorder() if trajectory else None
        end = integrate(refiner, refiner.draw_base(given, rngs), **vars(settings), record=recorder)
        matrices = refiner.cell.decode(end.state.lattice.double()).cpu().numpy()
        cuts = np.cumsum(end.state.num_atoms.cpu().numpy())[:-1]
        coords = np.split(end.state.frac_coords.double().cpu().numpy(), cuts)
        scores = [None] * len(chunk)
        if score:
            scores = batch_log_likelihood(refiner, end.state, given, rngs)
        paths = [None] * len(chunk) if recorder is None else recorder.trajectories(refiner.cell)
        for place, k in enumerate(chunk):
            if not end.finite[place]:
                result = Refinement(
                    failure=Failure.NOT_FINITE, detail="the state became non-finite"
                )
            else:
                result = _finish(sources[place], matrices[place], coords[place])
            results[k] = replace(
                result,
                log_likelihood=scores[place] if result.structure is not None else None,
                trajectory=paths[place],
            )
    failed = [result for result in results if result.failure]
    if failed:
        logger.warning(
            "%d of %d structures were not refined; of the first: %s",
            len(failed),
            len(structures),
            failed[0].detail or failed[0].failure,
        )
    return results


def _refused(refiner: Refiner, structure: Structure, index: int) -> Refinement | None:
    found = refusal(refiner.config, structure, index)
    return None if found is None else Refinement(failure=found[0], detail=found[1])


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
