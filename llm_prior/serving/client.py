"""A prior whose weights are in a server: vLLM in a process of another environment."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import signal
import subprocess
import tempfile
import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import llm_prior
from llm_prior.errors import PriorError
from llm_prior.model import Prior
from llm_prior.serving.environment import (
    base_of,
    check_python,
    check_served,
    options,
    rank_of,
    variables,
)
from llm_prior.serving.rows import write
from llm_prior.serving.server import Served, one_line
from llm_prior.settings import read_settings
from llm_prior.text import TextFormat

if TYPE_CHECKING:
    from llm_prior.proposals import Question

logger = logging.getLogger(__name__)

_LONGEST = 4096  # tokens of a sequence; no crystal needs more
_END_LIMIT = 10  # seconds
# One process for the engine, so that its faults are errors of the server. The logits processor is
# one of the first model runner. Nothing is reported to vLLM's makers.
_SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_NO_USAGE_STATS": "1",
}


class ServedPrior(Prior):
    """A prior whose texts vLLM writes. It only writes: it cannot score, infill, or be saved."""

    @property
    def server(self) -> ServedModel:
        """What stands in for the weights."""
        assert isinstance(self.model, ServedModel)
        return self.model


def served_prior(folder: str | Path, *, device: str = "cpu") -> ServedPrior:
    """Return a prior whose texts vLLM writes. The server starts at the first request.

    Args:
        folder: of a whole model or an adapter, as `Prior.save_pretrained` wrote it.
        device: `cpu`, `cuda` or `cuda:NUMBER`.

    Raises:
        PriorError: if there is no such prior, or no environment that can serve it.
    """
    # Other priors are written without transformers.
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    settings = read_settings(str(folder))
    check_served(folder)
    path = Path(folder).resolve()
    base = base_of(path)
    if base is not None and Path(base).exists():
        base = str(Path(base).resolve())
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        config = AutoConfig.from_pretrained(base or path, trust_remote_code=False)
        with torch.device("meta"):
            shape = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, TypeError, LookupError, RuntimeError) as error:
        raise PriorError(
            f"cannot read the configuration of {base or folder}: {one_line(error)}; give a model "
            "folder"
        ) from error
    if tokenizer.eos_token_id is None:
        raise PriorError(f"{folder} has no eos_token; name one in its tokenizer_config.json")
    config.max_position_embeddings = min(config.max_position_embeddings, _LONGEST)
    model = ServedModel(
        shape,
        Served(
            prior=str(path),
            base=base,
            rank=None if base is None else rank_of(path),
            quantized=settings.get("base", {}).get("quantization") is not None,
            context=config.max_position_embeddings,
            eos_token_id=tokenizer.eos_token_id,
            device=device.partition(":")[0],
            options=options(),
        ),
        gpu=device.partition(":")[2] or None,
    )
    return ServedPrior(
        model=model,
        tokenizer=tokenizer,
        fmt=TextFormat(**settings["text"]),
        info=settings.get("info", {}),
        source=str(folder),
        base=settings.get("base", {}),
    )


class ServedModel(torch.nn.Module):
    """Stands in for a language model whose weights are in a server.

    Args:
        shape: the model without weights, on the device `meta`.
        served: what the server loads.
        gpu: number of the GPU among those of this process; None: as it comes.
    """

    def __init__(self, shape: torch.nn.Module, served: Served, *, gpu: str | None = None) -> None:
        super().__init__()
        self.shape = shape
        self.config = shape.config
        self._served = served
        self._gpu = gpu
        self._server: _Server | None = None
        self._numbers = itertools.count()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Raise `PriorError`: the server gives no logits."""
        raise PriorError(
            f"{self._served.prior} is served by vLLM, which writes texts and does nothing else; "
            "load the prior with the engine plain"
        )

    def get_input_embeddings(self) -> Any:
        """Raise `PriorError`, as `forward`."""
        self.forward()

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Raise `PriorError`, as `forward`.

        Args:
            folder: where the weights would be.
            **options: of the saving.
        """
        self.forward()

    def decode_answers(
        self, queue: deque[Question], *, temperature: float, top_p: float
    ) -> Iterator[Question]:
        """Write all answers of a queue; see `llm_prior.decoding.decode_answers`.

        Args:
            queue: is emptied; the consumer may append questions.
            temperature: divides the logits of the legal tokens; 0 takes the likeliest.
            top_p: probability of the nucleus from which a token is drawn.

        Yields:
            The questions, in the order in which they are finished.

        Raises:
            PriorError: if the server cannot be started, or fails.
        """
        if self._server is None and queue:
            self._server = _Server(self._served, self._gpu)
        waiting: dict[int, Question] = {}
        while queue or waiting:
            assert self._server is not None
            while queue:
                number, question = next(self._numbers), queue.popleft()
                waiting[number] = question
                self._server.send(
                    {
                        "id": number,
                        "prompt": question.prompt,
                        "uniforms": question.uniforms.tolist(),
                        "conditions": question.conditions,
                        "exclude_elements": question.exclude_elements,
                        "temperature": temperature,
                        "top_p": top_p,
                    }
                )
            reply = self._server.receive()
            # Another number is of a call that was given up.
            if (found := waiting.pop(reply.get("id", -1), None)) is not None:
                self._finish(found, reply)
                yield found

    def _finish(self, question: Question, reply: dict[str, Any]) -> None:
        """Take the tokens of an answer, if the grammar allows them."""
        try:
            question.tokens = [int(token) for token in reply["tokens"]]
            question.complete = bool(reply["complete"])
            if question.cursor is not None:
                end = [self._served.eos_token_id] if question.complete else []
                for token in [*question.tokens, *end]:
                    write(question.cursor, token)
        except (LookupError, TypeError, ValueError) as error:
            raise PriorError(
                f"vLLM wrote a text that the grammar does not allow ({one_line(error)}); make "
                "its environment again"
            ) from error

    def close(self) -> None:
        """End the server; the next request starts another one."""
        if self._server is not None:
            self._server.close()
            self._server = None


class _Server:
    """The process of vLLM. It ends with this object, and when this process dies.

    Args:
        served: what it loads.
        gpu: number of the GPU among those of this process, or None.
    """

    def __init__(self, served: Served, gpu: str | None) -> None:
        python = check_python()
        # The other environment gets this package, and nothing else of this one.
        self._folder = tempfile.TemporaryDirectory(prefix="flowllm-vllm-")
        place = Path(self._folder.name)
        package = Path(str(llm_prior.__file__)).resolve().parent
        (place / package.name).symlink_to(package, target_is_directory=True)
        self._log = place / "log.txt"
        environment = {**variables(), **_SETTINGS, "PYTHONPATH": str(place)}
        if gpu is not None:
            seen = environment.get("CUDA_VISIBLE_DEVICES")
            environment["CUDA_VISIBLE_DEVICES"] = seen.split(",")[int(gpu)] if seen else gpu
        logger.info("vLLM loads %s, log in %s", served.prior, self._log)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [python, "-m", "llm_prior.serving.server"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=place,  # Python looks for modules here first
                env=environment,
                start_new_session=True,  # Ctrl-C is for this process, which ends the other
            )
        self._end = weakref.finalize(self, _end, self._process, self._folder)
        self.send({**asdict(served), "scratch": str(place)})
        version = self.receive().get("ready")
        logger.info("vLLM %s is ready", version)

    def send(self, content: dict[str, Any]) -> None:
        """Send a line."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(content).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise self._lost() from None

    def receive(self) -> dict[str, Any]:
        """Return the next line."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._lost()
        try:
            content = json.loads(line)
        except ValueError:
            content = None
        if not isinstance(content, dict):
            self.close()
            raise PriorError(
                f"the server of vLLM wrote {line[:80]!r}, no answer; make its environment again"
            )
        if "error" in content:
            log = self._kept_log()
            self.close()
            raise PriorError(f"vLLM fails: {content['error']}; its log is {log}")
        return content

    def close(self) -> None:
        """End the process and those that it started."""
        self._end()

    def _lost(self) -> PriorError:
        code = self._process.wait()
        log = self._kept_log()
        self.close()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        return PriorError(f"the process of vLLM {how}; see {log}, and run the same command again")

    def _kept_log(self) -> Path:
        """Copy the log out of the folder that is deleted, and return its path."""
        number, name = tempfile.mkstemp(prefix="flowllm-vllm-", suffix=".log")
        with os.fdopen(number, "wb") as kept:
            kept.write(self._log.read_bytes())
        return Path(name)


def _end(process: subprocess.Popen[bytes], folder: tempfile.TemporaryDirectory[str]) -> None:
    """End a server: its standard input ends, and after a while it is killed with its children."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what was not sent is lost
                pipe.close()
    try:
        process.wait(_END_LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    folder.cleanup()
