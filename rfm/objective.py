"""Conditional flow matching on (flat torus)^n x R^6.

From base (f0, l0) and target (f1, l1) of a crystal and a time t ~ U(0, 1) the path is the geodesic

    f_t = exp_f0(t log_f0 f1)    l_t = (1 - t) l0 + t l1

and the network learns its velocity, u_f = log_f0 f1 and u_l = l1 - l0 (Chen and Lipman 2024,
arXiv 2302.03660; Miller et al. 2024, arXiv 2406.04713). The position of a crystal as a whole has no
meaning, so the mean of u_f over the atoms of each crystal is removed, in target and prediction.

Units: coordinates in periods, cells in standardised chart vectors, velocities per unit of t.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from rfm.config import LossWeights
from rfm.network import remove_mean
from rfm.torus import exponential, logarithm


class PathPoint(NamedTuple):
    """Point of the conditional path and the velocity there.

    Attributes:
        frac_coords: (N, 3) coordinates at t, in [0, 1).
        lattice: (B, 6) standardised cell vectors at t.
        coord_velocity: (N, 3), of mean zero per crystal, in periods.
        lattice_velocity: (B, 6).
    """

    frac_coords: Tensor
    lattice: Tensor
    coord_velocity: Tensor
    lattice_velocity: Tensor


def conditional_path(
    *,
    base_frac_coords: Tensor,
    target_frac_coords: Tensor,
    base_lattice: Tensor,
    target_lattice: Tensor,
    t: Tensor,
    batch: Tensor,
) -> PathPoint:
    """Return the points at times t of the paths from base to target.

    Args:
        base_frac_coords: (N, 3) in [0, 1).
        target_frac_coords: (N, 3) in [0, 1).
        base_lattice: (B, 6) standardised chart vectors.
        target_lattice: (B, 6) standardised chart vectors.
        t: (B,) in [0, 1], one time per crystal.
        batch: (N,) index of the crystal of each atom.
    """
    coord_velocity = logarithm(base_frac_coords, target_frac_coords)  # (N, 3)
    lattice_velocity = target_lattice - base_lattice  # (B, 6)
    t = t.unsqueeze(-1)  # (B, 1)
    num_atoms = batch.bincount(minlength=t.shape[0]).unsqueeze(-1)  # (B, 1)
    return PathPoint(
        frac_coords=exponential(base_frac_coords, t.index_select(0, batch) * coord_velocity),
        lattice=base_lattice + t * lattice_velocity,
        coord_velocity=remove_mean(coord_velocity, batch, num_atoms),
        lattice_velocity=lattice_velocity,
    )


class Loss(NamedTuple):
    """The loss and its two parts, all scalars.

    Attributes:
        total: weighted sum of the parts.
        coord: mean squared error of the coordinate velocities, unweighted.
        lattice: mean squared error of the cell velocities, unweighted.
    """

    total: Tensor
    coord: Tensor
    lattice: Tensor


def velocity_loss(
    coord_velocity: Tensor, lattice_velocity: Tensor, point: PathPoint, weights: LossWeights
) -> Loss:
    """Return the mean squared error of predicted velocities.

    Args:
        coord_velocity: (N, 3) prediction, of mean zero per crystal, as the network returns it.
        lattice_velocity: (B, 6) prediction.
        point: velocities of the path.
        weights: weights of the two parts.

    Returns:
        The coordinate part is the mean over atoms and dimensions, the cell part over crystals and
        dimensions.
    """
    coord = (coord_velocity - point.coord_velocity).square().mean()
    lattice = (lattice_velocity - point.lattice_velocity).square().mean()
    return Loss(weights.coord * coord + weights.lattice * lattice, coord, lattice)
