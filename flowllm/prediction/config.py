"""Configuration of a prediction: every option with its help, unit and check."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowllm.energy.calculators import check_potential_name
from flowllm.errors import UserError
from flowllm.system.options import OptionError, Options, as_tuple, option
from llm_prior.spacegroups import CRYSTAL_SYSTEMS, parse_spacegroups, render_spacegroups

MATERIALS_PROJECT = "materials-project"  # the hull of the online database
MAX_ATOMS = 20  # the limit of the bundled templates and models


def parse_units(value: Any) -> tuple[int, ...]:
    """Return numbers of formula units as an ascending tuple without repeats.

    Args:
        value: a whole number from 1 on, a sequence of them, or text such as `1,2,4`; empty for
            none.

    Raises:
        OptionError: if it is none of these.
    """
    parts = value.split(",") if isinstance(value, str) else as_tuple(value)
    try:
        units = sorted({int(part) for part in parts if not isinstance(part, float | bool)})
    except (TypeError, ValueError):
        units = [0]
    if min(units, default=1) < 1 or len(units) < len({str(part).strip() for part in parts}):
        raise OptionError("z", f"is {value!r}; give whole numbers from 1 on, such as 1,2,4")
    return tuple(units)


def parse_ids(value: Any) -> tuple[str, ...]:
    """Return ids as a sorted tuple without repeats.

    Args:
        value: a sequence of ids, text with commas, or the path of a text file with an id on each
            line.

    Raises:
        UserError: if the file is no text.
    """
    if not isinstance(value, str | Path):
        return tuple(sorted({str(name) for name in value}))
    path = Path(value)
    if len(str(value)) < 256 and path.is_file():
        try:
            value = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is no text; give a file with an id on each line") from error
    found = re.split(r"[,\s]+", str(value).strip())
    return tuple(sorted({name for name in found if name}))


@dataclass(frozen=True, kw_only=True)
class PredictionConfig(Options):
    """Request for structures of formulas, apart from their number and the models.

    Raises:
        UserError: if an option is out of range or contradicts another one.
        PriorError: if a space group is unknown.
    """

    z: tuple[int, ...] = option(
        (),
        "Formula units (amounts without a common divisor) in the primitive cell, such as 1,2,4.",
        section="Request",
        parse=parse_units,
        default_text="all that fit",
    )
    max_atoms: int = option(
        MAX_ATOMS,
        "Most atoms in the primitive cell.",
        section="Request",
        minimum=1,
    )
    spacegroup: str | None = option(
        None,
        "Space group, by number or symbol such as Fm-3m, or a set such as 225,227 or 195-230.",
        section="Request",
        parse=lambda value: render_spacegroups(parse_spacegroups(value)),
    )
    crystal_system: str | None = option(
        None,
        "Any space group of this crystal system.",
        section="Request",
        choices=tuple(CRYSTAL_SYSTEMS),
    )
    num_templates: int = option(
        10,
        "Most candidates from templates.",
        section="Candidates",
        minimum=0,
    )
    num_samples: int = option(
        10,
        "Samples drawn from the prior; those with the same space group and Wyckoff letters are "
        "one candidate.",
        section="Candidates",
        minimum=0,
    )
    templates: Path | None = option(
        None,
        "Library of `flowllm templates build`.",
        section="Candidates",
        parse=Path,
        path=True,
        default_text="bundled",
    )
    exclude_formula: bool = option(
        False,
        "Leave out templates of the formula itself.",
        section="Candidates",
    )
    exclude_ids: tuple[str, ...] = option(
        (),
        "Templates to leave out: ids such as mp-22862,mp-22851, or a text file with one on each "
        "line.",
        section="Candidates",
        parse=parse_ids,
    )
    refine: bool = option(True, "Refine the samples of the prior.", section="Candidates")
    seed: int = option(0, "Seed of every draw.", section="Candidates", minimum=0)
    potential: str | None = option(
        None,
        "Relax and rank the candidates with it: chgnet (extra [eval]), matgl:NAME-OR-FOLDER or "
        "MODULE:FACTORY.",
        section="Energies",
        parse=check_potential_name,
    )
    hull: Path | None = option(
        None,
        "Known compounds for energies above the hull: a file, or materials-project.",
        section="Energies",
        parse=Path,
        path=True,
    )
    references: Path | None = option(
        None,
        "Energies of the elements, if the hull has none that fit the potential: a JSON file, or a "
        "run of flowllm relax on the elements.",
        section="Energies",
        parse=Path,
        path=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.spacegroup is not None and self.crystal_system is not None:
            raise UserError("spacegroup and crystal_system exclude each other; give one of them")
        if not self.num_templates and not self.num_samples:
            raise UserError(
                "num_templates and num_samples are both 0, which leaves no candidate; raise one"
            )
        if self.hull is not None and self.potential is None:
            raise UserError("hull needs a potential; give potential (--potential) as well")
        if self.references is not None and self.hull is None:
            raise UserError("references need a hull; give hull (--hull) as well")

    @property
    def spacegroups(self) -> tuple[int, ...]:
        """The numbers of the space groups that are asked for; empty for all."""
        if self.crystal_system is not None:
            return tuple(CRYSTAL_SYSTEMS[self.crystal_system])
        return () if self.spacegroup is None else parse_spacegroups(self.spacegroup)

    @property
    def hull_is_online(self) -> bool:
        """True if the hull is taken from Materials Project's database."""
        return self.hull is not None and str(self.hull) == MATERIALS_PROJECT
