"""How likely a template is to have the structure of a composition, and how large its cell then is.

Every element is a point, and another one where it is the most electronegative of its compound. The
distance of a template with elements e_i from a composition that puts elements f_i in their place is

    d = sum_i w_i |x(e_i) - x(f_i)|,    w_i ~ (share of the atoms of element i)^s,    sum_i w_i = 1

and the probability of a gene g that the templates T_g have is

    p(g) ~ sum_{t in T_g} exp(-b d_t - h_t E_t - c_t)

for the energy E_t of template t above the hull. h_t is larger for templates of the same formula,
and c_t is 0 except for those of the same formula above the hull: if a known polymorph is not
stable, the stable structure is another one. The numbers are fitted to MP-20 train, each crystal
without those of its own formula (neighbourhood component analysis; Goldberger et al. 2004);
`tools/fit_templates.py` says how.
Volumes follow log V = const(prototype) + sum_i share_i v(e_i), fitted to the same crystals, so the
cell of a template grows by exp(sum_i share_i (v(f_i) - v(e_i))).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flowllm.system.files import sha256_file
from llm_prior.text import SYMBOLS
from llm_prior.wyckoff.crystal import element_order

RANKING_FILE = Path(__file__).parent / "bundled" / "ranking.json"
ON_HULL = 0.001  # eV/atom; a template below it is on the convex hull
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranking:
    """The fitted numbers.

    Attributes:
        points: (236, d) of the kinds of elements; see `kinds`.
        size_exponent: s.
        sharpness: b.
        hull_weight: h of templates of other formulas, per eV/atom.
        polymorph_weight: h of templates of the same formula, per eV/atom.
        polymorph_penalty: c of templates of the same formula that are above the hull.
        log_volumes: (118,) v of the elements.
    """

    points: FloatArray
    size_exponent: float
    sharpness: float
    hull_weight: float
    polymorph_weight: float
    polymorph_penalty: float
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
        ours, theirs = kinds(templates), kinds(targets)
        total = np.zeros((len(templates), len(targets)))
        for slot, weight in enumerate(weights):
            used, place = np.unique(ours[:, slot], return_inverse=True)
            others, other_place = np.unique(theirs[:, slot], return_inverse=True)
            steps = self.points[used][:, None] - self.points[others]
            total += weight * np.linalg.norm(steps, axis=-1)[place][:, other_place]
        return total

    def log_weights(
        self, distances: FloatArray, e_above_hull: FloatArray, same_formula: NDArray[np.bool_]
    ) -> FloatArray:
        """Return the logarithms (T, P) of the weights of templates.

        Args:
            distances: (T, P), see `distances`.
            e_above_hull: (T,) eV/atom.
            same_formula: (T,) whether the template has the reduced formula of the composition.
        """
        weights = np.where(same_formula, self.polymorph_weight, self.hull_weight)
        penalties = weights * e_above_hull
        penalties += self.polymorph_penalty * (same_formula & (e_above_hull > ON_HULL))
        return -self.sharpness * distances - penalties[:, None]

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
        rows = [
            json.dumps([symbol, round(float(volume), 4), *np.round(points, 3).ravel().tolist()])
            for symbol, volume, points in zip(
                SYMBOLS,
                self.log_volumes,
                self.points.reshape(2, len(SYMBOLS), -1).transpose(1, 0, 2),
                strict=True,
            )
        ]
        numbers = {
            "size_exponent": round(self.size_exponent, 4),
            "sharpness": round(self.sharpness, 4),
            "hull_weight": round(self.hull_weight, 4),
            "polymorph_weight": round(self.polymorph_weight, 4),
            "polymorph_penalty": round(self.polymorph_penalty, 4),
        }
        head = json.dumps(numbers)[:-1]
        return f'{head}, "elements": [\n' + ",\n".join(rows) + "\n]}"

    @classmethod
    def from_json(cls, text: str) -> Ranking:
        """Return the numbers of a text that `to_json` wrote."""
        values = json.loads(text)
        table = np.array([row[1:] for row in values.pop("elements")])
        points = table[:, 1:].reshape(len(SYMBOLS), 2, -1).transpose(1, 0, 2)
        return cls(points=np.concatenate(points), log_volumes=table[:, 0], **values)


def kinds(elements: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the kind of each element in its compound.

    Args:
        elements: (..., k) atomic numbers of compounds of k elements.

    Returns:
        (..., k): atomic number - 1, and 118 more for the most electronegative one.
    """
    order = element_order()
    rank = np.array([order[symbol] for symbol in SYMBOLS])[elements - 1]
    is_anion = rank == rank.max(-1, keepdims=True)
    return elements - 1 + len(SYMBOLS) * is_anion


def ranking_sha256() -> str:
    """Return the SHA-256 of the fitted numbers, for manifests."""
    return sha256_file(RANKING_FILE)


@cache
def fitted() -> Ranking:
    """Return the numbers fitted to MP-20 train; `tools/fit_templates.py` makes them."""
    return Ranking.from_json(RANKING_FILE.read_text(encoding="utf-8"))
