"""Crystals as space group, Wyckoff orbits and free parameters, and their text."""

from __future__ import annotations

from llm_prior.wyckoff.analysis import describe
from llm_prior.wyckoff.crystal import Orbit, WyckoffCrystal, actual_group
from llm_prior.wyckoff.table import SpaceGroup, WyckoffPosition, group_number, space_group
from llm_prior.wyckoff.text import (
    WyckoffFormat,
    WyckoffReject,
    decode,
    describe_anew,
    encode,
    to_text,
)

__all__ = [
    "Orbit",
    "SpaceGroup",
    "WyckoffCrystal",
    "WyckoffFormat",
    "WyckoffPosition",
    "WyckoffReject",
    "actual_group",
    "decode",
    "describe",
    "describe_anew",
    "encode",
    "group_number",
    "space_group",
    "to_text",
]
