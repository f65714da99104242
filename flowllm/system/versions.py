"""Which versions made a result: recorded with every run, never compared."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("flowllm-crystal", "torch", "transformers", "peft", "pymatgen", "torch-geometric")


def versions() -> dict[str, str]:
    """Installed versions of the packages that decide a result."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a source tree that is on the path but not installed
            found[package] = "not installed"
    return found
