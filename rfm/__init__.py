"""The refiner of FlowLLM: Riemannian flow matching on fractional coordinates and cells.

It moves the atoms and the cell of a rough crystal to where a stable crystal has them; atom types
stay fixed. A crystal passes through the modules in this order:

- `alignment` describes a target crystal as near as possible to its base, for training;
- `dataset` holds such pairs, `base` draws the start of the flow from them;
- `torus` and `lattice` are the two manifolds, `batch` holds crystals as tensors on them
  (`manifold` is the torus for geoopt);
- `network` is the velocity network, `objective` its loss, `model` both with their `config`;
- `symmetry` finds the space group of a crystal, `averages` averages motions over the groups of a
  batch;
- `integration` solves the flow, `refining` takes and returns pymatgen structures;
- `divergence` and `likelihood` compute the density of a refined crystal under the flow;
- `validation` measures the velocities on held-out pairs.

Names are imported at their first use: settings (`config`) and errors need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rfm.batch import CrystalBatch
    from rfm.config import (
        BaseConfig,
        IntegrationConfig,
        LossWeights,
        NetworkConfig,
        RefinerConfig,
        Statistics,
    )
    from rfm.dataset import PairDataset, PairedCrystal, collate
    from rfm.errors import Failure, RefinerError
    from rfm.integration import Integration, integrate
    from rfm.likelihood import LogLikelihood, flow_log_likelihood
    from rfm.model import Refiner
    from rfm.network import VelocityNetwork
    from rfm.refining import Refinement, Trajectory, find_symmetries, matrix_precision, refine
    from rfm.symmetry import Operations, Symmetry, find_symmetry
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
    "Operations",
    "PairDataset",
    "PairedCrystal",
    "Refinement",
    "Refiner",
    "RefinerConfig",
    "RefinerError",
    "Statistics",
    "Symmetry",
    "Trajectory",
    "VelocityNetwork",
    "collate",
    "find_symmetries",
    "find_symmetry",
    "flow_log_likelihood",
    "integrate",
    "matrix_precision",
    "path_losses",
    "refine",
]

_NAMES = {
    "batch": ("CrystalBatch",),
    "config": (
        *("BaseConfig", "IntegrationConfig", "LossWeights"),
        *("NetworkConfig", "RefinerConfig", "Statistics"),
    ),
    "dataset": ("PairDataset", "PairedCrystal", "collate"),
    "errors": ("Failure", "RefinerError"),
    "integration": ("Integration", "integrate"),
    "likelihood": ("LogLikelihood", "flow_log_likelihood"),
    "model": ("Refiner",),
    "network": ("VelocityNetwork",),
    "refining": (
        *("Refinement", "Trajectory"),
        *("find_symmetries", "matrix_precision", "refine"),
    ),
    "symmetry": ("Operations", "Symmetry", "find_symmetry"),
    "validation": ("PATH_LOSSES", "path_losses"),
}
_HOME = {name: f"rfm.{module}" for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'rfm' has no attribute {name!r}")
