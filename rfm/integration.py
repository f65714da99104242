"""From base to sample: integrating the velocity field from t = 0 to t = 1.

Euler, midpoint and Heun on (flat torus)^n x R^6. The exponential map adds and wraps, and tangent
vectors at all points are the same vectors, so that a mean of velocities from two points is simply
their mean. With u the field and h the length of the step,

    euler      x <- exp_x(h u(x, t))                                              error O(h)
    midpoint   x <- exp_x(h u(exp_x(h/2 u(x, t)), t + dt/2))                      error O(h^2)
    heun       x <- exp_x(h/2 (u(x, t) + u(exp_x(h u(x, t)), t + dt)))            error O(h^2)

Anti-annealing (FlowMM, arXiv 2406.04713) multiplies the velocity by 1 + s t: a step of dt in time
has the length

    h = min((1 + s t*) dt, 1 - t)

with t* = t for Euler, as published, and t* = t + dt/2, the mean over the step, for the others,
which keeps their order. The bound: a velocity points at the predicted end with speed
distance / (1 - t), so a longer step would carry a crystal beyond that end, and in the last steps of
50, slope 5 would do so by up to five times the remaining distance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rfm.batch import CrystalBatch
from rfm.errors import RefinerError
from rfm.lattice import CELL_SPACE
from rfm.objective import TORUS

Velocity = tuple[Tensor, Tensor]


class VelocityField(Protocol):
    """Anything that gives velocities, a `rfm.model.Refiner` first of all."""

    def velocity(self, state: CrystalBatch, t: Tensor) -> Velocity:
        """Velocities (N, 3) of the coordinates and (B, 6) of the cells at times t (B,)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Integration:
    """Where an integration is, or ended.

    state: all of it finite: a crystal that became non-finite has its last finite state, one that
        began so has zeros.
    finite: (B,) bool, False for those two kinds of crystals; their numbers mean nothing.
    """

    state: CrystalBatch
    finite: Tensor


class Lengths(NamedTuple):
    """What one step multiplies the two velocities by."""

    position: float
    cell: float

    def half(self) -> Lengths:
        """Those of half the step."""
        return Lengths(self.position / 2, self.cell / 2)


def start(state: CrystalBatch) -> Integration:
    """The beginning of an integration, with the crystals that are not finite marked and zeroed."""
    # They must not reach the network, whose linear algebra may refuse the whole batch for one.
    origin = state.at(torch.zeros_like(state.frac_coords), torch.zeros_like(state.lattice))
    finite = _finite(state)
    return Integration(state=_keep(finite, state, origin), finite=finite)


def velocity_at(field: VelocityField, now: Integration, t: float) -> Velocity:
    """The field's velocities where all crystals are at time t."""
    times = now.state.lattice.new_full((now.state.num_crystals,), t)
    return field.velocity(now.state, times)


def advance(now: Integration, velocity: Velocity, lengths: Lengths) -> Integration:
    """Move along velocities; a crystal that would become non-finite stays and is marked."""
    coord_velocity, lattice_velocity = velocity
    moved = now.state.at(
        TORUS.expmap(now.state.frac_coords, lengths.position * coord_velocity),
        CELL_SPACE.expmap(now.state.lattice, lengths.cell * lattice_velocity),
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
    # From where the step began, without the crystals lost on the way to its middle.
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
    """A way to make one step.

    step: from the state at t to the one at t + dt.
    evaluations: of the velocity field in a step.
    slope_at: where in the step the anti-annealing factor is taken: 0 its beginning, 1/2 its middle.
    """

    step: Callable[[VelocityField, Integration, float, float, Lengths], Integration]
    evaluations: int
    slope_at: float


METHODS = {
    "euler": Method(_euler, evaluations=1, slope_at=0.0),
    "midpoint": Method(_midpoint, evaluations=2, slope_at=0.5),
    "heun": Method(_heun, evaluations=2, slope_at=0.5),
}


@dataclass(kw_only=True)
class IntegrationConfig:
    """How samples are drawn unless the caller says otherwise.

    steps: steps from t = 0 to 1.
    method: `euler`, or `midpoint` or `heun`, which cost two evaluations of the network a step.
    position_slope, cell_slope: s of the anti-annealing factor 1 + s t on the two velocities.
    """

    steps: int = 50
    method: str = "euler"
    position_slope: float = 5.0
    cell_slope: float = 0.0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise RefinerError(
                f"unknown integration method {self.method!r}; choose one of {', '.join(METHODS)}"
            )
        if self.steps < 1:
            raise RefinerError(f"integration.steps is {self.steps}; at least one is needed")
        for name in ("position_slope", "cell_slope"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise RefinerError(
                    f"integration.{name} is {getattr(self, name)}; it must be 0 or positive"
                )

    def but(
        self,
        *,
        steps: int | None = None,
        method: str | None = None,
        position_slope: float | None = None,
        cell_slope: float | None = None,
    ) -> IntegrationConfig:
        """These settings with others where they are given; None keeps this one's.

        Raises:
            RefinerError: an unknown method, fewer than one step, or a negative slope.
        """
        given = {
            "steps": steps,
            "method": method,
            "position_slope": position_slope,
            "cell_slope": cell_slope,
        }
        return replace(self, **{name: value for name, value in given.items() if value is not None})


@torch.no_grad()
def integrate(
    field: VelocityField,
    state: CrystalBatch,
    *,
    steps: int = 50,
    method: str = "euler",
    position_slope: float = 5.0,
    cell_slope: float = 0.0,
    record: Callable[[float, CrystalBatch], None] | None = None,
) -> Integration:
    """Carry a batch from t = 0 to t = 1 in equal steps of time.

    Args:
        field: the velocity field.
        state: the base, for instance from `Refiner.draw_base`.
        steps: number of steps, at least 1. At the same number `midpoint` and `heun` evaluate the
            field twice as often as `euler` does.
        method: `euler`, `midpoint` or `heun`, see the module.
        position_slope: s of the anti-annealing factor 1 + s t on the coordinate velocity, which
            never carries an atom past its predicted end.
        cell_slope: the same for the cell velocity.
        record: called with the time and the state at the start and after every step.

    A crystal whose next state would not be finite stays where it is from then on and is marked; the
    others do not notice.

    Raises:
        RefinerError: an unknown method, fewer than one step, or a negative slope.
    """
    settings = IntegrationConfig(
        steps=steps, method=method, position_slope=position_slope, cell_slope=cell_slope
    )
    step, _, slope_at = METHODS[settings.method]
    dt = 1 / steps
    now = start(state)
    if record is not None:
        record(0.0, now.state)
    for k in range(steps):
        t = k / steps
        at = t + slope_at * dt
        lengths = Lengths(*(min((1 + s * at) * dt, 1 - t) for s in (position_slope, cell_slope)))
        now = step(field, now, t, dt, lengths)
        if record is not None:
            record((k + 1) / steps, now.state)
    return now


def _finite(state: CrystalBatch) -> Tensor:
    """(B,) whether all numbers of a crystal are finite."""
    bad_atom = (~state.frac_coords.isfinite()).any(-1)  # (N,)
    bad_atoms = torch.zeros_like(state.num_atoms).index_add(0, state.batch, bad_atom.long())
    return state.lattice.isfinite().all(-1) & (bad_atoms == 0)


def _keep(mask: Tensor, new: CrystalBatch, old: CrystalBatch) -> CrystalBatch:
    """The new state of the crystals in mask (B,), the old one of the others."""
    return old.at(
        torch.where(mask[old.batch].unsqueeze(-1), new.frac_coords, old.frac_coords),
        torch.where(mask.unsqueeze(-1), new.lattice, old.lattice),
    )
