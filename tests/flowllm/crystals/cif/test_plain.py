"""The fast path for plain CIFs, against the full parser."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from flowllm.crystals.cif import parse_cif, parse_plain_cif
from flowllm.crystals.rules import ATOMIC_NUMBER, check_geometry
from flowllm.errors import InvalidCrystal
from support import MP20, MP20_SAMPLE, SYMMETRIC_CIF, cif, disordered, perovskite, skewed

JUNK = ["", "?", ".", "nan", "inf", "-1", "Xx", "D", "1e400", "'", ";", "loop_", "data_", "#", "é"]


@given(data_=st.data(), symmetric=st.booleans())
@settings(max_examples=80, deadline=None)
def test_damaged_cif_is_refused_by_reason_and_never_misread_as_plain(data_, symmetric):
    text = SYMMETRIC_CIF if symmetric else cif(perovskite())
    for _ in range(data_.draw(st.integers(1, 3))):
        words = text.split(" ")
        start = data_.draw(st.integers(0, len(words) - 1))
        stop = data_.draw(st.integers(start, min(start + 3, len(words))))
        text = " ".join(words[:start] + [data_.draw(st.sampled_from(JUNK))] + words[stop:])
    parsed = parse_cif(text)[0].source
    plain = parse_plain_cif(text)
    if plain is not None:
        assert not isinstance(parsed, InvalidCrystal)
        assert all(np.array_equal(a, b) for a, b in zip(plain, parsed, strict=True))


@pytest.mark.parametrize("word", ["D", "D2", "3", "x1"])
def test_a_formula_with_a_word_too_many_is_not_plain(word):
    damaged = cif(perovskite()).replace("'Sr1 Ti1 O3'", f"'Sr1 Ti1 {word} O3'")
    assert damaged != cif(perovskite()) and parse_plain_cif(damaged) is None
    assert parse_plain_cif(cif(perovskite())) is not None


@pytest.mark.parametrize(
    "structure",
    [
        perovskite(),
        skewed(),
        Structure(
            Lattice.cubic(4), ["O", "Na", "O"], [[1 / 3, 0.66668, 0.33], [0, 0, 0], [0.9] * 3]
        ),
        Structure(Lattice.cubic(4), ["Cl", "Na"], [[-0.2, 1.3, -1e-9], [0.5, 0.5, 0.99999999]]),
        # Three elements of one electronegativity: the symbol decides.
        Structure(Lattice.cubic(5), ["Ru", "Os", "Ir"], [[0, 0, 0], [0.3] * 3, [0.6] * 3]),
        # Symbols that begin with other symbols.
        Structure(Lattice.cubic(6), ["C", "Ca", "Co", "O"], np.eye(4, 3) * 0.4),
    ],
)
def test_fast_parser_agrees_bit_for_bit(structure):
    fast = parse_plain_cif(cif(structure))
    slow = parse_cif(cif(structure))[0].source
    assert fast is not None
    assert all(np.array_equal(a, b) for a, b in zip(fast, slow, strict=True))


@pytest.mark.parametrize("symbol", ["He", "D", "Lr"])
def test_fast_parser_agrees_on_elements_without_electronegativity(symbol):
    text = cif(Structure(Lattice.cubic(4), ["Po", "O"], [[0, 0, 0], [0.5] * 3]))
    text = text.replace("Po", symbol)
    fast, (slow,) = parse_plain_cif(text), parse_cif(text)
    assert fast is not None and ATOMIC_NUMBER[symbol] in fast.atomic_numbers
    assert all(np.array_equal(a, b) for a, b in zip(fast, slow.source, strict=True))


lengths = st.sampled_from([0.0, 1e-8, 0.005, 0.02, 1.0, 4.0, 30.0, 1e5]) | st.floats(0, 20)
angles = st.sampled_from([0.0, 1e-8, 60.0, 90.0, 120.0, 179.99, 180.0, 300.0]) | st.floats(0, 180)


@given(cell=st.tuples(lengths, lengths, lengths, angles, angles, angles))
@settings(max_examples=100, deadline=None)
def test_fast_parser_agrees_on_any_cell(cell):
    lines = cif(perovskite()).split("\n")
    names = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    for name, value in zip(names, cell, strict=True):
        (index,) = [i for i, line in enumerate(lines) if name in line]
        lines[index] = f"_cell_{name}   {value:.8f}"
    fast = parse_plain_cif("\n".join(lines))
    slow = parse_cif("\n".join(lines))[0].source
    if fast is not None:
        if isinstance(slow, InvalidCrystal):  # the check that `read` makes of both
            with pytest.raises(InvalidCrystal):
                check_geometry(fast.lattice, fast.frac_coords)
        else:
            assert all(np.array_equal(a, b) for a, b in zip(fast, slow, strict=True))


@pytest.mark.parametrize(
    "text",
    [
        cif(disordered()),
        cif(Structure(Lattice.cubic(4), ["Na+", "Cl-"], [[0, 0, 0], [0.5] * 3])),
        cif(Structure(Lattice.cubic(4), ["Po"], [[0, 0, 0]])).replace("Po", "Qq"),
        cif(Structure(Lattice.cubic(4), ["Na", "Cl"], [[0, 0, 0], [0.00001, 0.99999, 0]])),
        cif(perovskite()).replace("O3'", "O2'"),
        cif(perovskite()).replace("'x, y, z'", "'-x, -y, -z'"),
        cif(perovskite()) + "_extra 1\n",
        SYMMETRIC_CIF,
    ],
)
def test_fast_parser_leaves_everything_else_alone(text):
    assert parse_plain_cif(text) is None


def test_fast_parser_agrees_on_mp20():
    whole = MP20 / "val.parquet"
    texts = pd.read_parquet(whole).cif[::18] if whole.exists() else pd.read_parquet(MP20_SAMPLE).cif
    assert len(texts) > (500 if whole.exists() else 70)
    plain = 0
    for text in texts:
        fast = parse_plain_cif(text)
        slow = parse_cif(text)[0].source
        if fast is not None:
            plain += 1
            assert all(np.array_equal(a, b) for a, b in zip(fast, slow, strict=True))
    assert plain == len(texts)
