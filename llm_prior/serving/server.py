"""The server: a process of vLLM's environment that writes texts, one JSON object a line.

The first line from standard input says what to serve (`Served`), and the answer is
`{"ready": VERSION}`. Each further line is a request with an `id`; its answer has that `id`, the
`tokens` without the end of sequence, and `complete`. Answers come as texts are finished. A fault is
`{"error": LINE}`, and the end. The server ends with its standard input.

    python -m llm_prior.serving.server
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TextIO

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # of adapters, that vLLM makes room for


@dataclass(frozen=True, kw_only=True)
class Served:
    """What to serve.

    Attributes:
        prior: folder of the prior.
        base: folder or hub id of the base, if the prior is an adapter.
        rank: of the adapter.
        quantized: load the base in 4 bits.
        context: longest sequence in tokens.
        eos_token_id: ends a text.
        device: `cpu` or `cuda`.
        scratch: folder that the server deletes at its end; empty for none.
        options: further arguments of `vllm.LLM`, which come before all others.
    """

    prior: str
    base: str | None
    rank: int | None
    quantized: bool
    context: int
    eos_token_id: int
    device: str
    scratch: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `vllm.LLM`."""
        from llm_prior.serving.processor import PRIOR

        found: dict[str, Any] = {
            "model": self.base or self.prior,
            "skip_tokenizer_init": True,
            "max_model_len": self.context,
            "logits_processors": ["llm_prior.serving.processor:GrammarProcessor"],
            "additional_config": {PRIOR: self.prior},
            "async_scheduling": False,  # it would draw before the last token is known
            "disable_log_stats": True,
        }
        if self.device == "cpu":
            found |= {"dtype": "float32", "enforce_eager": True, "kv_cache_memory_bytes": 2 << 30}
        else:  # room for the refiner
            found |= {"dtype": "bfloat16", "gpu_memory_utilization": 0.8}
        if self.quantized:
            found |= {"quantization": "bitsandbytes", "load_format": "bitsandbytes"}
        else:
            found["load_format"] = "safetensors"
        if self.rank is not None:
            room = min((rank for rank in _RANKS if rank >= self.rank), default=self.rank)
            found |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": room}
        return found | self.options


def serve(requests: TextIO, replies: TextIO) -> None:
    """Load the model and answer requests until they end.

    Args:
        requests: lines from the client.
        replies: lines to the client.
    """

    def reply(**content: Any) -> None:
        replies.write(json.dumps(content) + "\n")
        replies.flush()

    inbox: queue.SimpleQueue[str] = queue.SimpleQueue()
    served = Served(**json.loads(requests.readline()))
    receiving = requests, inbox, served.scratch
    threading.Thread(target=_receive, args=receiving, daemon=True).start()
    try:
        engine = _Engine(served)
        reply(ready=engine.version)
        while True:
            for line in _lines(inbox, wait=not engine.busy):
                engine.add(json.loads(line))
            for content in engine.step():
                reply(**content)
    except Exception as error:
        import traceback

        traceback.print_exc()  # into the log
        reply(error=one_line(error))


class _Engine:
    """vLLM with one model."""

    def __init__(self, served: Served) -> None:
        import vllm
        from vllm.platforms import current_platform

        place = str(current_platform.device_type)
        if place != served.device:
            raise ValueError(
                f"this vLLM computes on {place}, and the run on {served.device}; give --device "
                f"{place}, or another environment"
            )
        self.version = vllm.__version__
        self._vllm = vllm
        self._served = served
        self._engine = vllm.LLM(**served.arguments()).llm_engine
        self._lora = None
        if served.rank is not None:
            from vllm.lora.request import LoRARequest

            self._lora = LoRARequest("prior", 1, served.prior)

    @property
    def busy(self) -> bool:
        return bool(self._engine.has_unfinished_requests())

    def add(self, request: dict[str, Any]) -> None:
        """Begin the answer to a request."""
        from vllm.sampling_params import RequestOutputKind

        from llm_prior.serving.processor import REQUEST

        params = self._vllm.SamplingParams(
            temperature=0,  # the processor leaves one token
            max_tokens=len(request["uniforms"]),
            stop_token_ids=[self._served.eos_token_id],
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args={REQUEST: request},
        )
        prompt = {"prompt_token_ids": request["prompt"]}
        self._engine.add_request(str(request["id"]), prompt, params, lora_request=self._lora)

    def step(self) -> Iterator[dict[str, Any]]:
        """Write a token of each answer and yield those that are finished."""
        for output in self._engine.step():
            if output.finished:
                tokens = list(output.outputs[0].token_ids)
                complete = bool(tokens) and tokens[-1] == self._served.eos_token_id
                yield {
                    "id": int(output.request_id),
                    "tokens": tokens[:-1] if complete else tokens,
                    "complete": complete,
                }


def _receive(requests: TextIO, inbox: queue.SimpleQueue[str], scratch: str) -> None:
    """Pass lines on; at their end, end this process and those that it started."""
    for line in requests:
        inbox.put(line)
    if scratch:  # the client may have been killed
        shutil.rmtree(scratch, ignore_errors=True)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(0)


def _lines(inbox: queue.SimpleQueue[str], *, wait: bool) -> Iterator[str]:
    """Yield the lines that are there; wait for a first one if there is nothing else to do."""
    if wait:
        yield inbox.get()
    with contextlib.suppress(queue.Empty):
        while True:
            yield inbox.get_nowait()


def one_line(error: BaseException) -> str:
    """Return the message of an error on one line of at most 300 characters.

    Args:
        error: its type stands in for an empty message.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def main() -> None:
    """Serve over standard input and output; what else is printed goes to standard error."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.stdin, replies)


if __name__ == "__main__":
    main()
