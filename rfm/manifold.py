"""The flat torus of fractional coordinates, as a geoopt manifold.

The package itself computes with `rfm.torus`, as importing geoopt takes half a second. This class is
for geoopt's optimisers, and is our own because geoopt 0.5 has no flat torus.
"""

from __future__ import annotations

import torch
from geoopt.manifolds.base import Manifold
from torch import Tensor

from rfm.torus import exponential, logarithm, wrap


class FlatTorus(Manifold):
    """Unit-period torus; the last dimension of a tensor holds the coordinates of one point.

    Methods take points x, y (..., 3) in [0, 1) and tangent vectors u, v (..., 3), which are any
    real vectors (unit: one period), as in geoopt's `Manifold`. At a distance of exactly half a
    period `logmap` takes the negative direction, -1/2.
    """

    name = "FlatTorus"
    ndim = 1
    reversible = True

    def _check_point_on_manifold(
        self, x: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        if not bool(torch.isfinite(x).all()):
            return False, "a coordinate is not finite"
        if bool(((x < -atol) | (x > 1 + atol)).any()):
            return False, "a coordinate lies outside [0, 1)"
        return True, None

    def _check_vector_on_tangent(
        self, x: Tensor, u: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        return True, None

    def projx(self, x: Tensor) -> Tensor:
        """Return coordinates x as a point of the torus, in [0, 1)."""
        return wrap(x)

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """Return u itself: every vector is tangent."""
        return u.expand(torch.broadcast_shapes(x.shape, u.shape))

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        """Return exp_x(u) = (x + u) mod 1."""
        return exponential(x, u)

    def retr(self, x: Tensor, u: Tensor) -> Tensor:
        """Return the exponential map, which is as cheap as any retraction."""
        return self.expmap(x, u)

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """Return log_x(y), the shortest tangent vector from x to y, in [-1/2, 1/2)."""
        return logarithm(x, y)

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Return v transported from x to y: v itself, as the torus is flat."""
        return v.expand(torch.broadcast_shapes(x.shape, y.shape, v.shape))

    def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
        """Return u itself: the metric is Euclidean."""
        return self.proju(x, u)

    def inner(
        self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False
    ) -> Tensor:
        """Return the Euclidean product of u and v (u if None) over the last dimension."""
        return (u * (u if v is None else v)).sum(-1, keepdim=keepdim)

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """Return the geodesic distance |log_x(y)| over the last dimension, in periods."""
        return torch.linalg.vector_norm(self.logmap(x, y), dim=-1, keepdim=keepdim)

    def random_uniform(
        self,
        *size: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Return points drawn from the uniform measure, with the given shape."""
        return torch.rand(*size, generator=generator, device=device, dtype=dtype)
