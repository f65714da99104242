"""The score by which candidates are ranked: energy and log-probability.

    score = E - w log p        eV/atom, lower is better

E is the energy per atom by a potential after relaxing and p the probability of the candidate by its
sources (`flowllm.prediction.candidates`); without a potential the score is -w log p. It corresponds
to the probability

    P(c) ~ p(c) exp(-E_c / w)

that the candidate c is the structure of the formula, if one of the candidates is. The share a of
the templates in p is the one under which the observed structures are likeliest (a conditional
logit); `tools/fit_prediction.py` fits it. w is chosen by hand: for relaxed validation crystals
widths from 0.005 eV/atom put the same candidates first, and the likelihood prefers larger ones,
but these crystals need not be the stable ones that a user asks for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

WEIGHTS_FILE = Path(__file__).parent / "bundled" / "weights.json"
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The fitted numbers.

    Attributes:
        template_share: a.
        energy_width: w, eV/atom.
    """

    template_share: float
    energy_width: float

    def log_probability(self, of_templates: float | None, of_samples: float | None) -> float:
        """Return the log-probability of a gene by both sources.

        Args:
            of_templates: probability among the genes of the templates; None if there are no
                templates.
            of_samples: share of the samples that have the gene; None if there are no samples.
        """
        share = self.template_share
        if of_templates is None or of_samples is None:
            share = float(of_samples is None)
        total = share * (of_templates or 0.0) + (1 - share) * (of_samples or 0.0)
        return math.log(total) if total > 0 else -math.inf

    def scores(
        self, log_probabilities: Sequence[float], energies: Sequence[float] | None = None
    ) -> FloatArray:
        """Return the scores (N,) of candidates in eV/atom.

        Args:
            log_probabilities: (N,).
            energies: (N,), eV/atom; None without a potential.
        """
        scores: FloatArray = -self.energy_width * np.asarray(log_probabilities, dtype=np.float64)
        return scores if energies is None else scores + np.asarray(energies)

    def probabilities(self, scores: Sequence[float] | FloatArray) -> FloatArray:
        """Return the probabilities (N,) that scores correspond to; their sum is 1.

        Args:
            scores: (N,), of all candidates of a formula, eV/atom.
        """
        logs = -np.asarray(scores) / self.energy_width
        chances: FloatArray = np.exp(logs - np.logaddexp.reduce(logs))
        return chances

    def to_json(self) -> str:
        """Return the numbers as JSON, rounded."""
        return json.dumps({name: round(value, 4) for name, value in asdict(self).items()})


@cache
def fitted() -> Weights:
    """Return the fitted numbers; `tools/fit_prediction.py` makes them."""
    return Weights(**json.loads(WEIGHTS_FILE.read_text(encoding="utf-8"))["weights"])
