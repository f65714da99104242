"""The log-likelihood of crystals under the flow.

The flow carries the base density p0 along dx/dt = u(x, t). By the instantaneous change of variables
(Chen et al. 2018, arXiv 1806.07366; on manifolds Mathieu and Nickel 2020, arXiv 2006.10605, and
Chen and Lipman 2024, arXiv 2302.03660) a crystal x1 that the flow carries from x0 has

    log p1(x1) = log p0(x0) - integral over t from 0 to 1 of div u(x_t, t)

The torus and the space of cells are flat, so div u is the plain sum of derivatives. The field is
unchanged by a common translation and has mean zero over the atoms, so its Jacobian vanishes along
the three translations on both sides. The density lives on the quotient by these translations
(`rfm.base`), and the divergence there equals the divergence over all coordinates. A crystal of n
atoms has 3 n - 3 + 6 degrees of freedom.

The flow is the trained field without anti-annealing, which is no part of the model. It is followed
backwards by the midpoint rule, with the divergence (`rfm.divergence`) at the middle of every step.

Symmetry is not kept here: the density is that of the free flow among all crystals, also for a
crystal that was refined with its symmetry kept. The flow within a group has a density of its own on
fewer coordinates, which cannot be compared among groups.

Limits: the features of the network jump where two atoms are half a period apart, and the effect of
a jump on the density is left out. Data on a surface, such as crystals with symmetry, have infinite
density under a perfect model, and the number of steps bounds it. So compare only likelihoods of one
model with one number of steps, preferably among crystals of one composition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from pymatgen.core import Structure
from torch import Tensor

from rfm.base import base_log_density, crystal_generator
from rfm.batch import MAX_EDGES, CrystalBatch, pack, refusal
from rfm.divergence import EXACT_ATOMS, PROBES, velocity_and_divergence
from rfm.errors import RefinerError
from rfm.integration import Lengths, VelocityField, advance, start, velocity_at
from rfm.model import Refiner

SCORE_STEPS = 50


@dataclass(frozen=True, kw_only=True)
class LogLikelihood:
    """Log-likelihood log p1 of a crystal, in nats.

    The density is with respect to the invariant measure of total mass 1 on positions up to a common
    translation, times the Lebesgue measure on standardised cell vectors.

    Attributes:
        base: log p0 of the crystal at t = 0; a factor of width 0 is left out, see
            `rfm.base.base_log_density`. Minus infinity outside of the base.
        change: minus the integral of the divergence.
        standard_error: standard error of `change`, from the random signs; 0 where the divergence is
            exact.
        degrees_of_freedom: 3 n + 3 for n atoms.
    """

    base: float
    change: float
    standard_error: float
    degrees_of_freedom: int

    @property
    def total(self) -> float:
        """Log-likelihood log p1, in nats."""
        return self.base + self.change

    @property
    def per_degree(self) -> float:
        """Log-likelihood over the degrees of freedom, in nats."""
        return self.total / self.degrees_of_freedom


def flow_log_likelihood(
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
    """Return the log-likelihoods of structures under the flow.

    Args:
        refiner: the model.
        structures: ordered crystals in the cell convention of the refiner's training.
        priors: for a base of crystals, the crystal that each structure was refined from, with the
            same sites in the same order.
        seed: seed of the random signs; structure k has a generator of its own, number k.
        steps: number of steps of the midpoint rule.
        exact_atoms: number of atoms up to which the divergence is exact.
        probes: number of random vectors per step for larger crystals, at least two.
        max_edges: bound on memory, see `rfm.batch.pack`.

    Returns:
        One entry per structure, in order; None where the backward integration is not finite.

    Raises:
        RefinerError: if priors are missing or have other sites, `refine` would refuse a structure,
            or a setting is too small.
    """
    if priors is None and refiner.config.base.from_crystals:
        raise RefinerError("the base of this refiner is the prior's crystal; give it (priors)")
    if seed < 0:
        raise RefinerError(f"seed {seed} is negative; give 0 or more")
    for k, structure in enumerate(structures):
        if refused := refusal(refiner.config, structure, k):
            raise RefinerError(refused[1])
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
    """Return the log-likelihoods of a batch under the flow.

    Args:
        refiner: the model.
        state: B crystals at t = 1.
        prior: the same crystals as the prior made them, for a base of crystals.
        rngs: a generator of random signs for each crystal.
        steps: see `flow_log_likelihood`.
        exact_atoms: see `flow_log_likelihood`.
        probes: see `flow_log_likelihood`.

    Returns:
        One entry per crystal; None where the backward integration is not finite.

    Raises:
        RefinerError: if a prior is missing, or a setting is too small.
    """
    state = replace(state, symmetry=None)
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
    """The origin of a batch under the flow.

    Attributes:
        state: B crystals at t = 0.
        change: (B,) float64, change of the log-density from t = 0 to 1, in nats.
        standard_error: (B,) standard error of `change`; 0 where the divergence is exact.
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
    """Return the origin of a batch, following the flow from t = 1 to 0 by the midpoint rule.

    Args:
        field: velocity field, differentiable.
        state: B crystals at t = 1.
        rngs: a generator of random signs for each crystal.
        steps: number of equal steps.
        exact_atoms: number of atoms up to which the divergence is exact.
        probes: number of random vectors per step for larger crystals.

    Raises:
        RefinerError: if steps or exact_atoms is below one, or there are fewer than two probes.
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
    """Return the structures at some places as a batch on the refiner's device."""
    chosen = [source[k] for k in places]
    return CrystalBatch.from_structures(chosen, refiner.cell).to(refiner.device)


def _check_priors(structures: Sequence[Structure], priors: Sequence[Structure]) -> None:
    """Raise `RefinerError` unless every structure has a prior with the same sites."""
    if len(structures) != len(priors):
        raise RefinerError(f"{len(priors)} priors for {len(structures)} structures; give one each")
    for k, (structure, prior) in enumerate(zip(structures, priors, strict=True)):
        if [site.species for site in structure] != [site.species for site in prior]:
            raise RefinerError(
                f"structure {k} ({structure.formula}) and its prior ({prior.formula}) differ in "
                "their sites; give the crystal it was refined from"
            )
