"""`flowllm train-llm`: crystals -> text prior."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flowllm.config import LLMRecipe, load_recipe, recipe_dict
from flowllm.data import read
from flowllm.training import train, training_device
from flowllm.training_run import training_run
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
) -> Path:
    """Train or fine-tune a language model on crystals (CrystalLLM, arXiv 2402.04379).

    Args:
        config: recipe by name (`llm/small`) or path.
        data: files or folders of crystals; see `flowllm.data.read`.
        out: run folder: `run.json`, `checkpoint-STEP/`, at the end `model/`.
        validation: crystals for the validation loss.
        overrides: `key=value` changes to the recipe.
        skip_invalid: leave out bad rows, and crystals above the size limit, instead of stopping.
        seed: of weights, order and draws.
        resume: go on from the newest complete checkpoint in `out`.
        device: `cpu`, `cuda` or `auto`.

    Returns:
        The model folder, `out/model`.

    Raises:
        UserError, PriorError: bad recipe, data, base model or run folder.
    """
    recipe = load_recipe(LLMRecipe, config, overrides)
    with training_run(
        out,
        stage="train-llm",
        recipe=recipe_dict(recipe),
        data=data,
        validation=validation,
        seed=seed,
        resume=resume,
    ) as run:
        if run.finished:
            return run.model
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
        prior.info = {"crystals": len(training_data), "recipe": recipe_dict(recipe)}
        return run.publish(prior.save_pretrained)
