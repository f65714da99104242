"""Configurations of sampling and refining: every option with its help, unit and check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from flowllm.energy.calculators import POTENTIAL, check_potential_name
from flowllm.errors import UserError
from flowllm.generation.engines import ENGINES, Engine
from flowllm.runs.sharded import default_batch_size
from flowllm.system.options import Options, as_tuple, option, specs
from llm_prior import (
    ATTRIBUTES,
    DEFAULT_ATTEMPTS,
    DEFAULT_GUIDANCE,
    DEFAULT_TEMPERATURE,
    DEFAULT_TOP_P,
    check_settings,
    composition_conditions,
    generation_prompt,
    stated_conditions,
)
from llm_prior.config import STRONGEST_GUIDANCE
from llm_prior.prompts import render_elements
from llm_prior.spacegroups import CRYSTAL_SYSTEMS
from rfm.config import INTEGRATION_METHODS, SYMMETRIES

Rank = Literal["prior", "energy", "flow"]
SymmetryChoice = Literal["keep", "free"]
Volume = Literal["templates", "prior"]

_CONDITIONS = {attribute.name: attribute for attribute in ATTRIBUTES}
_OF_A_CRYSTAL = ("formula", "num_atoms", "spacegroup")  # conditions that go with `like`
SMALL_BATCH = 16  # crystals, if each of them takes seconds

_INTEGRATION = ("steps", "method", "position_slope", "cell_slope")


def parse_symbols(elements: Any) -> tuple[str, ...]:
    """Return symbols of elements as a sorted tuple without repeats.

    Args:
        elements: text such as `Na,Cl`, or a sequence of symbols.

    Args:
        elements: the symbols; empty or None for none.

    Returns:
        The symbols.

    Raises:
        PriorError: if one is not the symbol of an element.
    """
    return tuple(render_elements(elements).split(", ")) if elements else ()


@dataclass(frozen=True, kw_only=True)
class DrawingConfig(Options):
    """Options of drawing texts from the prior."""

    temperature: float = option(
        DEFAULT_TEMPERATURE,
        "Divides the logits; 0 takes the likeliest token.",
        section="Drawing",
        minimum=0,
    )
    top_p: float = option(
        DEFAULT_TOP_P,
        "Mass of the nucleus that tokens are drawn from (Holtzman et al. 2019).",
        section="Drawing",
        above=0,
        maximum=1,
    )
    guidance: float = option(
        DEFAULT_GUIDANCE,
        "Weight of the conditions (Ho & Salimans 2022): 1 draws as usual, more follows them more "
        "closely in twice the time, 0 leaves them out of the prompt.",
        section="Drawing",
        minimum=0,
        maximum=STRONGEST_GUIDANCE,
    )
    max_attempts: int = option(
        DEFAULT_ATTEMPTS,
        "Texts drawn for a crystal before it counts as failed.",
        section="Drawing",
        minimum=1,
    )
    constrain: bool = option(
        True,
        "Write only texts that decode and have the atoms of the request.",
        section="Drawing",
    )
    engine: Engine = option(
        "plain",
        "What writes the texts: plain, or vllm for large priors, in an environment of its own.",
        section="Drawing",
        choices=ENGINES,
    )
    seed: int = option(0, "Seed of every draw.", section="Drawing", minimum=0)
    batch_size: int | None = option(
        None,
        "Crystals in a batch, as memory allows. A killed run loses the batch at work.",
        section="Drawing",
        minimum=1,
        default_text="a quarter of the run, 32 to 256; 16 for slow crystals",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self.temperature, self.top_p, self.max_attempts)
        if self.engine == "vllm" and self.guidance != 1:
            raise UserError(
                f"guidance {self.guidance:g} is not available with engine vllm; leave "
                "guidance out, or take engine plain"
            )

    def batch_size_for(self, total: int, parameters: int) -> int:
        """Return `batch_size`, or the default for this many crystals and weights of the prior.

        Small models draw a batch within seconds, and large batches faster than small ones. Large
        models take 16 crystals, so that a killed run does not lose hours; not with vLLM, which
        needs large batches.

        Args:
            total: crystals of the run.
            parameters: weights of the prior.
        """
        if self.batch_size is not None:
            return self.batch_size
        small = self.engine == "plain" and parameters >= 100_000_000
        return SMALL_BATCH if small else default_batch_size(total)

    @property
    def drawing(self) -> dict[str, Any]:
        """The arguments of `llm_prior.propose`."""
        names = ("temperature", "top_p", "guidance", "max_attempts", "constrain")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class RefinementConfig(Options):
    """Options of refining. None takes the setting that the refiner was saved with."""

    steps: int | None = option(
        None,
        "Steps of the integration.",
        section="Refining",
        minimum=1,
        default_text="the refiner's",
    )
    method: str | None = option(
        None,
        "Integrator.",
        section="Refining",
        choices=INTEGRATION_METHODS,
        default_text="the refiner's",
    )
    position_slope: float | None = option(
        None,
        "Anti-annealing slope s of the positions: velocities are multiplied by 1 + s t.",
        section="Refining",
        minimum=0,
        default_text="the refiner's",
    )
    cell_slope: float | None = option(
        None,
        "Anti-annealing slope of the cell.",
        section="Refining",
        minimum=0,
        default_text="the refiner's",
    )
    symmetry: SymmetryChoice = option(
        "keep",
        "Whether refining keeps the space group of a crystal, which is then exact: keep, or free "
        "to move in any way.",
        section="Refining",
        choices=SYMMETRIES,
    )
    trajectory: bool = option(
        False,
        "Write every state of the integration to trajectories/ID.extxyz.",
        section="Refining",
    )
    score: bool = option(
        False,
        "Add the log-likelihood of each crystal under the flow. Slow.",
        section="Refining",
    )
    seed: int = option(0, "Seed of every draw.", section="Drawing", minimum=0)

    @property
    def integration(self) -> dict[str, Any]:
        """The settings of the integration; None stands for the refiner's own."""
        return {name: getattr(self, name) for name in _INTEGRATION}


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(DrawingConfig, RefinementConfig):
    """Request for crystals, apart from their number and the models.

    `SamplingConfig.of(formula="NaCl", temperature=1.0)` takes conditions and options alike.

    Raises:
        UserError: if an option is out of range or contradicts another one.
        PriorError: if a condition is unknown, has a bad value, or contradicts another one.
    """

    conditions: Mapping[str, Any] = option(
        {}, "Conditions by name; see `llm_prior.prompts.ATTRIBUTES`.", hidden=True
    )
    composition: str | None = option(
        None, "Exactly these atoms in the cell, such as Na4Cl4.", section="Conditions"
    )
    crystal_system: str | None = option(
        None,
        "Any space group of this crystal system.",
        section="Conditions",
        choices=tuple(CRYSTAL_SYSTEMS),
    )
    exclude_elements: tuple[str, ...] = option(
        (),
        "Elements that no crystal has, such as Pb,Cd.",
        section="Conditions",
        parse=parse_symbols,
    )
    novel_to: tuple[Path, ...] = option(
        (),
        "Crystals whose reduced formulas are drawn again, such as a training set. Repeatable.",
        section="Conditions",
        parse=lambda value: tuple(map(Path, as_tuple(value))),
        path=True,
    )
    like: Path | None = option(
        None,
        "Crystals whose arrangement the new ones have: their elements are replaced by those of the "
        "formula, without a prior.",
        section="Conditions",
        parse=Path,
        path=True,
    )
    best_of: int = option(
        1,
        "Candidates of one composition for each crystal, of which the best one is kept.",
        section="Selection",
        minimum=1,
    )
    rank: Rank = option(
        "prior",
        "Criterion of --best-of: likelihood under the prior, energy, or likelihood under the "
        "flow (slow).",
        section="Selection",
        choices=("prior", "energy", "flow"),
    )
    potential: str | None = option(
        None,
        "Potential of --rank energy: chgnet (extra [eval]), matgl:NAME-OR-FOLDER or "
        "MODULE:FACTORY.",
        section="Selection",
        parse=check_potential_name,
        default_text=POTENTIAL,
    )
    refine: bool = option(True, "Refine the crystals.", section="Refining")
    volume: Volume = option(
        "templates",
        "Volume from which refining starts: that of known crystals of the same stoichiometry, with "
        "their elements replaced, or that which the prior wrote.",
        section="Refining",
        choices=("templates", "prior"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "conditions", self._merged_conditions())
        given = [name for name in _INTEGRATION if getattr(self, name) is not None]
        given += [name for name in ("trajectory", "score") if getattr(self, name)]
        given += ["symmetry"] if self.symmetry == "free" else []
        given += ["volume"] if self.volume == "prior" else []
        if given and not self.refine:
            raise UserError(f"{given[0]} is an option of refining; leave it out, or refine")
        if self.best_of > 1 and self.temperature == 0:
            raise UserError(
                f"best_of {self.best_of} at temperature 0 draws one crystal {self.best_of} times; "
                "give a temperature above 0"
            )
        if self.guidance != 1 and not self.conditions:
            raise UserError(
                f"guidance {self.guidance:g} weighs conditions, and the request has none; give one "
                "such as e_above_hull 0.05 (--e-above-hull 0.05), or leave guidance out"
            )
        self._check_like()
        if self.rank == "flow" and not self.refine:
            raise UserError("rank flow ranks refined crystals; refine, or choose another rank")
        if self.rank != "prior" and self.best_of == 1:
            raise UserError(f"rank {self.rank} chooses among candidates; give best_of 2 or more")
        if self.engine == "vllm" and self.best_of > 1 and self.rank == "prior":
            raise UserError(
                "rank prior scores texts, and engine vllm only writes them; rank by energy or "
                "flow, or take engine plain"
            )
        if self.potential is not None and self.rank != "energy":
            raise UserError("potential belongs to rank energy; give that, or leave it out")

    @classmethod
    def of(cls, config: SamplingConfig | None = None, **arguments: Any) -> SamplingConfig:
        """Return a config from keyword arguments: options and conditions (`spacegroup=225`).

        Args:
            config: the options that `arguments` do not name; None: the defaults.
            **arguments: fields of this class and names of conditions. None leaves a condition out.

        Returns:
            The config.

        Raises:
            UserError: if an argument is unknown, or an option has a bad value.
            PriorError: if a condition has a bad value.
        """
        names = {field.name for field in fields(cls)}
        values = {} if config is None else {name: getattr(config, name) for name in names}
        conditions = dict(values.get("conditions", {}))
        if config is not None and config.composition is not None:
            for name in ("formula", "num_atoms"):  # these come from the composition
                del conditions[name]
        if config is not None and config.crystal_system is not None:
            del conditions["spacegroup"]
        conditions |= arguments.pop("conditions", None) or {}
        for name, value in arguments.items():
            if name in names:
                values[name] = value
            elif name in _CONDITIONS:
                conditions[name] = value
            else:
                known = ", ".join([*_CONDITIONS, *specs(cls)])
                raise UserError(f"unknown condition or option {name!r}; known are {known}")
        return cls(**{**values, "conditions": conditions})

    def _check_like(self) -> None:
        """Refuse what needs a prior, and requests without a composition, together with `like`."""
        if self.like is None:
            return
        if "formula" not in self.conditions:
            raise UserError(
                "like replaces the elements of a crystal; give the new ones as formula (--formula) "
                "or composition (--composition), or use `flowllm refine` for the crystal as it is"
            )
        drawn = {name: spec[0].default for name, spec in specs(DrawingConfig).items()}
        del drawn["seed"], drawn["batch_size"]
        drawn |= {"exclude_elements": (), "novel_to": (), "best_of": 1, "volume": "templates"}
        unused = [name for name in self.conditions if name not in _OF_A_CRYSTAL]
        unused += [name for name, default in drawn.items() if getattr(self, name) != default]
        if unused:
            raise UserError(f"like uses no prior and so no {unused[0]}; leave one of them out")

    def _merged_conditions(self) -> dict[str, str]:
        """Return all conditions as the prompt writes them, so that equal requests are equal."""
        merged = {name: value for name, value in self.conditions.items() if value is not None}
        if self.composition is not None:
            if "formula" in merged:
                raise UserError("formula and composition exclude each other; give one of them")
            if "num_atoms" in merged:
                raise UserError("composition fixes the number of atoms; leave num_atoms out")
            merged |= composition_conditions(self.composition)
        if self.crystal_system is not None:
            if "spacegroup" in merged:
                raise UserError(
                    "spacegroup and crystal_system exclude each other; give one of them"
                )
            merged["spacegroup"] = CRYSTAL_SYSTEMS[self.crystal_system]
        generation_prompt(merged)  # raises PriorError for an unknown name
        return {name: a.render(merged[name]) for name, a in _CONDITIONS.items() if name in merged}

    @property
    def ranking_potential(self) -> str | None:
        """The potential that ranks the candidates; None if energies do not."""
        if self.rank != "energy":
            return None
        return POTENTIAL if self.potential is None else self.potential

    @property
    def given_conditions(self) -> list[str]:
        """The names of the options that gave the conditions."""
        names = list(self.conditions)
        if self.crystal_system is not None:
            names[names.index("spacegroup")] = "crystal_system"
        if self.composition is not None:
            names.remove("num_atoms")
            names[names.index("formula")] = "composition"
        return names

    @property
    def prompt_conditions(self) -> set[str]:
        """The names of the conditions in the prompts; ranges and sets are not among them."""
        return {
            *stated_conditions(self.conditions),
            *(("formula", "num_atoms") if self.best_of > 1 else ()),
        }

    def batch_size_for(self, total: int, parameters: int) -> int:
        """Return `batch_size`, or its default; slow crystals come in small batches.

        Args:
            total: crystals of the run.
            parameters: weights of the prior.
        """
        if self.batch_size is None and (self.score or self.best_of > 1):
            return SMALL_BATCH
        return super().batch_size_for(total, parameters)

    def identity(self) -> dict[str, Any]:
        """Return the request as plain JSON for manifests; equal requests give equal JSON.

        `novel_to` and `like` are left out, as the caller hashes their files. `composition` and
        `crystal_system` are in the conditions.
        """
        left_out = ("novel_to", "like", "composition", "crystal_system", "batch_size")
        values = {name: getattr(self, name) for name in specs(self) if name not in left_out}
        return {
            **values,
            "conditions": dict(self.conditions),
            "exclude_elements": list(self.exclude_elements),
            "potential": self.ranking_potential,
        }
