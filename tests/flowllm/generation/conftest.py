"""Fixtures of the generation tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from pymatgen.core import Lattice, Structure

from flowllm.crystals.io import Crystal, write


@pytest.fixture(scope="module")
def two_crystals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of NaCl (id salt) and ZnS (id blende), each with its band gap."""
    salt = Structure(
        Lattice.from_parameters(4.02, 4.02, 4.02, 60, 60, 60), ["Na", "Cl"], [[0, 0, 0], [0.5] * 3]
    )
    blende = Structure(
        Lattice.from_parameters(3.85, 3.85, 3.85, 60, 60, 60), ["Zn", "S"], [[0, 0, 0], [0.25] * 3]
    )
    crystals = [
        Crystal(id="salt", structure=salt, properties={"band_gap": 5.0}),
        Crystal(id="blende", structure=blende, properties={"band_gap": 2.0}),
    ]
    return write(crystals, tmp_path_factory.mktemp("files") / "two.jsonl")
