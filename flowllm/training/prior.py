"""Training of the prior on crystals: `flowllm train-llm`.

Arguments, recipe and folders are checked before torch is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flowllm.errors import UserError
from flowllm.system.device import check_device
from flowllm.training.folder import TrainingRun, training_run
from flowllm.training.recipes import PriorRecipe, load_recipe


def train_prior(
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
        skip_invalid: leave out bad rows, and crystals that cannot be written, instead of stopping.
        seed: seed of weights, order and draws.
        resume: go on from the newest complete checkpoint in `out`.
        device: `cpu`, `cuda` or `auto`.
        merge: also write `out/merged`, a model without a separate base: the adapter is added to
            the weights of its base. This works for a finished run too (with `resume`).

    Returns:
        The model folder, `out/model`, or `out/merged`.

    Raises:
        UserError: if the recipe, the data or the run folder is bad.
        PriorError: if the base model or a setting of the prior is bad.
    """
    recipe = load_recipe(PriorRecipe, config, overrides)
    if merge and recipe.model.lora is None:
        raise UserError(
            f"{config} has no model.lora, so there is no adapter to merge; leave merge out"
        )
    check_device(device)
    with training_run(
        out,
        stage="train-llm",
        recipe=asdict(recipe),
        data=data,
        validation=validation,
        seed=seed,
        resume=resume,
    ) as run:
        if not run.finished:
            from flowllm.crystals.io import check_input

            for path in [*data, *([] if validation is None else [validation])]:
                check_input(path)  # before torch is imported
            _train(
                run,
                recipe,
                data=data,
                validation=validation,
                skip_invalid=skip_invalid,
                seed=seed,
                resume=resume,
                device=device,
            )
        return _merged(run) if merge else run.model


def _train(
    run: TrainingRun,
    recipe: PriorRecipe,
    *,
    data: Sequence[str | Path],
    validation: str | Path | None,
    skip_invalid: bool,
    seed: int,
    resume: bool,
    device: str,
) -> None:
    """Train the prior of a run and publish it."""
    from flowllm.crystals.descriptions import CrystalRow, describe_crystals
    from flowllm.crystals.io import read
    from flowllm.training.engine import train, training_device
    from llm_prior import Collator, CrystalTextDataset, Prior

    device = training_device(device)
    prior = Prior.build(recipe.model, recipe.text, seed=seed)
    if device == "cpu":
        # The fused attention of torch has a slow bfloat16 backward pass on CPUs: with it a training
        # step of llm/small takes 1.3 times as long.
        model: Any = prior.model  # a PreTrainedModel, or a PeftModel, which passes calls on to one
        model.set_attn_implementation("eager")

    def dataset(paths: Sequence[str | Path], limit: int | None = None) -> CrystalTextDataset:
        rows: list[CrystalRow] = []
        for path in paths:
            crystals = read(
                path, skip_invalid=skip_invalid, max_atoms=recipe.text.max_atoms, limit=limit
            )
            rows += [(crystal.id, crystal.structure, crystal.properties) for crystal in crystals]
        rows, described = describe_crystals(rows, recipe.text, skip_invalid=skip_invalid)
        return CrystalTextDataset(rows, prior.tokenizer, recipe.text, recipe.tasks, described)

    training_data = dataset(data)
    validation_data = (
        None if validation is None else dataset([validation], recipe.training.eval_crystals)
    )
    train(
        prior.model,
        training_data,
        collate=Collator(prior.tokenizer.pad_token_id),
        config=recipe.training,
        folder=run.folder,
        seed=seed,
        resume=resume,
        validation=validation_data,
        labels_per_draw=training_data.labels_per_draw(),
        validation_labels_per_draw=None
        if validation_data is None
        else validation_data.labels_per_draw(),
        device=device,
    )
    prior.info = {
        "crystals": len(training_data),
        "conditions": training_data.conditions(),
        "recipe": asdict(recipe),
    }
    run.publish(prior.save_pretrained)


def _merged(run: TrainingRun) -> Path:
    """Return `out/merged`, which is written if it is absent."""
    folder = run.folder / "merged"
    if not run.first or folder.is_dir():
        return folder

    import torch

    from flowllm.system.files import publish
    from llm_prior import Prior

    prior = Prior.from_pretrained(run.model, merge=True)
    # Quantised weights are computed with in bfloat16, so that type loses nothing.
    quantised = (prior.info["recipe"]["model"] or {}).get("quantization")
    dtype = torch.bfloat16 if quantised else None
    return publish(folder, lambda path: prior.save_pretrained(path, dtype=dtype))
