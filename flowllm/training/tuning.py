"""Preference tuning of a trained prior on its own judged samples: `flowllm tune-llm`.

Arguments, recipe, samples and evaluation are checked before torch is imported.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowllm.errors import UserError
from flowllm.hub.locate import BUNDLED_PRIOR, identity, resolve
from flowllm.system.device import check_device
from flowllm.system.options import as_tuple
from flowllm.training.folder import TrainingRun, training_run
from flowllm.training.recipes import TuningRecipe, load_recipe

if TYPE_CHECKING:
    from flowllm.training.preference.judgement import JudgedSample
    from flowllm.training.preference.pairs import TextPair
    from llm_prior import Preference, Prior

log = logging.getLogger(__name__)

STAGE = "tune-llm"


def tune_prior(
    config: str | Path = "llm/tune",
    *,
    samples: str | Path | Sequence[str | Path],
    evaluation: str | Path,
    out: str | Path,
    prior: str | Path | None = None,
    overrides: Sequence[str] = (),
    seed: int = 0,
    resume: bool = False,
    device: str = "auto",
) -> Path:
    """Tune a prior by direct preference optimisation (arXiv 2305.18290) on its judged samples.

    Samples that are stable, unique and novel are preferred over stable and known ones, and both
    over unstable and invalid ones; see `flowllm.training.preference`. For crystals the method was
    proposed with several rounds of sampling, judging and tuning (PLaID++, arXiv 2509.07150).

        run_sampling(2000, out="samples", temperature=1.0, prior="model")
        evaluate("samples", out="judged", train="train.csv", potential="chgnet", hull="hull.json")
        tune_prior(samples="samples", evaluation="judged", prior="model", out="tuned")

    Args:
        config: recipe by name (`llm/tune`) or path.
        samples: run folders of `flowllm sample` with this prior.
        evaluation: folder of one `flowllm evaluate` of all these runs, with a training set, a
            potential and a hull.
        out: run folder: `run.json`, `counts.csv` (samples by class, pairs), `pairs.parquet`,
            `start_texts.parquet`, `progress.csv` (see `TuningProgress`), `checkpoint-STEP/`, at the
            end `model/`.
        prior: the start, which wrote the samples: folder or hub id; None takes the bundled prior.
        overrides: `key=value` changes to the recipe.
        seed: seed of pairs, order and draws.
        resume: go on from the newest complete checkpoint in `out`.
        device: `cpu`, `cuda` or `auto`.

    Returns:
        The model folder, `out/model`.

    Raises:
        UserError: if the recipe or the run folder is bad, the samples are no texts of this prior's
            layout, the evaluation is not one of these samples or lacks energies, or no sample can
            be preferred over another.
        PriorError: if the prior cannot be loaded.
    """
    from flowllm.training.preference.judgement import read_judged, read_runs
    from flowllm.training.preference.pairs import pair_samples

    recipe = load_recipe(TuningRecipe, config, overrides)
    check_device(device)
    runs = [Path(path) for path in as_tuple(samples)]
    if not runs:
        raise UserError("no samples are given; name at least one run of flowllm sample")
    for place, path in enumerate(runs):
        if any(path.resolve() == other.resolve() for other in runs[:place]):
            raise UserError(f"{path} is given twice as samples; give each run once")
    manifests = read_runs(runs)
    judged = read_judged(runs, Path(evaluation), stable_below=recipe.preference.stable_below)
    pairs = pair_samples(judged, recipe.preference, seed=seed)
    start = resolve(prior, BUNDLED_PRIOR)
    _check_layout(start, pairs)
    found = identity(start)
    for run, manifest in zip(runs, manifests, strict=True):
        if manifest["prior"]["sha256"] != found["sha256"]:
            log.warning("%s was written by another prior than %s", run, start)
    with training_run(
        out,
        stage=STAGE,
        recipe=asdict(recipe),
        data=[*runs, Path(evaluation) / "structures.parquet"],
        start=found,
        seed=seed,
        resume=resume,
    ) as folder:
        if not folder.finished:
            _tune(
                folder,
                recipe,
                start=start,
                judged=judged,
                pairs=pairs,
                requests=[manifest["conditions"] for manifest in manifests],
                seed=seed,
                resume=resume,
                device=device,
            )
        return folder.model


def _check_layout(start: Path, pairs: Sequence[TextPair]) -> None:
    """Refuse a prior that cannot have written the preferred texts."""
    from llm_prior import ParseError, TextFormat, decode
    from llm_prior.settings import read_settings

    fmt = TextFormat(**read_settings(str(start))["text"])
    for pair in pairs[:8]:
        try:
            decode(pair.chosen, fmt)
        except ParseError as error:
            raise UserError(
                f"the text of {pair.chosen_id} is not one of the layout {fmt.layout} of {start} "
                f"({error}); give the prior that wrote the samples (--prior)"
            ) from error


def _tune(
    run: TrainingRun,
    recipe: TuningRecipe,
    *,
    start: Path,
    judged: Sequence[JudgedSample],
    pairs: Sequence[TextPair],
    requests: Sequence[Mapping[str, Any]],
    seed: int,
    resume: bool,
    device: str,
) -> None:
    """Tune the prior of a run and publish it."""
    from flowllm.training.engine import train, training_device
    from flowllm.training.preference.pairs import COUNTS_FILE, count_table, write_counts
    from flowllm.training.preference.progress import PROGRESS_FILE, TuningProgress
    from llm_prior import PreferenceCollator, PreferenceDataset, Prior, preference_objective

    device = training_device(device)
    counts = count_table(judged, pairs)
    log.info("samples and pairs: %s", ", ".join(f"{k} {n}" for k, n in counts.items() if n))
    if run.first:
        write_counts(counts, run.folder / COUNTS_FILE)
    prior = Prior.from_pretrained(start, device=device)
    _make_trainable(prior)
    if device == "cpu":  # as in `train_prior`
        model: Any = prior.model
        model.set_attn_implementation("eager")
    preferences = _preferences(run, prior, pairs, recipe)
    progress = TuningProgress(
        prior,
        pairs,
        _start_texts(run, prior, requests, recipe, seed),
        beta=recipe.loss.beta,
        config=recipe.training,
        file=run.folder / PROGRESS_FILE if run.first else None,
    )
    train(
        prior.model,
        PreferenceDataset(preferences, prior.tokenizer),
        collate=PreferenceCollator(prior.tokenizer.pad_token_id),
        config=recipe.training,
        folder=run.folder,
        seed=seed,
        resume=resume,
        evaluator=progress,
        objective=preference_objective(beta=recipe.loss.beta),
        device=device,
    )
    figures = progress.last()
    if run.first:
        log.info("tuned: %s", ", ".join(f"{name} {value:.3g}" for name, value in figures.items()))
        run.record("figures", figures)
    prior.info["tuning"] = {
        "recipe": asdict(recipe),
        "counts": counts,
        "figures": figures,
        "rounds": prior.info.get("tuning", {}).get("rounds", 0) + 1,
    }
    run.publish(prior.save_pretrained, sections=_card(run, counts, figures))


def _make_trainable(prior: Prior) -> None:
    """Let the weights of a loaded adapter be trained; those of a whole model are already."""
    if hasattr(prior.model, "peft_config"):
        for name, weight in prior.model.named_parameters():
            weight.requires_grad_("lora_" in name)


def _preferences(
    run: TrainingRun, prior: Prior, pairs: Sequence[TextPair], recipe: TuningRecipe
) -> list[Preference]:
    """Return the pairs that train with their references, which are computed once in a run."""
    from flowllm.training.preference.pairs import PAIRS_FILE, read_pairs, write_pairs
    from flowllm.training.preference.progress import log_likelihoods
    from llm_prior import Preference

    file = run.folder / PAIRS_FILE
    if file.exists():
        pairs, references = read_pairs(file)
    else:
        prompts = [pair.prompt for pair in pairs]
        chosen, rejected = (
            log_likelihoods(prior, prompts, texts, recipe.training)
            for texts in ([pair.chosen for pair in pairs], [pair.rejected for pair in pairs])
        )
        references = [a - b for a, b in zip(chosen, rejected, strict=True)]
        if run.first:
            write_pairs(pairs, references, file)
    return [
        Preference(
            prompt=pair.prompt,
            chosen=pair.chosen,
            rejected=pair.rejected,
            reference=reference,
            ids=(pair.chosen_id, pair.rejected_id),
        )
        for pair, reference in zip(pairs, references, strict=True)
        if not pair.held_out
    ]


def _start_texts(
    run: TrainingRun,
    prior: Prior,
    requests: Sequence[Mapping[str, Any]],
    recipe: TuningRecipe,
    seed: int,
) -> list[tuple[str, str, float]]:
    """Return texts drawn from the start, with their log-likelihoods, drawn once in a run."""
    from flowllm.training.preference.progress import (
        START_FILE,
        log_likelihoods,
        read_start_texts,
        write_start_texts,
    )
    from llm_prior import draw_texts

    file = run.folder / START_FILE
    if file.exists():
        return read_start_texts(file)
    count = recipe.training.eval_crystals
    drawn = draw_texts(prior, [requests[k % len(requests)] for k in range(count)], seed=seed)
    prompts, texts = [prompt for prompt, _ in drawn], [text for _, text in drawn]
    values = log_likelihoods(prior, prompts, texts, recipe.training)
    rows = list(zip(prompts, texts, values, strict=True))
    if run.first:
        write_start_texts(rows, file)
    return rows


def _card(
    run: TrainingRun, counts: Mapping[str, int], figures: Mapping[str, float]
) -> dict[str, str]:
    """Return the section of the model card on the tuning."""
    start = run.run.get("start", {})
    lines = [
        f"Tuned from `{start.get('name')}` (sha256 `{start.get('sha256')}`) by direct preference "
        "optimisation: samples that an evaluation found stable, unique and novel are preferred "
        "over known ones, and both over unstable and invalid ones. A gain in stability is one by "
        "the potential of that evaluation; measure it with another potential.",
        "",
        *("| samples and pairs | |", "|---|---|"),
        *(f"| {name} | {count} |" for name, count in counts.items() if count),
        "",
        *("| at the end | |", "|---|---|"),
        *(f"| {name} | {value:.4g} |" for name, value in figures.items()),
        "",
        "Margins are rewards (beta times nats), `kl` is the divergence of the tuned model from "
        "its start, in nats per crystal.",
    ]
    return {"Preference tuning": "\n".join(lines)}
