"""Riemannian flow matching for crystals: moves the atoms and the cell of a rough crystal to where
a stable one has them. Atom types stay as they are.
"""

from __future__ import annotations

from rfm.base import BaseConfig, Statistics
from rfm.batch import CrystalBatch
from rfm.dataset import PairDataset, PairedCrystal, collate
from rfm.errors import RefinerError
from rfm.integration import Integration, integrate
from rfm.model import IntegrationConfig, Refiner, RefinerConfig
from rfm.network import NetworkConfig, VelocityNetwork
from rfm.objective import LossWeights
from rfm.refining import Failure, Refinement, refine

__all__ = [
    "BaseConfig",
    "CrystalBatch",
    "Failure",
    "Integration",
    "IntegrationConfig",
    "LossWeights",
    "NetworkConfig",
    "PairDataset",
    "PairedCrystal",
    "Refinement",
    "Refiner",
    "RefinerConfig",
    "RefinerError",
    "Statistics",
    "VelocityNetwork",
    "collate",
    "integrate",
    "refine",
]
