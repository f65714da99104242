"""Direct preference optimisation of the text prior (Rafailov et al. 2023, arXiv 2305.18290).

For a preferred text c and a rejected one r of one prompt, with the model p and its start q,

    margin = b [log p(c) - log q(c) - log p(r) + log q(r)],    loss = -log sigmoid(margin),

where each log p is the sum over the tokens of a text, end of sequence included, in nats. The
logarithms under q are constants, computed once by `scoring.score_texts`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llm_prior.dataset import IGNORED, Collator, tokenize
from llm_prior.errors import PriorError
from llm_prior.model import Prior
from llm_prior.proposals import propose

_DROPPED = "truncated"  # reason of a text without its end


@dataclass(frozen=True, kw_only=True)
class Preference:
    """Two texts of one prompt, the first preferred.

    Attributes:
        prompt: ends in a newline.
        chosen: preferred text.
        rejected: the other text.
        reference: log q(chosen) - log q(rejected) under the start of the tuning, in nats.
        ids: names of the two samples.
    """

    prompt: str
    chosen: str
    rejected: str
    reference: float
    ids: tuple[str, str]


class PreferenceDataset:
    """Preferences as tokenised examples; a draw has nothing random.

    Args:
        preferences: at least one.
        tokenizer: a fast tokenizer with an end-of-sequence token.

    Raises:
        PriorError: if there is no preference.
    """

    def __init__(
        self, preferences: Sequence[Preference], tokenizer: PreTrainedTokenizerBase
    ) -> None:
        if not preferences:
            raise PriorError("there is no pair of texts to learn a preference from")
        self._items = [_tokenized(preference, tokenizer) for preference in preferences]

    def __len__(self) -> int:
        return len(self._items)

    def size(self, index: int, rng: np.random.Generator) -> int:
        """Return the number of tokens of the longer text with its prompt.

        Args:
            index: of the preference.
            rng: not used.
        """
        item = self._items[index]
        return max(len(item[side]["input_ids"]) for side in ("chosen", "rejected"))

    def draw(self, index: int, rng: np.random.Generator) -> Mapping[str, Any]:
        """Return an example.

        Args:
            index: of the preference.
            rng: not used.

        Returns:
            `chosen` and `rejected`, each with `ids`, `input_ids` and `labels`, and the number
            `reference`.
        """
        return self._items[index]


def _tokenized(preference: Preference, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    item: dict[str, Any] = {"reference": preference.reference}
    texts = (preference.chosen, preference.rejected)
    for side, name, text in zip(("chosen", "rejected"), preference.ids, texts, strict=True):
        input_ids, labels = tokenize(tokenizer, preference.prompt, text)
        item[side] = {"ids": name, "input_ids": input_ids, "labels": labels}
    return item


@dataclass(frozen=True)
class PreferenceCollator:
    """Collation of B preferences into a batch of 2 B rows: first the chosen texts.

    A batch has `ids`, `input_ids`, `attention_mask` and `logits_to_keep` of a `Collator`,
    `targets` (K,) in the place of its `shift_labels`, `rows` (K,), the row of each target, and
    `reference` (B,).

    Attributes:
        pad_token_id: fills the rows up.
    """

    pad_token_id: int

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        sides = [item[side] for side in ("chosen", "rejected") for item in items]
        batch = Collator(self.pad_token_id)(sides)
        del batch["labels"]  # with labels the model would compute its own loss
        batch["targets"] = batch.pop("shift_labels")
        batch["rows"] = batch["logits_to_keep"].nonzero()[:, 0]
        batch["reference"] = torch.tensor([item["reference"] for item in items])
        return batch


def preference_objective(*, beta: float) -> Callable[[torch.nn.Module, Mapping[str, Any]], Tensor]:
    """Return the loss of a model on a batch of `PreferenceCollator`.

    Args:
        beta: b in the formula; the smaller, the further the model may move from its start.

    Returns:
        Function of a model and a batch; its value is the mean over the preferences.
    """

    def objective(model: torch.nn.Module, batch: Mapping[str, Any]) -> Tensor:
        chosen, rejected = text_log_likelihoods(model, batch).chunk(2)  # (B,) each
        return preference_loss(chosen - rejected, batch["reference"], beta=beta)

    return objective


def preference_loss(difference: Tensor, reference: Tensor, *, beta: float) -> Tensor:
    """Return the mean loss of preferences.

    Args:
        difference: (B,), log p(chosen) - log p(rejected) under the model, in nats.
        reference: (B,), the same under its start.
        beta: see `preference_objective`.

    Returns:
        The loss, a scalar.
    """
    return -torch.nn.functional.logsigmoid(beta * (difference - reference)).mean()


def text_log_likelihoods(model: torch.nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Return the log-likelihood of each text of a batch given its prompt.

    Args:
        model: causal language model.
        batch: of `PreferenceCollator`, with R rows.

    Returns:
        (R,), in nats, float32.
    """
    logits = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        logits_to_keep=batch["logits_to_keep"],
        use_cache=False,
    ).logits  # of the K tokens before the targets
    nats = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]).float(),
        batch["targets"],
        ignore_index=IGNORED,
        reduction="none",
    )  # (K,)
    totals = nats.new_zeros(len(batch["input_ids"]))
    return totals.index_add(0, batch["rows"], -nats)


def draw_texts(
    prior: Prior, requests: Sequence[Mapping[str, Any]], *, seed: int
) -> list[tuple[str, str]]:
    """Draw texts from the distribution of the model itself: temperature 1, no constraint.

    With them the divergence of another model p from this one is estimated without bias as the mean
    of log q(text) - log p(text), whether a text is a crystal or not.

    Args:
        prior: the model.
        requests: conditions of each text, as for `proposals.propose`.
        seed: seed of the draws.

    Returns:
        Prompt and text of each request; texts that reached the limit of length are left out.

    Raises:
        PriorError: if a condition is bad.
    """
    proposals = propose(
        prior, requests, seed=seed, temperature=1.0, top_p=1.0, max_attempts=1, constrain=False
    )
    return [(p.prompt, p.text) for p in proposals if _DROPPED not in p.rejects]
