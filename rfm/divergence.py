"""The divergence of a velocity field: the trace of its Jacobian J, crystal by crystal.

For a small crystal the trace is exact: the sum of the 3 n + 6 products e^T J e with the unit
vectors e. For a larger one it is Hutchinson's unbiased estimate, the mean of the same product over
vectors of random signs (FFJORD, Grathwohl et al. 2019, arXiv 1810.01367). The signs are drawn anew
at every call, so that the errors of the steps of an integral average out. Crystals do not see each
other, so one product serves a whole batch; it costs about as much as an evaluation of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from rfm.batch import CrystalBatch
from rfm.integration import Velocity, VelocityField

EXACT_ATOMS = 6  # largest crystal with an exact divergence: 24 products
PROBES = 8  # random vectors for larger ones


def velocity_and_divergence(
    field: VelocityField,
    state: CrystalBatch,
    t: float,
    rngs: Sequence[np.random.Generator],
    *,
    exact_atoms: int = EXACT_ATOMS,
    probes: int = PROBES,
) -> tuple[Velocity, Tensor, Tensor]:
    """Return the velocities of a batch and their divergence.

    Args:
        field: velocity field, differentiable.
        state: B crystals with N atoms.
        t: time of all crystals, in [0, 1].
        rngs: a generator of random signs for each crystal.
        exact_atoms: number of atoms up to which the divergence is exact.
        probes: number of estimates for a larger crystal, whose mean is returned.

    Returns:
        Velocities (N, 3) and (B, 6); divergence (B,) float64; variance (B,) float64 of the
        divergence, 0 where it is exact.
    """
    with torch.enable_grad():
        coords = state.frac_coords.detach().requires_grad_()
        lattice = state.lattice.detach().requires_grad_()
        times = lattice.new_full((state.num_crystals,), t)
        velocity = field.velocity(state.at(coords, lattice), times)

        def products(coord_weights: Tensor, lattice_weights: Tensor) -> Tensor:
            """Return w^T J w of each crystal (B,), for weights w shaped as the velocities."""
            weights = (coord_weights, lattice_weights)
            gradients = torch.autograd.grad(
                velocity, (coords, lattice), weights, retain_graph=True, materialize_grads=True
            )
            by_atom = (gradients[0] * coord_weights).sum(-1).double()  # (N,)
            by_cell = (gradients[1] * lattice_weights).sum(-1).double()  # (B,)
            return by_cell.index_add(0, state.batch, by_atom)

        divergence, variance = _traces(state, products, rngs, exact_atoms, probes)
    return (velocity[0].detach(), velocity[1].detach()), divergence, variance


def _traces(
    state: CrystalBatch,
    products: Callable[[Tensor, Tensor], Tensor],
    rngs: Sequence[np.random.Generator],
    exact_atoms: int,
    probes: int,
) -> tuple[Tensor, Tensor]:
    """Return the trace of each crystal's Jacobian (B,) and its variance, from products w^T J w."""
    coords, lattice = state.frac_coords, state.lattice
    total = torch.zeros(state.num_crystals, dtype=torch.float64, device=lattice.device)
    variance = torch.zeros_like(total)
    small = state.num_atoms <= exact_atoms  # (B,)
    if small.any():
        ends = state.num_atoms.cumsum(0)  # (B,)
        rank = (
            torch.arange(len(coords), device=coords.device) - (ends - state.num_atoms)[state.batch]
        )
        rank = torch.where(small[state.batch], rank, -1)  # (N,), -1 in large crystals
        none, flat = torch.zeros_like(coords), torch.zeros_like(lattice)
        for place in range(int(state.num_atoms[small].max())):
            chosen = (rank == place).to(coords.dtype)
            for axis in range(3):
                one = none.clone()
                one[:, axis] = chosen
                total += products(one, flat)
        for axis in range(6):
            one = flat.clone()
            one[:, axis] = small
            total += products(none, one)
    if not small.all():
        large = (~small).to(coords.dtype).unsqueeze(-1)  # (B, 1)
        estimates = []
        for _ in range(probes):
            # Every crystal draws, so that its signs do not depend on what else is in the batch.
            sizes = state.num_atoms.tolist()
            drawn = [rng.integers(0, 2, (n + 2, 3)) for rng, n in zip(rngs, sizes, strict=True)]
            signs = [torch.from_numpy(2.0 * d - 1.0).to(lattice) for d in drawn]
            on_atoms = torch.cat([s[:-2] for s in signs]) * large[state.batch]
            on_cells = torch.stack([s[-2:].flatten() for s in signs]) * large
            estimates.append(products(on_atoms, on_cells))
        total += torch.stack(estimates).mean(0)
        variance += torch.stack(estimates).var(0) / probes
    return total, variance
