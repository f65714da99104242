"""Two processes on the CPU (gloo), as `accelerate launch` starts them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from training_support import (
    ALL_PAIRS,
    TRAINING,
    processes,
    random_structure,
    small_training,
)
from transformers import LlamaConfig, LlamaForCausalLM

from flowllm.crystals.io import Crystal, write
from flowllm.errors import UserError
from flowllm.training import engine as training
from flowllm.training.fsdp import check_sharding
from flowllm.training.prior import train_prior
from llm_prior import Prior, TextFormat
from llm_prior.tokenizer import compact_tokenizer
from support import ROOT

SETTINGS = (
    *("training.epochs=3", "training.warmup_steps=2", "training.save_steps=2"),
    *("training.bf16=false", "training.logging_steps=1", "training.learning_rate=1e-2"),
    *("model.architecture.hidden_size=16", "model.architecture.intermediate_size=16"),
    *("model.architecture.num_hidden_layers=1", "model.architecture.num_attention_heads=2"),
)  # AdamW divides a gradient by its size, so equal sums of floats in another order drift slowly


# What `accelerate launch` makes of tools/accelerate/fsdp.yaml.
SHARDED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    crystals = [Crystal(id=f"c{seed}", structure=random_structure(seed)) for seed in range(16)]
    write(crystals, tmp_path / "train.jsonl")
    return tmp_path / "train.jsonl"


def launch(
    data: Path, out: Path, *settings: str, flags: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """`flowllm train-llm` in two processes."""
    command = [
        *("accelerate", "launch", "--num_processes", "2", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
        *(flags or ["--cpu"]),
        *("-m", "flowllm", "train-llm", "--data", str(data), "--out", str(out), "--device", "cpu"),
        *(*SETTINGS, *settings),
    ]
    return subprocess.run(
        [sys.executable, "-m", "accelerate.commands.accelerate_cli", *command[1:]],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def train_in_process(
    environment: dict[str, str], train: Callable[..., Path], arguments: dict[str, Any]
) -> None:
    os.environ.update(environment)
    if "ACCELERATE_USE_FSDP" in environment:
        gather = training.gather_weights

        def checked(model: torch.nn.Module, *, keep: bool) -> None:
            assert all(isinstance(weight, DTensor) for weight in model.parameters())
            gather(model, keep=keep)

        training.gather_weights = checked  # in this process alone
    train(**arguments)


def train_in_two(
    data: Path,
    out: Path,
    *settings: str,
    overrides: Sequence[str] = SETTINGS,
    resume: bool = False,
    **env: str,
) -> None:
    """The same without the seconds that a launcher takes, with the environment that it makes."""
    arguments = {"data": [data], "out": out, "device": "cpu", "resume": resume}
    in_two(train_prior, {**arguments, "overrides": [*overrides, *settings]}, **env)


def in_two(train: Callable[..., Path], arguments: dict[str, Any], **env: str) -> None:
    """Train in two processes with the environment that a launcher makes."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    env |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    both = [
        processes.Process(
            target=train_in_process,
            args=({**env, "RANK": str(rank), "LOCAL_RANK": str(rank)}, train, arguments),
        )
        for rank in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(timeout=120)
    assert [process.exitcode for process in both] == [0, 0]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


def adapter(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "adapter_model.safetensors")


def test_two_processes_train_as_one_with_twice_the_batch(data: Path, tmp_path: Path) -> None:
    train_in_two(data, tmp_path / "two", "training.batch_size=4")
    accumulated = [*SETTINGS, "training.batch_size=4", "training.gradient_accumulation=2"]
    for out, overrides in (
        ("accumulated", accumulated),
        ("started", [*accumulated, "training.learning_rate=1e-30", "training.max_steps=1"]),
    ):
        train_prior(data=[data], out=tmp_path / out, overrides=overrides, device="cpu")
    found, expected, start = (weights(tmp_path / o) for o in ("two", "accumulated", "started"))
    for name, weight in expected.items():
        assert (weight - start[name]).abs().max() > 1e-3
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-4)


def test_accumulated_gradients_are_those_of_a_large_batch(data: Path, tmp_path: Path) -> None:
    for out, size, times in (("large", 16, 1), ("accumulated", 4, 4)):
        settings = (f"training.batch_size={size}", f"training.gradient_accumulation={times}")
        train_prior(data=[data], out=tmp_path / out, overrides=[*SETTINGS, *settings], device="cpu")
    found, expected = weights(tmp_path / "accumulated"), weights(tmp_path / "large")
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-4)


def test_sharded_weights_train_resume_and_end_as_whole_ones_do(data: Path, tmp_path: Path) -> None:
    """FSDP: whole weights in one process, with twice the batch, come to the same."""
    flags = ("--config_file", str(ROOT / "tools" / "accelerate" / "fsdp.yaml"))
    sharded = launch(data, tmp_path / "sharded", "training.batch_size=4", flags=flags)
    assert sharded.returncode == 0, sharded.stderr[-3000:]
    train_prior(
        data=[data],
        out=tmp_path / "whole",
        overrides=[*SETTINGS, "training.batch_size=4", "training.gradient_accumulation=2"],
        device="cpu",
    )
    found, expected = weights(tmp_path / "sharded"), weights(tmp_path / "whole")
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-4)
    Prior.from_pretrained(tmp_path / "sharded" / "model")

    for name in ("model", "checkpoint-4", "checkpoint-6"):
        shutil.rmtree(tmp_path / "sharded" / name)
    train_in_two(
        data,
        tmp_path / "sharded",
        "training.batch_size=4",
        resume=True,
        **SHARDED,
    )
    for name, weight in weights(tmp_path / "sharded").items():
        assert torch.equal(weight, found[name])


def test_a_tuning_with_sharded_weights_ends_as_one_with_copies(files: Path, tmp_path: Path) -> None:
    train = small_training("tune", files)
    overrides = [*TRAINING, *ALL_PAIRS, "training.epochs=2", "training.bf16=false"]
    for out, env in (("copied", {}), ("sharded", SHARDED)):
        in_two(train, {"out": tmp_path / out, "overrides": overrides}, **env)
    found, expected = (weights(tmp_path / out) for out in ("sharded", "copied"))
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-4)
    figures, others = (
        json.loads((tmp_path / out / "run.json").read_text())["info"]["figures"]
        for out in ("sharded", "copied")
    )
    assert figures == pytest.approx(others, abs=1e-3) and "margin" in figures


def test_sharded_4bit_weights_train_and_resume_as_whole_ones_do(data: Path, tmp_path: Path) -> None:
    """QLoRA with FSDP 2. `train_in_process` asserts that each weight is divided, 4-bit ones too."""
    tokenizer = compact_tokenizer(TextFormat())
    torch.manual_seed(0)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos")}
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "vocab_size": len(tokenizer)}
    LlamaForCausalLM(LlamaConfig(**sizes, **ids)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    settings = (
        *(f"model.name={tmp_path / 'base'}", "model.architecture=null", "model.quantization=4bit"),
        *("model.lora.r=2", "model.lora.dropout=0", "training.gradient_checkpointing=true"),
        "training.batch_size=4",
    )
    overrides = [*SETTINGS[:6], *settings]

    train_in_two(data, tmp_path / "sharded", overrides=overrides, **SHARDED)
    train_prior(
        data=[data],
        out=tmp_path / "whole",
        overrides=[*overrides, "training.gradient_accumulation=2"],
        device="cpu",
    )
    found, expected = (adapter(tmp_path / name) for name in ("sharded", "whole"))
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=5e-3)
        assert weight.abs().max() > 0.01  # lora_B starts at zero
    prior = Prior.from_pretrained(tmp_path / "sharded" / "model")
    assert any(type(module).__name__ == "Linear4bit" for module in prior.model.modules())

    for name in ("model", "checkpoint-4", "checkpoint-6"):
        shutil.rmtree(tmp_path / "sharded" / name)
    train_in_two(data, tmp_path / "sharded", overrides=overrides, resume=True, **SHARDED)
    for name, weight in adapter(tmp_path / "sharded").items():
        assert torch.equal(weight, found[name])


def test_each_process_loads_onto_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers puts 4-bit weights on the current GPU, which is the first in all processes."""
    chosen: list[int] = []
    monkeypatch.setattr(training, "pick_device", lambda device: device)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert training.training_device("cuda") == "cuda" and chosen == [3]
    assert training.training_device("cpu") == "cpu" and chosen == [3]
    monkeypatch.delenv("LOCAL_RANK")
    assert training.training_device("cuda") == "cuda" and chosen == [3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fsdp_version": 1}, "FSDP 1 is not supported; .*--fsdp_version 2"),
        ({"state_dict_type": "SHARDED_STATE_DICT"}, "--fsdp_state_dict_type FULL_STATE_DICT"),
        ({"ema_decay": 0.9}, "no average is kept of sharded weights; set training.ema_decay to 0"),
    ],
)
def test_what_sharded_weights_cannot_do_is_refused(change: dict[str, Any], message: str) -> None:
    decay = change.pop("ema_decay", 0.0)
    settings = {"fsdp_version": 2, "state_dict_type": "FULL_STATE_DICT"} | change
    plugin = FullyShardedDataParallelPlugin(**settings)
    accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin))
    with pytest.raises(UserError, match=message):
        check_sharding(accelerator, ema_decay=decay)


def test_what_the_first_process_refuses_ends_the_others(data: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("my work")
    refused = launch(data, tmp_path / "out")
    assert refused.returncode != 0 and "thesis.tex" in refused.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]
