"""`flowllm train-llm`: crystals -> text prior."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from flowllm.crystals.io import read
from flowllm.errors import UserError
from flowllm.system.files import publish
from flowllm.training.engine import train, training_device
from flowllm.training.folder import TrainingRun, training_run
from flowllm.training.recipes import LLMRecipe, load_recipe
from llm_prior import Collator, CrystalTextDataset, Prior


def train_llm(
    config: str | Path = "llm/small",
    *,
    data: Sequence[str | Path],
    out: str | Path,
    validation: str | Path | None = None,
    overrides: Sequence[str] = (),
    skip_invalid: bool = False,
    seed: int = 0,
    resume: bool = False,
    device: str = "auto",
    merge: bool = False,
) -> Path:
    """Train or fine-tune a language model on crystals (CrystalLLM, arXiv 2402.04379).

    Args:
        config: recipe by name (`llm/small`) or path.
        data: files or folders of crystals; see `flowllm.crystals.io.read`.
        out: run folder: `run.json`, `checkpoint-STEP/`, at the end `model/`.
        validation: crystals for the validation loss.
        overrides: `key=value` changes to the recipe.
        skip_invalid: leave out bad rows, and crystals above the size limit, instead of stopping.
        seed: of weights, order and draws.
        resume: go on from the newest complete checkpoint in `out`.
        device: `cpu`, `cuda` or `auto`.
        merge: also write `out/merged`, the adapter added to the weights of its base: a model that
            needs no base. Works for a finished run too (with `resume`).

    Returns:
        The model folder, `out/model`, or `out/merged`.

    Raises:
        UserError, PriorError: bad recipe, data, base model or run folder.
    """
    recipe = load_recipe(LLMRecipe, config, overrides)
    if merge and recipe.model.lora is None:
        raise UserError(f"{config} has no model.lora, so there is no adapter to merge")
    with training_run(
        out,
        stage="train-llm",
        recipe=asdict(recipe),
        data=data,
        validation=validation,
        seed=seed,
        resume=resume,
    ) as run:
        if run.finished:
            return _merged(run) if merge else run.model
        prior = Prior.build(recipe.model, recipe.text, seed=seed)
        if training_device(device) == "cpu":
            # torch's fused attention has a slow bfloat16 backward pass on CPUs: with it a training
            # step of llm/small takes 1.3 times as long.
            prior.model.set_attn_implementation("eager")

        def dataset(paths: Sequence[str | Path], limit: int | None = None) -> CrystalTextDataset:
            rows = []
            for path in paths:
                crystals = read(
                    path,
                    skip_invalid=skip_invalid,
                    max_atoms=recipe.text.max_atoms,
                    limit=limit,
                )
                rows += [
                    (crystal.id, crystal.structure, crystal.properties) for crystal in crystals
                ]
            return CrystalTextDataset(rows, prior.tokenizer, recipe.text, recipe.tasks)

        training_data = dataset(data)
        train(
            prior.model,
            training_data,
            collate=Collator(prior.tokenizer.pad_token_id),
            config=recipe.training,
            folder=run.folder,
            seed=seed,
            resume=resume,
            validation=dataset([validation], recipe.training.eval_crystals) if validation else None,
            device=device,
        )
        prior.info = {
            "crystals": len(training_data),
            "conditions": training_data.conditions(),
            "recipe": asdict(recipe),
        }
        model = run.publish(prior.save_pretrained)
        return _merged(run) if merge else model


def _merged(run: TrainingRun) -> Path:
    """`out/merged`, written if it is not there."""
    folder = run.folder / "merged"
    if not run.first or folder.is_dir():
        return folder
    prior = Prior.from_pretrained(run.model, merge=True)
    quantised = (prior.info["recipe"]["model"] or {}).get("quantization")
    # Quantised weights are computed with in bfloat16, so that keeps all they say.
    save = functools.partial(prior.save_pretrained, dtype=torch.bfloat16 if quantised else None)
    return publish(folder, save)
