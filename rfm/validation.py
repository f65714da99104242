"""Errors of a refiner's velocities on held-out pairs, by the time t.

A mean over all t hides at which times a model errs. Near t = 0 it must guess where the atoms go;
near t = 1 they are almost there.
"""

from __future__ import annotations

from typing import Any

import torch

from rfm.base import crystal_generator
from rfm.dataset import PairDataset, collate
from rfm.model import Refiner

_BINS = {f"t{25 * k}_{25 * (k + 1)}": k for k in range(4)}  # t in percent
PATH_LOSSES = (
    *("loss", "coord_loss", "lattice_loss"),
    *(f"{part}_loss_{name}" for part in ("coord", "lattice") for name in _BINS),
)


@torch.no_grad()
def path_losses(
    refiner: Refiner, data: PairDataset, *, seed: int = 0, batch_size: int = 64
) -> dict[str, float]:
    """Return mean squared errors of the velocities on one draw of each pair.

    Pair k draws its base and its t from a generator of its own, number k of `seed`, so every call
    makes the same draws.

    Args:
        refiner: the model, in eval mode.
        data: pairs in the refiner's chart and statistics.
        seed: seed of the draws.
        batch_size: number of crystals at a time; bounds the memory.

    Returns:
        `loss`, the weighted sum of `coord_loss` (mean over atoms and dimensions, periods squared)
        and `lattice_loss` (mean over crystals and dimensions, standardised chart vectors). Both
        parts are also given over the pairs with t in each quarter of [0, 1], from
        `coord_loss_t0_25` to `lattice_loss_t75_100`; a quarter without a draw is left out.
    """
    squares = torch.zeros(len(_BINS), 2, dtype=torch.float64)  # of coordinates and of cells
    counts = torch.zeros_like(squares)
    for start in range(0, len(data), batch_size):
        places = range(start, min(start + batch_size, len(data)))
        drawn = collate([data.draw(k, crystal_generator(seed, k)) for k in places])
        del drawn["ids"]
        batch = _to(refiner.device, drawn)
        point, (coord_velocity, lattice_velocity) = refiner.path_velocity(**batch)
        coord = (coord_velocity - point.coord_velocity).square().sum(-1)  # (N,)
        lattice = (lattice_velocity - point.lattice_velocity).square().sum(-1)  # (B,)
        bins = (batch["t"] * len(_BINS)).long().clamp(max=len(_BINS) - 1)  # (B,)
        for part, (values, where, dimensions) in enumerate(
            ((coord, bins.repeat_interleave(batch["num_atoms"]), 3), (lattice, bins, 6))
        ):
            where = where.cpu()
            squares[:, part].index_add_(0, where, values.double().cpu())
            counts[:, part] += dimensions * where.bincount(minlength=len(_BINS))
    coord_loss, lattice_loss = (squares.sum(0) / counts.sum(0)).tolist()
    weights = refiner.config.loss
    found = {
        "loss": weights.coord * coord_loss + weights.lattice * lattice_loss,
        "coord_loss": coord_loss,
        "lattice_loss": lattice_loss,
    }
    for part, label in enumerate(("coord", "lattice")):
        for name, k in _BINS.items():
            if counts[k, part] > 0:
                found[f"{label}_loss_{name}"] = float(squares[k, part] / counts[k, part])
    return found


def _to(device: torch.device, batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch, whose values are tensors or dicts of tensors, on a device."""
    return {
        name: _to(device, value) if isinstance(value, dict) else value.to(device)
        for name, value in batch.items()
    }
