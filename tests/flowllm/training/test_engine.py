"""The engine on a straight line through made-up points: small enough to follow by hand."""

from __future__ import annotations

import functools
import json
import logging
import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from flowllm.errors import UserError
from flowllm.training import engine as training
from flowllm.training.checkpoints import (
    MARKER,
    complete_checkpoints,
    newest_complete,
    verify_checkpoint,
)
from flowllm.training.config import TrainingConfig
from flowllm.training.ema import EMA_FILE
from flowllm.training.engine import NonFiniteLoss, train, training_device

# Two loader workers, forked, are wanted here even on a machine of one core.
pytestmark = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create 2 worker processes:UserWarning",
    "ignore:This process .* is multi-threaded:DeprecationWarning",
)


class Points:
    """Point `i` is called `p<i>`; its x comes from the generator of the draw."""

    def __init__(self, count: int = 12, values: dict[int, float] | None = None) -> None:
        self.count = count
        self.values = values or {}

    def __len__(self) -> int:
        return self.count

    def size(self, index: int, rng: np.random.Generator) -> int:
        return 1

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        return {"ids": f"p{index}", "x": self.values.get(index, rng.random())}


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    x = torch.tensor([[item["x"]] for item in items], dtype=torch.float32)
    return {"ids": [item["ids"] for item in items], "x": x}


class Line(torch.nn.Module):
    """Fits 2 x + 1 through dropout, and remembers its weight at each forward pass and all x."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.line = torch.nn.Linear(1, 1)
        self.dropout = torch.nn.Dropout(dropout)
        with torch.no_grad():
            self.line.weight.fill_(0.5)
            self.line.bias.fill_(0.0)
        self.weights: list[float] = []
        self.evaluated: list[list[float]] = []

    def forward(self, x: torch.Tensor, return_loss: bool = True) -> dict[str, torch.Tensor]:
        if self.training:
            self.weights.append(self.line.weight.item())
        else:
            self.evaluated.append(x.flatten().tolist())
        return {"loss": (self.line(self.dropout(x)) - 2 * x - 1).square().mean()}


config = functools.partial(
    TrainingConfig, epochs=4, batch_size=3, warmup_steps=1, save_steps=4, bf16=False
)  # 4 steps an epoch


def run(model: Line, folder: Path, settings: TrainingConfig, **options: Any) -> dict[str, float]:
    options = {"data": Points(), "collate": collate, "seed": 5, "device": "cpu"} | options
    return train(model, options.pop("data"), config=settings, folder=folder, **options)


def parameters(model: torch.nn.Module) -> list[float]:
    return torch.nn.utils.parameters_to_vector(model.parameters()).tolist()


@pytest.mark.parametrize("changes", [{}, {"gradient_accumulation": 2}, {"bf16": True}])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path, changes: dict) -> None:
    settings = config(ema_decay=0.9, save_steps=3, **changes)
    whole = Line(dropout=0.3)
    run(whole, tmp_path / "whole", settings, validation=Points(5))
    steps = 8 if settings.gradient_accumulation == 2 else 16
    assert len(whole.weights) == 16 and newest_complete(tmp_path / "whole").name.endswith(
        f"-{steps}"
    )

    for checkpoint in complete_checkpoints(tmp_path / "whole"):
        step = int(checkpoint.name.split("-")[1])
        shutil.copytree(checkpoint, tmp_path / str(step) / checkpoint.name)
        # More workers, and another state of the global generators, change nothing.
        torch.manual_seed(step)
        resumed = Line(dropout=0.3)
        several = config(ema_decay=0.9, save_steps=3, num_workers=2, **changes)
        run(resumed, tmp_path / str(step), several, resume=True, validation=Points(5))
        assert parameters(resumed) == parameters(whole)
        assert len(resumed.weights) == (steps - step) * settings.gradient_accumulation
    assert parameters(whole) != parameters(Line())


def test_resume_without_a_checkpoint_starts_at_the_beginning(tmp_path: Path) -> None:
    model, resumed = Line(), Line()
    run(model, tmp_path / "a", config())
    run(resumed, tmp_path / "b", config(), resume=True)
    assert parameters(resumed) == parameters(model)


def test_seeds_decide_the_run(tmp_path: Path) -> None:
    models = [Line(dropout=0.3) for _ in range(3)]
    for number, (model, seed) in enumerate(zip(models, (1, 1, 2), strict=True)):
        run(model, tmp_path / str(number), config(), seed=seed)
    assert parameters(models[0]) == parameters(models[1]) != parameters(models[2])


def test_a_seed_may_have_more_than_32_bits(tmp_path: Path) -> None:
    small, large = Line(dropout=0.5), Line(dropout=0.5)
    run(small, tmp_path / "small", config(), seed=5)
    run(large, tmp_path / "large", config(), seed=5 + 2**32)
    assert parameters(small) != parameters(large)


def test_max_steps_ends_a_run_and_a_resumed_one_goes_no_further(tmp_path: Path) -> None:
    settings = config(max_steps=5, gradient_accumulation=2, epochs=9)
    model, resumed = Line(), Line()
    run(model, tmp_path, settings)
    assert len(model.weights) == 10
    assert newest_complete(tmp_path).name == "checkpoint-5"
    run(resumed, tmp_path, settings, resume=True)
    assert parameters(resumed) == parameters(model) and not resumed.weights


def test_max_steps_beyond_the_epochs_repeats_no_draw(tmp_path: Path) -> None:
    model = Line()
    run(model, tmp_path, config(max_steps=99, epochs=2))
    assert len(model.weights) == 8


def test_the_average_is_what_a_hand_calculation_gives(tmp_path: Path) -> None:
    model = Line()
    decay = 0.6
    run(model, tmp_path, config(ema_decay=decay, learning_rate=0.1))
    final = load_file(tmp_path / "checkpoint-16" / "model.safetensors")["line.weight"].item()
    average = 0.5
    for step, weight in enumerate([*model.weights[1:], final], start=1):
        d = min(decay, (1 + step) / (10 + step))  # 2/11, 3/12, ... up to 0.6 from step 13 on
        average = d * average + (1 - d) * weight
    assert model.line.weight.item() == pytest.approx(average, rel=1e-6)
    assert abs(average - final) > 1e-3
    stored = load_file(tmp_path / "checkpoint-16" / EMA_FILE)
    assert stored["line.weight"].item() == model.line.weight.item()


def test_an_average_leaves_frozen_weights_alone(tmp_path: Path) -> None:
    model = Line()
    model.line.bias.requires_grad_(False)
    run(model, tmp_path, config(ema_decay=0.5, learning_rate=0.1))
    assert model.line.bias.item() == 0 and model.line.weight.item() != 0.5
    assert set(load_file(tmp_path / "checkpoint-16" / EMA_FILE)) == {"line.weight"}


def test_validation_looks_at_the_same_draws_each_time(tmp_path: Path) -> None:
    model = Line()
    run(model, tmp_path, config(eval_steps=4), validation=Points(6))
    first, *others = [model.evaluated[start : start + 2] for start in range(0, 8, 2)]
    assert len(model.evaluated) == 8 and others == [first] * 3
    assert len({x for batch in first for x in batch}) == 6


def test_validation_is_of_the_averaged_weights_and_leaves_the_others(
    tmp_path: Path, caplog
) -> None:
    caplog.set_level(logging.INFO, "flowllm")
    settings = config(ema_decay=0.9, learning_rate=0.1, eval_steps=8)
    model, alone = Line(), Line()
    run(model, tmp_path / "a", settings, validation=Points(3))
    run(alone, tmp_path / "b", settings)
    assert parameters(model) == parameters(alone)
    # At the end the model has the average, and the last evaluation saw that.
    shown = float(re.findall(r"'eval_loss': '([^']+)'", caplog.text)[-1])
    x = torch.tensor([[value] for value in model.evaluated[-1]])
    assert shown == pytest.approx(model.eval()(x)["loss"].item(), rel=1e-3)
    raw = load_file(tmp_path / "a" / "checkpoint-16" / "model.safetensors")["line.weight"].item()
    assert abs(raw - model.line.weight.item()) > 1e-3


def test_the_log_tells_loss_rate_and_time_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    caplog.set_level(logging.INFO, "flowllm")
    run(Line(), tmp_path, config(logging_steps=8, report_to="tensorboard"))
    lines = [line for line in caplog.text.splitlines() if "crystals_per_second" in line]
    assert len(lines) == 2 and "'minutes_left': '0'" in lines[-1]
    assert "epoch" not in lines[-1]  # the Trainer's, which counts all passes as one
    (events,) = tmp_path.rglob("events.out.tfevents.*")
    assert b"crystals_per_second" in events.read_bytes()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the engine, and not a library below it, warned of."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == training.log.name and record.levelno == logging.WARNING
    ]


@pytest.mark.parametrize(("value", "shown"), [(math.nan, "nan"), (1e30, "inf")])
def test_a_loss_that_is_not_finite_is_shown_and_moves_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, value: float, shown: str
) -> None:
    model = Line()
    settings = config(
        batch_size=1, epochs=1, learning_rate=0.1, warmup_steps=0, weight_decay=0.5, save_steps=1
    )
    run(model, tmp_path, settings, data=Points(6, {3: value}))
    (warning,) = warnings(caplog)
    assert "(batch: p3)" in warning and f"the loss is {shown};" in warning
    bad = int(warning.split()[1].rstrip(":"))  # counts steps from 1
    before = [*model.weights, model.line.weight.item()]
    moved = [before[step] != before[step - 1] for step in range(1, 7)]
    assert moved == [step != bad for step in range(1, 7)]
    assert all(map(math.isfinite, before))
    for checkpoint in complete_checkpoints(tmp_path):
        assert all(w.isfinite().all() for w in load_file(checkpoint / "model.safetensors").values())


def test_a_single_one_does_not_spoil_the_reported_loss(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "flowllm")
    metrics = run(Line(), tmp_path, config(batch_size=1, epochs=1), data=Points(6, {3: math.nan}))
    assert math.isfinite(metrics["train_loss"])
    assert "loss" in caplog.text and "'loss': 'nan'" not in caplog.text


def test_five_in_a_row_stop_the_run_with_their_ids(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = Line()
    bad = dict.fromkeys(range(1, 6), math.nan)  # five of the six points of an epoch
    settings = config(batch_size=1, epochs=99, learning_rate=0.1, save_steps=1)
    with pytest.raises(NonFiniteLoss, match="5 losses in a row .* on p[1-5]; look at") as error:
        run(model, tmp_path, settings, data=Points(6, bad), seed=4)
    assert isinstance(error.value, UserError)
    dropped = [int(line.split()[1].rstrip(":")) for line in warnings(caplog)]
    in_a_row = [dropped[i + 4] - dropped[i] == 4 for i in range(len(dropped) - 4)]
    assert in_a_row == [False] * (len(dropped) - 5) + [True]
    assert f"the last at step {dropped[-1]} on " in str(error.value)
    assert model.line.weight.item() != 0.5 and all(map(math.isfinite, parameters(model)))


def test_fewer_than_five_in_a_row_never_stop_it(tmp_path: Path, caplog) -> None:
    # One of the two points of an epoch is bad, so at most two in a row are.
    model = Line()
    run(model, tmp_path, config(batch_size=1, epochs=10), data=Points(2, {1: math.nan}))
    assert len(model.weights) == 20
    assert caplog.text.count("its gradient is dropped (batch: p1)") == 10


def test_stdout_stays_free(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "flowllm")
    settings = config(logging_steps=2, eval_steps=8)
    run(Line(), tmp_path / "bar", settings, validation=Points(3))
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "16/16" in shown.err and "it/s" in shown.err
    assert "step 2/16 {'loss':" in caplog.text and "step 16/16 {'eval_loss':" in caplog.text

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # makes the Trainer print instead of showing a bar
    try:
        run(Line(), tmp_path / "quiet", settings)
    finally:
        transformers.logging.set_verbosity(verbosity)
    assert capfd.readouterr().out == ""


def test_no_pickled_object_is_written_or_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(Line(), tmp_path, config(ema_decay=0.5))
    shutil.rmtree(tmp_path / "checkpoint-16")
    files = {
        *("model.safetensors", EMA_FILE, "trainer_state.json"),
        *("optimizer.pt", "scheduler.pt", "rng_state.pth"),
    }
    checkpoint = tmp_path / "checkpoint-12"
    assert {path.name for path in checkpoint.iterdir()} == {*files, MARKER}
    assert json.loads((checkpoint / MARKER).read_text()).keys() == files  # all have their hash
    loaded = {}
    load = torch.load

    def watched(file: Any, *args: Any, **options: Any) -> Any:
        loaded[Path(file).name] = options.get("weights_only")
        return load(file, *args, **options)

    monkeypatch.setattr(torch, "load", watched)
    run(Line(), tmp_path, config(ema_decay=0.5), resume=True)
    assert loaded == dict.fromkeys(["optimizer.pt", "scheduler.pt", "rng_state.pth"], True)


def test_a_run_always_has_a_complete_checkpoint_once_it_had_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete_before_marking = []
    mark = training.mark_complete

    def watched(folder: Path) -> None:
        complete_before_marking.append(len(complete_checkpoints(tmp_path)))
        mark(folder)

    monkeypatch.setattr(training, "mark_complete", watched)
    run(Line(), tmp_path, config(save_steps=1))
    assert complete_before_marking == [0, 1, *[2] * 14]
    assert [path.name for path in complete_checkpoints(tmp_path)] == [
        *("checkpoint-14", "checkpoint-15", "checkpoint-16"),
    ]
    for checkpoint in complete_checkpoints(tmp_path):
        verify_checkpoint(checkpoint)


def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_taken_once_it_is_gone(
    tmp_path: Path,
) -> None:
    whole, resumed = Line(), Line()
    run(whole, tmp_path, config())
    damaged = tmp_path / "checkpoint-16" / "optimizer.pt"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with pytest.raises(UserError, match=f"{damaged} is missing or damaged; delete"):
        run(Line(), tmp_path, config(), resume=True)
    shutil.rmtree(damaged.parent)
    run(resumed, tmp_path, config(), resume=True)
    assert len(resumed.weights) == 4 and parameters(resumed) == parameters(whole)


def test_what_cannot_be_done_here_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="a Line has no gradient checkpointing; set training.grad"):
        run(Line(), tmp_path, config(gradient_checkpointing=True))
    monkeypatch.setattr(training, "find_spec", {"wandb": None}.__getitem__)
    with pytest.raises(UserError, match="report_to is wandb, which is not installed: pip install"):
        run(Line(), tmp_path, config(report_to="wandb"))
    with pytest.raises(UserError, match="unknown device 'gpu'; use cpu, cuda"):
        run(Line(), tmp_path, config(), device="gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="device cuda is not there"):
        run(Line(), tmp_path, config(), device="cuda")
    assert not list(tmp_path.iterdir())


def test_a_training_takes_one_kind_of_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for count, chosen in ((0, "cpu"), (2, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda count=count: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        assert training_device("cpu") == "cpu"
        assert training_device("auto") == chosen
    assert training_device("cuda") == "cuda"
    with pytest.raises(UserError, match="cuda:1: .*CUDA_VISIBLE_DEVICES"):
        training_device("cuda:1")


def test_several_gpus_in_one_process_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers.TrainingArguments, "n_gpu", 2)
    with pytest.raises(UserError, match="2 GPUs and one process: start with `accelerate launch"):
        run(Line(), tmp_path, config())


class Texts:
    """Texts of one label 0, or of label 1 and eight more labels, as often as each other."""

    def __len__(self) -> int:
        return 64

    def size(self, index: int, rng: np.random.Generator) -> int:
        return 1 if index % 2 else 9

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        return {"ids": str(index), "labels": [0] if index % 2 else [1] + [2] * 8}


def collate_texts(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    labels = torch.full((len(items), 9), -100)
    for row, item in enumerate(items):
        labels[row, : len(item["labels"])] = torch.tensor(item["labels"])
    return {"ids": [item["ids"] for item in items], "input_ids": labels, "labels": labels}


class FirstLabel(torch.nn.Module):
    """Learns the distribution of the first label; the others have a loss of 1 each."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.zeros(2))

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        first = torch.nn.functional.cross_entropy(
            self.logits.expand(len(labels), 2), labels[:, 0], reduction="sum"
        )
        count = (labels != -100).sum()
        loss = (first + count - len(labels)) / kwargs.get("num_items_in_batch", count)
        return {"loss": loss}


def test_texts_of_any_length_have_the_same_weight(tmp_path: Path) -> None:
    settings = config(epochs=40, batch_size=8, learning_rate=0.05, max_grad_norm=0, save_steps=900)
    shares = []
    for labels_per_draw in (5.0, None):
        model = FirstLabel()
        run(
            model, tmp_path / str(labels_per_draw), settings, data=Texts(), collate=collate_texts,
            labels_per_draw=labels_per_draw, validation=Texts(),
        )  # fmt: skip
        shares.append(model.logits.softmax(0)[0].item())
    assert shares[0] == pytest.approx(0.5, abs=0.05)
    assert shares[1] > 0.7  # what the mean over the labels of each batch would learn


def test_validation_loss_does_not_depend_on_the_labels_of_the_training_data(
    tmp_path: Path,
) -> None:
    settings = config(epochs=1, batch_size=8, learning_rate=1e-9)
    losses = []
    for labels_per_draw in (5.0, 50.0):
        folder = tmp_path / str(labels_per_draw)
        run(
            FirstLabel(), folder, settings, data=Texts(), collate=collate_texts,
            labels_per_draw=labels_per_draw, validation=Texts(), validation_labels_per_draw=5.0,
        )  # fmt: skip
        states = [json.loads(p.read_text()) for p in folder.glob("checkpoint-*/trainer_state.json")]
        (last,) = [state for state in states if state["global_step"] == state["max_steps"]]
        losses += [entry["eval_loss"] for entry in last["log_history"] if "eval_loss" in entry]
    assert losses == pytest.approx([losses[0]] * 2)
    assert losses[0] == pytest.approx((np.log(2) + 4) / 5, rel=1e-3)  # nats per label


def test_evaluations_do_not_change_the_weights(tmp_path: Path) -> None:
    ends = []
    for every in (1, 900):
        model = FirstLabel()
        run(
            model, tmp_path / str(every), config(epochs=1, batch_size=8, eval_steps=every),
            data=Texts(), collate=collate_texts, labels_per_draw=5.0, validation=Texts(),
            validation_labels_per_draw=50.0,
        )  # fmt: skip
        ends.append(model.logits.tolist())
    assert ends[0] == ends[1]
