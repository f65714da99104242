"""Training of the refiner on pairs: `flowllm train-rfm`.

Arguments, recipe and folders are checked before torch is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from flowllm.errors import UserError
from flowllm.hub.card import check_weights
from flowllm.system.device import check_device
from flowllm.training.folder import TrainingRun, training_run
from flowllm.training.pairing.config import PAIRS_FILE
from flowllm.training.recipes import RefinerRecipe, load_recipe

if TYPE_CHECKING:
    from rfm import NetworkConfig, PairedCrystal, RefinerConfig


def train_refiner(
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

    An epoch draws every pair once, each time with fresh noise and another t. A target with k
    samples is therefore drawn k times. A run keeps its pairs to the end. To add pairs that were
    made later, start another run with all of them from the model of the first run (`init`).

    Args:
        config: recipe by name (`rfm/small`) or path.
        pairs: run folders of `flowllm pair`, or their files, for `base.kind: llm`; of
            `flowllm pair --samples` for `base.kind: file`; of `flowllm pair --templates` for
            either.
        data: crystals for `base.kind: uniform` (FlowMM, arXiv 2406.04713), which needs no language
            model.
        out: run folder: `run.json`, `checkpoint-STEP/`, `validation.csv` (see
            `flowllm.training.validation`), at the end `model/`.
        validation: one like `pairs` or `data`, on which the training is evaluated.
        init: a trained refiner with the same network and chart, whose weights are the start.
        overrides: `key=value` changes to the recipe.
        skip_invalid: leave out bad rows of `data` instead of stopping.
        seed: seed of weights, order and draws.
        resume: go on from the newest complete checkpoint in `out`.
        device: `cpu`, `cuda` or `auto`.

    Returns:
        The model folder, `out/model`.

    Raises:
        UserError: if the recipe, the data, the pairs, the initial model or the run folder is bad.
        RefinerError: if the initial model cannot be loaded, or a crystal cannot be used.
    """
    recipe = load_recipe(RefinerRecipe, config, overrides)
    sources = _sources(recipe.base.kind, config, pairs, data)
    if validation is not None and recipe.base.from_crystals:
        validation = _pairs_file(validation)
    check_device(device)
    with training_run(
        out,
        stage="train-rfm",
        recipe=asdict(recipe),
        data=sources + ([init] if init else []),
        validation=validation,
        seed=seed,
        resume=resume,
    ) as run:
        if not run.finished:
            from flowllm.crystals.io import check_input

            if recipe.base.kind == "uniform":
                for path in [*sources, *([validation] if validation else [])]:
                    check_input(path)  # before torch is imported
            if init:
                check_weights(Path(init))
            _train(
                run,
                recipe,
                config=config,
                sources=sources,
                validation=validation,
                init=init,
                skip_invalid=skip_invalid,
                seed=seed,
                resume=resume,
                device=device,
            )
        return run.model


def _sources(
    kind: str,
    config: str | Path,
    pairs: str | Path | Sequence[str | Path] | None,
    data: Sequence[str | Path],
) -> list[str | Path]:
    """Return the files that a base of this kind is trained on."""
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
    return [_pairs_file(path) for path in given[wanted]] if wanted == "pairs" else given[wanted]


def _pairs_file(path: str | Path) -> str | Path:
    """Return the file of pairs for which a run folder of `flowllm pair` stands."""
    if not Path(path).is_dir():
        return path
    if not (file := Path(path) / PAIRS_FILE).is_file():
        raise UserError(
            f"{path} is a folder without {PAIRS_FILE}; give a finished run of `flowllm pair`"
        )
    return file


def _train(
    run: TrainingRun,
    recipe: RefinerRecipe,
    *,
    config: str | Path,
    sources: Sequence[str | Path],
    validation: str | Path | None,
    init: str | Path | None,
    skip_invalid: bool,
    seed: int,
    resume: bool,
    device: str,
) -> None:
    """Train the refiner of a run and publish it."""
    import torch

    from flowllm.runs.sharded import batch_seed
    from flowllm.training.engine import train
    from flowllm.training.validation import VALIDATION_FILE, RefinerValidation
    from rfm import PairDataset, Refiner, RefinerConfig, RefinerError, collate

    start = None
    if init:
        start = Refiner.from_pretrained(init)
        _check_start(init, start.config, recipe, config)
    training_set = PairDataset(
        _read(recipe, sources, skip_invalid=skip_invalid),
        chart_name=recipe.chart,
        base=recipe.base,
        # The weights of a trained refiner belong to its own units of the cell.
        statistics=start.config.statistics if start else None,
    )
    max_atoms = max(training_set.size(k) for k in range(len(training_set)))
    if start is not None and start.config.max_atoms is not None:
        max_atoms = max(max_atoms, start.config.max_atoms)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(batch_seed(seed, 0))  # torch itself uses only the low 32 bits of a seed
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
    evaluator = None
    if validation is not None:
        validation_pairs = _read(
            recipe, [validation], skip_invalid=skip_invalid, limit=recipe.training.eval_crystals
        )
        try:
            validation_set = PairDataset(
                validation_pairs,
                chart_name=recipe.chart,
                base=recipe.base,
                statistics=training_set.statistics,
            )
        except RefinerError as error:
            raise UserError(f"{validation}: {error}") from error
        evaluator = RefinerValidation(
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
        evaluator=evaluator,
        device=device,
    )
    run.publish(refiner.save_pretrained)


def _read(
    recipe: RefinerRecipe,
    paths: Sequence[str | Path],
    *,
    skip_invalid: bool,
    limit: int | None = None,
) -> list[PairedCrystal]:
    """Return the pairs, or for the base `uniform` the crystals, in files."""
    import numpy as np

    from flowllm.crystals.io import read
    from flowllm.training.pairing.table import read_pairs, targets_only

    if recipe.base.from_crystals:
        found = [pair for path in paths for pair in read_pairs(path, base=recipe.base.kind)]
        if limit is not None and limit < len(found):
            # The files are sorted by size: their first rows would all be small.
            chosen = np.random.default_rng(0).choice(len(found), limit, replace=False)
            found = [found[k] for k in chosen]
    else:
        found = [
            pair
            for path in paths
            for pair in targets_only(read(path, skip_invalid=skip_invalid, limit=limit))
        ]
    heaviest = recipe.network.max_atomic_number
    for pair in found:
        if (number := pair.atomic_numbers.max(initial=0)) > heaviest:
            raise UserError(
                f"pair {pair.id!r} has the atomic number {number}, above "
                f"network.max_atomic_number {heaviest}; raise that, or leave the pair out"
            )
    return found


def _check_start(
    init: str | Path, start: RefinerConfig, recipe: RefinerRecipe, config: str | Path
) -> None:
    """Refuse an initial model whose network or chart differs from the recipe."""
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
