"""`flowllm train-rfm`: pairs -> refiner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from flowllm.crystals.io import read
from flowllm.errors import UserError
from flowllm.hub.card import check_weights
from flowllm.runs.sharded import batch_seed
from flowllm.training.engine import train
from flowllm.training.folder import training_run
from flowllm.training.pairing.table import read_pairs, targets_only
from flowllm.training.recipes import RFMRecipe, load_recipe
from flowllm.training.validation import VALIDATION_FILE, RefinerValidation
from rfm import (
    BaseConfig,
    NetworkConfig,
    PairDataset,
    PairedCrystal,
    Refiner,
    RefinerConfig,
    collate,
)


def train_rfm(
    config: str | Path = "rfm/small",
    *,
    pairs: str | Path | Sequence[str | Path] | None = (),
    data: Sequence[str | Path] = (),
    out: str | Path,
    validation: str | Path | None = None,
    init: str | Path | None = None,
    overrides: Sequence[str] = (),
    skip_invalid: bool = False,
    seed: int = 0,
    resume: bool = False,
    device: str = "auto",
) -> Path:
    """Train a refiner by Riemannian flow matching (FlowLLM, arXiv 2410.23405).

    An epoch draws every pair once, each time with fresh noise and another t: a target with k
    samples is drawn k times. A run keeps its pairs to the end; to add those that were made since,
    start another run with all of them from the model of the first (`init`).

    Args:
        config: recipe by name (`rfm/small`) or path.
        pairs: what `flowllm pair` made, one file or several; for `base.kind: llm` and, made with
            `--samples`, for `base.kind: file`.
        data: crystals, for `base.kind: uniform` (FlowMM, arXiv 2406.04713: no language model).
        out: run folder: `run.json`, `checkpoint-STEP/`, `validation.csv` (see
            `flowllm.training.validation`), at the end `model/`.
        validation: one file like `pairs` or `data`, to watch the training by.
        init: a trained refiner with the same network and chart, whose weights are the start.
        overrides: `key=value` changes to the recipe.
        skip_invalid: leave out bad rows of `data` instead of stopping.
        seed: of weights, order and draws.
        resume: go on from the newest complete checkpoint in `out`.
        device: `cpu`, `cuda` or `auto`.

    Returns:
        The model folder, `out/model`.

    Raises:
        UserError, RefinerError: bad recipe, data, pairs, initial model or run folder.
    """
    recipe = load_recipe(RFMRecipe, config, overrides)
    sources = _sources(recipe.base.kind, config, pairs, data)

    def load(paths: Sequence[str | Path], limit: int | None = None) -> list[PairedCrystal]:
        found = _read(recipe.base, paths, skip_invalid=skip_invalid, limit=limit)
        _check_elements(found, recipe.network.max_atomic_number)
        return found

    with training_run(
        out,
        stage="train-rfm",
        recipe=asdict(recipe),
        data=sources + ([init] if init else []),
        validation=validation,
        seed=seed,
        resume=resume,
    ) as run:
        if run.finished:
            return run.model
        start = None
        if init:
            check_weights(Path(init))
            start = Refiner.from_pretrained(init)
            _check_start(init, start.config, recipe, config)
        training_set = PairDataset(
            load(sources),
            chart_name=recipe.chart,
            base=recipe.base,
            # The weights of a trained refiner mean what they mean in its own units of the cell.
            statistics=start.config.statistics if start else None,
        )
        max_atoms = max(training_set.size(k) for k in range(len(training_set)))
        if start is not None and start.config.max_atoms is not None:
            max_atoms = max(max_atoms, start.config.max_atoms)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(batch_seed(seed, 0))  # torch itself sees the low 32 bits only
            refiner = Refiner(
                RefinerConfig(
                    statistics=training_set.statistics,
                    chart=recipe.chart,
                    max_atoms=max_atoms,
                    network=recipe.network,
                    base=recipe.base,
                    loss=recipe.loss,
                    integration=recipe.integration,
                )
            )
        if start is not None:
            refiner.load_state_dict(start.state_dict())
        if recipe.training.compile:
            refiner.network.compile_messages()
        evaluation = None
        if validation is not None:
            validation_pairs = load([validation], recipe.training.eval_crystals)
            validation_set = PairDataset(
                validation_pairs,
                chart_name=recipe.chart,
                base=recipe.base,
                statistics=training_set.statistics,
            )
            evaluation = RefinerValidation(
                validation_pairs,
                validation_set,
                config=recipe.training,
                file=run.folder / VALIDATION_FILE if run.first else None,
            )
        train(
            refiner,
            training_set,
            collate=collate,
            config=recipe.training,
            folder=run.folder,
            seed=seed,
            resume=resume,
            evaluation=evaluation,
            device=device,
        )
        return run.publish(refiner.save_pretrained)


def _sources(
    kind: str,
    config: str | Path,
    pairs: str | Path | Sequence[str | Path] | None,
    data: Sequence[str | Path],
) -> list[str | Path]:
    """The files that a base of this kind is trained on."""
    given = {
        "pairs": [pairs] if isinstance(pairs, str | Path) else list(pairs or ()),
        "data": list(data),
    }
    wanted, other = ("data", "pairs") if kind == "uniform" else ("pairs", "data")
    made = {
        "llm": "made by `flowllm pair`",
        "file": "made by `flowllm pair --samples FILE`",
        "uniform": "crystals",
    }
    if not given[wanted]:
        raise UserError(
            f"{config} has base.kind {kind}: give {wanted} (--{wanted} FILE), {made[kind]}"
        )
    if given[other]:
        raise UserError(
            f"{config} has base.kind {kind}, which uses no {other}; leave --{other} out"
        )
    return given[wanted]


def _read(
    base: BaseConfig, paths: Sequence[str | Path], *, skip_invalid: bool, limit: int | None
) -> list[PairedCrystal]:
    if not base.from_crystals:
        return [
            pair
            for path in paths
            for pair in targets_only(read(path, skip_invalid=skip_invalid, limit=limit))
        ]
    found = [pair for path in paths for pair in read_pairs(path, base=base.kind)]
    if limit is None or limit >= len(found):
        return found
    # The file is sorted by size: its first rows would all be small.
    chosen = np.random.default_rng(0).choice(len(found), limit, replace=False)
    return [found[k] for k in chosen]


def _check_start(
    init: str | Path, start: RefinerConfig, recipe: RFMRecipe, config: str | Path
) -> None:
    """Refuse an initial model whose weights the recipe has no place for, naming each difference."""
    there = {"chart": start.chart, **_prefixed("network", start.network)}
    here = {"chart": recipe.chart, **_prefixed("network", recipe.network)}
    if differing := [key for key in there if there[key] != here[key]]:
        raise UserError(
            f"{init} has another network or chart than {config} ("
            + ", ".join(f"{key} is {there[key]} there, {here[key]} here" for key in differing)
            + f"); set {' '.join(f'{key}={there[key]}' for key in differing)}"
        )


def _prefixed(section: str, settings: NetworkConfig) -> dict[str, object]:
    return {f"{section}.{key}": value for key, value in asdict(settings).items()}


def _check_elements(pairs: Sequence[PairedCrystal], heaviest: int) -> None:
    for pair in pairs:
        if (number := pair.atomic_numbers.max(initial=0)) > heaviest:
            raise UserError(
                f"pair {pair.id!r} has the atomic number {number}, above "
                f"network.max_atomic_number {heaviest}; raise that, or leave the pair out"
            )
