"""Interatomic potentials by name: loaded, tested on crystals that are known, and what their
energies mean."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

from ase.calculators.calculator import Calculator
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from pymatgen.core import Element, Lattice, Structure

from flowllm.crystals.crystal import to_atoms
from flowllm.energy.minimization import CALCULATOR_ERRORS, relax_structure
from flowllm.errors import UserError, one_line
from flowllm.system.files import sha256_folder

logger = logging.getLogger(__name__)

POTENTIAL = "chgnet"  # where none is named

EnergyScheme = Literal["mp2020", "mp-raw", "matpes-pbe", "matpes-r2scan", "own"]
"""Which energies a potential gives, and so with which others they may be compared.

`mp2020`: Materials Project's GGA and GGA+U with its corrections of 2020 (Wang et al. 2021,
Sci. Rep. 11, 15496). `mp-raw`: the same calculations uncorrected. `matpes-pbe`, `matpes-r2scan`:
those of the MatPES data (Kaplan et al. 2025, arXiv 2503.04070), without +U. `own`: unknown.
"""
_SCHEMES: tuple[str, ...] = get_args(EnergyScheme)
_MATGL = "matgl:"
_MATGL_HUB = "materialyze"  # where matgl publishes its potentials
# In the names of matgl's potentials.
_MATGL_SCHEMES: dict[str, EnergyScheme] = {
    "MatPES-PBE": "matpes-pbe",
    "MatPES-r2SCAN": "matpes-r2scan",
    "-MP-": "mp-raw",
}
_NOT_IN_MPTRJ = frozenset({"Po", "At", "Rn", "Fr", "Ra"})
_VOLUME_TOLERANCE = 0.10  # of the volume, 3% of a length: what functionals differ by among them


def check_potential_name(potential: str) -> str:
    """Return the canonical form of the name of a potential; nothing is loaded.

    Raises:
        UserError: if there is no such kind of potential.
    """
    if not isinstance(potential, str):
        raise _unknown(potential)
    if potential.casefold() == "chgnet":
        return "chgnet"
    module, colon, name = potential.partition(":")
    if not (module and colon and name):
        raise _unknown(potential)
    return potential


def load_calculator(potential: str, *, check: bool = True) -> Calculator:
    """The calculator that `potential` names, on the CPU.

    `chgnet` is the CHGNet package's own one (Deng et al. 2023). `matgl:NAME` is a saved matgl
    potential: a folder, a hub id, or the name of one that matgl publishes. `MODULE:FACTORY` is any
    function without arguments that returns an ASE calculator; it may set an attribute
    `energy_scheme` on it, one of `EnergyScheme`.

    Args:
        potential: as above.
        check: test it, see `check_calculator`; leave out only where that has been done.

    Raises:
        UserError: another spelling, nothing there that loads, or a potential that is wrong.
    """
    if not isinstance(potential, str):
        raise _unknown(potential)
    if potential.startswith(_MATGL):
        calculator = _load_matgl(potential.removeprefix(_MATGL))
    elif potential == "chgnet":
        calculator = _load_chgnet()
    else:
        calculator = _load_factory(potential)
    if check:
        check_calculator(potential, calculator)
    return calculator


def energy_scheme(potential: str, calculator: Calculator) -> EnergyScheme:
    """What the energies of a potential mean: by its name, or as its calculator declares.

    Raises:
        UserError: the calculator declares a scheme that does not exist.
    """
    if potential == "chgnet":
        return "mp2020"
    if potential.startswith(_MATGL):
        name = Path(potential.removeprefix(_MATGL)).name
        return next((s for part, s in _MATGL_SCHEMES.items() if part in name), "own")
    declared = getattr(calculator, "energy_scheme", "own")
    if declared not in _SCHEMES:
        raise UserError(
            f"potential {potential} declares the energy scheme {declared!r}; "
            f"use one of {', '.join(_SCHEMES)}"
        )
    return declared


def check_calculator(potential: str, calculator: Calculator) -> None:
    """Refuse a potential that is wrong about rock salt or SrTiO3.

    Some weights load without an error and are wrong for every compound (of an older version of
    their package, say). Both crystals are relaxed and must keep their volume (PBE: NaCl 5.70,
    SrTiO3 3.94 Angstrom), and must lie below NaCl with the structure of CsCl and SrTiO3 with both
    metals exchanged. A potential that says it does not know these elements is let through with a
    warning.

    Raises:
        UserError: the potential is wrong.
    """
    try:
        for name, right, other, wrong in _known_crystals():
            energies = []
            for structure in (right, wrong):
                atoms = to_atoms(structure)
                atoms.calc = calculator
                energies.append(float(atoms.get_potential_energy()))
            if not energies[0] < energies[1]:
                raise _wrong(potential, f"it puts {name} above {other}")
            relaxed = relax_structure(right, calculator, step_limit=100).structure
            if relaxed is None:
                raise _wrong(potential, f"{name} does not relax")
            error = relaxed.volume / right.volume - 1
            if abs(error) > _VOLUME_TOLERANCE:
                raise _wrong(potential, f"its volume of {name} is off by {100 * error:+.0f}%")
    except _WrongPotential:
        raise
    except CALCULATOR_ERRORS as error:
        logger.warning(
            "potential %s could not be tested on NaCl and SrTiO3: %s", potential, one_line(error)
        )


def potential_identity(potential: str) -> dict[str, Any]:
    """Name and, where it is a folder, content hash of a potential, for manifests.

    Raises:
        UserError: there is no such folder, here or on the hub.
    """
    if potential == "chgnet":
        return {"name": "chgnet", "version": version("chgnet")}
    if not potential.startswith(_MATGL):
        return {"name": potential}
    name = potential.removeprefix(_MATGL)
    return {"name": _MATGL + Path(name).name, "sha256": sha256_folder(_matgl_folder(name))}


def known_elements(potential: str) -> frozenset[str] | None:
    """Symbols of the elements that a potential has learnt, or None where it does not say.

    CHGNet takes any element up to plutonium, but its data (MPtrj, Deng et al. 2023) has 89 of them.

    Raises:
        UserError: there is no such folder, here or on the hub.
    """
    if potential == "chgnet":
        return frozenset(Element.from_Z(z).symbol for z in range(1, 95)) - _NOT_IN_MPTRJ
    if not potential.startswith(_MATGL):
        return None
    file = _matgl_folder(potential.removeprefix(_MATGL)) / "model.json"
    try:
        content = json.loads(file.read_bytes())
        return frozenset(content["kwargs"]["model"]["init_args"]["element_types"])
    except (OSError, ValueError, LookupError, TypeError):  # another layout says nothing
        return None


class _WrongPotential(UserError):
    pass


def _wrong(potential: str, why: str) -> _WrongPotential:
    return _WrongPotential(
        f"potential {potential} is wrong: {why}; its weights are damaged or of another version of "
        "their package, take others"
    )


def _known_crystals() -> list[tuple[str, Structure, str, Structure]]:
    """A crystal at its PBE cell and the same atoms in a structure of higher energy, named."""
    face = [[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]]
    middle = [0.5, 0.5, 0.5]
    corner = [0.0, 0.0, 0.0]
    side = 5.70 / 2**0.5
    primitive = Lattice.from_parameters(side, side, side, 60, 60, 60)
    salt = Structure(primitive, ["Na", "Cl"], [corner, middle])
    packed = Structure(Lattice.cubic(3.47), ["Na", "Cl"], [corner, middle])
    perovskite, exchanged = (
        Structure(Lattice.cubic(3.94), [*metals, "O", "O", "O"], [corner, middle, *face])
        for metals in (("Sr", "Ti"), ("Ti", "Sr"))
    )
    return [
        ("NaCl", salt, "NaCl in the structure of CsCl", packed),
        ("SrTiO3", perovskite, "SrTiO3 with its metals exchanged", exchanged),
    ]


def _load_chgnet() -> Calculator:
    try:
        from chgnet.model.dynamics import CHGNetCalculator
    except ImportError as error:
        raise UserError(
            "chgnet is not installed; pip install 'flowllm-crystal[eval]', or name another "
            "potential, such as matgl:FOLDER"
        ) from error
    # chgnet 0.4 makes numbers of tensors with gradients at every step; torch 2.13 warns of it.
    warnings.filterwarnings("ignore", "Converting a tensor with requires_grad", UserWarning)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints where it runs
        return CHGNetCalculator(use_device="cpu", on_isolated_atoms="error")


def _load_matgl(name: str) -> Calculator:
    folder = _matgl_folder(name)
    import matgl
    from matgl.ext.ase import PESCalculator

    try:
        potential = matgl.load_model(str(folder))
    except (ValueError, RuntimeError) as error:
        reason = one_line(error.__cause__ or error)
        raise UserError(f"{name} holds no matgl potential: {reason}; give another") from error
    return PESCalculator(potential, stress_unit="eV/A3")


def _matgl_folder(name: str) -> Path:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    missing = f"there is no potential folder {name}"
    if not name or folder.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise UserError(f"{missing}; give one with a model.json")
    try:
        return Path(snapshot_download(name if "/" in name else f"{_MATGL_HUB}/{name}"))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{missing} and none on a hub that can be reached; give one with a model.json"
        ) from error


def _unknown(potential: object) -> UserError:
    return UserError(
        f"unknown potential {potential!r}; write matgl:FOLDER, chgnet or MODULE:FACTORY"
    )


def _load_factory(potential: str) -> Calculator:
    module, colon, name = potential.partition(":")
    if not (module and colon and name):
        raise _unknown(potential)
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"potential {potential}: {one_line(error)}; correct the name, or put "
            "the folder of the module on PYTHONPATH"
        ) from error
    try:
        calculator = factory()
    except Exception as error:  # whatever the user's code raises
        raise UserError(
            f"potential {potential} cannot be made: {type(error).__name__}: {one_line(error)}; "
            "mend the function, which takes no arguments"
        ) from error
    if not isinstance(calculator, Calculator):
        raise UserError(f"potential {potential} returns no ASE calculator; name another function")
    return calculator
