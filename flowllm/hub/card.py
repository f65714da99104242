"""Model cards: data, recipe, intended use and figures of a model, and hashes of its weights.

A card is the `README.md` of a model folder (Mitchell et al. 2019, arXiv 1810.03993) in the format
of Hugging Face: YAML with licence, data and figures (`model-index`), followed by text. The key
`weights_sha256` is our own. A model whose weights do not have these hashes is refused, because the
figures do not hold for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from flowllm.errors import UserError
from flowllm.system.documents import parse_yaml
from flowllm.system.files import sha256_file, write_atomic

CARD_FILE = "README.md"
LIBRARY = "flowllm-crystal"
_WEIGHTS_KEY = "weights_sha256"
_FENCE = "---"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Figures measured by one command.

    Attributes:
        what: the crystals that were measured and how they were made.
        dataset: name of the data set that they are compared with.
        command: command line that repeats the measurement.
        figures: figures by name, each with the fields of `flowllm.metrics.intervals.Estimate`:
            `value`, `low` and `high` (ends of the 95% interval, or None) and `count`.
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
    """Write the card of a model whose weights are in place; see `card_text`.

    An existing card is replaced.

    Returns:
        The file of the card.

    Raises:
        UserError: if the folder holds no safetensors file.
    """
    text = card_text(
        folder,
        name=name,
        sections=sections,
        measurements=measurements,
        tags=tags,
        datasets=datasets,
        license=license,
    )
    return write_atomic(folder / CARD_FILE, text)


def card_text(
    folder: Path,
    *,
    name: str,
    sections: Mapping[str, str],
    measurements: Sequence[Measurement] = (),
    tags: Sequence[str] = (),
    datasets: Sequence[str] = (),
    license: str | None = None,
) -> str:
    """Return the card of a model whose weights are in place.

    Args:
        folder: folder of the model, or of several models in subfolders.
        name: name of the model.
        sections: text by heading, in the order of the card; the text without a heading comes first.
        measurements: figures of the model.
        tags: tags on the hub.
        datasets: names of the training data on the hub.
        license: licence of the model, as the hub abbreviates it.

    Returns:
        The text.

    Raises:
        UserError: if the folder holds no safetensors file.
    """
    weights = {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in sorted(folder.rglob("*.safetensors"))
    }
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
    extra: dict[str, Any] = {_WEIGHTS_KEY: weights}
    head = ModelCardData(
        license=license,
        library_name=LIBRARY,
        tags=list(tags) or None,
        datasets=list(datasets) or None,
        model_name=name,
        eval_results=results or None,
        **extra,
    )
    parts = [f"{_FENCE}\n{head.to_yaml()}\n{_FENCE}", f"# {name}"]
    for heading, text in sections.items():
        parts += [f"## {heading}", text] if heading else [text]
    if measurements:
        parts += ["## Figures", *map(_table, measurements)]
    return "\n\n".join(parts) + "\n"


def check_weights(folder: Path) -> None:
    """Check the weights of a model against the hashes in its card, if it has a card with hashes.

    Args:
        folder: folder of the model.

    Raises:
        UserError: if weights differ or are missing, or if the head of the card cannot be read.
    """
    card = folder / CARD_FILE
    if not card.is_file():
        return
    try:
        listed = dict(_head(card).get(_WEIGHTS_KEY) or {})
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{card}: its head is no YAML of a model card; fix it, or delete the card"
        ) from error
    for name, expected in listed.items():
        weights = folder / name
        if not weights.is_file():
            raise UserError(f"{weights} is missing, but {card} lists it; copy the model again")
        if (found := sha256_file(weights)) != expected:
            raise UserError(
                f"{weights} is not what its model card describes (sha256 {found[:8]}, not "
                f"{str(expected)[:8]} as in {card}); copy the model again, or delete the card if "
                "you changed the weights on purpose"
            )


def _head(card: Path) -> dict[str, Any]:
    """Return the YAML between the first two fences; empty if the card does not begin with one."""
    text = card.read_text(encoding="utf-8")
    if not text.startswith(_FENCE):
        return {}
    return parse_yaml(text.split(f"\n{_FENCE}", 1)[0].removeprefix(_FENCE)) or {}


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
