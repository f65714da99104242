"""Interatomic potentials: their names, loading, and the scheme of their energies.

Importing this module imports neither torch nor a package of potentials, so that a name can be
checked before anything is loaded.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args

from flowllm.energy import matgl_folder
from flowllm.errors import UserError
from flowllm.system.device import check_device, pick_device
from flowllm.system.factories import call_factory, is_factory
from flowllm.system.files import sha256_folder

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

POTENTIAL = "chgnet"  # default

EnergyScheme = Literal["mp2020", "mp-raw", "mp-r2scan", "matpes-pbe", "matpes-r2scan", "own"]
"""Kind of energies that a potential predicts; only energies of one kind may be compared.

`mp2020`: Materials Project's GGA and GGA+U with its corrections of 2020 (Wang et al. 2021,
Sci. Rep. 11, 15496). `mp-raw`: the same calculations, uncorrected. `mp-r2scan`:
Materials Project's r2SCAN (Kingsbury et al. 2022, Phys. Rev. Mater. 6, 013801), uncorrected.
`matpes-pbe`, `matpes-r2scan`: the MatPES data (Kaplan et al. 2025, arXiv 2503.04070), without +U.
`own`: unknown.
"""
_SCHEMES: tuple[str, ...] = get_args(EnergyScheme)
_MATGL = "matgl:"
# Part of the name of a matgl potential -> scheme.
_MATGL_SCHEMES: dict[str, EnergyScheme] = {
    "MatPES-PBE": "matpes-pbe",
    "MatPES-r2SCAN": "matpes-r2scan",
    "-MP-": "mp-raw",
}
_NUM_CHGNET_ELEMENTS = 94
_NOT_IN_MPTRJ = frozenset({"Po", "At", "Rn", "Fr", "Ra"})


class _Published(NamedTuple):
    """Weights in the wheel of a package."""

    package: str
    extra: str  # of this package, which installs it
    weights: str
    scheme: EnergyScheme


_PUBLISHED = {
    "chgnet": _Published("chgnet", "eval", "0.3.0", "mp2020"),
    "chgnet:r2scan": _Published("chgnet", "eval", "r2scan", "mp-r2scan"),
    "sevennet": _Published("sevenn", "sevennet", "7net-0", "mp-raw"),
}
_OWN_PREFIXES = ("chgnet:", "sevennet:")  # what else begins so is no module


def check_potential_name(name: str) -> str:
    """Return the canonical name of a potential; nothing is loaded.

    Args:
        name: `chgnet`, `chgnet:r2scan` or `sevennet` in any case, `matgl:NAME` with a folder, a
            hub id or the name of a potential that matgl publishes, or `MODULE:FACTORY`.

    Returns:
        The name as the other functions of this module and manifests have it.

    Raises:
        UserError: if the name has none of these forms, is a path where there is no folder, or is a
            folder that matgl must not load; see `flowllm.energy.matgl_folder.check_folder`.
    """
    if not isinstance(name, str):
        raise _unknown(name)
    text = name.strip()
    if text.lower() in _PUBLISHED:
        return text.lower()
    if text.lower().startswith(_MATGL):
        model = text[len(_MATGL) :]
        if not model:
            raise _unknown(name)
        matgl_folder.check_place(model)
        if (folder := Path(model).expanduser()).is_dir():
            matgl_folder.check_folder(folder)
        return _MATGL + model
    if not is_factory(text) or text.lower().startswith(_OWN_PREFIXES):
        raise _unknown(name)
    return text


def check_installed(potential: str) -> str:
    """Check that the package of a potential is installed; nothing is imported.

    Args:
        potential: name, see `check_potential_name`.

    Returns:
        The canonical name.

    Raises:
        UserError: if the name is unknown, or its package is not installed.
    """
    potential = check_potential_name(potential)
    if (published := _PUBLISHED.get(potential)) is not None:
        _version(published)
    return potential


def pick_potential_device(potential: str, device: str) -> str:
    """Return the device on which a potential computes.

    Args:
        potential: name, see `check_potential_name`.
        device: `cpu`, `cuda`, `cuda:NUMBER`, or `auto` for a GPU if there is one and the potential
            can use it.

    Returns:
        A name for `torch.device`.

    Raises:
        UserError: if a name is unknown, there is no such GPU, or the potential cannot use it.
    """
    if check_potential_name(potential) in _PUBLISHED:
        return pick_device(device)
    if check_device(device).startswith("cuda"):
        raise UserError(
            f"potential {potential} computes on the CPU here; use --device cpu, or one of "
            f"{', '.join(_PUBLISHED)}"
        )
    return "cpu"


def available_potentials() -> list[tuple[str, str]]:
    """Return the packages of potentials, each with its version or what to do to get it.

    Returns:
        Name and text, such as `("chgnet", "0.4.2")`; nothing is imported.
    """
    found = []
    for name, extra in (("chgnet", "[eval]"), ("sevenn", "[sevennet]"), ("matgl", "")):
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            found.append((name, f"not installed; pip install 'flowllm-crystal{extra}'"))
    return found


def load_calculator(potential: str, *, check: bool = True, device: str = "cpu") -> Calculator:
    """Return the calculator of a potential.

    `chgnet` is CHGNet 0.3.0 (Deng et al. 2023), `chgnet:r2scan` its weights for r2SCAN, `sevennet`
    SevenNet-0 (Park et al. 2024); these three evaluate batches, see
    `flowllm.energy.single_points.BatchCalculator`. `matgl:NAME` is a saved matgl potential: a
    folder, a hub id, or the name of a potential that matgl publishes. `MODULE:FACTORY` is a
    function without arguments that returns an ASE calculator; it may set an attribute
    `energy_scheme` on it, one of `EnergyScheme`.

    Args:
        potential: name, see above.
        check: test the potential, see `flowllm.energy.potential_check`; False only if it was
            tested before.
        device: of torch. matgl stays on the CPU, and a factory chooses itself.

    Returns:
        The calculator.

    Raises:
        UserError: if the name is unknown, nothing can be loaded, or the potential is wrong.
    """
    potential = check_potential_name(potential)
    if potential.startswith(_MATGL):
        calculator = _load_matgl(potential.removeprefix(_MATGL))
    elif potential in _PUBLISHED:
        calculator = _load_published(potential, device)
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
    if potential in _PUBLISHED:
        return _PUBLISHED[potential].scheme
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
        `name`, and `version` of the package or the content hash `sha256` of a folder.

    Raises:
        UserError: if the name is unknown, its package is not installed, or there is no such folder
            here or on the hub.
    """
    potential = check_potential_name(potential)
    if potential in _PUBLISHED:
        return {"name": potential, "version": _version(_PUBLISHED[potential])}
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
    potential = check_potential_name(potential)
    if potential in _PUBLISHED and _PUBLISHED[potential].package == "chgnet":
        return _chgnet_elements()
    return known_elements(potential)


def known_elements(potential: str) -> frozenset[str] | None:
    """Return the elements that a potential was trained on.

    CHGNet takes any element up to plutonium, but its data (MPtrj, Deng et al. 2023) has 89 of them,
    the ones that SevenNet takes.

    Args:
        potential: name, see `check_potential_name`.

    Returns:
        Symbols; None if the potential does not list them.

    Raises:
        UserError: if the name is unknown, or there is no such folder here or on the hub.
    """
    potential = check_potential_name(potential)
    if potential in _PUBLISHED:
        return _chgnet_elements() - _NOT_IN_MPTRJ
    if not potential.startswith(_MATGL):
        return None
    return matgl_folder.element_types(matgl_folder.find_folder(potential.removeprefix(_MATGL)))


def _chgnet_elements() -> frozenset[str]:
    from pymatgen.core import Element

    return frozenset(Element.from_Z(z).symbol for z in range(1, _NUM_CHGNET_ELEMENTS + 1))


def _load_published(potential: str, device: str) -> Calculator:
    published = _PUBLISHED[potential]
    _version(published)
    if published.package == "chgnet":
        from flowllm.energy.chgnet_potential import CHGNetPotential

        return CHGNetPotential(published.weights, device=device)
    from flowllm.energy.sevennet_potential import SevenNetPotential

    return SevenNetPotential(published.weights, device=device)


def _load_matgl(name: str) -> Calculator:
    potential = matgl_folder.load_model(matgl_folder.find_folder(name))
    from matgl.ext.ase import PESCalculator

    return PESCalculator(potential, stress_unit="eV/A3")


def _version(published: _Published) -> str:
    try:
        return version(published.package)
    except PackageNotFoundError:
        raise UserError(
            f"{published.package} is not installed; pip install "
            f"'flowllm-crystal[{published.extra}]', or give another potential, such as matgl:FOLDER"
        ) from None


def _unknown(potential: object) -> UserError:
    return UserError(
        f"unknown potential {potential!r}; write {', '.join(_PUBLISHED)}, matgl:FOLDER or "
        "MODULE:FACTORY"
    )


def _load_factory(potential: str) -> Calculator:
    from ase.calculators.calculator import Calculator

    calculator = call_factory("potential", potential)
    if not isinstance(calculator, Calculator):
        raise UserError(f"potential {potential} returns no ASE calculator; name another function")
    return calculator
