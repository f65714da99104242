"""Batched decoding of a language model: prompts in, token ids out.

Every row of the batch has its own length (`llm_prior.cache`), so no answer waits for another. An
answer that ends makes room for the next in the queue, a prompt that several answers share is
computed once, and tokens for which the grammar leaves no choice are fed together with the token
before them where that is cheaper. transformers' `generate` has one seed for a batch and no grammar
per row.

Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598; for language models Sanchez et al.
2023, arXiv 2306.17806) writes each answer after two prompts at once, and draws from a combination
of the logits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from llm_prior.cache import SlotCache, cache_argument, layer_states
from llm_prior.drawing import TokenRule, draw_tokens
from llm_prior.errors import PriorError
from llm_prior.llama import LlamaDecoder

# Widths of the attention are rounded up, so that kernels are made for a few shapes only.
_ROUND = 16
# Cost of a forward pass apart from its tokens, in units of a token: once per pass, and once per row
# (whose keys and values are read once for all its tokens). Measured with the bundled model on a CPU
# thread; on an accelerator a further token is nearly free. They are constants and not timings, so
# that a repeated run rounds as before.
_PASS_COST = {"cpu": 32.0}
_PASS_COST_ELSEWHERE = 1024.0
_ROW_COST = 0.5


@dataclass(kw_only=True, eq=False)
class Answer:
    """An answer to be written.

    Attributes:
        prompt: token ids, at least one.
        unconditional: the prompt without conditions, for guidance other than 1.
        uniforms: (max_tokens,) float64 in [0, 1), one for the draw of each token; their number is
            the limit on the tokens, end of sequence included.
        cursor: constrains the tokens; None allows every token.
        tokens: written so far, without the end of sequence.
        complete: True once the end of sequence is written.
    """

    prompt: tuple[int, ...]
    uniforms: np.ndarray
    cursor: TokenRule | None = None
    unconditional: tuple[int, ...] | None = None
    tokens: list[int] = field(default_factory=list)
    complete: bool = False

    def prompts(self, guidance: float) -> tuple[tuple[int, ...], ...]:
        """Return the prompts that the model reads: one, or the two that guidance combines.

        Args:
            guidance: see `decode_answers`.

        Raises:
            ValueError: if guidance needs the prompt without conditions, and there is none.
        """
        if guidance == 1:
            return (self.prompt,)
        if self.unconditional is None:
            raise ValueError(f"guidance {guidance} needs the prompt without conditions")
        return (self.unconditional,) if guidance == 0 else (self.prompt, self.unconditional)


AnyAnswer = TypeVar("AnyAnswer", bound=Answer)


def decode_answers(
    model: torch.nn.Module,
    queue: deque[AnyAnswer],
    *,
    eos_token_id: int,
    slots: int,
    temperature: float,
    top_p: float,
    guidance: float = 1.0,
) -> Iterator[AnyAnswer]:
    """Write all answers of a queue and yield each when it is finished.

    An answer is a function of its prompt, its uniforms and its cursor, up to the rounding of the
    logits, which depends on the rest of the batch. The same queue gives the same bits.

    Args:
        model: causal language model of the LLaMA kind (full attention, rotary positions).
        queue: is emptied. The consumer may append answers, none longer (prompt and uniforms) than
            the longest at the start.
        eos_token_id: ends an answer.
        slots: answers that are written at the same time; bounds the memory.
        temperature: divides the logits of the legal tokens; 0 takes the likeliest.
        top_p: probability of the nucleus from which a token is drawn.
        guidance: weight W of the conditions. The logits are u + W (c - u) with c after `prompt` and
            u after `unconditional`, before temperature, nucleus and cursor. 1 reads `prompt` alone,
            0 `unconditional` alone, and any other weight both, at twice the cost and memory.

    Yields:
        The answers, in the order in which they are finished.

    Raises:
        PriorError: if the model computes NaN.
    """
    if not queue:
        return
    batch: _Batch[AnyAnswer] = _Batch(
        model,
        slots=min(slots, len(queue)),
        capacity=max(
            max(map(len, answer.prompts(guidance))) + len(answer.uniforms) for answer in queue
        ),
        eos_token_id=eos_token_id,
        temperature=temperature,
        top_p=top_p,
        guidance=guidance,
    )
    while queue or batch.busy:
        yield from batch.admit(queue)
        if batch.busy:
            yield from batch.step()


@dataclass(frozen=True)
class _Prefixes:
    """Prompts that the model has read."""

    rows: dict[tuple[int, ...], int]
    cache: Any  # a `SlotCache`, or a cache of transformers
    logits: torch.Tensor  # (P, V) of the token after each

    def hold(self, prompts: Iterable[tuple[int, ...]]) -> bool:
        """Return whether all of these prompts are among them."""
        return all(prompt in self.rows for prompt in prompts)


class _Batch(Generic[AnyAnswer]):
    """The answers in the slots. Slots in use come first, so a forward pass takes a slice.

    A slot is one row of the model's batch, or two neighbours if guidance reads two prompts. These
    are fed the same tokens in the same passes.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        slots: int,
        capacity: int,
        eos_token_id: int,
        temperature: float,
        top_p: float,
        guidance: float,
    ) -> None:
        self.model = model
        self.is_own = isinstance(model, LlamaDecoder)
        self.cache_argument = "cache" if self.is_own else cache_argument(model)
        self.device = torch.device("cpu") if self.is_own else next(model.parameters()).device
        self.eos_token_id = eos_token_id
        self.sampling = {"temperature": temperature, "top_p": top_p}
        self.guidance = guidance
        self.ways = 1 if guidance in (0, 1) else 2  # rows of a slot
        self.slots = slots
        self.capacity = -(-capacity // _ROUND) * _ROUND
        config: Any = model.config
        self.cache = SlotCache(config.num_hidden_layers, slots * self.ways, self.capacity)
        self.passed: Any = self.cache  # the same for the model
        if not self.is_own:
            from llm_prior.transformers_cache import transformers_cache  # slow to import

            self.passed = transformers_cache(self.cache)
        self.prefixes: _Prefixes | None = None
        self.answers: list[AnyAnswer | None] = []  # by slot; None is free
        rows = slots * self.ways
        self.ids = np.zeros((rows, self.capacity), dtype=np.int64)  # prompt and answer
        self.lengths = np.zeros(rows, dtype=np.int64)  # of them, in tokens
        self.fed = np.zeros(rows, dtype=np.int64)  # tokens that the cache holds

    @property
    def busy(self) -> bool:
        """True while an answer is being written."""
        return any(answer is not None for answer in self.answers)

    @torch.inference_mode()
    def admit(self, queue: deque[AnyAnswer]) -> list[AnyAnswer]:
        """Fill the free slots from the queue, draw the first tokens and return the answers that
        are finished with them."""
        finished: list[AnyAnswer] = []
        while queue and (free := self._free()):
            if self.prefixes is None or not self.prefixes.hold(self._prompts(queue[0])):
                self.prefixes = self._read(
                    [prompt for a in islice(queue, self.slots) for prompt in self._prompts(a)]
                )
            slots: list[int] = []
            rows: list[int] = []
            while queue and len(slots) < len(free) and self.prefixes.hold(self._prompts(queue[0])):
                answer, slot = queue.popleft(), free[len(slots)]
                slots.append(slot)
                rows += [self.prefixes.rows[prompt] for prompt in self._prompts(answer)]
                self._place(answer, slot)
            self.cache.admit(self._rows(slots), self.prefixes.cache, rows)
            finished += self._write(slots, self._guided(self.prefixes.logits[rows]))
        self._close_gaps()
        return finished

    @torch.inference_mode()
    def step(self) -> list[AnyAnswer]:
        """Do one forward pass, draw the next tokens and return the answers that are finished."""
        count = len(self.answers) * self.ways
        lengths, fed = self.lengths[:count], self.fed[:count]
        tokens = self._tokens_per_row(lengths - fed)
        # A row with fewer pending tokens is fed its last ones again, which changes nothing.
        start = np.minimum(fed, lengths - tokens)
        places = start[:, None] + np.arange(tokens)  # (B, T)
        width = -(-int(places.max() + 1) // _ROUND) * _ROUND
        positions = torch.from_numpy(places).to(self.device)
        self.cache.look_at(positions, width)
        ids = torch.from_numpy(np.take_along_axis(self.ids[:count], places, 1)).to(self.device)
        logits = self._forward(
            ids,
            self.passed,
            attention_mask=self._mask(positions, width),
            position_ids=positions,
            logits_to_keep=1,
        )[:, -1]  # (B, V)
        self.fed[:count] = start + tokens
        logits = self._guided(logits)
        ready = np.flatnonzero((self.fed[:count] == lengths)[:: self.ways]).tolist()
        return self._write(ready, logits if len(ready) == len(logits) else logits[ready])

    def _prompts(self, answer: AnyAnswer) -> tuple[tuple[int, ...], ...]:
        return answer.prompts(self.guidance)

    def _rows(self, slots: Sequence[int]) -> list[int]:
        return [slot * self.ways + way for slot in slots for way in range(self.ways)]

    def _guided(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, V) of slots from those of their rows."""
        if self.ways == 1:
            return logits
        precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
        conditional, unconditional = precise[::2], precise[1::2]
        return unconditional + self.guidance * (conditional - unconditional)

    def _mask(self, positions: torch.Tensor, width: int) -> torch.Tensor:
        """Return the additive attention mask (B, 1, T, width) of tokens at `positions` (B, T)."""
        dtype = torch.float32
        if not self.is_own:
            assert self.prefixes is not None  # a step follows an admission
            dtype = layer_states(self.prefixes.cache.layers[0])[0].dtype
        shape = len(positions), 1, positions.shape[1], width
        mask = torch.zeros(shape, dtype=dtype, device=self.device)
        later = torch.arange(width, device=self.device) > positions[:, None, :, None]
        return mask.masked_fill_(later, torch.finfo(dtype).min)

    def _forward(self, ids: torch.Tensor, cache: Any, **options: Any) -> torch.Tensor:
        """Return the logits of the kept tokens after `ids` (B, T); extends the cache."""
        options[self.cache_argument] = cache
        return self.model(input_ids=ids, use_cache=True, **options).logits

    def _tokens_per_row(self, pending: np.ndarray) -> int:
        """Return the tokens to feed for the most progress per cost, if each row has at least
        `pending`."""
        most = min(int(pending.max()), int(self.lengths[: len(pending)].min()))
        if most == 1:
            return 1
        tokens = np.arange(1, most + 1)
        fixed = _PASS_COST.get(self.device.type, _PASS_COST_ELSEWHERE) + _ROW_COST * len(pending)
        progress = np.minimum(pending[:, None], tokens).sum(0)
        return int(tokens[np.argmax(progress / (fixed + tokens * len(pending)))])

    def _read(self, prompts: list[tuple[int, ...]]) -> _Prefixes:
        """Compute the keys and values of distinct prompts, in one pass padded on the right."""
        rows = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
        longest = max(map(len, rows))
        ids = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in rows])
        last = torch.tensor([[len(prompt) - 1] for prompt in rows])
        if self.is_own:
            own = SlotCache(len(self.cache.layers), len(rows), longest)
            places = torch.arange(longest).expand(len(rows), longest)
            own.look_at(places, longest)
            mask = self._mask(places, longest)
            read = {"attention_mask": mask, "position_ids": places, "logits_to_keep": last}
            return _Prefixes(rows, own, self._forward(ids, own, **read)[:, 0])
        from transformers import DynamicCache  # slow to import

        cache = DynamicCache()
        logits = self._forward(ids.to(self.device), cache, logits_to_keep=last.to(self.device))[
            :, 0
        ]
        return _Prefixes(rows, cache, logits)

    def _free(self) -> list[int]:
        gaps = [slot for slot, answer in enumerate(self.answers) if answer is None]
        return gaps + list(range(len(self.answers), self.slots))

    def _place(self, answer: AnyAnswer, slot: int) -> None:
        prompts = self._prompts(answer)
        if max(map(len, prompts)) + len(answer.uniforms) > self.capacity:
            raise ValueError("an answer is longer than the longest at the start of the queue")
        if slot == len(self.answers):
            self.answers.append(answer)
        else:
            self.answers[slot] = answer
        for row, prompt in zip(self._rows([slot]), prompts, strict=True):
            self.ids[row, : len(prompt)] = prompt
            self.lengths[row] = self.fed[row] = len(prompt)

    def _write(self, slots: Sequence[int], logits: torch.Tensor) -> list[AnyAnswer]:
        """Draw a token for each slot from its logits (B, V), append it with the tokens that it
        entails, free the slots of finished answers and return these."""
        if logits.isnan().any():
            raise PriorError(
                "the model computes NaN, so its weights are damaged; train or copy it again"
            )
        answers = [answer for slot in slots if (answer := self.answers[slot]) is not None]
        uniforms = torch.tensor(
            [answer.uniforms[len(answer.tokens)] for answer in answers],
            dtype=torch.float64,
            device=self.device,
        )
        cursors = [answer.cursor for answer in answers]
        drawn = draw_tokens(logits, uniforms, cursors, **self.sampling)
        finished = []
        for slot, answer, token in zip(slots, answers, drawn, strict=True):
            self._append(slot, answer, token)
            if answer.complete or len(answer.tokens) == len(answer.uniforms):
                self.answers[slot] = None
                finished.append(answer)
        return finished

    def _append(self, slot: int, answer: AnyAnswer, token: int | None) -> None:
        cursor = answer.cursor
        while token is not None:
            if cursor is not None:
                cursor.advance(token)
            if token == self.eos_token_id:
                answer.complete = True
                return
            answer.tokens.append(token)
            for row in self._rows([slot]):
                self.ids[row, self.lengths[row]] = token
                self.lengths[row] += 1
            if cursor is None or len(answer.tokens) == len(answer.uniforms):
                return
            token = cursor.candidates().only
            if token is not None and not cursor.accepts(token):
                return  # the next pass draws another

    def _close_gaps(self) -> None:
        """Move the last answers into free slots."""
        used = [slot for slot, answer in enumerate(self.answers) if answer is not None]
        targets = [slot for slot in range(len(used)) if self.answers[slot] is None]
        sources = used[len(used) - len(targets) :]
        if sources:
            to, of = self._rows(targets), self._rows(sources)
            self.cache.move(of, to, int(self.fed[of].max()))
            for values in (self.ids, self.lengths, self.fed):
                values[to] = values[of]
            for source, target in zip(sources, targets, strict=True):
                self.answers[target] = self.answers[source]
        del self.answers[len(used) :]
