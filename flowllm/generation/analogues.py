"""Structures of a request made from the user's own crystals (`SamplingConfig.like`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flowllm.crystals.io import check_input, read
from flowllm.crystals.run_folders import input_hash
from flowllm.errors import UserError
from flowllm.generation.config import SamplingConfig
from flowllm.templates.library import TemplateLibrary
from flowllm.templates.proposals import Proposal, propose_templates
from llm_prior.prompts import parse_num_atoms
from llm_prior.spacegroups import parse_spacegroups

_LARGEST = 1000  # atoms, more than any template has


class Analogues:
    """Structures with the composition of a request and the arrangement of given crystals.

    The elements of the crystals are replaced by those of the composition in every way that keeps
    the amounts, and the cells are scaled; see `flowllm.templates.proposals`. The likeliest
    structure comes first.

    Attributes:
        file: name and SHA-256 of the file, for manifests.
        proposals: the structures.
    """

    def __init__(self, config: SamplingConfig) -> None:
        """Read the crystals and replace their elements.

        Args:
            config: a request with `like`.

        Raises:
            UserError: if the file cannot be read, or none of its crystals fits the request.
        """
        assert config.like is not None
        path, conditions = config.like, config.conditions
        check_input(path)
        library = TemplateLibrary.build(read(path), source=Path(path).name)
        found = propose_templates(
            conditions["formula"], n=None, max_atoms=_LARGEST, library=library
        )
        if not found:
            raise UserError(
                f"{path} holds no crystal with the amounts of {conditions['formula']}; give a "
                "crystal of the same stoichiometry"
            )
        low, high = parse_num_atoms(conditions.get("num_atoms", f"1-{_LARGEST}"))
        groups = set(parse_spacegroups(conditions.get("spacegroup", "1-230")))
        fitting = [
            proposal
            for proposal in found
            if low <= proposal.num_atoms <= high and proposal.spacegroup in groups
        ]
        if not fitting:
            sizes = ", ".join(map(str, sorted({p.num_atoms for p in found})))
            numbers = ", ".join(map(str, sorted({p.spacegroup for p in found})))
            raise UserError(
                f"{path} gives {conditions['formula']} with {sizes} atoms in the primitive cell "
                f"and space group {numbers} only; ask for these, or give another crystal"
            )
        self.file = {"name": Path(path).name, "sha256": input_hash(path)}
        self.proposals: Sequence[Proposal] = fitting
        self._request = f"{path} gives {len(fitting)} of {conditions['formula']}"

    def check(self, n: int, max_atoms: int | None) -> None:
        """Check that there are enough structures, and that none is too large.

        Args:
            n: structures that are asked for.
            max_atoms: limit of the refiner; None: any number.

        Raises:
            UserError: if there are fewer structures, or the limit is exceeded.
        """
        if n > len(self.proposals):
            raise UserError(f"{self._request}, not {n}; ask for -n {len(self.proposals)} or fewer")
        largest = max((p.num_atoms for p in self.proposals[:n]), default=0)
        if max_atoms is not None and largest > max_atoms:
            raise UserError(
                f"{self._request}, one with {largest} atoms, and the refiner takes at most "
                f"{max_atoms}; give another refiner, or do not refine (--no-refine)"
            )
