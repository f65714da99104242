"""The base distributions of the flow: random draws, and their log-density.

`llm`      the prior's crystal, plus normal noise of width `position_sigma` wrapped onto the torus
           and of width `cell_sigma` on the standardised cell vector. Both 0 is the FlowLLM of
           Sriram et al. 2024 (arXiv 2410.23405).
`file`     the same noise on crystals of any other origin.
`uniform`  the base of FlowMM (Miller et al. 2024, arXiv 2406.04713): uniform positions, log-normal
           lengths fitted to the targets, angles uniform in [60, 120] degrees. No prior is used.

Training and sampling draw from the same base. Positions have no origin, so the density of positions
lives on the quotient of the torus (T^3)^n by common translations, with respect to its invariant
measure of total mass 1: uniform positions have log-density 0. Cells have densities in the
standardised chart vector z of R^6.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from rfm.batch import CrystalBatch
from rfm.config import BaseConfig, Statistics
from rfm.errors import RefinerError
from rfm.lattice import StandardChart, metric_from_parameters, metric_to_matrix
from rfm.symmetry import Blocks
from rfm.torus import wrap_difference

_LOG_2PI = math.log(2 * math.pi)
_GRID_CHUNK = 4096  # grid points at a time, which bounds memory


def crystal_generator(seed: int, index: int) -> np.random.Generator:
    """Return the random generator of one crystal, independent of all other crystals.

    Args:
        seed: seed of the run, 0 or more.
        index: number of the crystal in the run, 0 or more.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index,)))


def noisy_base(
    frac_coords: np.ndarray,
    lattice: np.ndarray,
    base: BaseConfig,
    rng: np.random.Generator,
    blocks: Blocks | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return a given crystal with fresh noise, which does not shift it as a whole.

    Args:
        frac_coords: (n, 3) coordinates of the given crystal.
        lattice: (6,) standardised cell vector of the given crystal.
        base: widths of the noise.
        rng: source of the noise.
        blocks: average of the noise on the positions over a group, or None. The cell is averaged
            later, by `rfm.averages.average_cells`.

    Returns:
        float32 coordinates (n, 3) in [0, 1) and cell vector (6,).
    """
    noise = base.position_sigma * rng.standard_normal(frac_coords.shape)  # (n, 3)
    # A shift of the whole crystal means nothing, yet it could push an atom's displacement past half
    # a period, to the other side of the cell.
    noise -= noise.mean(0)
    if blocks is not None:
        noise = blocks.average(noise)
    coords = frac_coords + noise
    vector = lattice + base.cell_sigma * rng.standard_normal(6)
    return _wrap(coords), vector.astype(np.float32)


def uniform_base(
    num_atoms: int, statistics: Statistics, cell: StandardChart, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return a crystal of FlowMM's base distribution (arXiv 2406.04713).

    Args:
        num_atoms: number of atoms n.
        statistics: means and widths of the log-normal lengths.
        cell: chart of the returned cell vector.
        rng: source of the random numbers.

    Returns:
        float32 coordinates (n, 3) in [0, 1) and cell vector (6,).
    """
    coords = rng.random((num_atoms, 3))
    lengths = np.exp(rng.normal(statistics.log_length_mean, statistics.log_length_std))  # (3,)
    angles = rng.uniform(60.0, 120.0, 3)
    metric = metric_from_parameters(torch.from_numpy(lengths[None]), torch.from_numpy(angles[None]))
    vector = cell.encode(metric_to_matrix(metric))[0].numpy()
    return _wrap(coords), vector.astype(np.float32)


def base_log_density(
    base: BaseConfig,
    statistics: Statistics,
    cell: StandardChart,
    state: CrystalBatch,
    prior: CrystalBatch | None,
) -> Tensor:
    """Return the log-density of states under the base distribution.

    Args:
        base: base distribution. A width of 0 is a point mass, which has no density; its factor is
            left out, as if it were flat with density 1.
        statistics: statistics of the refiner, used by the base `uniform`.
        cell: chart of the state's cells.
        state: B crystals.
        prior: the same crystals as the prior made them; needed for a base of crystals.

    Returns:
        log p0 (B,), float64, in nats.

    Raises:
        RefinerError: if the base is of crystals and there is no prior, or if it is `uniform` and
            the fitted lengths do not vary.
    """
    if not base.from_crystals:
        return uniform_cell_log_density(state.lattice, statistics, cell)
    if prior is None:
        raise RefinerError("the base of this refiner is the prior's crystal; give it (priors)")
    total = torch.zeros(state.num_crystals, dtype=torch.float64, device=state.lattice.device)
    if base.position_sigma > 0:
        difference = (state.frac_coords - prior.frac_coords).double()  # (N, 3)
        parts = difference.split(state.num_atoms.tolist())
        total += torch.stack([wrapped_normal_log_density(d, base.position_sigma) for d in parts])
    if base.cell_sigma > 0:
        square = (state.lattice - prior.lattice).double().square().sum(-1)  # (B,)
        total -= square / (2 * base.cell_sigma**2)
        total -= 6 * (math.log(base.cell_sigma) + _LOG_2PI / 2)
    return total


def wrapped_normal_log_density(difference: Tensor, sigma: float) -> Tensor:
    """Return the log-density of wrapped normal noise on n atoms, less their common translation.

    With w(d) = sum over k of N(d + k; 0, sigma^2) in each coordinate, the density of the
    translation's orbit is the integral of the joint density along it,

        p(d_1 .. d_n) = integral over c in [0, 1) of prod_i w(d_i + c)

    The integrand is periodic and a sum of Gaussians of width sigma / sqrt(n), for which the
    trapezoidal rule with 1.5 points to a width is exact to exp(-2 pi^2 1.5^2) = 5e-20.

    Args:
        difference: (n, 3) float64, displacements in periods, up to whole periods.
        sigma: width of the noise in periods, above 0.

    Returns:
        A scalar, the sum of log p over the three coordinates, in nats.
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
        one = normal.logsumexp(-1) - math.log(sigma) - _LOG_2PI / 2  # (n, 3, points)
        logs.append(one.sum(0))
    return (torch.cat(logs, dim=-1).logsumexp(-1) - math.log(points)).sum()


def uniform_cell_log_density(z: Tensor, statistics: Statistics, cell: StandardChart) -> Tensor:
    """Return the log-density of FlowMM's cells: log-normal lengths, angles uniform in [60, 120].

    p(z) = p(log lengths, angles) |det d(log lengths, angles) / dz|, with angles in degrees.

    Args:
        z: (B, 6) standardised cell vectors.
        statistics: means and widths of the log-normal lengths.
        cell: chart of z.

    Returns:
        (B,) float64, in nats; minus infinity where an angle lies outside of the interval.

    Raises:
        RefinerError: if the lengths have no spread, hence no density.
    """
    mean = z.new_tensor(statistics.log_length_mean, dtype=torch.float64)
    std = z.new_tensor(statistics.log_length_std, dtype=torch.float64)
    if not (std > 0).all():
        raise RefinerError("the lengths of this uniform base do not vary: it has no density")
    with torch.enable_grad():
        z = z.detach().double().requires_grad_()
        metric = cell.metric(z)  # (B, 3, 3)
        lengths = metric.diagonal(dim1=-2, dim2=-1).sqrt()  # (B, 3)
        rows, cols = [1, 0, 0], [2, 2, 1]
        cosines = metric[:, rows, cols] / (lengths[:, rows] * lengths[:, cols])
        angles = torch.rad2deg(cosines.acos())  # (B, 3)
        outputs = torch.cat([lengths.log(), angles], dim=-1)  # (B, 6)
        rows_of_jacobian = [
            torch.autograd.grad(outputs[:, k].sum(), z, retain_graph=True)[0] for k in range(6)
        ]
    volume = torch.linalg.slogdet(torch.stack(rows_of_jacobian, dim=1)).logabsdet  # (B,)
    standard = (lengths.log().detach() - mean) / std
    normal = -0.5 * (standard.square() + _LOG_2PI).sum(-1) - std.log().sum()
    inside = ((angles >= 60) & (angles <= 120)).all(-1)
    return torch.where(inside, normal - 3 * math.log(60) + volume, -torch.inf)


def _wrap(coords: np.ndarray) -> np.ndarray:
    wrapped = (coords - np.floor(coords)).astype(np.float32)
    wrapped[wrapped >= 1.0] = 0.0  # rounding up to one names the point zero
    return wrapped
