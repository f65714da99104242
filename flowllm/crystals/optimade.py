"""Crystals as OPTIMADE structures (Andersen et al. 2021, Scientific Data 8, 217; version 1.2).

An OPTIMADE file here is the JSON that a provider's `/structures` answers: a list `data` of objects
with `id` and `attributes`. Own properties have the prefix `_flowllm_`, as OPTIMADE wants it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np

from flowllm.crystals.cells import fractional
from flowllm.crystals.crystal import Crystal, Geometry, ignore_missing_electronegativity
from flowllm.crystals.rules import check_periodic, site_element
from flowllm.errors import InvalidCrystal
from flowllm.system.versions import versions

_PREFIX = "_flowllm_"
_TYPE = "structures"
_KEYS = ("lattice_vectors", "cartesian_site_positions", "species_at_sites")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def is_optimade(item: Mapping[str, Any]) -> bool:
    """Return whether a JSON object is a structure of OPTIMADE, with its id.

    Args:
        item: parsed JSON.
    """
    inner = item.get("attributes")
    return item.get("type") == _TYPE and isinstance(inner, Mapping) and "species_at_sites" in inner


def optimade_values(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return the id and the properties that a provider adds to a structure of OPTIMADE.

    Args:
        item: see `is_optimade`.

    Returns:
        `id`, and the attributes that begin with the prefix of a provider, such as `_mp_band_gap`;
        those of this package without the prefix.
    """
    values = {
        name.removeprefix(_PREFIX): value
        for name, value in item["attributes"].items()
        if name.startswith("_")
    }
    return {"id": item.get("id"), **values}


def optimade_geometry(item: Mapping[str, Any]) -> Geometry:
    """Return the crystal of a structure of OPTIMADE.

    Args:
        item: see `is_optimade`.

    Returns:
        Cell, elements and positions.

    Raises:
        InvalidCrystal: if it is not periodic in three directions, a site is disordered or holds no
            element, or the object is damaged.
    """
    attributes = item["attributes"]
    try:
        periodic = attributes.get("dimension_types") or (1, 1, 1)
        check_periodic([bool(value) for value in periodic])
        lattice, positions, names = (attributes[key] for key in _KEYS)
        occupants = {
            kind["name"]: list(zip(kind["chemical_symbols"], kind["concentration"], strict=True))
            for kind in attributes.get("species") or ()
        }
        numbers = [
            site_element(occupants.get(name, [(name, 1)]), f"site {index}")
            for index, name in enumerate(names, start=1)
        ]
        matrix = np.array(lattice, dtype=np.float64).reshape(3, 3)
        places = np.array(positions, dtype=np.float64).reshape(-1, 3)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        if isinstance(error, InvalidCrystal):
            raise
        raise InvalidCrystal("unreadable", f"not a structure of OPTIMADE: {error}") from error
    if len(places) != len(numbers):
        problem = f"{len(numbers)} species for {len(places)} positions"
        raise InvalidCrystal("unreadable", f"not a structure of OPTIMADE: {problem}")
    return Geometry(matrix, np.array(numbers, dtype=np.uint8), fractional(places, matrix))


def optimade_response(crystals: Sequence[Crystal], properties: Sequence[Mapping[str, Any]]) -> Any:
    """Return crystals as the answer of an OPTIMADE provider.

    Args:
        crystals: ordered crystals.
        properties: name -> scalar, for each crystal.

    Returns:
        Objects for JSON.
    """
    return {
        "data": [_resource(c, p) for c, p in zip(crystals, properties, strict=True)],
        "meta": {
            "query": {"representation": f"/{_TYPE}"},
            "api_version": "1.2.0",
            "more_data_available": False,
            "data_returned": len(crystals),
            "implementation": {"name": "flowllm-crystal", "version": versions()["flowllm-crystal"]},
        },
    }


def _resource(crystal: Crystal, properties: Mapping[str, Any]) -> dict[str, Any]:
    structure = crystal.structure
    with ignore_missing_electronegativity():
        amounts = {e.symbol: int(n) for e, n in structure.composition.items()}
        descriptive = structure.composition.reduced_formula
    elements = sorted(amounts)
    divisor = reduce(math.gcd, amounts.values())
    counts = {symbol: amounts[symbol] // divisor for symbol in elements}
    falling = sorted(counts.values(), reverse=True)
    return {
        "id": crystal.id,
        "type": _TYPE,
        "attributes": {
            "immutable_id": None,
            "last_modified": None,
            "elements": elements,
            "nelements": len(elements),
            "elements_ratios": [amounts[symbol] / len(structure) for symbol in elements],
            "chemical_formula_descriptive": descriptive,
            "chemical_formula_reduced": _formula(counts.items()),
            "chemical_formula_anonymous": _formula(
                (_letters(place), count) for place, count in enumerate(falling)
            ),
            "dimension_types": [1, 1, 1],
            "nperiodic_dimensions": 3,
            "lattice_vectors": structure.lattice.matrix.tolist(),
            "cartesian_site_positions": structure.cart_coords.tolist(),
            "nsites": len(structure),
            "species": [
                {"name": symbol, "chemical_symbols": [symbol], "concentration": [1.0]}
                for symbol in elements
            ],
            "species_at_sites": [site.specie.symbol for site in structure],
            "structure_features": [],
            **{f"{_PREFIX}{name}": value for name, value in properties.items()},
        },
    }


def _formula(parts: Any) -> str:
    return "".join(f"{symbol}{count if count > 1 else ''}" for symbol, count in parts)


def _letters(place: int) -> str:
    """Return A, B, ..., Z, Aa, Ba, ..., as OPTIMADE names the elements of an anonymous formula."""
    tail = "" if place < len(_LETTERS) else _LETTERS[place // len(_LETTERS) - 1].lower()
    return _LETTERS[place % len(_LETTERS)] + tail
