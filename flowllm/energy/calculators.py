"""Interatomic potentials: their names, loading, and the scheme of their energies.

Importing this module imports neither torch nor a package of potentials, so that a name can be
checked before anything is loaded.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from flowllm.energy import matgl_folder
from flowllm.errors import UserError, one_line
from flowllm.system.files import sha256_folder

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

POTENTIAL = "chgnet"  # default

EnergyScheme = Literal["mp2020", "mp-raw", "matpes-pbe", "matpes-r2scan", "own"]
"""Kind of energies that a potential predicts; only energies of one kind may be compared.

`mp2020`: Materials Project's GGA and GGA+U with its corrections of 2020 (Wang et al. 2021,
Sci. Rep. 11, 15496). `mp-raw`: the same calculations, uncorrected. `matpes-pbe`, `matpes-r2scan`:
the MatPES data (Kaplan et al. 2025, arXiv 2503.04070), without +U. `own`: unknown.
"""
_SCHEMES: tuple[str, ...] = get_args(EnergyScheme)
_MATGL = "matgl:"
# Part of the name of a matgl potential -> scheme.
_MATGL_SCHEMES: dict[str, EnergyScheme] = {
    "MatPES-PBE": "matpes-pbe",
    "MatPES-r2SCAN": "matpes-r2scan",
    "-MP-": "mp-raw",
}
_FACTORY = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")  # package.module:function
_NUM_CHGNET_ELEMENTS = 94
_NOT_IN_MPTRJ = frozenset({"Po", "At", "Rn", "Fr", "Ra"})


def check_potential_name(name: str) -> str:
    """Return the canonical name of a potential; nothing is loaded.

    Args:
        name: `chgnet` in any case, `matgl:NAME` with a folder, a hub id or the name of a potential
            that matgl publishes, or `MODULE:FACTORY`.

    Returns:
        The name as the other functions of this module and manifests have it.

    Raises:
        UserError: if the name has none of these forms, is a path where there is no folder, or is a
            folder that matgl must not load; see `flowllm.energy.matgl_folder.check_folder`.
    """
    if not isinstance(name, str):
        raise _unknown(name)
    text = name.strip()
    if text.lower() == "chgnet":
        return "chgnet"
    if text.lower().startswith(_MATGL):
        model = text[len(_MATGL) :]
        if not model:
            raise _unknown(name)
        matgl_folder.check_place(model)
        if (folder := Path(model).expanduser()).is_dir():
            matgl_folder.check_folder(folder)
        return _MATGL + model
    if not _FACTORY.fullmatch(text):
        raise _unknown(name)
    return text


def available_potentials() -> list[tuple[str, str]]:
    """Return the packages of potentials, each with its version or what to do to get it.

    Returns:
        Name and text, such as `("chgnet", "0.4.2")`; nothing is imported.
    """
    found = []
    for name, extra in (("chgnet", "[eval]"), ("matgl", "")):
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            found.append((name, f"not installed; pip install 'flowllm-crystal{extra}'"))
    return found


def load_calculator(potential: str, *, check: bool = True) -> Calculator:
    """Return the calculator of a potential, on the CPU.

    `chgnet` is the CHGNet package's own one (Deng et al. 2023). `matgl:NAME` is a saved matgl
    potential: a folder, a hub id, or the name of a potential that matgl publishes.
    `MODULE:FACTORY` is a function without arguments that returns an ASE calculator; it may set an
    attribute `energy_scheme` on it, one of `EnergyScheme`.

    Args:
        potential: name, see above.
        check: test the potential, see `flowllm.energy.potential_check`; False only if it was
            tested before.

    Returns:
        The calculator.

    Raises:
        UserError: if the name is unknown, nothing can be loaded, or the potential is wrong.
    """
    potential = check_potential_name(potential)
    if potential.startswith(_MATGL):
        calculator = _load_matgl(potential.removeprefix(_MATGL))
    elif potential == "chgnet":
        calculator = _load_chgnet()
    else:
        calculator = _load_factory(potential)
    if check:
        from flowllm.energy.potential_check import check_calculator

        check_calculator(potential, calculator)
    return calculator


def energy_scheme(potential: str, calculator: Calculator) -> EnergyScheme:
    """Return the scheme of a potential's energies, by its name or as its calculator declares.

    Args:
        potential: name, see `check_potential_name`.
        calculator: the potential's calculator.

    Returns:
        The scheme.

    Raises:
        UserError: if the calculator declares a scheme that does not exist.
    """
    potential = check_potential_name(potential)
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
    return cast(EnergyScheme, declared)


def potential_identity(potential: str) -> dict[str, Any]:
    """Return the identity of a potential for manifests.

    Args:
        potential: name, see `check_potential_name`.

    Returns:
        `name`, and `version` for CHGNet or the content hash `sha256` for a folder.

    Raises:
        UserError: if the name is unknown, or there is no such folder here or on the hub.
    """
    potential = check_potential_name(potential)
    if potential == "chgnet":
        try:
            return {"name": "chgnet", "version": version("chgnet")}
        except PackageNotFoundError:
            raise _no_chgnet() from None
    if not potential.startswith(_MATGL):
        return {"name": potential}
    name = potential.removeprefix(_MATGL)
    return {
        "name": _MATGL + Path(name).name,
        "sha256": sha256_folder(matgl_folder.find_folder(name)),
    }


def accepted_elements(potential: str) -> frozenset[str] | None:
    """Return the elements that a potential computes without an error, learnt or not.

    Args:
        potential: name, see `check_potential_name`.

    Returns:
        Symbols; None if the potential does not list them.

    Raises:
        UserError: if the name is unknown, or there is no such folder here or on the hub.
    """
    if check_potential_name(potential) != "chgnet":
        return known_elements(potential)
    from pymatgen.core import Element

    return frozenset(Element.from_Z(z).symbol for z in range(1, _NUM_CHGNET_ELEMENTS + 1))


def known_elements(potential: str) -> frozenset[str] | None:
    """Return the elements that a potential was trained on.

    CHGNet takes any element up to plutonium, but its data (MPtrj, Deng et al. 2023) has 89 of them.

    Args:
        potential: name, see `check_potential_name`.

    Returns:
        Symbols; None if the potential does not list them.

    Raises:
        UserError: if the name is unknown, or there is no such folder here or on the hub.
    """
    potential = check_potential_name(potential)
    if potential == "chgnet":
        accepted = accepted_elements(potential)
        return None if accepted is None else accepted - _NOT_IN_MPTRJ
    if not potential.startswith(_MATGL):
        return None
    return matgl_folder.element_types(matgl_folder.find_folder(potential.removeprefix(_MATGL)))


def _load_chgnet() -> Calculator:
    try:
        from chgnet.model.dynamics import CHGNetCalculator
    except ImportError as error:
        raise _no_chgnet() from error
    # chgnet 0.4 converts tensors with gradients to numbers in every step; torch 2.13 warns of it.
    warnings.filterwarnings("ignore", "Converting a tensor with requires_grad", UserWarning)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its device
        return CHGNetCalculator(use_device="cpu", on_isolated_atoms="error")


def _load_matgl(name: str) -> Calculator:
    potential = matgl_folder.load_model(matgl_folder.find_folder(name))
    from matgl.ext.ase import PESCalculator

    return PESCalculator(potential, stress_unit="eV/A3")


def _no_chgnet() -> UserError:
    return UserError(
        "chgnet is not installed; pip install 'flowllm-crystal[eval]', or give another potential, "
        "such as matgl:FOLDER"
    )


def _unknown(potential: object) -> UserError:
    return UserError(
        f"unknown potential {potential!r}; write matgl:FOLDER, chgnet or MODULE:FACTORY"
    )


def _load_factory(potential: str) -> Calculator:
    from ase.calculators.calculator import Calculator

    module, _, name = potential.partition(":")
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"potential {potential}: {one_line(error)}; correct the name, or add "
            "the folder of the module to PYTHONPATH"
        ) from error
    try:
        calculator = factory()
    except Exception as error:  # the user's code may raise anything
        raise UserError(
            f"potential {potential} cannot be made: {type(error).__name__}: {one_line(error)}; "
            "correct the function, which takes no arguments"
        ) from error
    if not isinstance(calculator, Calculator):
        raise UserError(f"potential {potential} returns no ASE calculator; name another function")
    return calculator
