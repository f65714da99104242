"""Change of generated crystals on relaxation with a potential (Sriram et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pymatgen.core import Structure

from flowllm.metrics.csp import rms_distance
from flowllm.metrics.intervals import Estimate, bootstrap, rate


@dataclass(frozen=True, kw_only=True)
class RelaxationChange:
    """Change of one crystal on relaxation; all None if it could not be relaxed.

    Attributes:
        rmsd: root mean square displacement of the atoms over (V/N)^(1/3); None for no match.
        energy_drop_per_atom: E(as generated) - E(relaxed), eV/atom; None if unknown.
        steps: steps of the optimiser.
    """

    rmsd: float | None = None
    energy_drop_per_atom: float | None = None
    steps: int | None = None


def relaxation_change(
    initial: Structure,
    relaxed: Structure | None,
    *,
    initial_energy_per_atom: float | None,
    energy_per_atom: float | None,
    steps: int,
) -> RelaxationChange:
    """Compare a generated crystal with its relaxed one.

    The displacement is `csp.rms_distance` (stol 0.5, angle_tol 10, ltol 0.3) after scaling both
    cells to equal volume.

    Args:
        initial: the crystal as generated.
        relaxed: the relaxed crystal; None if relaxation failed.
        initial_energy_per_atom: energy of `initial`, eV/atom; None if unknown.
        energy_per_atom: energy of `relaxed`, eV/atom; None if unknown.
        steps: steps of the optimiser.

    Returns:
        The change.
    """
    if relaxed is None:
        return RelaxationChange()
    drop = None
    if initial_energy_per_atom is not None and energy_per_atom is not None:
        drop = initial_energy_per_atom - energy_per_atom
    rmsd = rms_distance(initial, relaxed)
    return RelaxationChange(rmsd=rmsd, energy_drop_per_atom=drop, steps=steps)


def relaxation_metrics(
    changes: Sequence[RelaxationChange], *, seed: int = 0
) -> dict[str, Estimate]:
    """Return the figures of Sriram et al. 2024 (FlowLLM) for a set of crystals.

    Args:
        changes: changes of N crystals.
        seed: seed of the bootstrap intervals of the means.

    Returns:
        `relaxed_match_rate`, a share of all N; `relaxed_rmsd`, the mean over the matched crystals;
        `energy_drop` (eV/atom) and `relaxation_steps`, means over the relaxed crystals.
    """
    rmsds = [c.rmsd for c in changes if c.rmsd is not None]
    drops = [c.energy_drop_per_atom for c in changes if c.energy_drop_per_atom is not None]
    steps = [c.steps for c in changes if c.steps is not None]
    return {
        "relaxed_match_rate": rate(len(rmsds), len(changes)),
        "relaxed_rmsd": bootstrap(rmsds, np.mean, seed=seed),
        "energy_drop": bootstrap(drops, np.mean, seed=seed),
        "relaxation_steps": bootstrap(steps, np.mean, seed=seed),
    }
