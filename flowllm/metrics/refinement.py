"""How far generated crystals are from where a potential relaxes them to (Sriram et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pymatgen.core import Structure

from flowllm.metrics.csp import rms_distance
from flowllm.metrics.intervals import Estimate, bootstrap, rate


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """A crystal against its relaxed self.

    Attributes:
        rmsd: root mean square displacement of the atoms over (V/N)^(1/3), or None for no match.
        energy_drop_per_atom: E(as generated) - E(relaxed), eV/atom, or None.
        steps: of the optimiser, or None if it did not arrive.
    """

    rmsd: float | None
    energy_drop_per_atom: float | None
    steps: int | None


def refinement(
    initial: Structure,
    relaxed: Structure | None,
    *,
    initial_energy_per_atom: float | None,
    energy_per_atom: float | None,
    steps: int,
) -> Refinement:
    """Compare a generated crystal with its relaxed self.

    The match is that of `csp.rms_distance` (stol 0.5, angle_tol 10, ltol 0.3); cells are scaled to
    equal volume. What could not be relaxed has no match.
    """
    if relaxed is None:
        return Refinement(rmsd=None, energy_drop_per_atom=None, steps=None)
    drop = None
    if initial_energy_per_atom is not None and energy_per_atom is not None:
        drop = initial_energy_per_atom - energy_per_atom
    return Refinement(rmsd=rms_distance(initial, relaxed), energy_drop_per_atom=drop, steps=steps)


def refinement_figures(crystals: Sequence[Refinement], *, seed: int = 0) -> dict[str, Estimate]:
    """FlowLLM's figures on a set of crystals.

    `relaxed_match_rate` is a share of all of them; `relaxed_rmsd` is the mean over the matched;
    `energy_drop` (eV/atom) and `relaxation_steps` are means over the relaxed. Intervals of means
    are bootstrapped.
    """
    rmsds = [c.rmsd for c in crystals if c.rmsd is not None]
    drops = [c.energy_drop_per_atom for c in crystals if c.energy_drop_per_atom is not None]
    steps = [c.steps for c in crystals if c.steps is not None]
    return {
        "relaxed_match_rate": rate(len(rmsds), len(crystals)),
        "relaxed_rmsd": bootstrap(rmsds, np.mean, seed=seed),
        "energy_drop": bootstrap(drops, np.mean, seed=seed),
        "relaxation_steps": bootstrap(steps, np.mean, seed=seed),
    }
