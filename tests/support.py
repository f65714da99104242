"""Paths and functions that tests share."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
BUNDLED_PRIOR = ROOT / "flowllm" / "hub" / "bundled" / "prior"
BUNDLED_REFINER = ROOT / "flowllm" / "hub" / "bundled" / "refiner"
MP20_SAMPLE = ROOT / "tests" / "data" / "mp20_sample.parquet"  # 72 crystals, see its README
MP20 = SHARED / "data" / "mp20"  # the whole data set, where it is at hand


def run_command(*arguments: object) -> Result:
    """Run a `flowllm` command in this process."""
    from flowllm.cli import cli

    return CliRunner().invoke(cli, [str(a) for a in arguments], prog_name="flowllm")
