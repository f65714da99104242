"""FlowLLM: a language model proposes a crystal, Riemannian flow matching refines it.

    from flowllm import FlowLLM

    model = FlowLLM.from_pretrained()
    samples = model.sample(16, formula="NaCl", seed=0)

Names are imported when they are first used, so `import flowllm` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowllm.crystals.crystal import Crystal
    from flowllm.crystals.io import read, write
    from flowllm.crystals.views.notebook import view
    from flowllm.energy.relaxation import RelaxationConfig, relax
    from flowllm.errors import FlowLLMError, InvalidCrystal, PriorError, RefinerError, UserError
    from flowllm.evaluation.evaluate import EvaluationConfig, evaluate
    from flowllm.generation.config import RefinementConfig, SamplingConfig
    from flowllm.generation.pipeline import FlowLLM
    from flowllm.generation.sample import Sample
    from flowllm.generation.sampling_run import run_refinement, run_sampling
    from flowllm.hub.publication import push_to_hub
    from flowllm.prediction.config import PredictionConfig
    from flowllm.prediction.prediction import Prediction
    from flowllm.prediction.run import predict
    from flowllm.training.prior import train_prior
    from flowllm.training.refiner import train_refiner
    from flowllm.training.tuning import tune_prior
    from rfm import Refinement

__version__ = "0.2.0"

_NAMES = {
    "flowllm.crystals.crystal": ("Crystal",),
    "flowllm.crystals.io": ("read", "write"),
    "flowllm.crystals.views.notebook": ("view",),
    "flowllm.energy.relaxation": ("RelaxationConfig", "relax"),
    "flowllm.errors": ("FlowLLMError", "InvalidCrystal", "PriorError", "RefinerError", "UserError"),
    "flowllm.evaluation.evaluate": ("EvaluationConfig", "evaluate"),
    "flowllm.generation.config": ("RefinementConfig", "SamplingConfig"),
    "flowllm.generation.pipeline": ("FlowLLM",),
    "flowllm.generation.sample": ("Sample",),
    "flowllm.generation.sampling_run": ("run_refinement", "run_sampling"),
    "flowllm.hub.publication": ("push_to_hub",),
    "flowllm.prediction.config": ("PredictionConfig",),
    "flowllm.prediction.prediction": ("Prediction",),
    "flowllm.prediction.run": ("predict",),
    "flowllm.training.prior": ("train_prior",),
    "flowllm.training.refiner": ("train_refiner",),
    "flowllm.training.tuning": ("tune_prior",),
    "rfm": ("Refinement",),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "Crystal",
    "EvaluationConfig",
    "FlowLLM",
    "FlowLLMError",
    "InvalidCrystal",
    "Prediction",
    "PredictionConfig",
    "PriorError",
    "Refinement",
    "RefinementConfig",
    "RefinerError",
    "RelaxationConfig",
    "Sample",
    "SamplingConfig",
    "UserError",
    "__version__",
    "evaluate",
    "predict",
    "push_to_hub",
    "read",
    "relax",
    "run_refinement",
    "run_sampling",
    "train_prior",
    "train_refiner",
    "tune_prior",
    "view",
    "write",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'flowllm' has no attribute {name!r}")
