"""Options of an evaluation, checked before anything is read or computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowllm.energy.calculators import check_potential_name
from flowllm.errors import UserError
from flowllm.metrics.validity import OXIDATION_STATE_SETS, OXIDATION_STATES
from flowllm.system.options import Options, as_tuple, option

MATERIALS_PROJECT = "materials-project"  # the hull of the online database
LEMAT = "lemat"
MATBENCH = "matbench-discovery"
IDENTITY = "evaluation.json"  # file with the identity of an evaluation

_SETS = "Reference sets"
_ENERGIES = "Energies"
_DEFINITIONS = "Definitions"
_OUTPUT = "Output"


def _paths(value: Any) -> tuple[Path, ...]:
    return tuple(map(Path, as_tuple(value)))


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Options):
    """Options of an evaluation, apart from the generated crystals and the output folder.

    Raises:
        UserError: if an option has a bad value or needs another one that is not given.
    """

    train: tuple[Path, ...] = option(
        (), "Crystals that novelty is counted against. Repeatable.", section=_SETS,
        parse=_paths, path=True,
    )  # fmt: skip
    reference: Path | None = option(
        None, "Crystals for coverage and property distances, usually a test set.", section=_SETS,
        parse=Path, path=True,
    )  # fmt: skip
    targets: Path | None = option(
        None, "Crystals to be predicted, for match rate, METRe and cRMSE.", section=_SETS,
        parse=Path, path=True,
    )  # fmt: skip
    potential: str | None = option(
        None,
        "Relaxes every crystal: chgnet (extra [eval]), matgl:NAME-OR-FOLDER or MODULE:FACTORY.",
        section=_ENERGIES,
        parse=check_potential_name,
    )
    hull: Path | None = option(
        None,
        f"Known compounds, for stability and S.U.N.: a file, or {MATERIALS_PROJECT} for the "
        "online database (mp-api, with a key).",
        section=_ENERGIES,
        parse=Path,
        path=True,
    )
    references: Path | None = option(
        None,
        "Energies of the elements, if the hull has none that fit the potential: a JSON file, or a "
        "run of flowllm relax.",
        section=_ENERGIES,
        parse=Path,
        path=True,
    )
    min_elements: int = option(
        1,
        "Crystals with fewer elements do not count as stable (FlowLLM: 2).",
        section=_ENERGIES,
        minimum=1,
    )
    ignore_own_images: bool = option(
        False,
        "Structural validity as in published code, which does not compare an atom with its own "
        "periodic images.",
        section=_DEFINITIONS,
    )
    valid_coverage: bool = option(
        False,
        "Coverage and feature novelty over valid crystals only, on both sides (Gruver et al. "
        "2024), instead of over all crystals (Xie et al. 2021).",
        section=_DEFINITIONS,
    )
    composition_scale: Path | None = option(
        None,
        "JSON file with means and stds of the 132 composition features. Coverage, diversity and "
        "feature novelty equal published ones only with the published constants.",
        section=_DEFINITIONS,
        parse=Path,
        path=True,
        default_text="over the reference set",
    )
    oxidation_states: str = option(
        OXIDATION_STATES,
        "SMACT's table for the compositional validity; published figures use smact14.",
        section=_DEFINITIONS,
        choices=tuple(OXIDATION_STATE_SETS),
    )
    feature_novelty: bool = option(
        False,
        "Add novelty by distance of features. Takes minutes for a large training set, once.",
        section=_DEFINITIONS,
    )
    submission: str | None = option(
        None,
        "Also write the files that a public leaderboard takes (lemat: LeMat-GenBench, 2,500 "
        "crystals; matbench-discovery: the relaxed WBM set, needs a hull).",
        section=_OUTPUT,
        choices=(LEMAT, MATBENCH),
    )
    seed: int = option(0, "Seed of the bootstrap intervals.", section=_OUTPUT, minimum=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.feature_novelty and not self.train:
            raise UserError("feature_novelty needs a training set; give train (--train) as well")
        if self.composition_scale is not None and not self.needs_features:
            raise UserError("composition_scale needs a reference set; give reference (--reference)")
        if self.hull is not None and self.potential is None:
            raise UserError("hull needs a potential; give potential (--potential) as well")
        if self.references is not None and self.hull is None:
            raise UserError("references need a hull; give hull (--hull) as well")

        if self.submission == MATBENCH and self.hull is None:
            raise UserError(
                "submission matbench-discovery needs formation energies; give potential and hull "
                "(--potential, --hull) as well"
            )

    @property
    def needs_features(self) -> bool:
        """True if fingerprints are computed, which needs matminer."""
        return self.reference is not None or self.feature_novelty

    @property
    def hull_is_online(self) -> bool:
        """True if the hull is taken from Materials Project's database."""
        return self.hull is not None and str(self.hull) == MATERIALS_PROJECT

    def check_files(self, samples: Sequence[Path]) -> None:
        """Check that all files exist, and that files of crystals have a known format.

        Args:
            samples: files or folders of generated crystals.

        Raises:
            UserError: if there are no samples, a file or folder does not exist, a format is
                unknown, or a run is not finished.
        """
        from flowllm.crystals.io import check_input  # 0.3 s, which other refusals do not need

        if not samples:
            raise UserError("no samples are given; name at least one file or folder")
        for path in (*samples, *self.train, self.reference, self.targets):
            if path is not None:
                check_input(path)
        hull = None if self.hull_is_online else self.hull
        for path in (self.composition_scale, self.references, hull):
            if path is not None and not path.exists():
                raise UserError(f"{path}: no such file or folder; check the path")
