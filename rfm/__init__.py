"""Riemannian flow matching for crystals: moves the atoms and the cell of a rough crystal to where
a stable one has them. Atom types stay as they are.
"""

from __future__ import annotations

from rfm.base import BaseConfig, Statistics
from rfm.batch import CrystalBatch
from rfm.dataset import PairDataset, PairedCrystal, collate
from rfm.errors import RefinerError
from rfm.failures import Failure
from rfm.integration import Integration, IntegrationConfig, integrate
from rfm.likelihood import LogLikelihood, log_likelihood
from rfm.model import Refiner, RefinerConfig
from rfm.network import NetworkConfig, VelocityNetwork
from rfm.objective import LossWeights
from rfm.refining import Refinement, refine
from rfm.trajectory import Trajectory
from rfm.validation import PATH_LOSSES, path_losses

__all__ = [
    "PATH_LOSSES",
    "BaseConfig",
    "CrystalBatch",
    "Failure",
    "Integration",
    "IntegrationConfig",
    "LogLikelihood",
    "LossWeights",
    "NetworkConfig",
    "PairDataset",
    "PairedCrystal",
    "Refinement",
    "Refiner",
    "RefinerConfig",
    "RefinerError",
    "Statistics",
    "Trajectory",
    "VelocityNetwork",
    "collate",
    "integrate",
    "log_likelihood",
    "path_losses",
    "refine",
]
