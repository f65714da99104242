"""Stability against the known compounds, and S.U.N.: stable, unique and novel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowllm.errors import UserError
from flowllm.metrics.intervals import Estimate, rate

THRESHOLDS = (0.0, 0.03, 0.1)  # eV/atom
METASTABLE = 0.1  # eV/atom; Zeni et al. 2025


def is_stable(
    e_above_hull: Sequence[float | None],
    *,
    threshold: float = 0.0,
    num_elements: Sequence[int] | None = None,
    min_elements: int = 1,
) -> NDArray[np.bool_]:
    """Return which crystals lie below a threshold: e_above_hull < threshold.

    FlowLLM (Sriram et al. 2024) and FlowMM (Miller et al. 2024) count a crystal as stable for
    threshold 0 and at least two elements (`min_elements=2`).

    Args:
        e_above_hull: (N,), energies above the hull in eV/atom; None is never stable.
        threshold: in eV/atom.
        num_elements: (N,), number of elements; needed if `min_elements` is above 1.
        min_elements: crystals with fewer elements are not counted as stable.

    Returns:
        (N,).

    Raises:
        UserError: if `min_elements` is above 1 and `num_elements` is None.
    """
    below = np.array([e is not None and e < threshold for e in e_above_hull], dtype=bool)
    if min_elements == 1:
        return below
    if num_elements is None:
        raise UserError("min_elements needs the number of elements of each crystal")
    return below & (np.asarray(num_elements, dtype=int) >= min_elements)


def stability_rates(
    e_above_hull: Sequence[float | None],
    *,
    unique: ArrayLike | None = None,
    novel: ArrayLike | None = None,
    num_elements: Sequence[int] | None = None,
    min_elements: int = 1,
    thresholds: Sequence[float] = THRESHOLDS,
) -> dict[str, Estimate]:
    """Return shares of stable crystals among all N, crystals without an energy included.

    Args:
        e_above_hull: (N,), energies above the hull in eV/atom; None is never stable.
        unique: (N,), boolean; one crystal of each group of equal ones.
        novel: (N,), boolean; crystals that no training set holds.
        num_elements: (N,), see `is_stable`.
        min_elements: see `is_stable`.
        thresholds: in eV/atom.

    Returns:
        `stable_0`, `stable_0.03`, `stable_0.1`: below each threshold. With both masks also `sun`:
        stable at threshold 0, unique and novel, and `metastable_sun`: the same below 0.1 eV/atom
        (Zeni et al. 2025, Nature 639, 624).

    Raises:
        UserError: if `min_elements` is above 1 and `num_elements` is None.
    """
    count = len(e_above_hull)

    def stable(threshold: float) -> NDArray[np.bool_]:
        return is_stable(
            e_above_hull,
            threshold=threshold,
            num_elements=num_elements,
            min_elements=min_elements,
        )

    rates = {
        f"stable_{threshold:g}": rate(int(stable(threshold).sum()), count)
        for threshold in thresholds
    }
    if unique is not None and novel is not None:
        both = np.asarray(unique, dtype=bool) & np.asarray(novel, dtype=bool)
        rates["sun"] = rate(int((stable(0.0) & both).sum()), count)
        rates["metastable_sun"] = rate(int((stable(METASTABLE) & both).sum()), count)
    return rates
