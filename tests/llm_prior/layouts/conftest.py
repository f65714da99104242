"""A small model and real crystals for the tests of the layouts."""

from __future__ import annotations

import pytest
from pymatgen.core import Structure

from flowllm.crystals.io import read
from llm_prior import BaseModel, Prior, TextFormat
from prior_support import TINY
from support import MP20_SAMPLE

WYCKOFF = TextFormat(layout="wyckoff")


@pytest.fixture(scope="session")
def crystals() -> list[Structure]:
    """24 crystals of MP-20, of all crystal systems."""
    return [crystal.structure for crystal in read(MP20_SAMPLE)][::3]


@pytest.fixture(scope="session")
def wyckoff_prior() -> Prior:
    """A prior of the wyckoff layout with random weights."""
    prior = Prior.build(BaseModel(architecture=TINY), WYCKOFF)
    prior.model.eval()
    return prior
