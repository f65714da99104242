"""Choice among published definitions of validity and coverage."""

from __future__ import annotations

from dataclasses import dataclass

from pymatgen.core import Structure

from flowllm.metrics.validity import (
    OXIDATION_STATES,
    compositional_validity,
    structural_validity,
)


@dataclass(frozen=True, kw_only=True)
class Definitions:
    """Definitions that an evaluation uses; part of its identity.

    Attributes:
        own_images: an atom too close to its own periodic image makes a crystal invalid; False is
            the definition of published code.
        valid_coverage: coverage and feature novelty are over valid crystals only, on both sides,
            as in the code of Gruver et al. 2024; False is the coverage over all crystals of Xie et
            al. 2021.
        oxidation_states_set: SMACT's table for the compositional validity.
    """

    own_images: bool = True
    valid_coverage: bool = False
    oxidation_states_set: str = OXIDATION_STATES

    def validity(self, structure: Structure) -> tuple[bool, bool]:
        """Return structural and compositional validity of a crystal.

        Args:
            structure: an ordered crystal.

        Returns:
            The two validities.
        """
        return (
            structural_validity(structure, own_images=self.own_images),
            compositional_validity(
                structure.composition, oxidation_states_set=self.oxidation_states_set
            ),
        )

    def is_valid(self, structure: Structure) -> bool:
        """Return whether a crystal has both validities.

        Args:
            structure: an ordered crystal.

        Returns:
            True if it has.
        """
        return all(self.validity(structure))
