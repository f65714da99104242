"""Proposals of structures for a composition from known crystals with other elements."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Structure

from flowllm.crystals.symmetry import Symmetry
from flowllm.errors import UserError
from flowllm.templates.averaging import average
from flowllm.templates.library import TemplateLibrary, bundled
from flowllm.templates.ranking import Ranking, fitted
from llm_prior.prompts import parse_composition, render_formula
from llm_prior.text import SYMBOLS
from llm_prior.wyckoff.crystal import FREE_CELL, WyckoffCrystal

MAX_ATOMS = 20  # of the primitive cell, the limit of MP-20
MAX_AVERAGED = 8  # templates whose parameters are averaged


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A structure made from a template.

    Attributes:
        template: id of the likeliest template that has the gene.
        template_formula: reduced formula of that template.
        rank: 1 for the likeliest.
        distance: of the composition from the template; see `flowllm.templates.ranking`.
        log_probability: of the gene among all genes that templates have for the composition.
        crystal: the structure as space group, orbits and free parameters.
    """

    template: str
    template_formula: str
    rank: int
    distance: float
    log_probability: float
    crystal: WyckoffCrystal

    @cached_property
    def structure(self) -> Structure:
        """The structure in its primitive Niggli cell, exactly symmetric."""
        return self.crystal.primitive()

    @cached_property
    def gene(self) -> str:
        """Group and Wyckoff letters of the elements, such as `225 Na:a Cl:b`."""
        return Symmetry(crystal=self.crystal, misfit=0.0).gene


def propose_templates(
    formula: Any,
    *,
    n: int = 5,
    max_atoms: int = MAX_ATOMS,
    formula_units: Collection[int] = (),
    spacegroups: Collection[int] = (),
    exclude_formula: bool = False,
    exclude_ids: Collection[str] = (),
    scale: bool = True,
    library: TemplateLibrary | None = None,
    ranking: Ranking | None = None,
) -> list[Proposal]:
    """Return structures of a composition made from templates, the likeliest first.

    Templates have the same amounts of their elements in the reduced formula. Their elements are
    replaced in every way that keeps the amounts. The genes that come out are all different. The
    free parameters of a structure are the weighted mean over up to `MAX_AVERAGED` templates of its
    gene, as far as they are close to the likeliest one (`flowllm.templates.averaging`).

    Args:
        formula: text, a pymatgen composition or a mapping of elements to amounts.
        n: number of structures at most.
        max_atoms: atoms of the largest primitive cell.
        formula_units: numbers of reduced formulas in the primitive cell; empty: all.
        spacegroups: numbers of the groups that may come out; empty: all.
        exclude_formula: leave out templates of the same reduced formula.
        exclude_ids: leave out these templates.
        scale: change the volume of each cell by `Ranking.growth`, and average; False: the likeliest
            template as it is, with other elements.
        library: the templates; None: the bundled ones.
        ranking: the distance; None: the fitted one.

    Returns:
        At most `n` proposals; none if there is no template.

    Raises:
        FlowLLMError: if the formula is not one, a number is below 1, or no primitive cell within
            the limit can hold the formula.
    """
    for name, values in (("n", [n]), ("formula_units", formula_units)):
        if min(values, default=1) < 1:
            raise UserError(f"{name} is {min(values)}; give whole numbers at least 1")
    library = bundled() if library is None else library
    ranking = fitted() if ranking is None else ranking
    elements, counts = _slots(formula)
    size = int(counts.sum())
    sizes = {size * units for units in formula_units} or set(range(size, max_atoms + 1, size))
    if not any(number <= max_atoms for number in sizes):
        raise UserError(
            f"{formula} has {min(sizes, default=size)} atoms in the cell, and the limit is "
            f"{max_atoms}; raise max_atoms (--max-atoms), or ask for fewer formula units"
        )
    family = library.family(tuple(counts.tolist()))
    if family is None:
        return []
    kept = np.isin(family.num_atoms, [number for number in sizes if number <= max_atoms])
    if spacegroups:
        kept &= np.isin(family.spacegroups, list(spacegroups))
    if exclude_ids:
        unwanted = set(exclude_ids)
        kept &= [library.ids[row] not in unwanted for row in family.rows]
    targets = elements[family.ways]  # (P, k)
    same_formula = (family.elements[:, None] == targets).all(-1).any(-1)
    if exclude_formula:
        kept &= ~same_formula
    chosen = np.flatnonzero(kept)
    if not len(chosen):
        return []
    distances = ranking.distances(family.elements[chosen], targets, counts)
    weights = ranking.log_weights(distances, family.e_above_hull[chosen], same_formula[chosen])
    proposals = []
    for rank, (places, log_probability) in enumerate(
        _likeliest(weights, family.genes[chosen], n), 1
    ):
        crystals = []
        for place in places if scale else places[:1]:
            template, way = divmod(place, len(targets))
            row = int(family.rows[chosen[template]])
            crystal = library.crystal(row, [SYMBOLS[number - 1] for number in targets[way]])
            growth = ranking.growth(family.elements[chosen[template]], targets[way], counts)
            crystals.append(_scaled(crystal, growth) if scale else crystal)
        shares = np.exp(weights.flat[places] - weights.flat[places[0]])[: len(crystals)]
        template, way = divmod(places[0], len(targets))
        proposals.append(
            Proposal(
                template=library.ids[int(family.rows[chosen[template]])],
                template_formula=_formula(family.elements[chosen[template]], counts),
                rank=rank,
                distance=float(distances[template, way]),
                log_probability=log_probability,
                crystal=average(crystals, shares),
            )
        )
    return proposals


def _slots(formula: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return atomic numbers (k,) and amounts (k,) of the reduced formula, by amount."""
    amounts = parse_composition(formula).get_el_amt_dict()
    counts = np.array([int(amount) for amount in amounts.values()])
    order = np.argsort(counts, kind="stable")
    numbers = np.array([SYMBOLS.index(symbol) + 1 for symbol in amounts])
    return numbers[order], counts[order] // np.gcd.reduce(counts)


def _formula(elements: NDArray[np.int64], counts: NDArray[np.int64]) -> str:
    """Return the reduced formula of elements (k,) with amounts (k,)."""
    symbols = [SYMBOLS[number - 1] for number in elements]
    return render_formula(dict(zip(symbols, counts.tolist(), strict=True)))


def _likeliest(
    weights: NDArray[np.float64], genes: NDArray[np.int64], n: int
) -> Iterator[tuple[list[int], float]]:
    """Yield flat places of templates and ways of each gene, and the gene's log-probability.

    Args:
        weights: (T, P) logarithms.
        genes: (T, P) numbers of genes.
        n: genes at most; the likeliest come first.

    Yields:
        The places that weigh most, at most `MAX_AVERAGED`, and the logarithm.
    """
    flat = weights.ravel()
    order = np.argsort(-flat, kind="stable")  # so that the first place of a gene is its best
    _, first, gene_of = np.unique(genes.ravel()[order], return_index=True, return_inverse=True)
    best = order[first]  # (G,)
    totals = np.bincount(gene_of, np.exp(flat[order] - flat[best][gene_of]))
    logs = flat[best] + np.log(totals)
    logs -= np.logaddexp.reduce(logs)
    for gene in np.argsort(-logs, kind="stable")[:n]:
        yield order[gene_of == gene][:MAX_AVERAGED].tolist(), float(logs[gene])


def _scaled(crystal: WyckoffCrystal, growth: float) -> WyckoffCrystal:
    """Return the crystal with its volume multiplied by a factor."""
    free = FREE_CELL[crystal.group.family]
    edge = growth ** (1 / 3)
    cell = tuple(
        value * edge if place < 3 else value
        for place, value in zip(free, crystal.cell, strict=True)
    )
    return replace(crystal, cell=cell)
