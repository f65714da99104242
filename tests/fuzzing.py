"""Damaged files of crystals, and the check of what the reader makes of them.

A damaged file has to give crystals that ASE, gemmi or pymatgen read alike, or an error of
`flowllm.errors` on one line. Any other exception, and a crystal that none of them reads, is a
fault of the reader. `test_fuzzing` tries some hundred files, `tools/fuzz.py` as many as fit into
the given minutes.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import random
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ase.io
import gemmi
import numpy as np
import pandas as pd
from ase import Atoms
from pymatgen.core import Element, Lattice, Structure
from pymatgen.io.ase import AseAtomsAdaptor
from pymatgen.io.cif import CifWriter
from pymatgen.io.vasp.inputs import Poscar

from flowllm.crystals.io import read
from flowllm.errors import FlowLLMError
from support import MP20_SAMPLE, SYMMETRIC_CIF

SUFFIXES = (".cif", ".vasp", ".extxyz", ".json", ".csv")
_POSITION = 0.1  # Angstrom, by which a rounded position may move to its special position
_CELL = 0.02  # Angstrom and degrees

# What damaged, foreign and hostile files hold. Half of all insertions are one of these.
TOKENS = [
    *(b"0", b"-1", b"1e999", b"-0.0", b"nan", b"inf", b"?", b".", b"0.333", b"0.3333(2)", b"1/3"),
    *(b"1e-30", b"99999999999999999999", b"9" * 5000, b"0x10", b"1_0", b"1d0", b"\xd9\xa3"),
    *(b"\n", b"\r", b"\r\n", b"\t", b" ", b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\x1a"),
    *(b"'", b'"', b";", b"\n;\n", b"#", b"[", b"]", b"{", b"}", b",", b":", b"\\", b"_", b"$"),
    *(b"[" * 3000, b'{"a":' * 3000, b"null", b"true", b"[]", b"{}", b'""', b"NaN", b"Infinity"),
    *(b"\nloop_\n", b"\ndata_x\n", b"\ndata_\n", b"\nsave_x\n", b"\nstop_\n", b"global_"),
    *(b"D", b"T", b"X", b"Xx", b"Uue", b"Wat", b"O2-", b"Na+", b"H1", b"Og", b"Vac", b"M"),
    *(b"x,y,z", b"-x,-y,-z", b"x+1/2,y,z", b"1/2*x,y,z", b"x,y", b"x,x,x", b"x y z", b"2x,y,z"),
    *(b"'F m -3 m'", b"'R -3 m:H'", b"Fm-3m", b"P1", b"225", b"'P 21/c'", b"0.5", b"1.5"),
    *(b"Lattice=", b"pbc=", b'pbc="T T F"', b"Properties=species:S:1:pos:R:3", b"energy=1"),
    *(b"Direct", b"Cartesian", b"Selective dynamics", b"T T F", b"-40.0", b"1.0 1.0 2.0"),
    *(b"_cell_length_a 5", b"_atom_site_occupancy", b"_symmetry_equiv_pos_as_xyz"),
    *(b'"@module": "os", "@class": "system"', b"__import__('os')", b"%s%n", b"<script>"),
]
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eEdD][-+]?\d+)?", re.ASCII)
KINDS = ("flip", "delete", "repeat", "insert", "number", "swap", "drop", "double", "cut", "splice")


@dataclass(frozen=True)
class Damage:
    """One change to the bytes of a file.

    Attributes:
        kind: one of `KINDS`.
        place: where, as a part of the file, in [0, 1).
        length: number of bytes that a change of many bytes has.
        token: what is inserted.
    """

    kind: str
    place: float
    length: int
    token: bytes


def random_damage(rng: random.Random) -> Damage:
    """Return a change drawn at random."""
    token = rng.choice(TOKENS) if rng.random() < 0.5 else rng.randbytes(rng.randint(1, 4))
    length = 1 << rng.randint(0, 8)
    return Damage(rng.choice(KINDS), rng.random(), length, token)


def damaged(content: bytes, changes: Sequence[Damage]) -> bytes:
    """Return a file after changes."""
    for change in changes:
        content = _changed(content, change)
    return content


def _changed(content: bytes, change: Damage) -> bytes:
    at = int(change.place * len(content))
    lines = content.split(b"\n")
    line = int(change.place * len(lines))
    match change.kind:
        case "flip":
            bit = 1 << change.length % 8
            return content[:at] + bytes(c ^ bit for c in content[at : at + 1]) + content[at + 1 :]
        case "delete":
            return content[:at] + content[at + change.length :]
        case "repeat":
            return content[:at] + content[at : at + change.length] * 2 + content[at:]
        case "insert":
            return content[:at] + change.token + content[at:]
        case "number":  # the next number, or word, becomes the token
            words = lines[line].split(b" ")
            words[change.length % len(words)] = change.token
            lines[line] = b" ".join(words)
        case "swap":
            other = change.length % len(lines)
            lines[line], lines[other] = lines[other], lines[line]
        case "drop":
            del lines[line]
        case "double":
            lines.insert(line, lines[line])
        case "cut":
            return content[:at]
        case "splice":  # two files in one
            return content + b"\n" + content[at:]
    return b"\n".join(lines)


@cache
def whole_files(suffix: str) -> list[bytes]:
    """Return real crystals as whole files of a format."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pymatgen, about rounded coordinates
        return [text.encode() for text in _texts(suffix)]


def _texts(suffix: str) -> list[str]:
    table = pd.read_parquet(MP20_SAMPLE)
    structures = [Structure.from_str(text, fmt="cif") for text in table["cif"][:24]]
    match suffix:
        case ".cif":
            symmetric = [str(CifWriter(s, symprec=0.1)) for s in structures]
            texts = [*table["cif"][:12], *symmetric, SYMMETRIC_CIF, symmetric[0] + symmetric[1]]
        case ".vasp":
            texts = [str(Poscar(s.get_sorted_structure())) for s in structures]
            texts += [_poscar_variant(text) for text in texts]
        case ".extxyz":
            texts = [_extxyz(structures[i : i + 2]) for i in range(0, 24, 2)]
        case ".json":
            dicts = [structure.as_dict(verbosity=0) for structure in structures]
            texts = [json.dumps(content) for content in (*dicts[:8], dicts[8:11])]
        case ".csv":
            texts = [table[i : i + 3].to_csv(index=False) for i in range(0, 12, 3)]
    return texts


def _poscar_variant(text: str) -> str:
    """Return a POSCAR with its volume as the scale and selective dynamics."""
    lines = text.splitlines()
    volume = abs(np.linalg.det([[float(x) for x in line.split()] for line in lines[2:5]]))
    lines[1] = f"-{volume:.6f}"
    lines.insert(7, "Selective dynamics")
    lines[9:] = [" ".join([*line.split()[:3], "T", "F", "T"]) for line in lines[9:] if line.strip()]
    return "\n".join(lines) + "\n"


def _extxyz(structures: Sequence[Structure]) -> str:
    file = io.StringIO()
    ase.io.write(file, [s.to_ase_atoms() for s in structures], format="extxyz")
    return file.getvalue()


def fault(content: bytes, suffix: str, folder: Path) -> str | None:
    """Return what is wrong in how a file is read, or None.

    Args:
        content: of the file.
        suffix: of its name.
        folder: where it is written.
    """
    file = folder / f"crystal{suffix}"
    file.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            crystals = read(file, reduce=False)
        except FlowLLMError as error:
            return None if str(file) in str(error) else f"the error names no file: {error}"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        others = list(_other_readings(content, suffix, file))
        for crystal in crystals:
            if not any(_alike(crystal.structure, other) for other in others):
                read_as = ", ".join(other.composition.formula for other in others) or "nothing"
                return f"read as {crystal.structure.composition.formula}, by others as {read_as}"
    return None


def _other_readings(content: bytes, suffix: str, file: Path) -> Iterator[Structure]:
    """Yield the crystals of a file as other programs read them; what they cannot read is left."""
    match suffix:
        case ".cif":
            yield from _cif_readings(_text(content), file.parent)
        case ".csv":
            csv.field_size_limit(1 << 30)
            for row in csv.DictReader(io.StringIO(_text(content), newline="")):
                if (text := row.get("cif")) is not None:
                    yield from _cif_readings(text, file.parent)
        case ".json":
            items = json.loads(_text(content))
            for item in items if isinstance(items, list) else [items]:
                yield Structure(
                    Lattice(item["lattice"]["matrix"]),
                    [site["species"][0]["element"] for site in item["sites"]],
                    [site["abc"] for site in item["sites"]],
                )
        case ".vasp":
            text = _without_comments(_text(content))
            clean = file.with_name("clean.vasp")
            clean.write_text(text, encoding="utf-8")
            yield from _ase_readings(clean, "vasp")
            with contextlib.suppress(Exception):
                yield Poscar.from_str(text, read_velocities=False).structure
        case _:
            yield from _ase_readings(file, "extxyz")


def _without_comments(text: str) -> str:
    """Return a POSCAR without what follows the first three numbers of a line, labels and flags.

    VASP ignores it in the cell and after the positions.
    """
    lines = re.split("\r\n|\r|\n", text)  # no other character ends a line
    for place, line in enumerate(lines):
        numbers = list(itertools.takewhile(_NUMBER.fullmatch, line.split()))
        if place in range(1, 5) or (place > 6 and len(numbers) >= 3):
            lines[place] = " ".join(numbers[:3])
    return "\n".join(line for line in lines if not line.strip().lower().startswith("sel")) + "\n"


def _cif_readings(text: str, folder: Path) -> Iterator[Structure]:
    try:
        blocks = list(gemmi.cif.read_string(text, check_level=0))  # a tag may occur twice
    except (ValueError, RuntimeError):
        blocks = []
    for block in blocks:
        for tag in ("_cell_angle_alpha", "_cell_angle_beta", "_cell_angle_gamma"):
            if block.find_value(tag) is None:  # the default of the CIF dictionary
                block.set_pair(tag, "90")
        small = gemmi.make_small_structure_from_block(block)
        sites = small.get_all_unit_cell_sites()
        try:
            yield Structure(
                Lattice.from_parameters(*small.cell.parameters),
                [Element.from_Z(site.element.atomic_number) for site in sites],
                [site.fract.tolist() for site in sites],
            )
        except (ValueError, ArithmeticError):
            continue
    file = folder / "part.cif"
    file.write_text(text, encoding="utf-8", errors="replace")
    yield from _ase_readings(file, "cif")


def _ase_readings(file: Path, format: str) -> Iterator[Structure]:
    try:
        found: Any = ase.io.read(file, index=":", format=format)
    except Exception:  # ASE raises anything on damaged files
        return
    for atoms in found:
        if atoms.cell.rank == 3 and len(atoms):
            yield _structure(atoms)


def _structure(atoms: Atoms) -> Structure:
    return AseAtomsAdaptor.get_structure(
        Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
    )


def _text(content: bytes) -> str:
    for mark, encoding in (
        (b"\xef\xbb\xbf", "utf-8-sig"),
        (b"\xff\xfe", "utf-16"),
        (b"\xfe\xff", "utf-16"),
    ):
        if content.startswith(mark):
            return content.decode(encoding, errors="replace")
    return content.decode("utf-8", errors="replace")


def _alike(one: Structure, other: Structure) -> bool:
    if sorted(one.atomic_numbers) != sorted(other.atomic_numbers):
        return False
    if not np.allclose(one.lattice.parameters, other.lattice.parameters, atol=_CELL):
        return False
    return all(_found(site, other) for site in one) and all(_found(site, one) for site in other)


def _found(site: Any, structure: Structure) -> bool:
    apart = structure.frac_coords - site.frac_coords  # (N, 3)
    distances = np.linalg.norm((apart - np.round(apart)) @ structure.lattice.matrix, axis=1)
    return any(
        distance < _POSITION and number == site.specie.Z
        for distance, number in zip(distances, structure.atomic_numbers, strict=True)
    )
