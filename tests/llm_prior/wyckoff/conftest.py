"""Real crystals for the tests of the wyckoff layout."""

from __future__ import annotations

import pytest
from pymatgen.core import Structure

from flowllm.crystals.io import read
from support import MP20_SAMPLE


@pytest.fixture(scope="session")
def mp20_structures() -> list[Structure]:
    """72 crystals of MP-20, of all crystal systems."""
    return [crystal.structure for crystal in read(MP20_SAMPLE)]
