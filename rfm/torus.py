"""The flat torus of fractional coordinates.

A fractional coordinate lives on a circle of circumference 1, the position of an atom on the product
of three such circles with the flat metric. Geodesics are straight lines taken modulo 1:

    exp_x(v) = (x + v) mod 1        log_x(y) = ((y - x + 1/2) mod 1) - 1/2

`rfm.manifold` has the torus as a manifold of geoopt.
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


def exponential(x: Tensor, v: Tensor) -> Tensor:
    """Return exp_x(v), the end in [0, 1) of the geodesic from x with velocity v.

    Args:
        x: coordinates in [0, 1), of any shape.
        v: tangent vectors in periods, any real numbers.
    """
    return wrap(x + v)


def logarithm(x: Tensor, y: Tensor) -> Tensor:
    """Return log_x(y), the shortest way from x to y, in [-1/2, 1/2).

    At a distance of exactly half a period it takes the negative direction.

    Args:
        x: coordinates in [0, 1), of any shape.
        y: coordinates in [0, 1).
    """
    return wrap_difference(y - x)
