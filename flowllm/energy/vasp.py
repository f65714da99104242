"""VASP inputs with Materials Project's settings, for crystals that are worth a real calculation."""

from __future__ import annotations

import json
import logging
import operator
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from monty.json import MontyEncoder
from pymatgen.core import SETTINGS, Structure
from pymatgen.io.vasp.sets import MPRelaxSet

from flowllm.crystals.io import Crystal, read
from flowllm.errors import UserError, one_line
from flowllm.runs.outputs import file_names
from flowllm.system.files import publish

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


def export_vasp(
    file: str | Path,
    *,
    out: str | Path,
    where: Sequence[str] = (),
    limit: int | None = None,
    skip_invalid: bool = False,
) -> list[Crystal]:
    """Write a folder of VASP inputs for each crystal of `file` that meets all rules.

    INCAR, KPOINTS and POSCAR are those of pymatgen's `MPRelaxSet`: what Materials Project relaxes
    with, so that the energies go with its entries after the corrections of MP2020. POTCAR is
    written where pymatgen knows the user's pseudopotentials (PMG_VASP_PSP_DIR), else `POTCAR.spec`
    names them. With atomate2 installed `flow.json` holds the workflow of each crystal as well.

    Args:
        file: anything that `flowllm.crystals.io.read` reads, such as the structures.parquet of an
            evaluation.
        out: new folder, with a folder for each crystal.
        where: rules on properties: name, one of < <= > >= = !=, value; `e_above_hull<0.1`. A
            crystal without the property does not meet the rule.
        limit: the first so many rows only.
        skip_invalid: leave bad rows out.

    Returns:
        The crystals that were written.

    Raises:
        UserError: bad file or rule, a property that no crystal has, no crystal that meets the
            rules, `out` exists, or a pseudopotential that is not there.
    """
    out = Path(out)
    if out.exists():
        raise UserError(f"{out} exists; choose another folder")
    rules = [_rule(text) for text in where]
    crystals = list(read(file, skip_invalid=skip_invalid, limit=limit))
    for name, _, _ in rules:
        if not any(name in crystal.properties for crystal in crystals):
            known = sorted({key for crystal in crystals for key in crystal.properties})
            raise UserError(f"{file}: no crystal has {name}; it has {', '.join(known) or 'none'}")
    chosen = [c for c in crystals if all(_meets(c, rule) for rule in rules)]
    if not chosen:
        raise UserError(f"{file}: no crystal meets {' and '.join(where)}; widen the rules")
    spec = not SETTINGS.get("PMG_VASP_PSP_DIR")
    if spec:
        logger.warning("PMG_VASP_PSP_DIR is not set: POTCAR.spec is written instead of POTCAR")
    out.parent.mkdir(parents=True, exist_ok=True)

    def write(temporary: Path) -> None:
        temporary.mkdir()
        for crystal, name in zip(chosen, file_names([c.id for c in chosen]), strict=True):
            _write_inputs(crystal, temporary / name, spec)

    publish(out, write)
    return chosen


def _write_inputs(crystal: Crystal, folder: Path, potcar_spec: bool) -> None:
    with warnings.catch_warnings(record=True) as caught:  # on single elements and settings
        warnings.simplefilter("always")
        try:
            MPRelaxSet(crystal.structure).write_input(str(folder), potcar_spec=potcar_spec)
        except (ValueError, OSError, RuntimeError, KeyError) as error:
            raise UserError(
                f"no VASP input for crystal {crystal.id}: {one_line(error)}; mend "
                "PMG_VASP_PSP_DIR, or leave the crystal out"
            ) from error
        flow = _flow(crystal.structure, crystal.id)
    if flow is not None:
        (folder / "flow.json").write_text(flow, encoding="utf-8")
    for warning in caught:
        logger.info("%s: %s", crystal.id, one_line(str(warning.message)))


def _flow(structure: Structure, name: str) -> str | None:
    """Materials Project's relaxation and static calculation as a jobflow `Flow`, as JSON."""
    try:
        from atomate2.vasp.flows.mp import MPGGADoubleRelaxStaticMaker
    except ImportError:
        return None
    return json.dumps(MPGGADoubleRelaxStaticMaker(name=name).make(structure), cls=MontyEncoder)


def _rule(text: str) -> tuple[str, str, float | str]:
    match = _RULE.fullmatch(text)
    if match is None or not match[3]:
        raise UserError(f"{text!r} is no rule; write NAME<VALUE, such as e_above_hull<0.1")
    name, sign, value = match.groups()
    try:
        return name, sign, float(_TRUTH.get(value.lower(), value))
    except ValueError:
        if sign in _ORDERED:
            raise UserError(f"{text!r}: {value!r} is no number; mend the rule") from None
        return name, sign, value


def _meets(crystal: Crystal, rule: tuple[str, str, float | str]) -> bool:
    name, sign, value = rule
    there = crystal.properties.get(name)
    if there is None:
        return False
    if isinstance(there, str) != isinstance(value, str):
        return sign == "!="
    return _COMPARE[sign](there, value)
