"""The log-likelihood of crystals under the flow.

The flow carries the base density p0 along dx/dt = u(x, t). By the instantaneous change of variables
(Chen et al. 2018, arXiv 1806.07366; on manifolds Mathieu and Nickel 2020, arXiv 2006.10605, and
Chen and Lipman 2024, arXiv 2302.03660) a crystal x1 that the flow carries from x0 has

    log p1(x1) = log p0(x0) - integral over t from 0 to 1 of div u(x_t, t)

The torus and the space of cells are flat, so div u is the plain sum of derivatives. The field is
unchanged by a common translation and has mean zero over the atoms; its Jacobian is zero to both
sides along the three translations, and the divergence on the quotient by them, on which the density
is (`rfm.base_density`), is the one over all coordinates. A crystal of n atoms has 3 n - 3 + 6
degrees of freedom.

The flow is the trained field without anti-annealing, which is no part of the model. It is followed
backwards by the midpoint rule, with the divergence (`rfm.divergence`) at the middle of every step.

What the number is not: the features of the network jump where two atoms are half a period apart,
and what such a jump does to the density is left out. Where the data are on a surface, as are all
crystals with symmetry, the density of a perfect model is infinite, and the number of steps bounds
it. So compare numbers of one model and one number of steps only, best among crystals of one
composition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from pymatgen.core import Structure
from torch import Tensor

from rfm.base_density import base_log_density
from rfm.batch import CrystalBatch
from rfm.divergence import EXACT_ATOMS, PROBES, velocity_and_divergence
from rfm.errors import RefinerError
from rfm.failures import refusal
from rfm.integration import Lengths, VelocityField, advance, start, velocity_at
from rfm.model import Refiner
from rfm.packing import MAX_EDGES, pack
from rfm.seeds import crystal_generator

SCORE_STEPS = 50


@dataclass(frozen=True, kw_only=True)
class LogLikelihood:
    """log p1 of a crystal in nats, against the invariant measure of total mass 1 on positions
    without their common translation times the Lebesgue measure on standardised cell vectors.

    base: log p0 of the crystal that the flow carries there; a factor of width 0 is left out (see
        `rfm.base_density`). Minus infinity outside of the base.
    change: minus the integral of the divergence.
    standard_error: of `change`, from the random signs; 0 where the divergence is exact.
    degrees_of_freedom: 3 n + 3 for n atoms.
    """

    base: float
    change: float
    standard_error: float
    degrees_of_freedom: int

    @property
    def total(self) -> float:
        """log p1, nats."""
        return self.base + self.change

    @property
    def per_degree(self) -> float:
        """log p1 over the degrees of freedom, nats."""
        return self.total / self.degrees_of_freedom


def log_likelihood(
    refiner: Refiner,
    structures: Sequence[Structure],
    priors: Sequence[Structure] | None = None,
    *,
    seed: int = 0,
    steps: int = SCORE_STEPS,
    exact_atoms: int = EXACT_ATOMS,
    probes: int = PROBES,
    max_edges: int = MAX_EDGES,
) -> list[LogLikelihood | None]:
    """Log-likelihoods of structures, in order; None where the way back leaves the finite numbers.

    Args:
        refiner: the model.
        structures: ordered crystals in the cell convention the refiner was trained on.
        priors: for a base of crystals, the one that each structure was refined from, with the
            same sites in the same order.
        seed: of the random signs; structure k has a generator of its own, number k.
        steps: of the midpoint rule.
        exact_atoms: largest crystal whose divergence is exact.
        probes: random vectors a step for larger ones, at least two.
        max_edges: see `rfm.packing`.

    Raises:
        RefinerError: priors that are missing or of other sites, a structure that `refine` would
            refuse, or a setting too small.
    """
    if priors is None and refiner.config.base.from_crystals:
        raise RefinerError("the base of this refiner is the prior's crystal; give it (priors)")
    if seed < 0:
        raise RefinerError(f"seed {seed} is negative; give 0 or more")
    for k, structure in enumerate(structures):
        if found := refusal(refiner.config, structure, k):
            raise RefinerError(found[1])
    if priors is not None:
        _check_priors(structures, priors)
    results: list[LogLikelihood | None] = [None] * len(structures)
    for chunk in pack([len(structure) for structure in structures], max_edges):
        found = batch_log_likelihood(
            refiner,
            _batch(refiner, structures, chunk),
            None if priors is None else _batch(refiner, priors, chunk),
            [crystal_generator(seed, k) for k in chunk],
            steps=steps,
            exact_atoms=exact_atoms,
            probes=probes,
        )
        for place, result in zip(chunk, found, strict=True):
            results[place] = result
    return results


@torch.no_grad()
def batch_log_likelihood(
    refiner: Refiner,
    state: CrystalBatch,
    prior: CrystalBatch | None,
    rngs: Sequence[np.random.Generator],
    *,
    steps: int = SCORE_STEPS,
    exact_atoms: int = EXACT_ATOMS,
    probes: int = PROBES,
) -> list[LogLikelihood | None]:
    """`log_likelihood` of a batch at t = 1, with a generator for each of its crystals."""
    origin = backward(refiner, state, rngs, steps=steps, exact_atoms=exact_atoms, probes=probes)
    config = refiner.config
    base = base_log_density(config.base, config.statistics, refiner.cell, origin.state, prior)
    columns = (base, origin.change, origin.standard_error, state.num_atoms, origin.finite)
    return [
        LogLikelihood(base=b, change=c, standard_error=e, degrees_of_freedom=3 * n + 3)
        if good
        else None
        for b, c, e, n, good in zip(*(column.tolist() for column in columns), strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class Backward:
    """Where the flow came from.

    state: at t = 0.
    change: (B,) float64, of the log-density from there to t = 1, nats.
    standard_error: (B,) of `change`; 0 where the divergence is exact.
    finite: (B,) bool; where False the other numbers mean nothing.
    """

    state: CrystalBatch
    change: Tensor
    standard_error: Tensor
    finite: Tensor


@torch.no_grad()
def backward(
    field: VelocityField,
    state: CrystalBatch,
    rngs: Sequence[np.random.Generator],
    *,
    steps: int,
    exact_atoms: int = EXACT_ATOMS,
    probes: int = PROBES,
) -> Backward:
    """Follow the flow from t = 1 to t = 0.

    Raises:
        RefinerError: steps or exact_atoms below one, or fewer than two probes.
    """
    for name, value, least in (
        ("steps", steps, 1),
        ("exact_atoms", exact_atoms, 1),
        ("probes", probes, 2),
    ):
        if value < least:
            raise RefinerError(f"{name} is {value}; give {least} or more")
    dt = 1 / steps
    back = Lengths(-dt, -dt)
    now = start(state)
    change = torch.zeros(state.num_crystals, dtype=torch.float64, device=state.lattice.device)
    variance = torch.zeros_like(change)
    for k in reversed(range(steps)):
        middle = advance(now, velocity_at(field, now, (k + 1) * dt), back.half())
        t = (k + 0.5) * dt
        velocity, divergence, var = velocity_and_divergence(
            field, middle.state, t, rngs, exact_atoms=exact_atoms, probes=probes
        )
        change -= dt * divergence
        variance += dt**2 * var
        now = advance(replace(now, finite=middle.finite), velocity, back)
    return Backward(
        state=now.state,
        change=change,
        standard_error=variance.sqrt(),
        finite=now.finite & change.isfinite(),
    )


def _batch(refiner: Refiner, source: Sequence[Structure], places: list[int]) -> CrystalBatch:
    chosen = [source[k] for k in places]
    return CrystalBatch.from_structures(chosen, refiner.cell).to(refiner.device)


def _check_priors(structures: Sequence[Structure], priors: Sequence[Structure]) -> None:
    if len(structures) != len(priors):
        raise RefinerError(f"{len(priors)} priors for {len(structures)} structures; give one each")
    for k, (structure, prior) in enumerate(zip(structures, priors, strict=True)):
        if [site.species for site in structure] != [site.species for site in prior]:
            raise RefinerError(
                f"structure {k} ({structure.formula}) and its prior ({prior.formula}) differ in "
                "their sites; give the crystal it was refined from"
            )
