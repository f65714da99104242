"""How likely a template is to have the structure of a composition, and how large its cell then is.

Every element is a point. The distance of a template with elements e_i from a composition that puts
elements f_i in their place is

    d = sum_i w_i |x(e_i) - x(f_i)|,    w_i ~ (share of the atoms of element i)^s,    sum_i w_i = 1

and the probability of a candidate c, a gene that the templates T_c have, is

    p(c) ~ sum_{t in T_c} exp(-b d_t - h E_t)

for the energy E_t of template t above the hull. Points, s, b and h are fitted to MP-20 train, each
crystal without those of its own formula (neighbourhood component analysis; Goldberger et al. 2004).
Volumes follow log V = const(prototype) + sum_i share_i v(e_i), fitted to the same crystals, so the
cell of a template grows by exp(sum_i share_i (v(f_i) - v(e_i))).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from llm_prior.text import SYMBOLS

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranking:
    """The fitted numbers.

    Attributes:
        points: (118, d) of the elements by atomic number, from hydrogen.
        size_exponent: s.
        sharpness: b.
        hull_weight: h, per eV/atom.
        log_volumes: (118,) v of the elements.
    """

    points: FloatArray
    size_exponent: float
    sharpness: float
    hull_weight: float
    log_volumes: FloatArray

    def distances(
        self, templates: NDArray[np.int64], targets: NDArray[np.int64], counts: NDArray[np.int64]
    ) -> FloatArray:
        """Return the distances (T, P) of templates from ways to place the elements of a target.

        Args:
            templates: (T, k) atomic numbers by slot.
            targets: (P, k) atomic numbers by slot.
            counts: (k,) atoms of each slot, up to a factor.
        """
        weights = (counts / counts.sum()) ** self.size_exponent
        weights /= weights.sum()
        total = np.zeros((len(templates), len(targets)))
        for slot, weight in enumerate(weights):
            kinds, place = np.unique(templates[:, slot], return_inverse=True)
            others, other_place = np.unique(targets[:, slot], return_inverse=True)
            steps = self.points[kinds - 1][:, None] - self.points[others - 1]
            table = np.linalg.norm(steps, axis=-1)
            total += weight * table[place][:, other_place]
        return total

    def log_weights(self, distances: FloatArray, e_above_hull: FloatArray) -> FloatArray:
        """Return the logarithm of the weight of each template.

        Args:
            distances: (T, P), see `distances`.
            e_above_hull: (T,) eV/atom.
        """
        return -self.sharpness * distances - self.hull_weight * e_above_hull[:, None]

    def growth(
        self, template: NDArray[np.int64], target: NDArray[np.int64], counts: NDArray[np.int64]
    ) -> float:
        """Return the factor by which the volume grows if a template gets other elements.

        Args:
            template: (k,) atomic numbers by slot.
            target: (k,) atomic numbers by slot.
            counts: (k,) atoms of each slot, up to a factor.
        """
        change = self.log_volumes[target - 1] - self.log_volumes[template - 1]
        return float(np.exp(counts @ change / counts.sum()))

    def to_json(self) -> str:
        """Return the numbers as JSON, rounded."""
        return json.dumps(
            {
                "size_exponent": round(self.size_exponent, 4),
                "sharpness": round(self.sharpness, 4),
                "hull_weight": round(self.hull_weight, 4),
                "log_volumes": dict(
                    zip(SYMBOLS, np.round(self.log_volumes, 4).tolist(), strict=True)
                ),
                "points": dict(zip(SYMBOLS, np.round(self.points, 3).tolist(), strict=True)),
            },
            indent=1,
        )

    @classmethod
    def from_json(cls, text: str) -> Ranking:
        """Return the numbers of a text that `to_json` wrote."""
        values = json.loads(text)
        return cls(
            points=np.array([values["points"][symbol] for symbol in SYMBOLS]),
            size_exponent=values["size_exponent"],
            sharpness=values["sharpness"],
            hull_weight=values["hull_weight"],
            log_volumes=np.array([values["log_volumes"][symbol] for symbol in SYMBOLS]),
        )


@cache
def fitted() -> Ranking:
    """Return the numbers fitted to MP-20 train; `tools/fit_templates.py` makes them."""
    file = resources.files("flowllm.prediction") / "bundled" / "ranking.json"
    return Ranking.from_json(file.read_text(encoding="utf-8"))
