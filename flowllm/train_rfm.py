"""`flowllm train-rfm`: pairs -> refiner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from flowllm.config import RFMRecipe, load_recipe
from flowllm.data import read
from flowllm.errors import UserError
from flowllm.jobs import batch_seed
from flowllm.pairs import read_pairs, targets_only
from flowllm.training import train
from flowllm.training_run import training_run
from rfm import PairDataset, PairedCrystal, Refiner, RefinerConfig, collate


def train_rfm(
    config: str | Path = "rfm/small",
    *,
    pairs: str | Path | None = None,
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

    Args:
        config: recipe by name (`rfm/small`) or path.
        pairs: what `flowllm pair` made; for `base.kind: pairs`.
        data: crystals, for `base.kind: uniform` (FlowMM, arXiv 2406.04713: no language model).
        out: run folder: `run.json`, `checkpoint-STEP/`, at the end `model/`.
        validation: like `pairs` or `data`, for the validation loss.
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
    uses_pairs = recipe.base.kind == "pairs"
    if uses_pairs and pairs is None:
        raise UserError(
            f"{config} has base.kind pairs: give pairs (--pairs FILE), made by `flowllm pair`"
        )
    if not uses_pairs and not data:
        raise UserError(f"{config} has base.kind uniform: give data (--data FILE), crystals")
    sources = [pairs] if uses_pairs else list(data)

    def load(paths: Sequence[str | Path], limit: int | None = None) -> list[PairedCrystal]:
        if uses_pairs:
            found = [pair for path in paths for pair in read_pairs(path)]
            if limit is None or limit >= len(found):
                return found
            # The file is sorted by size: its first rows would all be small.
            chosen = np.random.default_rng(0).choice(len(found), limit, replace=False)
            return [found[k] for k in chosen]
        return [
            pair
            for path in paths
            for pair in targets_only(read(path, skip_invalid=skip_invalid, limit=limit))
        ]

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
        start = Refiner.from_pretrained(init) if init else None
        wanted = (recipe.network, recipe.chart)
        if start is not None and (start.config.network, start.config.chart) != wanted:
            raise UserError(f"{init} has another network or chart than {config}; match them")
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
        validation_set = None
        if validation is not None:
            validation_set = PairDataset(
                load([validation], recipe.training.eval_crystals),
                chart_name=recipe.chart,
                base=recipe.base,
                statistics=training_set.statistics,
            )
        train(
            refiner,
            training_set,
            collate=collate,
            config=recipe.training,
            folder=run.folder,
            seed=seed,
            resume=resume,
            validation=validation_set,
            device=device,
        )
        return run.publish(refiner.save_pretrained)
