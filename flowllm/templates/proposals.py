"""Proposals of structures for a composition from known crystals with other elements."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Structure

from flowllm.crystals.symmetry import gene_of
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
    """A structure made from a template; its coordinates are computed when they are asked for.

    Attributes:
        template: id of the likeliest template that has the gene.
        rank: 1 for the likeliest.
        distance: of the composition from the template; see `flowllm.templates.ranking`.
        log_probability: of the gene among all genes that templates have for the composition.
        spacegroup: International number.
        num_atoms: of the primitive cell.
        shares: weights of the templates that are averaged, the likeliest first.
        make: returns the crystal that each of these templates gives, by its place in `shares`.
        composition: amounts of the elements in the formula unit of the likeliest template.
    """

    @cached_property
    def template_formula(self) -> str:
        """Reduced formula of the likeliest template."""
        return render_formula(self.composition)

    template: str
    rank: int
    distance: float
    log_probability: float
    spacegroup: int
    num_atoms: int
    shares: tuple[float, ...] = field(repr=False)
    make: Callable[[int], WyckoffCrystal] = field(repr=False, compare=False)
    composition: dict[str, int] = field(repr=False, compare=False)

    @cached_property
    def crystal(self) -> WyckoffCrystal:
        """The structure as space group, orbits and free parameters."""
        return average([self.make(place) for place in range(len(self.shares))], self.shares)

    @cached_property
    def structure(self) -> Structure:
        """The structure in its primitive Niggli cell, exactly symmetric.

        Raises:
            PriorError: if no Niggli cell is found.
        """
        return self.crystal.primitive()

    @cached_property
    def gene(self) -> str:
        """Group and Wyckoff letters of the elements, such as `225 Na:a Cl:b`.

        They are those of the templates. The mean of the templates may have a higher symmetry.
        """
        return gene_of(self.make(0))


def propose_templates(
    formula: Any,
    *,
    n: int | None = 5,
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
        n: number of structures at most; None: all.
        max_atoms: atoms of the largest primitive cell.
        formula_units: numbers of formula units in the primitive cell, each with amounts without a
            common divisor; empty: all.
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
    for name, values in (("n", [] if n is None else [n]), ("formula_units", formula_units)):
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
        _likeliest(weights, family.genes[chosen], n), start=1
    ):
        templates, ways = np.divmod(places[: MAX_AVERAGED if scale else 1], len(targets))
        first, rows = chosen[templates[0]], family.rows[chosen[templates]]
        proposals.append(
            Proposal(
                template=library.ids[int(rows[0])],
                composition=_amounts(family.elements[first], counts),
                rank=rank,
                distance=float(distances.flat[places[0]]),
                log_probability=log_probability,
                spacegroup=int(family.spacegroups[first]),
                num_atoms=int(family.num_atoms[first]),
                shares=tuple(
                    np.exp(weights.flat[places] - weights.flat[places[0]])[: len(rows)].tolist()
                ),
                make=partial(
                    _crystal,
                    library,
                    ranking if scale else None,
                    rows,
                    family.elements[chosen[templates]],
                    targets[ways],
                    counts,
                ),
            )
        )
    return proposals


def _crystal(
    library: TemplateLibrary,
    ranking: Ranking | None,
    rows: NDArray[np.int64],
    templates: NDArray[np.int64],
    targets: NDArray[np.int64],
    counts: NDArray[np.int64],
    place: int,
) -> WyckoffCrystal:
    """Return the crystal that a template gives.

    Args:
        library: the templates.
        ranking: scales the cell; None: the cell stays.
        rows: (M,) of the templates in the library.
        templates: (M, k) their atomic numbers by slot.
        targets: (M, k) the new ones.
        counts: (k,) atoms of each slot, up to a factor.
        place: of the template among the M.
    """
    symbols = [SYMBOLS[number - 1] for number in targets[place]]
    crystal = library.crystal(int(rows[place]), symbols)
    if ranking is None:
        return crystal
    return _scaled(crystal, ranking.growth(templates[place], targets[place], counts))


def _slots(formula: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return atomic numbers (k,) and amounts (k,) of the reduced formula, by amount."""
    amounts = parse_composition(formula).get_el_amt_dict()
    counts = np.array([int(amount) for amount in amounts.values()])
    order = np.argsort(counts, kind="stable")
    numbers = np.array([SYMBOLS.index(symbol) + 1 for symbol in amounts])
    return numbers[order], counts[order] // np.gcd.reduce(counts)


def _amounts(elements: NDArray[np.int64], counts: NDArray[np.int64]) -> dict[str, int]:
    """Return the amount of each of the elements (k,) from their amounts (k,) by slot."""
    symbols = [SYMBOLS[number - 1] for number in elements]
    return dict(zip(symbols, counts.tolist(), strict=True))


def _likeliest(
    weights: NDArray[np.float64], genes: NDArray[np.int64], n: int | None
) -> Iterator[tuple[list[int], float]]:
    """Yield flat places of templates and ways of each gene, and the gene's log-probability.

    Args:
        weights: (T, P) logarithms.
        genes: (T, P) numbers of genes.
        n: genes at most, or None; the likeliest come first.

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
