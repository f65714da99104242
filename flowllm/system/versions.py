"""Versions of packages, recorded with every run."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("flowllm-crystal", "torch", "transformers", "peft", "pymatgen", "torch-geometric")


def versions() -> dict[str, str]:
    """Return the installed versions of the packages that affect a result.

    Returns:
        Version by package; `not installed` for a package that is missing.
    """
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a source tree that is on the path but not installed
            found[package] = "not installed"
    return found
