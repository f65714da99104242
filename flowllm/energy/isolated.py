"""Relaxation in a process that may hang or die without harm to the rest."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

from flowllm.energy.batched import Evaluating, relaxations
from flowllm.energy.calculators import accepted_elements, load_calculator
from flowllm.energy.elements import holding_others
from flowllm.energy.minimization import Relaxation, RelaxationConfig, failed
from flowllm.system.isolation import Isolated, Lost

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator
    from pymatgen.core import Structure

    _Item: TypeAlias = tuple[RelaxationConfig, Sequence[Structure]]

_GRACE = 30.0  # seconds in which a step that began within the time limit may end


class IsolatedRelaxation:
    """Relaxes crystals with a potential in a process of its own.

    Args:
        potential: name of a tested potential; see `flowllm.energy.calculators.load_calculator`.
        device: `cpu` or `cuda`.
    """

    def __init__(self, potential: str, device: str = "cpu") -> None:
        self._potential = potential
        self._accepted = accepted_elements(potential)
        self._isolated: Isolated[_Item, tuple[int, Relaxation] | Evaluating] = Isolated(
            functools.partial(load_calculator, potential, check=False, device=device),
            _relax_in_process,
            what=f"potential {potential}",
        )

    def close(self) -> None:
        """End the process."""
        self._isolated.close()

    def __call__(
        self, structures: Sequence[Structure], config: RelaxationConfig
    ) -> Iterator[tuple[int, Relaxation]]:
        """Yield the index and the outcome of each crystal, the first finished one first.

        If the process is lost, the crystals that it was computing are halved and begin again. One
        that is alone begins again if its process was killed, for that may be no fault of its own;
        the second time, or if it hung, the crystal has failed. A crystal with an element that the
        potential has not learnt has failed as well.

        Args:
            structures: ordered crystals.
            config: limits of each relaxation.
        """
        known = []
        for index, structure in enumerate(structures):
            _, foreign = holding_others([structure], self._accepted)
            if foreign:
                yield index, failed(f"{self._potential} does not know {', '.join(foreign)}")
            else:
                known.append(index)
        groups = [known] if known else []
        again: set[int] = set()
        while groups:
            group = groups.pop(0)
            left = dict.fromkeys(group)  # ordered
            suspects = group
            try:
                events = self._isolated(
                    (config, [structures[index] for index in group]),
                    time_limit=config.time_limit + _GRACE,
                )
                with contextlib.closing(events):
                    for event in events:
                        if isinstance(event, Evaluating):
                            suspects = [group[place] for place in event.indices]
                        else:
                            place, relaxation = event
                            del left[group[place]]
                            yield group[place], relaxation
            except Lost as error:
                suspects = [index for index in suspects if index in left]
                others = [index for index in left if index not in suspects]
                if len(suspects) == 1 and (not error.killed or suspects[0] in again):
                    yield suspects[0], failed(str(error))
                    suspects = []
                elif len(suspects) == 1:
                    again.update(suspects)
                half = len(suspects) // 2
                groups = [g for g in (suspects[:half], suspects[half:], others) if g] + groups


def _relax_in_process(
    calculator: Calculator, item: _Item
) -> Iterator[tuple[int, Relaxation] | Evaluating]:
    config, structures = item
    return relaxations(structures, calculator, config)
