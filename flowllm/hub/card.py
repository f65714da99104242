"""Model cards: what a model was made of, what it is for, how good it is, and its weights' hashes.

A card is the `README.md` of a model folder (Mitchell et al. 2019, arXiv 1810.03993, in Hugging
Face's format): YAML with licence, data and the measured figures (`model-index`), then text for
people. One key is ours: `weights_sha256`, by which a model with other weights than those that were
measured is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from flowllm.errors import UserError
from flowllm.runs.checkpoints import newest_complete
from flowllm.system.files import sha256_file, write_atomic

CARD_FILE = "README.md"
LIBRARY = "flowllm-crystal"
_WEIGHTS_KEY = "weights_sha256"
_FENCE = "---"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Figures that one command measured.

    Attributes:
        what: which crystals were asked for, and how.
        dataset: name of the data set that they are held against.
        command: repeats the measurement.
        figures: by name, each with `value`, `low` and `high` (ends of the 95% interval, or None)
            and `count`; as `flowllm.metrics.intervals.Estimate` has them.
    """

    what: str
    dataset: str
    command: str
    figures: Mapping[str, Mapping[str, Any]]


def write_card(
    folder: Path,
    *,
    name: str,
    sections: Mapping[str, str],
    measurements: Sequence[Measurement] = (),
    tags: Sequence[str] = (),
    datasets: Sequence[str] = (),
    license: str | None = None,
) -> Path:
    """Write the card of a model whose weights are in place.

    Args:
        folder: of the model; its card is replaced.
        name: of the model.
        sections: heading -> text, in the order of the card; an empty heading opens it.
        measurements: how good it is.
        tags, datasets, license: for the hub.

    Raises:
        UserError: the folder holds no safetensors file.
    """
    weights = {path.name: sha256_file(path) for path in sorted(folder.glob("*.safetensors"))}
    if not weights:
        raise UserError(f"{folder} holds no weights (*.safetensors); save the model first")
    results = [
        EvalResult(
            task_type="other",
            task_name=m.what,
            dataset_type=m.dataset,
            dataset_name=m.dataset,
            metric_type=figure,
            metric_name=figure,
            metric_value=found["value"],
        )
        for m in measurements
        for figure, found in m.figures.items()
        if found["value"] is not None
    ]
    head = ModelCardData(
        license=license,
        library_name=LIBRARY,
        tags=list(tags) or None,
        datasets=list(datasets) or None,
        model_name=name,
        eval_results=results or None,
        **{_WEIGHTS_KEY: weights},
    )
    parts = [f"{_FENCE}\n{head.to_yaml()}\n{_FENCE}", f"# {name}"]
    for heading, text in sections.items():
        parts += [f"## {heading}", text] if heading else [text]
    if measurements:
        parts += ["## Figures", *map(_table, measurements)]
    return write_atomic(folder / CARD_FILE, "\n\n".join(parts) + "\n")


def check_weights(folder: Path) -> None:
    """See that the weights of a model are those of its card; without a card, or with one that
    names no hashes, there is nothing to see.

    Raises:
        UserError: other weights, missing ones, or a card whose head cannot be read.
    """
    card = folder / CARD_FILE
    if not card.is_file():
        return
    try:
        listed = dict(_head(card).get(_WEIGHTS_KEY) or {})
    except (yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{card}: its head is no YAML of a model card; mend it, or delete the card"
        ) from error
    for name, expected in listed.items():
        weights = folder / name
        if not weights.is_file():
            raise UserError(f"{weights} is missing, {card} lists it; copy the model again")
        if (found := sha256_file(weights)) != expected:
            raise UserError(
                f"{weights} is not what its model card describes (sha256 {found[:8]}, not "
                f"{str(expected)[:8]} as in {card}); copy the model again, or delete the card if "
                "the weights are meant to be others"
            )


def write_training_card(folder: Path, run: Mapping[str, Any], training: Path) -> Path:
    """Write the card of a model that was just trained.

    Args:
        folder: of the model.
        run: what was asked, as `run.json` has it.
        training: the run folder, whose newest checkpoint knows the last validation loss.
    """
    data = "\n".join(f"- `{d['name']}`, sha256 `{d['sha256']}`" for d in run["data"])
    sections = {
        "": f"Trained by `flowllm {run['stage']}`, seed {run['seed']}.",
        "Data": f"{data}\n\nThe licence of the data is not known to the program that wrote this.",
        "Recipe": f"```yaml\n{yaml.safe_dump(run['recipe'], sort_keys=False)}```",
        "Limits": "What it generates has not been evaluated (`flowllm evaluate`).",
    }
    if (loss := _last_validation_loss(training)) is not None:
        step, value = loss
        sections["Validation"] = (
            f"Loss {value:.4f} at step {step}, on `{run['validation']['name']}`, sha256 "
            f"`{run['validation']['sha256']}`."
        )
    tags = ["crystals", "materials"]
    return write_card(folder, name=f"{run['stage']} model", sections=sections, tags=tags)


def _last_validation_loss(training: Path) -> tuple[int, float] | None:
    checkpoint = newest_complete(training)
    if checkpoint is None:
        return None
    history = json.loads((checkpoint / "trainer_state.json").read_bytes())["log_history"]
    losses = [(line["step"], line["eval_loss"]) for line in history if "eval_loss" in line]
    return losses[-1] if losses else None


def _head(card: Path) -> dict[str, Any]:
    """The YAML between the first two fences; empty for a card that does not begin with one."""
    text = card.read_text(encoding="utf-8")
    if not text.startswith(_FENCE):
        return {}
    return yaml.safe_load(text.split(f"\n{_FENCE}", 1)[0].removeprefix(_FENCE)) or {}


def _table(measurement: Measurement) -> str:
    rows = [
        f"| {name} | {_shown(found, 'value')} | {_interval(found)} | {found['count']} |"
        for name, found in measurement.figures.items()
    ]
    return "\n".join(
        [
            f"{measurement.what} (`{measurement.command}`):",
            "",
            "| figure | value | 95% interval | of |",
            "|---|---|---|---|",
            *rows,
        ]
    )


def _interval(found: Mapping[str, Any]) -> str:
    if found.get("low") is None:
        return ""
    return f"{_shown(found, 'low')} to {_shown(found, 'high')}"


def _shown(found: Mapping[str, Any], name: str) -> str:
    return "none" if found[name] is None else f"{found[name]:.3g}"
