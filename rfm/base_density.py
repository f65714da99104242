"""Log-density of the base distributions that `rfm.base` draws from.

Positions have no origin, so they are a point of the quotient of the torus (T^3)^n by common
translations, and densities there are against its invariant measure of total mass 1: a uniform base
has log-density 0. Cells have densities in the standardised chart vector z of R^6.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rfm.base import BaseConfig, Statistics
from rfm.batch import CrystalBatch
from rfm.errors import RefinerError
from rfm.lattice import StandardChart
from rfm.torus import wrap_difference

_LOG_2PI = math.log(2 * math.pi)
_GRID_CHUNK = 4096


def base_log_density(
    base: BaseConfig,
    statistics: Statistics,
    cell: StandardChart,
    state: CrystalBatch,
    prior: CrystalBatch | None,
) -> Tensor:
    """log p0 of states (B,), float64, in nats.

    Args:
        base: what the flow starts from. A width of 0 is a point mass, which has no density; its
            factor is left out, as if it were flat with density 1.
        statistics: of the refiner, for the base `uniform`.
        cell: the chart of the state's cells.
        state: B crystals.
        prior: the same crystals as the prior made them; needed for a base of crystals.

    Raises:
        RefinerError: the base is of crystals and there is no prior, or it is `uniform` and the
            lengths it was fitted to do not vary.
    """
    if not base.from_crystals:
        return uniform_cell_log_density(state.lattice, statistics, cell)
    if prior is None:
        raise RefinerError("the base of this refiner is the prior's crystal; give it (priors)")
    total = torch.zeros(state.num_crystals, dtype=torch.float64, device=state.lattice.device)
    if base.position_sigma > 0:
        difference = (state.frac_coords - prior.frac_coords).double()
        parts = difference.split(state.num_atoms.tolist())
        total += torch.stack([wrapped_normal_log_density(d, base.position_sigma) for d in parts])
    if base.cell_sigma > 0:
        square = (state.lattice - prior.lattice).double().square().sum(-1)
        total -= square / (2 * base.cell_sigma**2)
        total -= 6 * (math.log(base.cell_sigma) + _LOG_2PI / 2)
    return total


def wrapped_normal_log_density(difference: Tensor, sigma: float) -> Tensor:
    """Of independent wrapped normal noise on n atoms, their common translation taken away.

    With w(d) = sum over k of N(d + k; 0, sigma^2) in each coordinate, the density of the
    translation's orbit is the integral of the joint density along it,

        p(d_1 .. d_n) = integral over c in [0, 1) of prod_i w(d_i + c)

    The integrand is periodic and a sum of Gaussians of width sigma / sqrt(n), for which the
    trapezoidal rule with 1.5 points to a width is exact to exp(-2 pi^2 1.5^2) = 5e-20.

    Args:
        difference: (n, 3) float64, displacements in periods, of any lift.
        sigma: width of the noise in periods, above 0.

    Returns:
        A scalar, the sum of log p over the three coordinates.
    """
    n = difference.shape[0]
    points = math.ceil(1.5 * math.sqrt(n) / sigma)
    images = torch.arange(-math.ceil(9 * sigma) - 1, math.ceil(9 * sigma) + 2)
    images = images.to(difference)
    grid = torch.arange(points).to(difference) / points
    logs = []
    for chunk in grid.split(_GRID_CHUNK):
        d = wrap_difference(difference.unsqueeze(-1) + chunk)  # (n, 3, points)
        normal = -0.5 * ((d.unsqueeze(-1) + images) / sigma).square()  # (n, 3, points, images)
        one = normal.logsumexp(-1) - math.log(sigma) - _LOG_2PI / 2
        logs.append(one.sum(0))
    return (torch.cat(logs, dim=-1).logsumexp(-1) - math.log(points)).sum()


def uniform_cell_log_density(z: Tensor, statistics: Statistics, cell: StandardChart) -> Tensor:
    """Of FlowMM's cells (log-normal lengths, angles uniform in [60, 120] degrees) at z (B, 6).

    p(z) = p(log lengths, angles) |det d(log lengths, angles) / dz|; minus infinity for an angle
    outside.

    Raises:
        RefinerError: the lengths have no spread, hence no density.
    """
    mean = z.new_tensor(statistics.log_length_mean, dtype=torch.float64)
    std = z.new_tensor(statistics.log_length_std, dtype=torch.float64)
    if not (std > 0).all():
        raise RefinerError("the lengths of this uniform base do not vary: it has no density")
    with torch.enable_grad():
        z = z.detach().double().requires_grad_()
        metric = cell.metric(z)
        lengths = metric.diagonal(dim1=-2, dim2=-1).sqrt()  # (B, 3)
        rows, cols = [1, 0, 0], [2, 2, 1]
        cosines = metric[:, rows, cols] / (lengths[:, rows] * lengths[:, cols])
        angles = torch.rad2deg(cosines.acos())
        outputs = torch.cat([lengths.log(), angles], dim=-1)  # (B, 6)
        rows_of_jacobian = [
            torch.autograd.grad(outputs[:, k].sum(), z, retain_graph=True)[0] for k in range(6)
        ]
    volume = torch.linalg.slogdet(torch.stack(rows_of_jacobian, dim=1)).logabsdet
    standard = (lengths.log().detach() - mean) / std
    normal = -0.5 * (standard.square() + _LOG_2PI).sum(-1) - std.log().sum()
    inside = ((angles >= 60) & (angles <= 120)).all(-1)
    return torch.where(inside, normal - 3 * math.log(60) + volume, -torch.inf)
