"""What generated crystals are measured against, by which reading, and what comes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Structure

from flowllm.crystals.crystal import Crystal
from flowllm.metrics.fingerprints import Fingerprints
from flowllm.metrics.intervals import Estimate
from flowllm.metrics.validity import (
    OXIDATION_STATES,
    compositional_validity,
    structural_validity,
)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Which reading of the definitions is meant.

    Attributes:
        own_images: an atom that lies on its own periodic image makes a crystal invalid; False is
            what published code does.
        valid_coverage: coverage and feature novelty over valid crystals alone, on both sides, as
            the code of Gruver et al. 2024 has it; False is the coverage over all generated of Xie
            et al. 2021.
        oxidation_states_set: of the compositional validity.
    """

    own_images: bool = True
    valid_coverage: bool = False
    oxidation_states_set: str = OXIDATION_STATES

    def valid(self, structure: Structure) -> tuple[bool, bool]:
        """Structural and compositional validity."""
        return (
            structural_validity(structure, own_images=self.own_images),
            compositional_validity(
                structure.composition, oxidation_states_set=self.oxidation_states_set
            ),
        )


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A set to compare distributions and coverage with, its features computed once.

    Attributes:
        name: of its file.
        prints: fingerprints of the crystals that take part in the coverage, not scaled.
        values: property -> (M,), over all of them.
    """

    name: str
    prints: Fingerprints
    values: Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Known:
    """A set that generated crystals are new or not new against.

    Attributes:
        name: of its file.
        crystals: those whose formula any generated crystal has.
        prints: fingerprints of all of them, where the feature novelty was asked for.
    """

    name: str
    crystals: Sequence[Crystal]
    prints: Fingerprints | None = None


@dataclass(kw_only=True)
class Measured:
    """The result for one set.

    Attributes:
        name: of the set.
        num_generated: crystals asked for.
        failures: how many are missing, by reason.
        metrics: by name, in the order of a report.
        rows: a dict a crystal, in the order of the set.
        notes: what a reader should be told.
        composition_scale: what compositions were scaled by, where features were compared.
    """

    name: str
    num_generated: int
    failures: Counter[str]
    metrics: dict[str, Estimate] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    composition_scale: str | None = None
