"""Integration of the velocity field from t = 0, the base, to t = 1, the sample.

Euler, midpoint and Heun on (flat torus)^n x R^6. The exponential map adds and wraps, and tangent
vectors at different points are comparable, so velocities at two points have a plain mean. With u
the field and h the length of the step,

    euler      x <- exp_x(h u(x, t))                                              error O(h)
    midpoint   x <- exp_x(h u(exp_x(h/2 u(x, t)), t + dt/2))                      error O(h^2)
    heun       x <- exp_x(h/2 (u(x, t) + u(exp_x(h u(x, t)), t + dt)))            error O(h^2)

Anti-annealing (FlowMM, arXiv 2406.04713) multiplies the velocity by 1 + s t: a step of dt in time
has the length

    h = min((1 + s t*) dt, 1 - t)

with t* = t for Euler, as published, and t* = t + dt/2, the middle of the step, for the others,
which keeps their order. The bound is 1 - t because a velocity points at the predicted end with
speed distance / (1 - t): a longer step would carry a crystal beyond that end. Without the bound,
the last of 50 steps with slope 5 would do so by up to five times the remaining distance.

A crystal with symmetry (`CrystalBatch.symmetry`) keeps it: every step moves the atoms along the
average of the velocity over the group, and averages the cell afterwards (`rfm.averages`).

The steps are our own: solvers for ordinary differential equations know no wrapping, no slopes, and
no crystal that leaves the finite numbers while its batch goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rfm.batch import CrystalBatch
from rfm.config import IntegrationConfig
from rfm.torus import exponential

Velocity = tuple[Tensor, Tensor]


class VelocityField(Protocol):
    """Velocities of crystals, such as a `rfm.model.Refiner`."""

    def velocity(self, state: CrystalBatch, t: Tensor) -> Velocity:
        """Return velocities (N, 3) of the coordinates and (B, 6) of the cells.

        Args:
            state: B crystals with N atoms.
            t: (B,) times in [0, 1].
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Integration:
    """State of an integration.

    Attributes:
        state: B crystals, all numbers finite: a crystal that became non-finite has its last finite
            state, one that began so has zeros.
        finite: (B,) bool, False for these two kinds of crystals; their numbers mean nothing.
    """

    state: CrystalBatch
    finite: Tensor


class Lengths(NamedTuple):
    """Lengths of a step, the factors of the two velocities."""

    position: float
    cell: float

    def half(self) -> Lengths:
        """Return the lengths of half the step."""
        return Lengths(self.position / 2, self.cell / 2)


def start(state: CrystalBatch) -> Integration:
    """Return the start of an integration; crystals that are not finite are marked and zeroed.

    Args:
        state: B crystals.
    """
    # They must not reach the network, whose linear algebra may refuse the whole batch for one.
    origin = state.at(torch.zeros_like(state.frac_coords), torch.zeros_like(state.lattice))
    finite = _finite(state)
    return Integration(state=_keep(finite, state, origin), finite=finite)


def velocity_at(field: VelocityField, now: Integration, t: float) -> Velocity:
    """Return the field's velocities (N, 3) and (B, 6), all crystals at the same time.

    Args:
        field: velocity field.
        now: B crystals with N atoms.
        t: time in [0, 1].
    """
    times = now.state.lattice.new_full((now.state.num_crystals,), t)
    return field.velocity(now.state, times)


def advance(now: Integration, velocity: Velocity, lengths: Lengths) -> Integration:
    """Move along velocities; a crystal that would become non-finite stays and is marked.

    Args:
        now: B crystals with N atoms.
        velocity: velocities (N, 3) and (B, 6).
        lengths: factors of the two velocities; negative ones lead back in time.
    """
    coord_velocity, lattice_velocity = velocity
    symmetry = now.state.symmetry
    if symmetry is not None:
        coord_velocity = symmetry.blocks.average(coord_velocity)
    lattice = now.state.lattice + lengths.cell * lattice_velocity
    moved = now.state.at(
        exponential(now.state.frac_coords, lengths.position * coord_velocity),
        lattice if symmetry is None else symmetry.average_cells(lattice),
    )
    finite = now.finite & _finite(moved)
    return Integration(state=_keep(finite, moved, now.state), finite=finite)


def _euler(
    field: VelocityField, now: Integration, t: float, dt: float, lengths: Lengths
) -> Integration:
    return advance(now, velocity_at(field, now, t), lengths)


def _midpoint(
    field: VelocityField, now: Integration, t: float, dt: float, lengths: Lengths
) -> Integration:
    middle = advance(now, velocity_at(field, now, t), lengths.half())
    # The step starts again from its beginning, without the crystals lost on the way to its middle.
    begun = replace(now, finite=middle.finite)
    return advance(begun, velocity_at(field, middle, t + dt / 2), lengths)


def _heun(
    field: VelocityField, now: Integration, t: float, dt: float, lengths: Lengths
) -> Integration:
    first = velocity_at(field, now, t)
    end = advance(now, first, lengths)
    second = velocity_at(field, end, t + dt)
    mean = ((first[0] + second[0]) / 2, (first[1] + second[1]) / 2)
    return advance(replace(now, finite=end.finite), mean, lengths)


class Method(NamedTuple):
    """Integration method.

    Attributes:
        step: function from the state at t to the state at t + dt.
        evaluations: evaluations of the velocity field in a step.
        slope_at: place in the step of the anti-annealing factor: 0 is its start, 1/2 its middle.
    """

    step: Callable[[VelocityField, Integration, float, float, Lengths], Integration]
    evaluations: int
    slope_at: float


METHODS = {  # same names as `rfm.config.INTEGRATION_METHODS`
    "euler": Method(_euler, evaluations=1, slope_at=0.0),
    "midpoint": Method(_midpoint, evaluations=2, slope_at=0.5),
    "heun": Method(_heun, evaluations=2, slope_at=0.5),
}


@torch.no_grad()
def integrate(
    field: VelocityField,
    state: CrystalBatch,
    integration: IntegrationConfig | None = None,
    *,
    record: Callable[[float, CrystalBatch], None] | None = None,
) -> Integration:
    """Carry a batch from t = 0 to t = 1 in equal steps of time.

    A crystal whose next state would not be finite stays where it is from then on and is marked; it
    does not affect the other crystals.

    Args:
        field: velocity field.
        state: base crystals, for instance from `Refiner.draw_base`.
        integration: number of steps, method and slopes; None takes the defaults of
            `IntegrationConfig`. With the same number of steps `midpoint` and `heun` evaluate the
            field twice as often as `euler`.
        record: called with the time and the state at the start and after every step.

    Returns:
        The state at t = 1, with the mask of the crystals that stayed finite.
    """
    integration = integration or IntegrationConfig()
    step, _, slope_at = METHODS[integration.method]
    slopes = (integration.position_slope, integration.cell_slope)
    steps = integration.steps
    dt = 1 / steps
    now = start(state)
    if record is not None:
        record(0.0, now.state)
    for k in range(steps):
        t = k / steps
        at = t + slope_at * dt
        lengths = Lengths(*(min((1 + s * at) * dt, 1 - t) for s in slopes))
        now = step(field, now, t, dt, lengths)
        if record is not None:
            record((k + 1) / steps, now.state)
    return now


def _finite(state: CrystalBatch) -> Tensor:
    """Return (B,) bool, True where all numbers of a crystal are finite."""
    bad_atom = (~state.frac_coords.isfinite()).any(-1)  # (N,)
    bad_atoms = torch.zeros_like(state.num_atoms).index_add(0, state.batch, bad_atom.long())
    return state.lattice.isfinite().all(-1) & (bad_atoms == 0)


def _keep(mask: Tensor, new: CrystalBatch, old: CrystalBatch) -> CrystalBatch:
    """Return the new state of the crystals in mask (B,), the old state elsewhere."""
    return old.at(
        torch.where(mask[old.batch].unsqueeze(-1), new.frac_coords, old.frac_coords),
        torch.where(mask.unsqueeze(-1), new.lattice, old.lattice),
    )
