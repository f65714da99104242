"""The increase in perplexity of a crystal under translations.

A measure of a model's symmetry (increase in perplexity under transformation, IPT, Gruver et al.
2024, arXiv 2402.04379, section on symmetry), for the group of translations:

    IPT(s) = E_g[ PPL(t_g s) - PPL(t_g* s) ],    g* = argmin_g PPL(t_g s)

PPL is the perplexity per token of the crystal's text, t_g shifts every atom by g and wraps it back
into the cell. The mean and the argmin run over the same random translations. The result is divided
by the mean perplexity, IPT / E_g[PPL(t_g s)], so that models can be compared. An invariant model
has 0. So have all models of the layout `wyckoff`, by construction: its canonical text does not
depend on the origin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pymatgen.core import Structure

from llm_prior.config import check_seed
from llm_prior.errors import PriorError
from llm_prior.model import Prior
from llm_prior.prompts import generation_prompt
from llm_prior.scoring import SCORE_BATCH_SIZE, log_likelihood, score_texts
from llm_prior.text import encode

NUM_TRANSLATIONS = 20  # the paper's


@dataclass(frozen=True)
class TranslationIncrease:
    """The perplexity of one crystal under translations.

    Attributes:
        ipt: (mean - minimum) / mean, from 0 for an invariant model to below 1.
        mean_perplexity: mean over the translations, per token.
        min_perplexity: minimum over the translations, per token.
    """

    ipt: float
    mean_perplexity: float
    min_perplexity: float


def increase_in_perplexity(
    prior: Prior,
    structures: Sequence[Structure],
    *,
    num_translations: int = NUM_TRANSLATIONS,
    seed: int = 0,
    first_index: int = 0,
    batch_size: int = SCORE_BATCH_SIZE,
) -> list[TranslationIncrease]:
    """Return the normalised IPT of each crystal, with the unconditional prompt.

    Args:
        prior: the model.
        structures: crystals of at most `prior.fmt.max_atoms` sites.
        num_translations: uniform random translations of each crystal.
        seed: crystal k draws its translations from (seed, first_index + k); more translations
            leave the first ones unchanged.
        first_index: index of the first crystal in a larger run.
        batch_size: texts per forward pass; bounds the memory.

    Returns:
        One result per crystal, in order.

    Raises:
        PriorError: if there is no translation, the seed is negative, or a crystal cannot be scored.
    """
    if num_translations < 1:
        raise PriorError(f"num_translations {num_translations} must be at least 1")
    check_seed(seed)
    if prior.layout.shift_invariant:
        found = log_likelihood(prior, structures, batch_size=batch_size)
        return [TranslationIncrease(0.0, score.perplexity, score.perplexity) for score in found]
    answers = []
    for index, structure in enumerate(structures, first_index):
        rng = np.random.default_rng([seed, index])
        answers += [
            encode(structure, prior.fmt, translation=shift)
            for shift in rng.random((num_translations, 3))
        ]
    prompts = [generation_prompt({})] * len(answers)
    scores = score_texts(prior, prompts, answers, batch_size=batch_size)
    perplexities = np.array([score.perplexity for score in scores])  # (crystals * translations,)
    increases = []
    for row in perplexities.reshape(-1, num_translations):
        mean, least = float(row.mean()), float(row.min())
        increases.append(TranslationIncrease((mean - least) / mean, mean, least))
    return increases
