"""The refiner of FlowLLM: Riemannian flow matching on fractional coordinates and cells.

It moves the atoms and the cell of a rough crystal to those of a stable one. Atom types stay fixed.
A crystal passes through the modules in this order:

- `base` draws the start of the flow, `align` pairs it with its target for training;
- `torus` and `lattice` are the two manifolds, `batch` holds crystals as tensors on them;
- `network` is the velocity network, `objective` its loss, `model` both with their settings;
- `integration` solves the flow, `refining` takes and returns pymatgen structures;
- `likelihood` computes the density of a refined crystal under the flow.

Names are imported when they are first used, so that checking arguments needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_NAMES = {
    "base": ("BaseConfig", "Statistics"),
    "batch": ("CrystalBatch",),
    "dataset": ("PairDataset", "PairedCrystal", "collate"),
    "errors": ("RefinerError",),
    "failures": ("Failure",),
    "integration": ("Integration", "IntegrationConfig", "integrate"),
    "likelihood": ("LogLikelihood", "log_likelihood"),
    "model": ("Refiner", "RefinerConfig"),
    "network": ("NetworkConfig", "VelocityNetwork"),
    "objective": ("LossWeights",),
    "refining": ("Refinement", "refine"),
    "trajectory": ("Trajectory",),
    "validation": ("PATH_LOSSES", "path_losses"),
}
_HOME = {name: f"rfm.{module}" for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'rfm' has no attribute {name!r}")
