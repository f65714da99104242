"""Options of pairing."""

from __future__ import annotations

from dataclasses import dataclass

from flowllm.generation.config import DrawingConfig, Volume
from flowllm.system.options import option

PAIRS_FILE = "pairs.parquet"


@dataclass(frozen=True, kw_only=True)
class PairingConfig(DrawingConfig):
    """Options of `flowllm pair`: how samples are drawn, and how many for a target.

    Raises:
        UserError: if an option is out of range.
    """

    max_attempts: int = option(
        3, "Texts drawn for a sample before it counts as failed.", section="Drawing", minimum=1
    )
    samples_per_target: int = option(
        1,
        "Samples of the prior, or templates, for each crystal. For more samples later, use another "
        "seed and folder.",
        section="Drawing",
        minimum=1,
    )
    volume: Volume = option(
        "templates",
        "Volume of the samples: that of known crystals of other formulas with the same "
        "stoichiometry, as `flowllm sample` refines them, or that which the prior wrote.",
        section="Drawing",
        choices=("templates", "prior"),
    )
    limit: int | None = option(
        None, "Use only the first so many crystals of the data.", section="Data", minimum=1
    )
    skip_invalid: bool = option(
        False,
        "Leave out bad rows, and crystals larger than the prior writes, and count them.",
        section="Data",
    )
