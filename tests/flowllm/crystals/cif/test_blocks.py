"""Data blocks and numbers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowllm.crystals.cif.blocks import Block, last_place, number, read_blocks
from flowllm.errors import InvalidCrystal


def names(text: str) -> list[str]:
    return [block.name for block in read_blocks(text) if isinstance(block, Block)]


def errors(text: str) -> list[tuple[str, str]]:
    found = [block for block in read_blocks(text) if not isinstance(block, Block)]
    return [(name, error.detail) for name, error in found]


def test_blocks_of_one_name_and_of_none():
    assert names("data_a\n_x 1\ndata_a\n_x 2\ndata_\n_x 3\n") == ["a", "a", ""]


def test_a_text_field_may_hold_the_begin_of_a_block():
    assert names("#\ndata_a\n_x\n;\ndata_b\n_y 1\n;\nDATA_c\n_z 1\n") == ["a", "c"]


def test_tags_in_any_case_and_with_dots():
    (block,) = read_blocks("DATA_A\r\n_Atom_Site.Fract_X 0.5\r\n_b ?\r\n_c .\r\n_d '?'\r\n")
    assert block.columns == {"_atom_site_fract_x": ["0.5"], "_b": [None], "_c": [None], "_d": ["?"]}
    assert block.value("_B", "_atom_site_FRACT_x") == "0.5" and block.value("_b") is None


def test_a_bad_block_does_not_hide_the_others():
    text = "data_a\n_x 1\ndata_b\nloop_\n_x\n_y\n1 2 3\ndata_c\n_x F m -3 m\ndata_d\n_x 1\n"
    assert names(text) == ["a", "d"]
    assert errors(text) == [
        ("b", "line 4: Wrong number of values in loop _*"),
        ("c", "line 9: not the syntax of a CIF; put quotation marks around a value with blanks"),
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no line begins with data_"),
        ("_cell_length_a 4\n", "no line begins with data_"),
        ("\n\n<html>\ndata_a\n", "line 3 stands before the first data block"),
        ("data_a\n_x\n;\nfoo\n", "line 5: unterminated text field"),
        ("data_a\n_x 'abc\n", "line 2: unterminated 'string'"),
        ("data_a\nloop_\n_x.y\n1\nloop_\n_x_y\n2\n", "there are two columns _x_y"),
    ],
)
def test_no_cif(text, problem):
    ((_, detail),) = errors(text)
    assert problem in detail


def test_a_repeated_tag():
    (block,) = read_blocks("data_a\n_f 'Na Cl'\n_f ''\n_g 1\n_g 1\n_h 1\n_h 2\n")
    assert block.value("_f") == "Na Cl" and block.value("_g") == "1"
    with pytest.raises(InvalidCrystal, match="_h has 2 values; give one"):
        block.value("_h")


@given(value=st.floats(-1e6, 1e6), decimals=st.integers(0, 8), uncertainty=st.integers(1, 99))
@settings(deadline=None)
def test_numbers_with_an_uncertainty(value, decimals, uncertainty):
    word = f"{value:.{decimals}f}"
    assert number(word) == number(f"{word}({uncertainty})") == float(word)
    assert number(f"{value:e}") == float(f"{value:e}")


@pytest.mark.parametrize("word", ["", "?", ".", "nan", "inf", "1e400", "1,5", "1/3", "5.6(2", "x"])
def test_no_number(word):
    assert number(word) is None


@pytest.mark.parametrize(
    ("word", "unit"),
    [("0.333", 1e-3), ("0.3330(5)", 1e-3), (".33", 1e-2), ("33.3e-2", 1e-3)]
    + [("0.5", 0), ("0", 0), ("1", 0), ("0.500", 0)],
)
def test_last_place(word, unit):
    assert last_place(word) == pytest.approx(unit)
