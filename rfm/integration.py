"""From base to sample: integrating the velocity field from t = 0 to t = 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rfm.batch import CrystalBatch
from rfm.errors import RefinerError
from rfm.lattice import CELL_SPACE
from rfm.objective import TORUS


class VelocityField(Protocol):
    """Anything that gives velocities, a `rfm.model.Refiner` first of all."""

    def velocity(self, state: CrystalBatch, t: Tensor) -> tuple[Tensor, Tensor]:
        """Velocities (N, 3) of the coordinates and (B, 6) of the cells at times t (B,)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Integration:
    """Where an integration ended.

    state: the final state, all of it finite: a crystal that became non-finite has its last finite
        state, one that began so has zeros.
    finite: (B,) bool, False for those two kinds of crystals; their numbers mean nothing.
    """

    state: CrystalBatch
    finite: Tensor


_Step = Callable[[VelocityField, CrystalBatch, float, float, float, float], CrystalBatch]


def _euler(
    field: VelocityField,
    state: CrystalBatch,
    t: float,
    dt: float,
    position_slope: float,
    cell_slope: float,
) -> CrystalBatch:
    """x <- exp_x(dt a(t) u(x, t)), a(t) = min(1 + s t, (1 - t) / dt).

    Anti-annealing multiplies the velocity by 1 + s t. The velocity points at the predicted end
    with speed distance / (1 - t), so a factor above (1 - t) / dt would carry a crystal beyond that
    end: in the last steps of 50, slope 5 would by up to five times the remaining distance.
    """
    times = torch.full((state.num_crystals,), t, device=state.lattice.device)
    coord_velocity, lattice_velocity = field.velocity(state, times)

    def factor(slope: float) -> float:
        return min(1 + slope * t, (1 - t) / dt)

    return state.at(
        TORUS.expmap(state.frac_coords, dt * factor(position_slope) * coord_velocity),
        CELL_SPACE.expmap(state.lattice, dt * factor(cell_slope) * lattice_velocity),
    )


METHODS: dict[str, _Step] = {"euler": _euler}


@torch.no_grad()
def integrate(
    field: VelocityField,
    state: CrystalBatch,
    *,
    steps: int = 50,
    method: str = "euler",
    position_slope: float = 5.0,
    cell_slope: float = 0.0,
) -> Integration:
    """Carry a batch from t = 0 to t = 1 in equal steps.

    Args:
        field: the velocity field.
        state: the base, for instance from `Refiner.draw_base`.
        steps: number of steps, at least 1.
        method: `euler`.
        position_slope: s of the anti-annealing factor 1 + s t on the coordinate velocity (FlowMM,
            arXiv 2406.04713), which never carries an atom past its predicted end.
        cell_slope: the same for the cell velocity.

    A crystal whose next state would not be finite stays where it is from then on and is marked; the
    others do not notice.

    Raises:
        RefinerError: an unknown method or fewer than one step.
    """
    if method not in METHODS:
        raise RefinerError(f"unknown method {method!r}; choose one of {', '.join(METHODS)}")
    if steps < 1:
        raise RefinerError(f"steps is {steps}; at least one is needed")
    finite = _finite(state)
    # Eigenvalues of a matrix with NaN are an error for the whole batch, so none may get that far.
    origin = state.at(torch.zeros_like(state.frac_coords), torch.zeros_like(state.lattice))
    state = _keep(finite, state, origin)
    for k in range(steps):
        moved = METHODS[method](field, state, k / steps, 1 / steps, position_slope, cell_slope)
        finite = finite & _finite(moved)
        state = _keep(finite, moved, state)
    return Integration(state=state, finite=finite)


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
