"""VASP inputs with the settings of the Materials Project."""

from __future__ import annotations

import importlib
import json
import logging
import operator
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pymatgen.core import SETTINGS, Structure

from flowllm.crystals.io import Crystal, read
from flowllm.errors import UserError, one_line
from flowllm.system.files import file_names, publish

logger = logging.getLogger(__name__)

_RULE = re.compile(r"\s*([^\s<>=!]+)\s*(<=|>=|!=|==|=|<|>)\s*(.*?)\s*")
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
}
_ORDERED = ("<", "<=", ">", ">=")
_TRUTH = {"true": 1.0, "false": 0.0}


class Rule(NamedTuple):
    """A condition on a property of a crystal, such as `e_above_hull<0.1`."""

    name: str
    sign: str  # a key of _COMPARE
    value: float | str

    def holds(self, crystal: Crystal) -> bool:
        """Return whether a crystal meets the rule; without the property it does not.

        Args:
            crystal: with its properties.

        Returns:
            True if it does.
        """
        found = crystal.properties.get(self.name)
        if found is None:
            return False
        if isinstance(found, str) != isinstance(self.value, str):
            return self.sign == "!="
        return _COMPARE[self.sign](found, self.value)


def export_vasp(
    file: str | Path,
    *,
    out: str | Path,
    where: Sequence[str] = (),
    limit: int | None = None,
    skip_invalid: bool = False,
) -> list[Crystal]:
    """Write a folder of VASP inputs for each crystal of `file` that meets all rules.

    INCAR, KPOINTS and POSCAR come from pymatgen's `MPRelaxSet`, the settings of the Materials
    Project: after the MP2020 corrections the energies are comparable with its entries. POTCAR is
    written if pymatgen knows the user's pseudopotentials (PMG_VASP_PSP_DIR), else `POTCAR.spec`
    names them. If atomate2 is installed, `flow.json` holds the workflow of each crystal.

    Args:
        file: any input of `flowllm.crystals.io.read`, such as the folder of an evaluation.
        out: new folder, with a folder for each crystal.
        where: rules on properties: name, one of < <= > >= = !=, value; `e_above_hull<0.1`. A
            crystal without the property does not meet the rule.
        limit: read at most this many rows.
        skip_invalid: leave out bad rows.

    Returns:
        The crystals that were written.

    Raises:
        UserError: if a file or rule is bad, no crystal has a property or meets the rules, `out`
            exists, or a pseudopotential is missing.
    """
    out = Path(out)
    if out.exists():
        raise UserError(f"{out} exists; choose another folder")
    rules = [_rule(text) for text in where]
    crystals = list(read(file, skip_invalid=skip_invalid, limit=limit))
    known = sorted({key for crystal in crystals for key in crystal.properties})
    for rule in rules:
        if rule.name not in known:
            raise UserError(
                f"{file}: no crystal has {rule.name}; it has {', '.join(known) or 'none'}"
            )
    chosen = [crystal for crystal in crystals if all(rule.holds(crystal) for rule in rules)]
    if not chosen:
        raise UserError(f"{file}: no crystal meets {' and '.join(where)}; widen the rules")
    spec = not SETTINGS.get("PMG_VASP_PSP_DIR")
    if spec:
        logger.warning("PMG_VASP_PSP_DIR is not set, so POTCAR.spec is written instead of POTCAR")
    out.parent.mkdir(parents=True, exist_ok=True)

    def write(temporary: Path) -> None:
        temporary.mkdir()
        for crystal, name in zip(chosen, file_names([c.id for c in chosen]), strict=True):
            _write_inputs(crystal, temporary / name, spec)

    publish(out, write)
    return chosen


def _write_inputs(crystal: Crystal, folder: Path, potcar_spec: bool) -> None:
    from pymatgen.io.vasp.sets import MPRelaxSet  # slow to import

    with warnings.catch_warnings(record=True) as caught:  # about elements and settings
        warnings.simplefilter("always")
        try:
            MPRelaxSet(crystal.structure).write_input(str(folder), potcar_spec=potcar_spec)
        except (ValueError, OSError, RuntimeError, KeyError) as error:
            raise UserError(
                f"no VASP input for crystal {crystal.id}: {one_line(error)}; correct "
                "PMG_VASP_PSP_DIR, or leave the crystal out"
            ) from error
        flow = _flow(crystal.structure, crystal.id)
    if flow is not None:
        (folder / "flow.json").write_text(flow, encoding="utf-8")
    for warning in caught:
        logger.info("%s: %s", crystal.id, one_line(str(warning.message)))


def _flow(structure: Structure, name: str) -> str | None:
    """Return the Materials Project's double relaxation and static calculation as a jobflow `Flow`.

    Returns:
        The flow as JSON; None if atomate2 is not installed.
    """
    try:
        flows = importlib.import_module("atomate2.vasp.flows.mp")
    except ImportError:
        return None
    from monty.json import MontyEncoder

    return json.dumps(
        flows.MPGGADoubleRelaxStaticMaker(name=name).make(structure), cls=MontyEncoder
    )


def _rule(text: str) -> Rule:
    match = _RULE.fullmatch(text)
    if match is None or not match[3]:
        raise UserError(f"{text!r} is not a rule; write NAME<VALUE, such as e_above_hull<0.1")
    name, sign, value = match.groups()
    try:
        return Rule(name, sign, float(_TRUTH.get(value.lower(), value)))
    except ValueError:
        if sign in _ORDERED:
            raise UserError(f"{text!r}: {value!r} is not a number; correct the rule") from None
        return Rule(name, sign, value)
