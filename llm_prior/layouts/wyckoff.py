"""The layout `wyckoff` behind the common interface."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import spglib
from pymatgen.core import Structure

from llm_prior.composition import CompositionRule
from llm_prior.config import TaskMix
from llm_prior.errors import PriorError
from llm_prior.layouts.interface import (
    Description,
    Reading,
    TextCursor,
    TextLayout,
    Vocabulary,
)
from llm_prior.layouts.sites import check_precision
from llm_prior.prompts import known_conditions
from llm_prior.spacegroups import parse_spacegroups
from llm_prior.text import SYMBOLS, TextFormat
from llm_prior.wyckoff.analysis import describe
from llm_prior.wyckoff.crystal import Orbit, WyckoffCrystal, find_symmetry
from llm_prior.wyckoff.grammar import Grammar
from llm_prior.wyckoff.lattices import ANGLE_TOLERANCES, SYMPREC
from llm_prior.wyckoff.requests import grammar_of
from llm_prior.wyckoff.spacing import ANGLE_BOUNDS, MIN_DISTANCE
from llm_prior.wyckoff.table import NUM_GROUPS
from llm_prior.wyckoff.text import WyckoffFormat, decode, describe_anew, to_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llm_prior.layouts.binding import TokenGrammar

LETTERS = "abcdefghijklmnopqrstuvwxyzA"  # by place; group 47 has the most positions
_LARGEST_LENGTH = 40  # Angstrom; a longer edge is spelled in characters


class WyckoffDescription(Description):
    """A crystal as space group, orbits and free parameters.

    Args:
        crystal: the crystal, in its canonical description.
        fmt: precision of the text.
        structure: the crystal in the cell in which it was given.

    Attributes:
        crystal: the crystal, in its canonical description.
    """

    def __init__(self, crystal: WyckoffCrystal, fmt: WyckoffFormat, structure: Structure) -> None:
        self.crystal = crystal
        self.symbols = [orbit.element for orbit in crystal.orbits]
        self._fmt = fmt
        self._structure = structure

    @cached_property
    def _text(self) -> str:
        return to_text(self.crystal, self._fmt)

    def text(self) -> str:
        """Return the canonical text of the crystal."""
        return self._text

    def draw(self, mix: TaskMix, rng: np.random.Generator, *, infill: bool) -> str:
        """Return the canonical text, or for a share of the draws one drawn over the normalizer.

        Args:
            mix: its `augmented` is the share.
            rng: source of every draw.
            infill: no difference: a masked crystal has a canonical text too.
        """
        if rng.random() < mix.augmented:
            return to_text(describe_anew(self.crystal, self._fmt, rng), self._fmt)
        return self.text()

    def conditions(self, properties: Mapping[str, Any]) -> dict[str, Any]:
        """Return every condition that the text meets: group and atoms are those of the text.

        Args:
            properties: values of conditions that the crystal does not tell, by name.
        """
        known = known_conditions(
            self._structure, {**properties, "spacegroup": self.crystal.spacegroup}
        )
        return {**known, "num_atoms": self.crystal.num_atoms}

    def pieces(self) -> list[str]:
        """Return the lines of each orbit and the cell."""
        group = self.crystal.group
        zero = f"{0:.{self._fmt.coord_decimals}f}"
        found = ["\n" + " ".join(["5.6"] * len(self.crystal.cell))]
        for orbit in self.crystal.orbits:
            found.append(f"\n{orbit.element} {orbit.letter}")
            if free := group.position(orbit.letter).num_free:
                found.append("\n" + " ".join([zero] * free))
        return found

    def record(self) -> str:
        """Return the crystal as JSON, without rounding."""
        return json.dumps(asdict(self.crystal))


class WyckoffLayout(TextLayout):
    """Space group, orbits and free parameters (`llm_prior.wyckoff.text`)."""

    shift_invariant = True

    def __init__(self, fmt: TextFormat) -> None:
        super().__init__(fmt)
        self.wyckoff_format = WyckoffFormat(
            coord_bins=fmt.coord_bins or 10**fmt.coord_decimals,
            length_decimals=fmt.length_decimals,
            angle_decimals=fmt.angle_decimals,
            max_atoms=fmt.max_atoms,
            symprec=fmt.symprec,
            keep_hand=fmt.keep_hand,
        )
        settings = [fmt.symprec, self.wyckoff_format.coord_bins, fmt.keep_hand]
        self.record_key = f"wyckoff 1 {settings} spglib {spglib.__version__}"

    def describe(self, structure: Structure) -> WyckoffDescription:
        """Return a crystal as the layout writes it.

        Args:
            structure: ordered crystal in any cell.

        Raises:
            PriorError: if the crystal has partial occupancies, an unknown species or too many atoms
                in its primitive cell, or the symmetry search fails.
        """
        fmt = self.wyckoff_format
        crystal = describe(structure, fmt.symprec, keep_hand=fmt.keep_hand)
        return self._described(describe_anew(crystal, fmt), structure)

    def recall(self, structure: Structure, record: str) -> WyckoffDescription:
        """Return the description of a crystal from its record, without a symmetry search.

        Args:
            structure: as given to `describe`.
            record: `WyckoffDescription.record` of that description, under the same `record_key`.

        Raises:
            PriorError: if the crystal has too many atoms in its primitive cell.
        """
        values = json.loads(record)
        orbits = tuple(
            Orbit(element=orbit["element"], letter=orbit["letter"], coords=tuple(orbit["coords"]))
            for orbit in values["orbits"]
        )
        crystal = WyckoffCrystal(
            spacegroup=values["spacegroup"], orbits=orbits, cell=tuple(values["cell"])
        )
        return self._described(crystal, structure)

    def _described(self, crystal: WyckoffCrystal, structure: Structure) -> WyckoffDescription:
        """Return the description of a crystal, or raise `PriorError` if it is too large."""
        fmt = self.wyckoff_format
        if crystal.num_atoms > fmt.max_atoms:
            raise PriorError(
                f"{structure.composition.formula} has {crystal.num_atoms} atoms in the primitive "
                f"cell, the text format allows {fmt.max_atoms}; drop it or raise max_atoms"
            )
        return WyckoffDescription(crystal, fmt, structure)

    def read(self, text: str, *, complete: bool = True) -> Reading:
        """Return the crystal of a text, in its primitive Niggli cell.

        Args:
            text: the text.
            complete: False if generation hit the token limit before the end of the sequence.

        Raises:
            ParseError: if the text is not a crystal, with the first reason that was found.
        """
        crystal = decode(text, self.wyckoff_format, complete=complete)
        return Reading(crystal.primitive(), crystal)

    def check(self, conditions: Mapping[str, Any], exclude_elements: Sequence[str] = ()) -> None:
        """Check that a crystal within the size limit can meet the conditions.

        Args:
            conditions: values by name.
            exclude_elements: symbols of elements that must not occur.

        Raises:
            PriorError: if none can, with the space groups that can.
        """
        self.fields(conditions, exclude_elements)

    def fields(
        self, conditions: Mapping[str, Any], exclude_elements: Sequence[str] = ()
    ) -> Grammar:
        """Return the fields that a request allows: exact atoms and, if given, space group.

        Args:
            conditions: values by name.
            exclude_elements: symbols of elements that must not occur.

        Raises:
            PriorError: if no crystal within the size limit meets the conditions.
        """
        rule = CompositionRule.from_conditions(
            conditions, self.fmt.max_atoms, exclude_elements=exclude_elements
        )
        groups = conditions.get("spacegroup")
        return grammar_of(
            self.wyckoff_format, rule, None if groups is None else parse_spacegroups(groups)
        )

    def prompt(self, conditions: Mapping[str, Any]) -> str:
        """Return the prompt for a crystal that meets the conditions.

        Args:
            conditions: values by name. Of two enantiomorphic groups the prompt states the one that
                the texts have. A set of groups is not stated: the group is the first field of the
                text, so a draw among the groups of the set is one from p(text | group in the set).

        Raises:
            PriorError: if a condition is unknown or a value is bad.
        """
        groups = self._written_groups(conditions)
        return super().prompt(conditions if not groups else {**conditions, "spacegroup": groups})

    def _written_groups(self, conditions: Mapping[str, Any]) -> tuple[int, ...] | None:
        """Return the groups that the texts of a request may have, or None if it names none."""
        if conditions.get("spacegroup") is None:
            return None
        numbers = parse_spacegroups(conditions["spacegroup"])
        return tuple(sorted({self.wyckoff_format.written_group(number) for number in numbers}))

    def refusal(
        self, reading: Reading, conditions: Mapping[str, Any], cursor: TextCursor | None = None
    ) -> str | None:
        """Return the reason for which a crystal does not answer a request, or None.

        Args:
            reading: the crystal.
            conditions: values by name. If they name space groups, that of the text must be one of
                them, and the one that spglib finds.
            cursor: the place at the end of the text if it was constrained. What is certain by the
                grammar is not looked for again.

        Returns:
            `other_NAME` for a condition NAME that is not met, or `near_atoms` where the constraint
            could not keep the atoms apart.
        """
        groups = self._written_groups(conditions)
        if groups is not None:
            assert reading.crystal is not None  # every text of this layout has one
            written = self.wyckoff_format.written_group
            group = written(reading.crystal.spacegroup)
            if group not in groups:
                return "other_spacegroup"
            if (cursor is None or not cursor.is_certain) and any(
                found is None or written(found) != group
                for found in _found_groups(reading.structure)
            ):
                return "other_spacegroup"
        if cursor is not None and not cursor.is_certain and _has_near_atoms(reading.structure):
            return "near_atoms"
        return super().refusal(reading, conditions, cursor)

    def as_requested(self, reading: Reading, conditions: Mapping[str, Any]) -> Reading:
        """Return a crystal, or its mirror image if only that has a requested space group.

        Args:
            reading: a crystal that meets the conditions.
            conditions: values by name.
        """
        crystal = reading.crystal
        if crystal is None or conditions.get("spacegroup") is None:
            return reading
        if crystal.spacegroup in parse_spacegroups(conditions["spacegroup"]):
            return reading
        given = reading.structure
        mirrored = Structure(given.lattice, given.species, -given.frac_coords)
        crystal = describe(mirrored, SYMPREC, keep_hand=True)
        return Reading(crystal.primitive(), crystal)

    def longest_text(self) -> str:
        """Return a text with about the most tokens: one atom per orbit, in general positions."""
        fmt = self.fmt
        orbits = "\nRf A" * fmt.max_atoms
        length = f"{38.8:.{fmt.length_decimals}f}"
        angle = f"{118.8:.{fmt.angle_decimals}f}"
        coords = " ".join([f"{0.88:.{fmt.coord_decimals}f}"] * 3)
        cell = " ".join([length] * 3 + [angle] * 3)
        return f"{NUM_GROUPS}{orbits}\n{cell}" + f"\n{coords}" * fmt.max_atoms

    def vocabulary(self) -> Vocabulary:
        """Return groups, elements, letters and numbers with the white space before them.

        Raises:
            PriorError: if the precision would need too many tokens.
        """
        check_precision(self.fmt)
        bins, decimals = self.wyckoff_format.coord_bins, self.fmt.coord_decimals
        coords = [f"{k / bins:.{decimals}f}" for k in range(bins)]
        last = "".join(sorted({coord[-1] for coord in coords}))
        lengths = [f"{tick / 10:.1f}" for tick in range(10, 10 * _LARGEST_LENGTH)]
        angles = [str(angle) for angle in range(int(ANGLE_BOUNDS[0]), int(ANGLE_BOUNDS[1]) + 1)]
        groups = [str(number) for number in range(1, NUM_GROUPS + 1)]
        elements = "|".join(sorted(SYMBOLS, key=len, reverse=True))
        letter = rf" [{LETTERS}](?=\n|$)"
        no_number_after = r"(?![0-9]|\.[0-9])"
        return Vocabulary(
            words=[
                *("\n" + symbol for symbol in SYMBOLS),
                *SYMBOLS,
                *(" " + letter for letter in LETTERS),
                *(space + coord for space in "\n " for coord in coords),
                *(space + length for space in "\n " for length in lengths),
                *(" " + angle for angle in angles),
                *groups,
            ],
            patterns=[
                rf"[\n ]0\.[0-9]{{{decimals - 1}}}[{last}]{no_number_after}",
                rf"[\n ](?:[1-9]|[1-3][0-9])\.[0-9]{no_number_after}",
                " (?:" + "|".join(reversed(angles)) + ")" + no_number_after,
                "(?<![0-9.])(?:" + "|".join(reversed(groups)) + ")" + no_number_after,
                rf"\n(?:{elements})(?={letter})",
                rf"(?:{elements})",
                letter,
            ],
        )

    def grammar(self, tokenizer: PreTrainedTokenizerBase) -> TokenGrammar:
        """Return the grammar of the layout for a tokenizer.

        Args:
            tokenizer: a fast tokenizer with an end-of-sequence token.

        Raises:
            PriorError: if the tokenizer does not reproduce the text field by field, or the format
                has too many decimals.
        """
        from llm_prior.layouts.binding import TokenGrammar  # imports torch

        return TokenGrammar(tokenizer, self)


def _found_groups(structure: Structure) -> Iterator[int | None]:
    """Yield the groups that spglib finds at its own angle tolerance and at pymatgen's."""
    numbers = [site.specie.Z for site in structure]
    lattice, coords = structure.lattice.matrix, structure.frac_coords
    for tolerance in ANGLE_TOLERANCES:
        dataset = find_symmetry(lattice, coords, numbers, SYMPREC, tolerance)
        yield None if dataset is None else int(dataset.number)


def _has_near_atoms(structure: Structure) -> bool:
    """Whether two atoms, or an atom and its image, are closer than `MIN_DISTANCE`."""
    if min(structure.lattice.abc) < MIN_DISTANCE:
        return True
    apart = structure.distance_matrix
    return bool((apart[~np.eye(len(apart), dtype=bool)] < MIN_DISTANCE).any())
