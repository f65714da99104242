"""A stand-in for vLLM: the parts that `llm_prior.serving` uses, on transformers and one batch.

It treats requests as vLLM does where that matters to a logits processor: places in the batch are
given away and swapped, a request is put off and taken up again with what it has written, and logits
are computed whose token is not used.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

__version__ = "0.0-stand-in"
_PLACES = 5


@dataclass
class SamplingParams:
    temperature: float
    max_tokens: int
    stop_token_ids: list[int]
    detokenize: bool
    output_kind: str
    extra_args: dict[str, Any]


@dataclass(eq=False)
class _Request:
    name: str
    prompt: list[int]
    params: SamplingParams
    written: list[int] = field(default_factory=list)


class LLM:
    def __init__(self, **arguments: Any) -> None:
        if fault := os.environ.get("STAND_IN_FAULT"):
            raise RuntimeError(fault)
        assert arguments["skip_tokenizer_init"] and not arguments["async_scheduling"]
        self.llm_engine = _Engine(arguments)


class _Engine:
    def __init__(self, arguments: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        self.model = AutoModelForCausalLM.from_pretrained(arguments["model"], dtype=torch.float32)
        if arguments.get("enable_lora"):
            assert arguments["max_lora_rank"] >= 1
        (name,) = arguments["logits_processors"]
        module, _, cls = name.partition(":")
        config = SimpleNamespace(additional_config=arguments["additional_config"])
        self.processor = getattr(import_module(module), cls)(config, torch.device("cpu"), False)
        assert not self.processor.is_argmax_invariant()
        self.waiting: list[_Request] = []
        self.running: list[_Request] = []
        self.steps = 0
        self.adapter: Any = None

    def has_unfinished_requests(self) -> bool:
        return bool(self.waiting or self.running)

    def add_request(self, name: str, prompt: dict, params: Any, *, lora_request: Any) -> str:
        assert params.temperature == 0 and len(params.extra_args["flowllm"]["uniforms"]) > 0
        if lora_request is not None and self.adapter is None:
            from peft import PeftModel

            self.model = PeftModel.from_pretrained(self.model, lora_request.lora_path)
            self.adapter = lora_request
        self.waiting.append(_Request(name, prompt["prompt_token_ids"], params))
        return name

    @torch.inference_mode()
    def step(self) -> list[SimpleNamespace]:
        self.steps += 1
        if self.steps == int(os.environ.get("STAND_IN_DIES_AT", 0)):
            os.kill(os.getpid(), signal.SIGKILL)
        self._schedule()
        tokens = self._draw()
        if self.steps % 7 == 0:
            tokens = self._draw()  # as if the first ones came from half a prompt
        finished = []
        for place, request in reversed(list(enumerate(self.running))):
            request.written.append(tokens[place])
            stop = tokens[place] in request.params.stop_token_ids
            if stop or len(request.written) == request.params.max_tokens:
                finished.append(self.running[place])
                last = len(self.running) - 1
                self.running[place] = self.running[last]
                self.running.pop()
                moved = [(last, place, MoveDirectionality.UNIDIRECTIONAL)] if last > place else []
                self.processor.update_state(BatchUpdate(removed=[place], moved=moved))
        return [
            SimpleNamespace(
                request_id=request.name,
                finished=True,
                outputs=[SimpleNamespace(token_ids=request.written)],
            )
            for request in finished
        ]

    def _schedule(self) -> None:
        if self.steps % 11 == 0 and len(self.running) > 1:  # the last one is put off
            put_off = self.running.pop()
            put_off.written = list(put_off.written)
            self.waiting.append(put_off)
            self.processor.update_state(BatchUpdate(removed=[len(self.running)]))
        if self.steps % 5 == 0 and len(self.running) > 1:
            self.running[0], self.running[1] = self.running[1], self.running[0]
            self.processor.update_state(BatchUpdate(moved=[(0, 1, MoveDirectionality.SWAP)]))
        while self.waiting and len(self.running) < _PLACES:
            new = self.waiting.pop(0)
            place = len(self.running)
            self.running.append(new)
            added = [(place, new.params, new.prompt, new.written)]
            self.processor.update_state(BatchUpdate(added=added))
        self.processor.update_state(None)

    def _draw(self) -> list[int]:
        texts = [request.prompt + request.written for request in self.running]
        longest = max(map(len, texts))
        ids = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
        logits = self.model(input_ids=ids, use_cache=False).logits
        last = torch.stack([row[len(text) - 1] for row, text in zip(logits, texts, strict=True)])
        if os.environ.get("STAND_IN_NAN"):
            last = last * torch.nan
        return self.processor.apply(last.float()).argmax(-1).tolist()
