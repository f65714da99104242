"""Relaxation of many crystals, their energies computed together."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flowllm.energy.minimization import Minimization, Relaxation, RelaxationConfig
from flowllm.system.options import from_arguments

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator
    from pymatgen.core import Structure


@dataclass(frozen=True)
class Evaluating:
    """A sign of life: the crystals that the next call of the potential is about."""

    indices: tuple[int, ...]


def relax_structures(
    structures: Sequence[Structure],
    calculator: Calculator,
    *,
    config: RelaxationConfig | None = None,
    **options: Any,
) -> list[Relaxation]:
    """Relax crystals as `flowllm.energy.minimization.relax_structure` does, several at a time.

    Each crystal has an optimizer of its own. What they share is the call of the potential: a
    `flowllm.energy.single_points.BatchCalculator` evaluates up to `batch_atoms` atoms at once. A
    crystal at its end makes room for the next ones. With any other calculator one crystal is
    relaxed after the other. The result of a crystal does not depend on the others, but for
    rounding.

    Args:
        structures: N ordered crystals; not changed.
        calculator: energy, forces and stress in ASE's units (eV, Angstrom), as
            `flowllm.energy.calculators.load_calculator` returns it.
        config: limits of each relaxation; None: the defaults. The time of a crystal is its share,
            by atoms, of the time of the batches that it was in.
        **options: fields of `RelaxationConfig`; they replace those of `config`.

    Returns:
        N relaxed crystals, or why there is none, in the order of `structures`.

    Raises:
        UserError: if an option is unknown or out of range.
    """
    limits = from_arguments(RelaxationConfig, options, base=config)
    ends = {}
    for event in relaxations(structures, calculator, limits):
        if not isinstance(event, Evaluating):
            index, ends[index] = event
    return [ends[index] for index in range(len(structures))]


def relaxations(
    structures: Sequence[Structure], calculator: Calculator, limits: RelaxationConfig
) -> Iterator[tuple[int, Relaxation] | Evaluating]:
    """Yield relaxed crystals as they come, each with its index.

    Args:
        structures: ordered crystals; not changed.
        calculator: see `relax_structures`.
        limits: of each relaxation.

    Yields:
        Index and outcome of a crystal, or what is evaluated next.
    """
    from flowllm.energy.single_points import BatchCalculator, single_points

    room = calculator.batch_atoms if isinstance(calculator, BatchCalculator) else 0
    waiting = deque(enumerate(structures))
    running: dict[int, Minimization] = {}
    seconds: dict[int, float] = {}
    while waiting or running:
        while waiting and (not running or _num_atoms(running, waiting[0][1]) <= room):
            index, structure = waiting.popleft()
            calculator.reset()  # it must not take anything from the crystal before
            minimization = Minimization(structure, limits)
            if minimization.outcome is None:
                running[index], seconds[index] = minimization, 0.0
            else:
                yield index, minimization.outcome
        if not running:
            continue
        yield Evaluating(tuple(running))
        start = time.monotonic()
        points = single_points(calculator, [m.atoms for m in running.values()])
        passed = time.monotonic() - start
        share = passed / _num_atoms(running)
        for (index, minimization), point in zip(list(running.items()), points, strict=True):
            seconds[index] += share * len(minimization.atoms)
            minimization.advance(point, seconds=seconds[index])
            if minimization.outcome is not None:
                del running[index]
                yield index, minimization.outcome


def _num_atoms(running: dict[int, Minimization], *others: Structure) -> int:
    return sum(len(m.atoms) for m in running.values()) + sum(map(len, others))
