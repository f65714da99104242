"""From prompts to token ids: many answers at a time through one model, none waiting for another.

Every row of the batch has its own length (`llm_prior.kv_cache`). An answer that ends makes room for
the next in the queue; a prompt that several share is computed once; and tokens about which the
grammar leaves no choice are fed together with the token before them where that is cheaper.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol, TypeVar

import numpy as np
import torch
from transformers import Cache, DynamicCache

from llm_prior.errors import PriorError
from llm_prior.kv_cache import SlotCache
from llm_prior.nucleus import draw

# Widths of the attention are rounded up, so that kernels are made for a few shapes only.
_ROUND = 16
# What a forward pass costs apart from its tokens, counted in tokens: once, and for each row (whose
# keys and values are read once for all its tokens). As measured with the bundled model on a CPU
# thread; on an accelerator a token more is nearly free. Constants and not timings, for a run that
# is repeated must round as before.
_PASS_COST = {"cpu": 32.0}
_PASS_COST_ELSEWHERE = 1024.0
_ROW_COST = 0.5


class Legal(Protocol):
    """Tokens that may come next; see `llm_prior.grammar.Legal`."""

    ids: torch.Tensor
    only: int | None


class Cursor(Protocol):
    """A place in a text that a grammar follows; see `llm_prior.grammar.Cursor`."""

    finished: bool

    def legal(self) -> Legal: ...

    def advance(self, token: int) -> None: ...


@dataclass(kw_only=True, eq=False)
class Answer:
    """An answer to be written.

    Attributes:
        prompt: token ids, at least one.
        uniforms: (max_tokens,) float64 in [0, 1), one for the draw of each token; their number is
            the most tokens that are written, the end of sequence included.
        cursor: says what may be written; None: anything.
        tokens: what is written so far, without the end of sequence.
        complete: whether the end of sequence was written.
    """

    prompt: tuple[int, ...]
    uniforms: np.ndarray
    cursor: Cursor | None = None
    tokens: list[int] = field(default_factory=list)
    complete: bool = False


AnyAnswer = TypeVar("AnyAnswer", bound=Answer)


def decode_answers(
    model: torch.nn.Module,
    queue: deque[AnyAnswer],
    *,
    eos_token_id: int,
    slots: int,
    temperature: float,
    top_p: float,
) -> Iterator[AnyAnswer]:
    """Write all answers of a queue, and hand out each as it is finished.

    An answer is a function of its prompt, its uniforms and its cursor, up to the rounding of the
    logits, which depends on what else is in the batch. The same queue gives the same bits.

    Args:
        model: causal language model of the LLaMA kind (full attention, rotary positions).
        queue: is emptied; whoever takes the answers may append more, none longer (prompt and
            uniforms) than the longest at the start.
        eos_token_id: ends an answer.
        slots: answers that are written at the same time; it bounds the memory.
        temperature: divides the logits of the legal tokens; 0 takes the likeliest.
        top_p: nucleus of what is then drawn from.

    Raises:
        PriorError: the model computes NaN.
    """
    if not queue:
        return
    batch = _Batch(
        model,
        slots=min(slots, len(queue)),
        capacity=max(len(answer.prompt) + len(answer.uniforms) for answer in queue),
        eos_token_id=eos_token_id,
        temperature=temperature,
        top_p=top_p,
    )
    while queue or batch.busy:
        yield from batch.admit(queue)
        if batch.busy:
            yield from batch.step()


@dataclass(frozen=True)
class _Prefixes:
    """Prompts that the model has read."""

    rows: dict[tuple[int, ...], int]
    cache: Cache
    logits: torch.Tensor  # (P, V) of the token after each


class _Batch:
    """The answers in the slots: those in use come first, so that a forward pass takes a slice."""

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        slots: int,
        capacity: int,
        eos_token_id: int,
        temperature: float,
        top_p: float,
    ) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.eos_token_id = eos_token_id
        self.sampling = {"temperature": temperature, "top_p": top_p}
        self.slots = slots
        self.capacity = -(-capacity // _ROUND) * _ROUND
        self.cache = SlotCache(model.config.num_hidden_layers, slots, self.capacity)
        self.prefixes: _Prefixes | None = None
        self.answers: list[Answer | None] = []  # by slot; None is free
        self.ids = np.zeros((slots, self.capacity), dtype=np.int64)  # prompt and answer
        self.lengths = np.zeros(slots, dtype=np.int64)  # of them, in tokens
        self.fed = np.zeros(slots, dtype=np.int64)  # tokens that the cache holds

    @property
    def busy(self) -> bool:
        """Whether an answer is being written."""
        return any(answer is not None for answer in self.answers)

    @torch.inference_mode()
    def admit(self, queue: deque[Answer]) -> list[Answer]:
        """Fill the free slots from the queue, and draw the first tokens; return what is finished
        with them."""
        finished: list[Answer] = []
        while queue and (free := self._free()):
            if self.prefixes is None or queue[0].prompt not in self.prefixes.rows:
                self.prefixes = self._read([a.prompt for a in islice(queue, self.slots)])
            known = self.prefixes.rows
            slots, rows = [], []
            while queue and len(slots) < len(free) and queue[0].prompt in known:
                answer, slot = queue.popleft(), free[len(slots)]
                slots.append(slot)
                rows.append(known[answer.prompt])
                self._place(answer, slot)
            self.cache.admit(slots, self.prefixes.cache, rows)
            finished += self._write(slots, self.prefixes.logits[rows])
        self._close_gaps()
        return finished

    @torch.inference_mode()
    def step(self) -> list[Answer]:
        """One forward pass and the tokens that it lets draw; return what is finished with them."""
        count = len(self.answers)
        lengths, fed = self.lengths[:count], self.fed[:count]
        tokens = self._tokens_per_row(lengths - fed)
        # A row with less to be fed is fed its last tokens again, which changes nothing.
        start = np.minimum(fed, lengths - tokens)
        places = start[:, None] + np.arange(tokens)  # (B, T)
        width = -(-int(places.max() + 1) // _ROUND) * _ROUND
        positions = torch.from_numpy(places).to(self.device)
        self.cache.look_at(positions, width)
        dtype = self.prefixes.cache.layers[0].keys.dtype
        mask = torch.zeros(count, 1, tokens, width, dtype=dtype, device=self.device)
        later = torch.arange(width, device=self.device) > positions[:, None, :, None]
        mask.masked_fill_(later, torch.finfo(dtype).min)
        logits = self.model(
            input_ids=torch.from_numpy(np.take_along_axis(self.ids[:count], places, 1)).to(
                self.device
            ),
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        self.fed[:count] = start + tokens
        ready = np.flatnonzero(self.fed[:count] == lengths).tolist()
        return self._write(ready, logits if len(ready) == count else logits[ready])

    def _tokens_per_row(self, pending: np.ndarray) -> int:
        """How many tokens to feed, where each row has at least `pending`, for the most progress
        per cost."""
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
        cache = DynamicCache()
        logits = self.model(
            input_ids=ids.to(self.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=last.to(self.device),
        ).logits[:, 0]
        return _Prefixes(rows, cache, logits)

    def _free(self) -> list[int]:
        gaps = [slot for slot, answer in enumerate(self.answers) if answer is None]
        return gaps + list(range(len(self.answers), self.slots))

    def _place(self, answer: Answer, slot: int) -> None:
        length = len(answer.prompt)
        if length + len(answer.uniforms) > self.capacity:
            raise ValueError("an answer is longer than the longest at the start of the queue")
        if slot == len(self.answers):
            self.answers.append(answer)
        else:
            self.answers[slot] = answer
        self.ids[slot, :length] = answer.prompt
        self.lengths[slot] = self.fed[slot] = length

    def _write(self, slots: Sequence[int], logits: torch.Tensor) -> list[Answer]:
        """Draw a token for each of these slots from its logits (B, V) and append it, with those
        that it entails; free the slots of finished answers and return them."""
        if logits.isnan().any():
            raise PriorError("the model computes NaN: its weights are damaged; train or copy it")
        answers = [self.answers[slot] for slot in slots]
        uniforms = torch.tensor(
            [answer.uniforms[len(answer.tokens)] for answer in answers],
            dtype=torch.float64,
            device=self.device,
        )
        if all(answer.cursor is None for answer in answers):
            drawn = draw(logits, uniforms, **self.sampling).tolist()
        else:
            choices = _choices(answers, logits.shape[1])  # (B, K)
            legal = torch.from_numpy(choices).to(self.device)
            scores = logits.gather(1, legal.clamp_min(0)).masked_fill_(legal < 0, -torch.inf)
            places = draw(scores, uniforms, **self.sampling).tolist()
            drawn = choices[np.arange(len(places)), places].tolist()
        finished = []
        for slot, answer, token in zip(slots, answers, drawn, strict=True):
            self._append(slot, answer, token)
            if answer.complete or len(answer.tokens) == len(answer.uniforms):
                self.answers[slot] = None
                finished.append(answer)
        return finished

    def _append(self, slot: int, answer: Answer, token: int | None) -> None:
        cursor = answer.cursor
        while token is not None:
            if cursor is not None:
                cursor.advance(token)
            if token == self.eos_token_id:
                answer.complete = True
                return
            answer.tokens.append(token)
            self.ids[slot, self.lengths[slot]] = token
            self.lengths[slot] += 1
            if cursor is None or len(answer.tokens) == len(answer.uniforms):
                return
            token = cursor.legal().only

    def _close_gaps(self) -> None:
        """Move the last answers into the slots that are free."""
        used = [slot for slot, answer in enumerate(self.answers) if answer is not None]
        targets = [slot for slot in range(len(used)) if self.answers[slot] is None]
        sources = used[len(used) - len(targets) :]
        if sources:
            self.cache.move(sources, targets, int(self.fed[sources].max()))
            for values in (self.ids, self.lengths, self.fed):
                values[targets] = values[sources]
            for source, target in zip(sources, targets, strict=True):
                self.answers[target] = self.answers[source]
        del self.answers[len(used) :]


def _choices(answers: Sequence[Answer], num_tokens: int) -> np.ndarray:
    """(B, K) the legal tokens of each answer, filled up with -1."""
    rows = [
        np.arange(num_tokens) if answer.cursor is None else answer.cursor.legal().ids.numpy()
        for answer in answers
    ]
    choices = np.full((len(rows), max(map(len, rows))), -1)
    for choice, row in zip(choices, rows, strict=True):
        choice[: len(row)] = row
    return choices
