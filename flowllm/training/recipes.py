"""Typed recipes: a YAML file by name or path, with `key=value` overrides.

A name such as `llm/small` is a file in `configs/`, which ships with the package. Unknown keys,
wrong types and impossible combinations are refused with the file and the key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import dacite

from flowllm.errors import UserError, one_line
from flowllm.system.documents import parse_yaml
from flowllm.system.options import as_tuple
from flowllm.training.config import RefinerTrainingConfig, TrainingConfig
from llm_prior import BaseModel, PriorError, TaskMix, TextFormat
from rfm import BaseConfig, IntegrationConfig, LossWeights, NetworkConfig, RefinerError


@dataclass(frozen=True, kw_only=True)
class PriorRecipe:
    """Settings of `flowllm train-llm`.

    Attributes:
        model: pretrained model, or architecture of a new one.
        text: precision of the text and size of the largest crystal.
        tasks: shares of the training tasks.
        training: hyperparameters.
    """

    model: BaseModel
    text: TextFormat = field(default_factory=TextFormat)
    tasks: TaskMix = field(default_factory=TaskMix)
    training: TrainingConfig


@dataclass(frozen=True, kw_only=True)
class RefinerRecipe:
    """Settings of `flowllm train-rfm`.

    Attributes:
        chart: coordinates of the cell, `logmetric` or `params`.
        network: size of the velocity network.
        base: distribution that the flow starts from.
        loss: weights of the parts of the loss.
        integration: settings that the refiner samples with by default.
        training: hyperparameters.
    """

    chart: str = "logmetric"
    network: NetworkConfig = field(default_factory=NetworkConfig)
    base: BaseConfig = field(default_factory=BaseConfig)
    loss: LossWeights = field(default_factory=LossWeights)
    integration: IntegrationConfig = field(default_factory=IntegrationConfig)
    training: RefinerTrainingConfig


AnyRecipe = TypeVar("AnyRecipe", PriorRecipe, RefinerRecipe)

_STAGES = {
    PriorRecipe: "a recipe for a prior; train it with train-llm, or give another recipe",
    RefinerRecipe: "a recipe for a refiner; train it with train-rfm, or give another recipe",
}


def named_recipes() -> list[str]:
    """Return the names of the recipes that ship with the package, such as `llm/small`."""
    return sorted(
        f"{folder.name}/{Path(file.name).stem}"
        for folder in _configs().iterdir()
        if folder.is_dir()
        for file in folder.iterdir()
        if file.name.endswith(".yaml")
    )


def load_recipe(
    kind: type[AnyRecipe], name: str | Path, overrides: str | Sequence[str] = ()
) -> AnyRecipe:
    """Read a recipe and apply overrides.

    Args:
        kind: class of the recipe.
        name: a name in `named_recipes()`, or the path of a YAML file.
        overrides: changes such as `training.epochs=3`; values are YAML.

    Returns:
        The recipe, all values checked.

    Raises:
        UserError: if there is no such recipe, the YAML is broken, a key is unknown, or a value has
            the wrong type or is impossible.
    """
    content = _read(name)
    try:
        settings = parse_yaml(content)
    except ValueError as error:
        raise UserError(f"{name} is not valid YAML: {one_line(error)}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{name} holds no settings; see configs/ for examples")
    if other := _other_stage(kind, settings):
        raise UserError(f"{name} is {other}")
    for override in as_tuple(overrides):
        _apply(settings, override)
    try:
        return dacite.from_dict(
            kind, settings, dacite.Config(strict=True, type_hooks={float: _to_float})
        )
    except dacite.UnexpectedDataError as error:
        found = _unknown_key(kind, settings) or one_line(error)
        raise UserError(f"{name}: {found}") from error
    except (dacite.DaciteError, PriorError, RefinerError, UserError) as error:
        raise UserError(f"{name}: {one_line(error)}") from error


def load_any_recipe(name: str | Path) -> PriorRecipe | RefinerRecipe:
    """Read a recipe of either stage.

    Args:
        name: as for `load_recipe`.

    Returns:
        The recipe, all values checked.

    Raises:
        UserError: as for `load_recipe`.
    """
    try:
        settings = parse_yaml(_read(name))
    except ValueError:
        settings = None  # load_recipe says why
    if isinstance(settings, dict) and _other_stage(PriorRecipe, settings):
        return load_recipe(RefinerRecipe, name)
    return load_recipe(PriorRecipe, name)


def _unknown_key(kind: type, settings: dict[str, Any], section: str = "") -> str | None:
    """Return a message on the first unknown key of a section, with the known keys, or None."""
    types = get_type_hints(kind)
    for key, value in settings.items():
        if key not in types:
            place = section.rstrip(".") or "a recipe"
            return f"unknown key {section}{key}; the keys of {place} are {', '.join(sorted(types))}"
        for type_ in (types[key], *get_args(types[key])):  # the type, or the parts of `X | None`
            nested = is_dataclass(type_) and isinstance(value, dict)
            if nested and (found := _unknown_key(type_, value, f"{section}{key}.")):
                return found
    return None


def _other_stage(kind: type, settings: dict[str, Any]) -> str | None:
    """Return the entry of `_STAGES` for settings that fit only the other stage, or None."""

    def fits(stage: type) -> bool:
        return settings.keys() <= {field.name for field in fields(stage)}

    others = [stage for stage in _STAGES if stage is not kind and fits(stage)]
    return None if fits(kind) or not others else _STAGES[others[0]]


def _configs() -> Any:
    """Return the folder `configs/`: in the package of a wheel, beside it in a source tree."""
    packaged = resources.files("flowllm") / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "configs"


def _read(name: str | Path) -> bytes:
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UserError(f"there is no config file {path}; check the path")
        return path.read_bytes()
    if str(name) not in named_recipes():
        raise UserError(
            f"there is no config {str(name)!r}; known are {', '.join(named_recipes())}, "
            "or give the path of a .yaml file"
        )
    return (_configs() / f"{name}.yaml").read_bytes()


def _apply(settings: dict[str, Any], override: str) -> None:
    key, sign, value = override.partition("=")
    if not sign or not key:
        raise UserError(f"override {override!r} is not of the form key=value")
    *parents, last = key.split(".")
    for parent in parents:
        if settings.get(parent) is None:
            settings[parent] = {}
        settings = settings[parent]
        if not isinstance(settings, dict):
            raise UserError(f"override {override!r}: {parent} is no section of the config")
    try:
        settings[last] = parse_yaml(value)
    except ValueError as error:
        raise UserError(f"override {override!r}: {one_line(error)}") from error


def _to_float(value: Any) -> Any:
    """Return a number as a float: YAML 1.1 reads 5e-4 as a string and 1 as an integer.

    Other values are returned as they are; dacite refuses them and names the key.
    """
    try:
        return value if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return value
