"""Crystals in JSON: structures of pymatgen, ASE, JARVIS and OPTIMADE, and their documents.

A document is an object with a structure under a key and properties beside it, such as a summary of
Materials Project, a `ComputedStructureEntry` or a line of WBM. Documents come one by one, in lists,
by id, in the tables that pandas writes, and inside objects with other content.

No class is made that a file names: pymatgen's own `from_dict` would import it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from pymatgen.core import Lattice, Structure

from flowllm.crystals.cells import fractional
from flowllm.crystals.crystal import UNREADABLE, Geometry, check_occupancies
from flowllm.crystals.optimade import is_optimade, optimade_geometry, optimade_values
from flowllm.crystals.rules import atomic_number, check_numbers, check_periodic, site_element
from flowllm.errors import InvalidCrystal, one_line
from flowllm.system.documents import parse_json

# Keys of the structure of a document; the first that is there is read.
STRUCTURE_KEYS = (
    *("structure", "final_structure", "relaxed_structure", "computed_structure_entry", "entry"),
    *("initial_structure", "atoms", "cif"),
)
_PROPERTY_KEYS = ("properties", "data")  # objects whose values are properties of the crystal
_DEEPEST = 5  # objects or lists around a document
_NAMED = 8  # keys in a message


class Document(NamedTuple):
    """One item of a JSON file that is a crystal or should be one.

    Attributes:
        key: of the item in its object; empty in a list.
        source: the text of a CIF, a geometry, or the reason why there is none.
        values: property -> value of any kind.
        ignored: key -> why its content is not used.
    """

    key: str
    source: str | Geometry | InvalidCrystal
    values: dict[str, Any]
    ignored: dict[str, str]


def documents(content: Any) -> Iterator[Document]:
    """Yield the crystals of the content of a JSON file, including bad ones.

    Args:
        content: parsed JSON.

    Yields:
        A document for every item where there should be a crystal; none if there is nowhere one.
    """
    if isinstance(content, str):  # JSON inside of JSON, as `json.dumps(structure.to_json())` gives
        content = _parsed(content)
    if _holds_crystals(content):
        for key, item in _items("", content):
            yield _document(key, item)


def document(item: Any) -> Document:
    """Return one item that should be a crystal, such as a value of a table.

    Args:
        item: parsed JSON, or text with JSON or a CIF.

    Returns:
        The document.
    """
    return _document("", item)


def keys_of(content: Any) -> str:
    """Return a few words on the content of a JSON file without crystals, for messages.

    Args:
        content: parsed JSON.

    Returns:
        Such as `a list of objects with the keys formula, energy`.
    """
    if isinstance(content, list):
        if not content:
            return "an empty list"
        return f"a list of {len(content)} items, the first {keys_of(content[0])}"
    if isinstance(content, Mapping):
        names = ", ".join(str(key) for key in list(content)[:_NAMED])
        more = ", ..." if len(content) > _NAMED else ""
        return f"an object with the keys {names}{more}" if names else "an empty object"
    return "text" if isinstance(content, str) else f"{content!r}"[:40]


def _document(key: str, item: Any) -> Document:
    try:
        source, values, ignored = _read(item)
    except InvalidCrystal as error:
        values, ignored = (_values(item), {}) if isinstance(item, Mapping) else ({}, {})
        return Document(key, error, values, ignored)
    return Document(key, source, values, ignored)


def _read(item: Any) -> tuple[str | Geometry, dict[str, Any], dict[str, str]]:
    """Return the structure of an item, the values beside it and what is not used."""
    if isinstance(item, str):
        if not item.lstrip().startswith(("{", "[")):
            return item, {}, {}
        item = _parsed(item)
    if not isinstance(item, Mapping):
        raise InvalidCrystal("unreadable", f"neither a structure nor a document: {keys_of(item)}")
    if is_optimade(item):
        return optimade_geometry(item), optimade_values(item), {}
    if _is_structure(item):
        return _geometry(item), _values({k: item.get(k) for k in _OF_STRUCTURE if k in item}), {}
    keys = [key for key in STRUCTURE_KEYS if _is_crystal(item.get(key))]
    if not keys:
        keys = [key for key, value in item.items() if _is_crystal(value)]
        if len(keys) > 1:
            raise InvalidCrystal(
                "unreadable", f"several structures, {', '.join(keys)}; name one 'structure'"
            )
    if not keys:
        if "sites" in item:
            raise InvalidCrystal("not_periodic", "a molecule: sites without a lattice")
        raise InvalidCrystal(
            "unreadable", f"neither a structure nor a document with one: {keys_of(item)}"
        )
    inner = item[keys[0]]
    try:
        source, inner_values, ignored = _read(inner)
    except InvalidCrystal as error:
        where = f"{keys[0]}: {error.detail}"
        raise InvalidCrystal(error.reason, where) from error
    ignored |= {key: f"only the structure under {keys[0]!r} is read" for key in keys[1:]}
    return source, inner_values | _values(item), ignored


# The keys beside lattice and sites that say something about the crystal.
_OF_STRUCTURE = ("properties", "data", "energy", "key_value_pairs")


def _values(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a document, those of its objects of properties included."""
    values: dict[str, Any] = {}
    for key in (*_PROPERTY_KEYS, "key_value_pairs"):
        if isinstance(item.get(key), Mapping):
            values |= item[key]
    beside = (key for key in item if key not in STRUCTURE_KEYS and not key.startswith("@"))
    return values | {key: item[key] for key in beside}


def _items(key: str, content: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield every item that is or should be a crystal, with its key."""
    if isinstance(content, list):
        for item in content:
            yield "", item
    elif _is_crystal(content):
        yield key, content
    elif _is_split(content):
        names = content["columns"]
        index = content.get("index", range(len(content["data"])))
        for name, values in zip(index, content["data"], strict=False):
            yield str(name), dict(zip(names, values, strict=False))
    elif _is_by_column(content):
        for name in content[next(key for key in STRUCTURE_KEYS if key in content)]:
            columns = content.items()
            yield name, {c: v.get(name) for c, v in columns if isinstance(v, Mapping)}
    elif any(map(_is_crystal, content.values())):  # by id
        for name, item in content.items():
            if isinstance(item, Mapping):
                yield str(name), item
    else:
        for name, item in content.items():
            if _holds_crystals(item, depth + 1):
                yield from _items(str(name), item, depth + 1)


def _holds_crystals(content: Any, depth: int = 0) -> bool:
    """Return whether there is a crystal somewhere in the content."""
    if depth > _DEEPEST or not isinstance(content, Mapping | list):
        return False
    if _is_crystal(content):
        return True
    if isinstance(content, Mapping) and _is_split(content):
        return True
    items = content if isinstance(content, list) else list(content.values())
    return any(_holds_crystals(item, depth + 1) for item in items)


def _is_crystal(content: Any) -> bool:
    """Return whether an item is a structure or a document with one."""
    if isinstance(content, str):
        text = content.lstrip()
        return text.startswith("data_") or "_cell_length_a" in text or '"lattice"' in text
    if not isinstance(content, Mapping):
        return False
    if _is_structure(content) or is_optimade(content):
        return True
    found = (content.get(key) for key in STRUCTURE_KEYS)
    return any(_is_crystal(value) for value in found if value is not None)


def _is_structure(item: Mapping[str, Any]) -> bool:
    return any(all(key in item for key in keys) for keys in _READERS)


def _is_split(content: Mapping[str, Any]) -> bool:
    """Return whether it is a table that pandas wrote with `orient="split"`."""
    columns = content.get("columns")
    return (
        isinstance(columns, list)
        and isinstance(content.get("data"), list)
        and not set(STRUCTURE_KEYS).isdisjoint(map(str, columns))
    )


def _is_by_column(content: Mapping[str, Any]) -> bool:
    """Return whether it is a table that pandas wrote with its default `orient="columns"`."""
    found = (content.get(key) for key in STRUCTURE_KEYS)
    return any(
        isinstance(column, Mapping) and any(map(_is_crystal, column.values())) for column in found
    )


def _parsed(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise InvalidCrystal("unreadable", f"not JSON: {one_line(error)}") from error


def _geometry(item: Mapping[str, Any]) -> Geometry:
    name, reader = next(
        found for keys, found in _READERS.items() if all(key in item for key in keys)
    )
    try:
        return reader(item)
    except InvalidCrystal:
        raise
    except KeyError as error:
        raise InvalidCrystal("unreadable", f"not {name}: it has no {error}") from error
    except UNREADABLE as error:
        raise InvalidCrystal("unreadable", f"not {name}: {one_line(error)}") from error


def geometry_of_dict(item: Mapping[str, Any]) -> Geometry:
    """Return the crystal of a pymatgen structure dict, read as plain data.

    Args:
        item: as `Structure.as_dict` returns it.

    Returns:
        Cell, elements and positions.

    Raises:
        InvalidCrystal: if it is not periodic, or a site is disordered or holds no element.
        LookupError, TypeError, ValueError, AttributeError: if it is no structure dict.
    """
    lattice = item["lattice"]
    check_periodic(lattice.get("pbc", (True,) * 3))
    if "matrix" in lattice:
        matrix = _array(lattice["matrix"], 3, 3)
    else:
        names = ("a", "b", "c", "alpha", "beta", "gamma")
        matrix = Lattice.from_parameters(*(lattice[name] for name in names)).matrix
    sites = item["sites"]
    numbers = [
        site_element([(o["element"], o.get("occu", 1)) for o in site["species"]], f"site {index}")
        for index, site in enumerate(sites, start=1)
    ]
    if all("abc" in site for site in sites):
        frac_coords = _array([site["abc"] for site in sites], -1, 3)
    else:
        frac_coords = fractional(_array([site["xyz"] for site in sites], -1, 3), matrix)
    return Geometry(matrix, np.array(numbers, dtype=np.uint8), frac_coords)


def structure_dict(structure: Structure, verbosity: Literal[0, 1] = 1) -> dict[str, Any]:
    """Return what `structure.as_dict(verbosity)` returns, in a sixth of the time.

    pymatgen describes the lattice again for every site.

    Args:
        structure: a crystal.
        verbosity: 1 also gives cell parameters, labels and Cartesian coordinates.
    """
    lattice = structure.lattice.as_dict(verbosity=verbosity)
    species: dict[int, list[dict[str, Any]]] = {}  # sites of an element may share one composition
    sites = []
    for site in structure:
        mixture = site.species
        if id(mixture) not in species:
            species[id(mixture)] = [
                _without_class(kind.as_dict()) | {"occu": share} for kind, share in mixture.items()
            ]
        content: dict[str, Any] = {
            "species": [dict(kind) for kind in species[id(mixture)]],
            "abc": site.frac_coords.astype(float).tolist(),
            "properties": site.properties,
        }
        if verbosity:
            content |= {"label": site.label, "xyz": site.coords.astype(float).tolist()}
        sites.append(content)
    return {
        "@module": type(structure).__module__,
        "@class": type(structure).__name__,
        "charge": structure.charge,
        "lattice": _without_class(lattice),
        "properties": structure.properties,
        "sites": sites,
    }


def _without_class(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in ("@module", "@class")}


def _ase(item: Mapping[str, Any]) -> Geometry:
    check_periodic(_plain(item.get("pbc", (False,) * 3)))
    check_occupancies((item.get("info") or {}).get("occupancy"))
    matrix = _array(_plain(item["cell"]), 3, 3)
    positions = _array(_plain(item["positions"]), -1, 3)
    numbers = check_numbers(_plain(item["numbers"]))
    return Geometry(matrix, numbers, fractional(positions, matrix))


def _jarvis(item: Mapping[str, Any]) -> Geometry:
    matrix = _array(item["lattice_mat"], 3, 3)
    coords = _array(item["coords"], -1, 3)
    numbers = [
        atomic_number(str(symbol).strip(), f"site {index}")
        for index, symbol in enumerate(item["elements"], start=1)
    ]
    if item.get("cartesian"):
        coords = fractional(coords, matrix)
    return Geometry(matrix, np.array(numbers, dtype=np.uint8), coords)


def _plain(value: Any) -> Any:
    """Return the nested lists of an array or cell of ASE's JSON."""
    if isinstance(value, Mapping) and "array" in value:
        value = value["array"]
    if isinstance(value, Mapping) and "__ndarray__" in value:
        shape, _, flat = value["__ndarray__"]
        return np.array(flat).reshape(shape)
    return value


def _array(values: Any, *shape: int) -> Any:
    return np.array(values, dtype=np.float64).reshape(shape)


_READERS = {
    ("lattice", "sites"): ("a pymatgen structure", geometry_of_dict),
    ("numbers", "positions", "cell"): ("a crystal of ASE", _ase),
    ("lattice_mat", "elements", "coords"): ("a crystal of JARVIS", _jarvis),
}
