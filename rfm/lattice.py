"""Charts between cells and R^6.

A lattice is a matrix L (3, 3) whose rows are a, b, c in Angstrom. The refiner moves the cell up to
rotation, which is the metric tensor G = L L^T, written as six real numbers:

`logmetric`  the matrix logarithm S of G, as (S11, S22, S33, sqrt2 S12, sqrt2 S13, sqrt2 S23). The
             factor makes the Euclidean norm of the six equal the Frobenius norm of S, which is the
             log-Euclidean metric of Arsigny et al. 2006 (doi 10.1002/mrm.20965). Every vector of
             R^6 is a valid cell. geoopt's SymmetricPositiveDefinite has only the distance of this
             metric; in the chart its geodesics are straight lines, so R^6 is enough.
`params`     logarithms of the three lengths, and logit(angle / 180) of the three angles in
             degrees, after FlowMM (Miller et al. 2024, arXiv 2406.04713). FlowMM has
             logit((angle - 59.9) / 60.2), which holds Niggli cells only; a target in the basis
             nearest to its base (`rfm.alignment`) has angles beyond those, and here every cell
             has a vector. Not every vector is a cell: three angles may fail to close.

Back from R^6 comes one fixed orientation: L is lower triangular with a positive diagonal (a along
x, b in the xy plane, right-handed). Eigenvalues and Cholesky factors are taken in float64 whatever
the input; the result has the dtype of the input.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from rfm.config import Statistics, check_chart

# Places of the six numbers of a symmetric matrix, here and in `rfm.symmetry`.
ROWS = [0, 1, 2, 0, 0, 1]
COLS = [0, 1, 2, 1, 2, 2]


class Chart(Protocol):
    """A representation of cells by six real numbers."""

    name: str

    def to_vector(self, lattice: Tensor) -> Tensor:
        """Return the chart vectors of lattices.

        Args:
            lattice: (B, 3, 3) with rows a, b, c in Angstrom.

        Returns:
            (B, 6), of the type of the input.
        """
        ...

    def from_metric(self, metric: Tensor) -> Tensor:
        """Return the chart vectors of metric tensors.

        Args:
            metric: (B, 3, 3) float64 G = L L^T in Angstrom^2.

        Returns:
            (B, 6) float64.
        """
        ...

    def to_metric(self, vector: Tensor) -> Tensor:
        """Return the metric tensors of chart vectors.

        Args:
            vector: (B, 6).

        Returns:
            G (B, 3, 3) in Angstrom^2, of the type of the input.
        """
        ...

    def to_matrix(self, vector: Tensor) -> Tensor:
        """Return the lattices of chart vectors.

        Args:
            vector: (B, 6).

        Returns:
            Lower triangular L (B, 3, 3) in Angstrom; NaN where no cell closes.
        """
        ...


def metric_tensor(lattice: Tensor) -> Tensor:
    """Return metric tensors G = L L^T.

    Args:
        lattice: (B, 3, 3) with rows a, b, c in Angstrom.

    Returns:
        (B, 3, 3) in Angstrom^2.
    """
    return lattice @ lattice.transpose(-1, -2)


def metric_to_matrix(metric: Tensor) -> Tensor:
    """Return lower triangular lattices of metric tensors.

    Args:
        metric: (B, 3, 3) in Angstrom^2.

    Returns:
        (B, 3, 3) in Angstrom; NaN where a metric is not positive definite.
    """
    factor, failed = torch.linalg.cholesky_ex(metric.double())
    factor = torch.where(failed[..., None, None] == 0, factor, torch.nan)
    return factor.to(metric.dtype)


class LogMetric:
    """The chart of log G."""

    name = "logmetric"

    def to_vector(self, lattice: Tensor) -> Tensor:
        return self.from_metric(metric_tensor(lattice.double())).to(lattice.dtype)

    def from_metric(self, metric: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(metric)
        log_metric = (vectors * values.log().unsqueeze(-2)) @ vectors.transpose(-1, -2)
        six = log_metric[..., ROWS, COLS]  # (B, 6)
        return torch.cat([six[..., :3], six[..., 3:] * math.sqrt(2)], dim=-1)

    def to_metric(self, vector: Tensor) -> Tensor:
        six = vector.double()
        diag, off = six[..., :3], six[..., 3:] / math.sqrt(2)
        # Unlike a sum over eigenvectors, this has a derivative where eigenvalues are equal, as in
        # a cube.
        return torch.linalg.matrix_exp(_symmetric(diag, off)).to(vector.dtype)

    def to_matrix(self, vector: Tensor) -> Tensor:
        return metric_to_matrix(self.to_metric(vector.double())).to(vector.dtype)


class Params:
    """The chart of log lengths and logit angles."""

    name = "params"

    def to_vector(self, lattice: Tensor) -> Tensor:
        return self.from_metric(metric_tensor(lattice.double())).to(lattice.dtype)

    def from_metric(self, metric: Tensor) -> Tensor:
        lengths = metric.diagonal(dim1=-2, dim2=-1).sqrt()  # (B, 3)
        cosines = (metric / lengths.unsqueeze(-1) / lengths.unsqueeze(-2)).clamp(-1, 1)
        # alpha is between b and c, beta between a and c, gamma between a and b.
        angles = torch.rad2deg(cosines[..., [1, 0, 0], [2, 2, 1]].acos())
        return torch.cat([lengths.log(), (angles / 180).logit()], dim=-1)

    def to_metric(self, vector: Tensor) -> Tensor:
        six = vector.double()
        lengths = six[..., :3].exp()
        return metric_from_parameters(lengths, 180 * six[..., 3:].sigmoid()).to(vector.dtype)

    def to_matrix(self, vector: Tensor) -> Tensor:
        return metric_to_matrix(self.to_metric(vector.double())).to(vector.dtype)


def metric_from_parameters(lengths: Tensor, angles: Tensor) -> Tensor:
    """Return metric tensors of cells given by lengths and angles.

    Args:
        lengths: (B, 3) lengths a, b, c in Angstrom.
        angles: (B, 3) angles alpha, beta, gamma in degrees.

    Returns:
        (B, 3, 3) in Angstrom^2.
    """
    cosines = torch.deg2rad(angles).cos()
    off = lengths[..., [0, 0, 1]] * lengths[..., [1, 2, 2]] * cosines[..., [2, 1, 0]]
    return _symmetric(lengths.square(), off)


def _symmetric(diag: Tensor, off: Tensor) -> Tensor:
    """Return symmetric matrices of diagonals (.., 3) and the elements 12, 13, 23 (.., 3)."""
    matrix = torch.diag_embed(diag)
    matrix[..., [0, 0, 1], [1, 2, 2]] = off
    matrix[..., [1, 2, 2], [0, 0, 1]] = off
    return matrix


LOGMETRIC = LogMetric()
PARAMS = Params()
_CHARTS: dict[str, Chart] = {LOGMETRIC.name: LOGMETRIC, PARAMS.name: PARAMS}


def chart(name: str) -> Chart:
    """Return the chart called `name`.

    Args:
        name: `logmetric` or `params`.

    Raises:
        RefinerError: if no chart has this name.
    """
    check_chart(name)
    return _CHARTS[name]


class StandardChart:
    """A chart whose six numbers have mean 0 and standard deviation 1 over the training pairs.

    The whole refiner carries cells in this form: path, noise, loss and network see
    z = (vector - mean) / std.

    Args:
        name: name of the chart.
        mean: (6,) means of the chart vectors.
        std: (6,) standard deviations of the chart vectors.

    Raises:
        RefinerError: if no chart has this name.
    """

    def __init__(self, name: str, mean: Tensor, std: Tensor) -> None:
        self.chart = chart(name)
        self.mean = mean.double()
        self.std = std.double()

    @classmethod
    def from_statistics(cls, name: str, statistics: Statistics) -> StandardChart:
        """Return a chart standardised by the statistics of training pairs.

        Args:
            name: name of the chart.
            statistics: mean and std of its vectors.

        Raises:
            RefinerError: if no chart has this name.
        """
        return cls(name, torch.tensor(statistics.mean), torch.tensor(statistics.std))

    def encode(self, lattice: Tensor) -> Tensor:
        """Return the standardised vectors of lattices.

        Args:
            lattice: (B, 3, 3) with rows a, b, c in Angstrom.

        Returns:
            (B, 6), of the type of the input.
        """
        return self.standardise(self.chart.to_vector(lattice.double())).to(lattice.dtype)

    def from_metric(self, metric: Tensor) -> Tensor:
        """Return the standardised vectors of metric tensors.

        Args:
            metric: (B, 3, 3) float64 in Angstrom^2.

        Returns:
            (B, 6) float64.
        """
        return self.standardise(self.chart.from_metric(metric))

    def standardise(self, vector: Tensor) -> Tensor:
        """Return the standardised vectors of chart vectors.

        Args:
            vector: (B, 6) chart vectors.

        Returns:
            (B, 6) float64.
        """
        return (vector.double() - self.mean.to(vector.device)) / self.std.to(vector.device)

    def metric(self, z: Tensor) -> Tensor:
        """Return the metric tensors of standardised vectors.

        Args:
            z: (B, 6) standardised vectors.

        Returns:
            (B, 3, 3) in Angstrom^2, of the type of the input.
        """
        return self.chart.to_metric(self._raw(z)).to(z.dtype)

    def decode(self, z: Tensor) -> Tensor:
        """Return the lattices of standardised vectors.

        Args:
            z: (B, 6) standardised vectors.

        Returns:
            Lower triangular (B, 3, 3) in Angstrom; NaN where no cell closes.
        """
        return self.chart.to_matrix(self._raw(z)).to(z.dtype)

    def _raw(self, z: Tensor) -> Tensor:
        return z.double() * self.std.to(z.device) + self.mean.to(z.device)
