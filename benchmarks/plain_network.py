"""Plain implementation of the refiner's network, a reference for its correctness and speed.

For every ordered pair of atoms the input (n(h_i), n(h_j), c, e_ij) of the first edge layer is one
vector, which is multiplied by one matrix. The pairs are found by comparing all atoms of the batch
with each other, so memory grows with the square of the batch. The weights belong to a
`rfm.network.VelocityNetwork`, and gradients reach them.
"""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from rfm.batch import CrystalBatch
from rfm.network import VelocityNetwork, crystal_features


def plain_velocity(
    network: VelocityNetwork, state: CrystalBatch, matrices: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the velocities (N, 3) and (B, 6) of `network(state, metric, t)`.

    Args:
        network: source of the weights.
        state: B crystals with N atoms.
        matrices: (B, 3, 3) lattice vectors as rows, in Angstrom.
        t: (B,) times in [0, 1].
    """
    batch, n = state.batch, state.num_atoms.unsqueeze(-1).to(t.dtype)  # (B, 1)
    same = batch.unsqueeze(0) == batch.unsqueeze(1)  # (N, N)
    same.fill_diagonal_(False)
    i, j = same.nonzero(as_tuple=True)  # (E,)
    with torch.autocast(t.device.type, enabled=False):  # geometry needs all its digits
        metric = matrices @ matrices.transpose(-1, -2)
        described = crystal_features(state.lattice, metric, n, t)  # (B, F')
        features = _features(state.frac_coords, matrices[batch[i]], i, j, network)  # (E, F)
    crystal = network.embed_crystal(described)  # (B, W)

    h = network.embed_element(state.atomic_numbers)  # (N, W)
    for layer in network.layers:
        parts = (layer.from_source, layer.from_target, layer.from_crystal, layer.from_edge)
        weight = torch.cat([part.weight for part in parts], dim=1)  # (W, 3 W + F)
        x = layer.norm(h)
        inputs = torch.cat([x[i], x[j], crystal[batch[i]], features], dim=-1)  # (E, 3 W + F)
        message = silu(layer.message(silu(linear(inputs, weight, layer.from_source.bias))))
        mean = _sums(message, i, len(h)) / (n - 1).clamp(min=1)[batch]
        h = h + layer.update(torch.cat([x, mean], dim=-1))

    h = network.norm(h)
    coord = network.coord_head(h).float()  # (N, 3)
    coord = coord - (_sums(coord, batch, len(n)) / n)[batch]
    summed = _sums(h.float(), batch, len(n))
    cell = network.cell_head(torch.cat([summed / n, summed, crystal.float()], dim=-1)).float()
    return coord, cell


def _sums(values: Tensor, place: Tensor, count: int) -> Tensor:
    """Return the sums (count, F) of the rows of values (E, F) with the same place (E,)."""
    return values.new_zeros(count, values.shape[1]).index_add(0, place, values)


def _features(
    coords: Tensor, matrix: Tensor, i: Tensor, j: Tensor, network: VelocityNetwork
) -> Tensor:
    """Return e_ij of ordered pairs (E, 6 K + 16), from Cartesian vectors; matrix: (E, 3, 3)."""
    d = coords[j] - coords[i]
    d = d - torch.floor(d + 0.5)  # (E, 3)
    k = torch.arange(1, network.config.num_frequencies + 1, device=d.device, dtype=d.dtype)
    phase = (2 * math.pi * d.unsqueeze(-1) * k).flatten(1)  # (E, 3 K)
    cartesian = (d.unsqueeze(1) @ matrix).squeeze(1)  # (E, 3)
    # As in the network no two atoms are closer than 0.001 Angstrom; a norm has no gradient at 0.
    distance = cartesian.square().sum(-1, keepdim=True).clamp(min=1e-6).sqrt()
    lengths = matrix.norm(dim=-1)  # (E, 3)
    cosines = (matrix @ cartesian.unsqueeze(-1)).squeeze(-1) / (distance * lengths)
    density = _density(d, matrix)
    return torch.cat([phase.sin(), phase.cos(), cosines, distance.log(), density], dim=-1)


def _density(d: Tensor, matrix: Tensor) -> Tensor:
    """Return the image density (E, 12), computed image by image."""
    radii = 1 + 0.5 * torch.arange(12, device=d.device, dtype=d.dtype)
    density = torch.zeros(d.shape[0], 12, device=d.device, dtype=d.dtype)
    step = torch.where(d >= 0, -1.0, 1.0)
    for moves in product((False, True), repeat=3):
        moved = torch.tensor(moves, device=d.device)
        image = torch.where(moved, d + step, d)
        weight = torch.where(moved, torch.sin(math.pi * d) ** 2, 1.0).prod(-1, keepdim=True)
        square = (image.unsqueeze(1) @ matrix).squeeze(1).square().sum(-1, keepdim=True)
        distance = square.clamp(min=1e-6).sqrt()  # (E, 1)
        # sigma = 1/2 Angstrom: 2 sigma^2 = 1/2. Underflow is slow, so the tail is cut.
        density = density + weight * (-2 * (distance - radii) ** 2).clamp(min=-20).exp()
    return density
