"""The logits processor inside vLLM: it draws the token of each row and leaves no other choice.

This module is imported in the environment of vLLM alone, by each of its processes.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor, process_dict_updates

from llm_prior.serving.rows import Constraints, Row, next_tokens

PRIOR = "flowllm_prior"  # key of the folder in vLLM's `additional_config`
REQUEST = "flowllm"  # key of the request in vLLM's `extra_args`


class GrammarProcessor(LogitsProcessor):
    """Draws by the grammar of the prior, see `llm_prior.serving.rows`.

    Args:
        vllm_config: of the engine.
        device: of the logits.
        is_pin_memory: not used.
    """

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._constraints = Constraints(vllm_config.additional_config[PRIOR])
        self._rows: dict[int, Row] = {}  # by place in the batch

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Check a request; the server has done so."""

    def is_argmax_invariant(self) -> bool:
        """Return False: the token that is drawn need not be the likeliest."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follow the requests that come, go and move.

        Args:
            batch_update: vLLM's `BatchUpdate`, or None.
        """
        process_dict_updates(self._rows, batch_update, self._new_row)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits with one token left in each row.

        Args:
            logits: (B, V).
        """
        if not self._rows:
            return logits
        places = sorted(self._rows)
        chosen = logits if len(places) == len(logits) else logits[places]
        tokens = next_tokens([self._rows[place] for place in places], chosen)
        logits[places] = -torch.inf
        logits[places, tokens] = 0
        return logits

    def _new_row(self, params: Any, prompt: list[int] | None, written: list[int]) -> Row | None:
        request = (params.extra_args or {}).get(REQUEST)
        if request is None:
            return None
        constraint = None
        if request["conditions"] is not None:
            constraint = self._constraints.find(request["conditions"], request["exclude_elements"])
        return Row(
            constraint,
            request["uniforms"],
            written,
            temperature=request["temperature"],
            top_p=request["top_p"],
        )
