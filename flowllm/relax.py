"""Relaxing crystals, cell and positions, with an interatomic potential."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase.calculators.calculator import Calculator
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE
from pymatgen.core import Structure

from flowllm.crystal import to_atoms, to_structure
from flowllm.errors import InvalidCrystal, UserError, one_line
from flowllm.files import sha256_folder

FORCE_LIMIT = 0.05  # eV/Angstrom
STEP_LIMIT = 500
_MATGL = "matgl:"
# What calculators are seen to raise when a crystal falls apart or has an element they do not know.
_CALCULATOR_ERRORS = (ValueError, LookupError, ArithmeticError, RuntimeError)


@dataclass(frozen=True, kw_only=True)
class Relaxation:
    """What became of one crystal.

    Attributes:
        structure: relaxed, or None if that failed.
        energy_per_atom: eV/atom of `structure` by the potential, or None.
        steps: of the optimiser.
        failure: why there is no structure, else None.
    """

    structure: Structure | None
    energy_per_atom: float | None
    steps: int
    failure: str | None = None


def relax(
    structure: Structure,
    calculator: Calculator,
    *,
    force_limit: float = FORCE_LIMIT,
    step_limit: int = STEP_LIMIT,
) -> Relaxation:
    """Move atoms and cell to the nearest minimum of the energy.

    FIRE (Bitzek et al. 2006, PRL 97, 170201) on positions and cell together (ASE's
    `FrechetCellFilter`), at zero pressure.

    Args:
        structure: an ordered crystal; not changed.
        calculator: energy, forces and stress in ASE's units (eV, Angstrom).
        force_limit: the largest force on an atom or the cell at the end, eV/Angstrom.
        step_limit: most steps; a crystal that needs more has failed.

    Returns:
        The crystal, or why there is none: a failure is this crystal's alone.
    """
    atoms = to_atoms(structure)
    atoms.calc = calculator
    steps = 0
    try:
        optimizer = FIRE(FrechetCellFilter(atoms), logfile=None)
        converged = False
        for done in optimizer.irun(fmax=force_limit, steps=step_limit):
            converged, steps = bool(done), optimizer.nsteps
            if not math.isfinite(atoms.get_potential_energy()):
                return _failed("the energy is not finite", steps)
        if not converged:
            return _failed(f"not converged in {step_limit} steps", steps)
        relaxed = to_structure(atoms)
    except InvalidCrystal as error:
        return _failed(error.detail, steps)
    except _CALCULATOR_ERRORS as error:
        return _failed(one_line(error), steps)
    energy = float(atoms.get_potential_energy()) / len(atoms)
    return Relaxation(structure=relaxed, energy_per_atom=energy, steps=steps)


def _failed(why: str, steps: int) -> Relaxation:
    return Relaxation(
        structure=None, energy_per_atom=None, steps=steps, failure=f"relaxation: {why}"
    )


def load_calculator(potential: str) -> Calculator:
    """The calculator that `potential` names.

    `matgl:FOLDER` is a saved matgl potential, `chgnet` the CHGNet package's own one, and
    `MODULE:FACTORY` any function without arguments that returns an ASE calculator.

    Raises:
        UserError: another spelling, or nothing there that loads.
    """
    if potential.startswith(_MATGL):
        return _load_matgl(potential.removeprefix(_MATGL))
    if potential == "chgnet":
        try:
            from chgnet.model.dynamics import CHGNetCalculator
        except ImportError as error:
            raise UserError("chgnet is not installed; pip install chgnet") from error
        return CHGNetCalculator(use_device="cpu", verbose=False)
    module, colon, name = potential.partition(":")
    if not (module and colon and name):
        raise UserError(
            f"unknown potential {potential!r}; write matgl:FOLDER, chgnet or MODULE:FACTORY"
        )
    try:
        calculator = getattr(importlib.import_module(module), name)()
    except (ImportError, AttributeError) as error:
        raise UserError(f"potential {potential}: {one_line(error)}; correct the name") from error
    if not isinstance(calculator, Calculator):
        raise UserError(f"potential {potential} returns no ASE calculator; name another function")
    return calculator


def potential_identity(potential: str) -> dict[str, Any]:
    """Name and, where it is a folder, content hash of a potential, for manifests.

    Raises:
        UserError: the folder is not there or empty.
    """
    if not potential.startswith(_MATGL):
        return {"name": potential}
    folder = Path(potential.removeprefix(_MATGL))
    return {"name": _MATGL + folder.name, "sha256": sha256_folder(folder)}


def _load_matgl(folder: str) -> Calculator:
    if not Path(folder).is_dir():  # matgl would look for the name on a hub
        raise UserError(f"there is no potential folder {folder}; give one with a model.json")
    import matgl
    from matgl.ext.ase import PESCalculator

    try:
        potential = matgl.load_model(folder)
    except (ValueError, RuntimeError) as error:
        reason = one_line(error.__cause__ or error)
        raise UserError(f"{folder} holds no matgl potential: {reason}; give another") from error
    return PESCalculator(potential, stress_unit="eV/A3")
