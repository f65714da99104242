"""Templates, hull, elemental energies and potential of a prediction."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from flowllm.prediction.config import PredictionConfig
from flowllm.templates.library import BUNDLED, TemplateLibrary, bundled
from llm_prior.prompts import parse_composition

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

    from flowllm.energy.formation import References
    from flowllm.energy.hull import Hull
    from flowllm.evaluation.energies import EnergyModel


def library_path(config: PredictionConfig) -> Path:
    """Return the file of the templates.

    Args:
        config: the request.
    """
    return BUNDLED if config.templates is None else config.templates


def read_library(path: Path) -> TemplateLibrary:
    """Return a template library, which is read once as long as its file stays the same.

    Args:
        path: of the file.

    Raises:
        UserError: if it is no library, or a bad one.
    """
    if path == BUNDLED:
        return bundled()
    if not path.is_file():
        return TemplateLibrary.read(path)  # raises
    about = path.stat()
    return _read(path.resolve(), about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=1)
def _read(path: Path, modified: int, size: int) -> TemplateLibrary:
    return TemplateLibrary.read(path)


def read_hull_data(
    config: PredictionConfig, formulas: Sequence[str]
) -> tuple[Hull | None, References | None]:
    """Return the hull and the energies of the elements, each of them None if it is not asked for.

    Args:
        config: the request.
        formulas: whose hulls are needed.

    Raises:
        UserError: if a file is bad, or the database cannot be reached.
    """
    if config.hull is None:
        return None, None
    # pymatgen's corrections of energies take seconds to import.
    from flowllm.energy.formation import read_references
    from flowllm.energy.hull import materials_project_hull, read_hull

    references = None if config.references is None else read_references(config.references)
    if not config.hull_is_online:
        return read_hull(config.hull), references
    systems = [
        [element.symbol for element in parse_composition(formula).elements] for formula in formulas
    ]
    return materials_project_hull(systems), references


def load_energies(
    config: PredictionConfig,
    hull: Hull | None,
    references: References | None,
    calculator: Calculator | None = None,
) -> EnergyModel | None:
    """Load and test the potential; None if there is none.

    Args:
        config: the request.
        hull: known compounds, or None.
        references: energies of the elements, or None.
        calculator: the potential if it is loaded and tested already.

    Raises:
        UserError: if the potential is wrong, or does not fit the hull.
    """
    if config.potential is None:
        return None
    from flowllm.evaluation.energies import load_energy_model

    return load_energy_model(
        config.potential,
        hull=hull,
        references=references,
        min_elements=1,
        calculator=calculator,
    )
