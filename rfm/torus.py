"""The flat torus of fractional coordinates, as a manifold.

A fractional coordinate lives on a circle of circumference 1, the position of an atom on the product
of three such circles with the flat metric. Geodesics are straight lines taken modulo 1:

    exp_x(v) = (x + v) mod 1        log_x(y) = ((y - x + 1/2) mod 1) - 1/2

The class is our own because geoopt 0.5 has no flat torus. It has geoopt's names, but does not
import geoopt, whose functions are compiled at import for 0.7 s.
"""

from __future__ import annotations

import torch
from torch import Tensor


def wrap(x: Tensor) -> Tensor:
    """Return coordinates taken into [0, 1).

    Args:
        x: coordinates in periods, of any shape.
    """
    x = x - torch.floor(x)
    # A tiny negative number plus one rounds to exactly one, which is the point zero.
    return torch.where(x >= 1.0, torch.zeros_like(x), x)


def wrap_difference(d: Tensor) -> Tensor:
    """Return coordinate differences taken into [-1/2, 1/2).

    Args:
        d: differences in periods, of any shape.
    """
    return d - torch.floor(d + 0.5)


class FlatTorus:
    """Unit-period torus; the last dimension of a tensor holds the coordinates of one point.

    Methods take points x, y (..., 3) in [0, 1) and tangent vectors u (..., 3), which are any real
    vectors (unit: one period). At a distance of exactly half a period `logmap` takes the negative
    direction, -1/2.
    """

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        """Return exp_x(u) = (x + u) mod 1."""
        return wrap(x + u)

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """Return log_x(y), the shortest tangent vector from x to y, in [-1/2, 1/2)."""
        return wrap_difference(y - x)

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the geodesic distance |log_x(y)| over the last dimension, in periods."""
        return torch.linalg.vector_norm(self.logmap(x, y), dim=-1)
