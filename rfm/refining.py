"""Refinement of pymatgen structures: into batches, along the flow, and back to structures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from pymatgen.core import Lattice, Structure
from torch import Tensor

from rfm.base import crystal_generator
from rfm.batch import MAX_EDGES, CrystalBatch, pack, refusal
from rfm.config import IntegrationConfig
from rfm.errors import Failure, RefinerError
from rfm.integration import integrate
from rfm.lattice import StandardChart
from rfm.likelihood import LogLikelihood, batch_log_likelihood
from rfm.model import Refiner
from rfm.symmetry import SYMPREC, Operations, Symmetry, find_symmetry

logger = logging.getLogger(__name__)

# No crystal is beyond these bounds: distances from Xie et al. 2021 (arXiv 2110.06197), in Angstrom,
# and volumes per atom, in Angstrom^3, five times beyond the range in MP-20 (5.8 to 202).
MIN_DISTANCE = 0.5
MIN_VOLUME, MAX_VOLUME = 1.0, 1000.0


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """F states of a crystal of n atoms, in the order of time.

    A state whose cell does not close is left out. A crystal that was lost on the way stands still
    from there on.

    Attributes:
        t: (F,) times from 0, the base with its noise, to 1.
        frac_coords: (F, n, 3) in [0, 1).
        lattice: (F, 3, 3) rows a, b, c in Angstrom, a along x and b in the xy plane.
    """

    t: np.ndarray
    frac_coords: np.ndarray
    lattice: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """The outcome for one structure.

    Attributes:
        structure: the refined structure, or None after a failure.
        failure: the reason why there is no structure, or None.
        detail: one line about the failure.
        log_likelihood: log-likelihood of the refined structure, if requested and finite.
        trajectory: states from base to end, if requested and the structure entered a batch.
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
    indices: Sequence[int] | None = None,
    integration: IntegrationConfig | None = None,
    trajectory: bool = False,
    score: bool = False,
    max_edges: int = MAX_EDGES,
    on_finished: Callable[[int], None] | None = None,
    symmetry: Literal["keep", "free"] = "keep",
    groups: Sequence[Symmetry | None] | None = None,
) -> list[Refinement]:
    """Refine structures.

    A refiner moves crystals as rough as the base it was trained on, such as samples of a prior. A
    relaxed crystal gets the same noise and usually comes out worse.

    A refined structure has the species of the input in the same order, coordinates in [0, 1) and a
    lattice with a along x and b in the xy plane, left-handed where the input's was. Site properties
    are dropped, as they belong to the old positions.

    Args:
        refiner: the model.
        structures: n ordered crystals in the cell convention of the refiner's training.
        seed: seed of the noise, 0 or more.
        indices: number of each structure in the whole run, 0 or more; None is 0 to n - 1.
            Structure k draws its noise from a generator of its own, number indices[k] of `seed`, so
            other structures and their order change its result by rounding errors at most.
        integration: integration settings; None takes the refiner's own.
        trajectory: keep the states between base and end.
        score: compute the log-likelihood of every refined structure (`rfm.likelihood`), which takes
            many times as long as refining. Compare it among crystals of one composition.
        max_edges: bound on memory, see `rfm.batch.pack`.
        on_finished: called with the number of structures finished since the last call: first the
            refused ones, then the structures of each batch.
        symmetry: `keep` brings each structure to its exact symmetric form first, and then moves it
            only in ways that keep its space group, so that the refined structure has it to
            rounding. It cannot reach a crystal of lower symmetry; `free` can. A structure without
            symmetry comes out the same. A refiner with the base `uniform` starts from noise, which
            has no symmetry to keep.
        groups: symmetry that each structure keeps, None for no symmetry; None: the one that
            `rfm.symmetry.find_symmetry` finds in it.

    Returns:
        One entry per structure, in order. A structure that cannot be refined is no error; its entry
        has a failure.

    Raises:
        RefinerError: if max_edges is below one, the seed or an index is negative, there is not one
            index or group per structure, or groups are given and not kept.
    """
    if seed < 0:
        raise RefinerError(f"seed {seed} is negative; give 0 or more")
    indices = range(len(structures)) if indices is None else indices
    if len(indices) != len(structures):
        raise RefinerError(
            f"{len(indices)} indices for {len(structures)} structures; give one index each"
        )
    if len(indices) > 0 and min(indices) < 0:
        raise RefinerError(f"index {min(indices)} is negative; give indices of 0 or more")
    if groups is not None and symmetry == "free":
        raise RefinerError("groups are given, but symmetry is free; leave one of them out")
    if groups is not None and len(groups) != len(structures):
        raise RefinerError(
            f"{len(groups)} groups for {len(structures)} structures; give one group each"
        )
    for k, group in enumerate(groups or ()):
        if group is not None and group.num_atoms != len(structures[k]):
            raise RefinerError(
                f"structure {k} has {len(structures[k])} atoms and its group {group.num_atoms}; "
                "give the symmetry of this structure"
            )
    integration = integration or refiner.config.integration
    results: dict[int, Refinement] = {}
    for k, structure in enumerate(structures):
        if refused := refusal(refiner.config, structure, k):
            results[k] = Refinement(failure=refused[0], detail=refused[1])
    good = [k for k in range(len(structures)) if k not in results]
    kept: dict[int, Symmetry | None] = dict.fromkeys(good)
    if symmetry == "keep" and refiner.config.base.from_crystals:
        if groups is None:
            found = find_symmetries([structures[k] for k in good])
        else:
            found = [groups[k] for k in good]
        kept |= {k: g for k, g in zip(good, found, strict=True) if g and not g.trivial}
    batches = pack([len(structures[k]) for k in good], max_edges)
    if on_finished is not None and results:
        on_finished(len(results))
    for places in batches:
        chunk = [good[place] for place in places]
        refined = _refine_batch(
            refiner,
            [structures[k] for k in chunk],
            [kept[k] for k in chunk],
            [crystal_generator(seed, indices[k]) for k in chunk],
            integration,
            trajectory=trajectory,
            score=score,
        )
        results.update(zip(chunk, refined, strict=True))
        if on_finished is not None:
            on_finished(len(chunk))
    ordered = [results[k] for k in range(len(structures))]
    failed = [result for result in ordered if result.failure]
    if failed:
        logger.warning(
            "%d of %d structures were not refined; the first failure: %s",
            len(failed),
            len(structures),
            failed[0].detail or failed[0].failure,
        )
    return ordered


def find_symmetries(
    structures: Sequence[Structure],
    symprec: float = SYMPREC,
    operations: Sequence[Operations | None] | None = None,
) -> list[Symmetry | None]:
    """Return the symmetry of each structure, None where it is not found, which the log counts.

    Args:
        structures: ordered crystals.
        symprec: see `rfm.symmetry.find_symmetry`.
        operations: those of each structure that are known; the others are searched, as are those
            that do not put atoms on atoms.
    """
    known: Sequence[Operations | None]
    known = [None] * len(structures) if operations is None else operations
    found = [
        find_symmetry(structure, symprec, given)
        for structure, given in zip(structures, known, strict=True)
    ]
    if lost := sum(symmetry is None for symmetry in found):
        logger.warning(
            "%d of %d structures are refined without symmetry, as spglib finds none",
            *(lost, len(found)),
        )
    return found


def _refine_batch(
    refiner: Refiner,
    sources: Sequence[Structure],
    groups: Sequence[Symmetry | None],
    rngs: Sequence[np.random.Generator],
    integration: IntegrationConfig,
    *,
    trajectory: bool,
    score: bool,
) -> list[Refinement]:
    """Refine structures that fit into memory at once, with a generator for each of them."""
    bases = [
        source if group is None else group.symmetrised(source)
        for source, group in zip(sources, groups, strict=True)
    ]
    symmetric = CrystalBatch.from_structures(bases, refiner.cell, groups).to(refiner.device)
    recorder = Recorder() if trajectory else None
    base = refiner.draw_base(symmetric, rngs)
    with _fast_products(refiner.device):
        end = integrate(refiner, base, integration, record=recorder)
    matrices = refiner.cell.decode(end.state.lattice.double()).cpu().numpy()  # (B, 3, 3)
    cuts = np.cumsum(end.state.num_atoms.cpu().numpy())[:-1]
    coords = np.split(end.state.frac_coords.double().cpu().numpy(), cuts)  # B of (n, 3)
    scores: list[LogLikelihood | None] = [None] * len(sources)
    if score:
        given = CrystalBatch.from_structures(sources, refiner.cell).to(refiner.device)
        scores = batch_log_likelihood(refiner, end.state, given, rngs)
    paths: list[Trajectory | None] = [None] * len(sources)
    if recorder is not None:
        paths = [*recorder.trajectories(refiner.cell)]
    results = []
    for k, source in enumerate(sources):
        if end.finite[k]:
            result = _finish(source, matrices[k], coords[k], groups[k])
        else:
            result = Refinement(failure=Failure.NOT_FINITE, detail="the state became non-finite")
        found = scores[k] if result.structure is not None else None
        results.append(replace(result, log_likelihood=found, trajectory=paths[k]))
    return results


def matrix_precision(device: torch.device) -> Literal["bfloat16", "float32"]:
    """Return the type in which `refine` lets the network multiply matrices.

    It is bfloat16 on a CPU that has instructions for it. In trials with the bundled refiner this
    moved coordinates by 2e-4 periods in the median, matched as many targets and took 70% of the
    time. The state stays in float32, and keeps its symmetry.

    Args:
        device: of the refiner.
    """
    usable = device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bfloat16" if usable and torch.cpu._is_avx512_bf16_supported() else "float32"


def _fast_products(device: torch.device) -> AbstractContextManager[object]:
    """Let the network multiply matrices in the type of `matrix_precision`."""
    if matrix_precision(device) == "bfloat16":
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return nullcontext()


def _finish(
    source: Structure, matrix: np.ndarray, coords: np.ndarray, group: Symmetry | None = None
) -> Refinement:
    """Return the refined structure with the species and handedness of its source, or a failure."""
    if not np.isfinite(matrix).all() or not abs(np.linalg.det(matrix)) > 0:
        return Refinement(failure=Failure.NO_CELL, detail="the final cell does not close")
    if np.linalg.det(source.lattice.matrix) < 0:
        # The metric cannot tell a crystal from its mirror image; the mirror z -> -z keeps it.
        matrix = matrix * np.array([1.0, 1.0, -1.0])
    structure = Structure(Lattice(matrix), [site.species for site in source], coords)
    volume = structure.volume / len(structure)
    if not MIN_VOLUME <= volume <= MAX_VOLUME:
        detail = f"the final cell has {volume:.3g} Angstrom^3 per atom"
        return Refinement(failure=Failure.BAD_VOLUME, detail=detail)
    # An atom and its own images are as far apart as the shortest vector of the lattice.
    images = min(structure.lattice.get_lll_reduced_lattice().abc)
    if images < MIN_DISTANCE or not structure.is_valid(MIN_DISTANCE):
        detail = f"two atoms are closer than {MIN_DISTANCE} Angstrom in the end"
        return Refinement(failure=Failure.CLOSE_ATOMS, detail=detail)
    if group is not None:  # the steps in float32 leave errors of about 1e-6 Angstrom
        structure = group.symmetrised(structure)
    return Refinement(structure=structure)


class Recorder:
    """The states of a batch over time; `integrate` takes it as `record`."""

    def __init__(self) -> None:
        self._times: list[float] = []
        self._coords: list[Tensor] = []
        self._lattices: list[Tensor] = []
        self._num_atoms: list[int] = []

    def __call__(self, t: float, state: CrystalBatch) -> None:
        """Keep a state, in main memory.

        Args:
            t: time of the state.
            state: B crystals.
        """
        self._times.append(t)
        self._coords.append(state.frac_coords.cpu())
        self._lattices.append(state.lattice.cpu())
        self._num_atoms = state.num_atoms.tolist()

    def trajectories(self, cell: StandardChart) -> list[Trajectory]:
        """Return the trajectory of each crystal of the batch, in order.

        Args:
            cell: chart of the recorded cell vectors.
        """
        times = np.array(self._times)
        vectors = torch.stack(self._lattices).double()  # (F, B, 6)
        matrices = cell.decode(vectors.flatten(0, 1)).unflatten(0, vectors.shape[:2]).numpy()
        closed = np.isfinite(matrices).all((2, 3))  # (F, B)
        paths = torch.stack(self._coords).double().split(self._num_atoms, dim=1)
        return [
            Trajectory(
                t=times[closed[:, k]],
                frac_coords=path.numpy()[closed[:, k]],
                lattice=matrices[closed[:, k], k],
            )
            for k, path in enumerate(paths)
        ]
