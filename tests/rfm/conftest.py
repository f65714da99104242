"""Crystals and a small refiner with random weights, shared by the tests of the refiner."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from pymatgen.core import Lattice, Structure

from rfm.batch import CrystalBatch
from rfm.config import BaseConfig, NetworkConfig, RefinerConfig, Statistics
from rfm.model import Refiner
from support import MP20_SAMPLE


@pytest.fixture(scope="session")
def mp20() -> list[Structure]:
    """72 crystals of MP-20's validation split, Niggli-reduced."""
    cifs = pd.read_parquet(MP20_SAMPLE, columns=["cif"]).cif
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reader's remarks on rounded coordinates
        return [Structure.from_str(cif, fmt="cif").get_reduced_structure() for cif in cifs]


@pytest.fixture
def structures() -> list[Structure]:
    """Four crystals of 2, 1, 5 and 3 atoms, one a single-atom cell, one without symmetry."""
    rng = np.random.default_rng(7)
    return [
        Structure(Lattice.cubic(4.12), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
        Structure(Lattice.from_parameters(2.55, 2.55, 2.55, 60, 60, 60), ["Cu"], [[0.1, 0.2, 0.3]]),
        Structure(Lattice.from_parameters(4, 5, 7, 80, 95, 103), list("CNOFH"), rng.random((5, 3))),
        Structure(Lattice.hexagonal(3.1, 5.0), ["Mg", "B", "B"], rng.random((3, 3))),
    ]


@pytest.fixture
def statistics() -> Statistics:
    """Round numbers in the range of the logmetric chart of small cells."""
    return Statistics(
        mean=[2.8, 3.0, 3.4, 0.1, 0.0, -0.1],
        std=[0.5, 0.5, 0.6, 0.4, 0.4, 0.5],
        log_length_mean=[1.4, 1.5, 1.7],
        log_length_std=[0.2, 0.2, 0.3],
    )


@pytest.fixture
def refiner(statistics: Statistics) -> Refiner:
    """A refiner of two narrow layers with the weights of a fixed seed."""
    torch.manual_seed(0)
    config = RefinerConfig(
        statistics=statistics,
        network=NetworkConfig(width=16, layers=2, num_frequencies=3),
        base=BaseConfig(position_sigma=0.05, cell_sigma=0.1),
    )
    return Refiner(config).eval()


@pytest.fixture
def state(structures: list[Structure], refiner: Refiner) -> CrystalBatch:
    """The structures as a batch in the chart of the refiner."""
    return CrystalBatch.from_structures(structures, refiner.cell)
