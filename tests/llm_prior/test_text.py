from __future__ import annotations

import math
import string

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pymatgen.core import DummySpecies, Element, Lattice, Species, Structure

from llm_prior.errors import PriorError
from llm_prior.text import (
    MASK,
    SYMBOLS,
    ParseError,
    RejectReason,
    TextFormat,
    closes_a_cell,
    decode,
    encode,
    mask_element,
    site_symbols,
)

FMT = TextFormat()
PRECISIONS = [TextFormat(), TextFormat(coord_decimals=3)]
NACL = "5.6 5.6 5.6\n90 90 90\nNa\n0.00 0.00 0.00\nCl\n0.50 0.50 0.50"


@st.composite
def crystals(draw: st.DrawFn, fmt: TextFormat) -> Structure:
    """Any cell that closes after rounding, 1 to 20 atoms of any element, no two of which round to
    the same place; coordinates anywhere, not only in [0, 1)."""
    lengths = draw(st.tuples(*[st.floats(1.0, 39.9)] * 3))
    angles = draw(st.tuples(*[st.floats(20.0, 160.0)] * 3))
    assume(closes_a_cell(angles) and closes_a_cell([round(angle) for angle in angles]))
    scale = 10**fmt.coord_decimals
    tick = st.integers(0, scale - 1)
    ticks = draw(st.lists(st.tuples(tick, tick, tick), min_size=1, max_size=20, unique=True))
    symbols = draw(st.lists(st.sampled_from(SYMBOLS), min_size=len(ticks), max_size=len(ticks)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    coords = np.array(ticks) + rng.uniform(-0.49, 0.49, (len(ticks), 3))
    coords = coords / scale + rng.integers(-2, 3, (len(ticks), 3))
    return Structure(Lattice.from_parameters(*lengths, *angles), symbols, coords)


def like_atoms_together(symbols: list[str]) -> list[int]:
    """The places of the sites, each element's at that of its first."""
    groups: dict[str, list[int]] = {}
    for place, symbol in enumerate(symbols):
        groups.setdefault(symbol, []).append(place)
    return [place for group in groups.values() for place in group]


# --- writing -------------------------------------------------------------------------------------


def test_the_layout_is_the_papers() -> None:
    crystal = Structure(Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    assert encode(crystal, FMT) == NACL
    assert encode(crystal, TextFormat(coord_decimals=3, length_decimals=2, angle_decimals=1)) == (
        "5.64 5.64 5.64\n90.0 90.0 90.0\nNa\n0.000 0.000 0.000\nCl\n0.500 0.500 0.500"
    )


@pytest.mark.parametrize(
    ("coord", "written"),
    [
        (0.996, "0.00"),  # rounded first, then wrapped: never 1.00
        (0.994, "0.99"),
        (-0.004, "0.00"),
        (-0.006, "0.99"),
        (0.125, "0.12"),  # half to even
        (0.375, "0.38"),
        (1.0, "0.00"),
        (-3.25, "0.75"),
        (7.5, "0.50"),
    ],
)
def test_coordinates_are_rounded_half_to_even_then_wrapped(coord: float, written: str) -> None:
    crystal = Structure(Lattice.cubic(4), ["Po"], [[coord, 0, 0]])
    assert encode(crystal, FMT).split("\n")[3] == f"{written} 0.00 0.00"


def test_lengths_are_rounded_half_to_even_and_angles_never_truncated() -> None:
    cell = Lattice.orthorhombic(5.25, 5.75, 9.99)
    assert encode(Structure(cell, ["Po"], [[0, 0, 0]]), FMT).split("\n")[0] == "5.2 5.8 10.0"
    cell = Lattice.from_parameters(3, 3, 5, 90.0001, 89.9999, 119.9999)
    assert encode(Structure(cell, ["Po"], [[0, 0, 0]]), FMT).split("\n")[1] == "90 90 120"


def test_like_atoms_stand_together_at_the_place_of_the_first() -> None:
    coords = [[place / 10, 0, 0] for place in range(5)]
    crystal = Structure(Lattice.cubic(9), ["O", "Ti", "O", "Ba", "Ti"], coords)
    lines = encode(crystal, FMT).split("\n")
    assert lines[2::2] == ["O", "O", "Ti", "Ti", "Ba"]
    assert [line[:4] for line in lines[3::2]] == ["0.00", "0.20", "0.10", "0.40", "0.30"]


@given(st.data())
@settings(deadline=None, max_examples=50)
def test_a_translation_moves_every_site_and_a_whole_one_changes_nothing(data: st.DataObject):
    crystal = data.draw(crystals(FMT))
    shift = data.draw(st.tuples(*[st.integers(0, 99)] * 3))
    moved = encode(crystal, FMT, translation=[tick / 100 for tick in shift]).split("\n")
    plain = encode(crystal, FMT).split("\n")
    assert moved[:2] == plain[:2] and moved[2::2] == plain[2::2]
    for before, after in zip(plain[3::2], moved[3::2], strict=True):
        ticks = [round(float(word) * 100) for word in before.split()]
        expected = [(tick + step) % 100 for tick, step in zip(ticks, shift, strict=True)]
        assert [round(float(word) * 100) for word in after.split()] == expected
    assert encode(crystal, FMT, translation=(1, -2, 0)).split("\n") == plain


def test_what_is_no_ordered_crystal_of_elements_is_not_written() -> None:
    cell = Lattice.cubic(4)
    alloy = Structure(cell, [{"Cu": 0.5, "Au": 0.5}], [[0, 0, 0]])
    with pytest.raises(PriorError, match="partial occupancies .*give an ordered crystal"):
        encode(alloy, FMT)
    vacancy = Structure(cell, [{"Cu": 0.5}], [[0, 0, 0]])
    with pytest.raises(PriorError, match="partial occupancies"):
        encode(vacancy, FMT)
    for symbol in ("Xx", "Ln"):
        with pytest.raises(PriorError, match=f"{symbol} is not a chemical element"):
            encode(Structure(cell, [DummySpecies(symbol)], [[0, 0, 0]]), FMT)
    with pytest.raises(PriorError, match="Cu3 has 3 atoms.*raise max_atoms"):
        encode(Structure(cell, ["Cu"] * 3, np.diag([0.1, 0.2, 0.3])), TextFormat(max_atoms=2))


def test_an_ion_is_its_element_and_deuterium_is_hydrogen() -> None:
    species = [Species("Na", 1), Species("Cl", -1), Element("D")]
    crystal = Structure(Lattice.cubic(4), species, np.diag([0.1, 0.2, 0.3]))
    assert site_symbols(crystal) == ["Na", "Cl", "H"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"coord_decimals": 0},
        {"coord_decimals": -1},
        {"coord_decimals": "2"},
        {"length_decimals": 1.0},
        {"angle_decimals": -1},
        {"max_atoms": 0},
        {"max_atoms": True},
    ],
)
def test_an_impossible_format_is_refused_by_name(wrong: dict) -> None:
    with pytest.raises(PriorError, match=f"text.{next(iter(wrong))} .* is not a whole number"):
        TextFormat(**wrong)


def test_the_format_survives_its_dict() -> None:
    fmt = TextFormat(coord_decimals=3, max_atoms=40)
    assert TextFormat(**fmt.to_dict()) == fmt


# --- round trip ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", PRECISIONS, ids=["2 decimals", "3 decimals"])
@given(data=st.data())
@settings(deadline=None)
def test_reading_gives_back_what_was_written_to_its_precision(
    fmt: TextFormat, data: st.DataObject
) -> None:
    crystal = data.draw(crystals(fmt))
    again = decode(encode(crystal, fmt), fmt)

    order = like_atoms_together([site.specie.symbol for site in crystal])
    assert [site.specie for site in again] == [crystal[place].specie for place in order]
    np.testing.assert_allclose(again.lattice.abc, crystal.lattice.abc, rtol=0, atol=0.05 + 1e-9)
    np.testing.assert_allclose(
        again.lattice.angles, crystal.lattice.angles, rtol=0, atol=0.5 + 1e-6
    )
    gaps = again.frac_coords - crystal.frac_coords[order]
    assert np.abs(gaps - np.rint(gaps)).max() <= 0.5 * 10**-fmt.coord_decimals + 1e-12
    assert (again.frac_coords >= 0).all() and (again.frac_coords < 1).all()


@pytest.mark.parametrize("fmt", PRECISIONS, ids=["2 decimals", "3 decimals"])
@given(data=st.data())
@settings(deadline=None)
def test_a_text_that_was_read_is_written_the_same(fmt: TextFormat, data: st.DataObject) -> None:
    text = encode(data.draw(crystals(fmt)), fmt)
    assert encode(decode(text, fmt), fmt) == text


def test_every_element_is_read_and_written() -> None:
    assert len(set(SYMBOLS)) == 118 and SYMBOLS[0] == "H" and SYMBOLS[-1] == "Og"
    for symbol in SYMBOLS:
        text = f"4.0 4.0 4.0\n90 90 90\n{symbol}\n0.00 0.00 0.00"
        assert encode(decode(text, FMT), FMT) == text


def test_a_coordinate_just_below_zero_is_read_into_the_cell() -> None:
    crystal = decode("4 4 4\n90 90 90\nPo\n-1e-30 -0.25 1e308", FMT)
    assert crystal.frac_coords[0, 0] == 0 and crystal.frac_coords[0, 1] == 0.75
    assert (crystal.frac_coords < 1).all()


# --- refusing ------------------------------------------------------------------------------------

CELL = "4.0 4.0 4.0\n90 90 90\n"
ATOM = "Po\n0.00 0.00 0.00"
REFUSED: dict[RejectReason, list[str]] = {
    RejectReason.LINE_COUNT: [
        "",
        "4.0 4.0 4.0",
        "4.0 4.0 4.0\n90 90 90",
        CELL + "Po",
        CELL + ATOM + "\n",
        CELL + ATOM + "\nPo",
        "\n" + CELL + ATOM,
    ],
    RejectReason.NOT_A_NUMBER: [
        "4.0 4.0\n90 90 90\n" + ATOM,
        "4.0 4.0 4.0 4.0\n90 90 90\n" + ATOM,
        "4.0  4.0 4.0\n90 90 90\n" + ATOM,
        "4.0 4.0 4.0 \n90 90 90\n" + ATOM,
        "4.0 x 4.0\n90 90 90\n" + ATOM,
        "4.0 4.0 4.0\n90 90\n" + ATOM,
        "\n\n\n",
        CELL + "Po\n0.00 0.00",
        CELL + "Po\n0.00 0.00 O",
        CELL + "Po\n0.00 0.00 0.0.0",
        CELL + "Po\n0.00 0.00 --0.1",
        CELL + "Po\n0.00 0.00 1_0",
        CELL + "Po\n0.00 0.00 0x1",
        "4.0 4.0 \u0664\n90 90 90\n" + ATOM,  # an Arabic 4, which `float` reads
        "4.0 4.0 \u0131nf\n90 90 90\n" + ATOM,  # a dotless i, on which `float` trips
        "4.0 4.0 4.0\r\n90 90 90\r\nPo\r\n0.00 0.00 0.00",
    ],
    RejectReason.NON_FINITE: [
        "nan 4.0 4.0\n90 90 90\n" + ATOM,
        "4.0 inf 4.0\n90 90 90\n" + ATOM,
        "4.0 4.0 -Infinity\n90 90 90\n" + ATOM,
        "1e400 4.0 4.0\n90 90 90\n" + ATOM,
        "9" * 400 + " 4.0 4.0\n90 90 90\n" + ATOM,
        "4.0 4.0 4.0\n90 NaN 90\n" + ATOM,
        CELL + "Po\n0.00 -1e400 0.00",
    ],
    RejectReason.BAD_LENGTH: [
        "0.0 4.0 4.0\n90 90 90\n" + ATOM,
        "4.0 4.0 -0.1\n90 90 90\n" + ATOM,
        "1e300 1e300 1e300\n90 90 90\n" + ATOM,
        "1e-300 4.0 4.0\n90 90 90\n" + ATOM,
        "1e-320 4.0 4.0\n90 90 90\n" + ATOM,
    ],
    RejectReason.IMPOSSIBLE_ANGLES: [
        "4.0 4.0 4.0\n0 90 90\n" + ATOM,
        "4.0 4.0 4.0\n90 180 90\n" + ATOM,
        "4.0 4.0 4.0\n90 90 -90\n" + ATOM,
        "4.0 4.0 4.0\n60 60 120\n" + ATOM,  # coplanar
        "4.0 4.0 4.0\n60 60 130\n" + ATOM,
        "4.0 4.0 4.0\n120 120 120\n" + ATOM,
        "4.0 4.0 4.0\n170 170 170\n" + ATOM,
        "4.0 4.0 4.0\n1e-300 1e-300 1e-300\n" + ATOM,
    ],
    RejectReason.UNKNOWN_ELEMENT: [
        CELL + f"{symbol}\n0.00 0.00 0.00"
        for symbol in ("Xx", "D", "T", "Ln", "X", "na", "NA", "Na+", "Na ", " Na", "", "1", MASK)
    ],
    RejectReason.TOO_MANY_ATOMS: [
        CELL + "\n".join(f"Po\n0.{place:02d} 0.00 0.00" for place in range(21)),
    ],
    RejectReason.COINCIDING_ATOMS: [
        CELL + ATOM + "\n" + ATOM,
        CELL + "Na\n0.00 0.50 0.00\nCl\n0.00 0.50 0.00",
        CELL + "Na\n0.00 0.50 0.99\nCl\n1.00 -0.50 -0.01",
        CELL + "Na\n0.999 0 0\nCl\n0.001 0 0",  # across the border
    ],
}


@pytest.mark.parametrize(
    ("reason", "text"), [(reason, text) for reason, texts in REFUSED.items() for text in texts]
)
def test_a_text_that_is_no_crystal_is_refused_with_its_reason(
    reason: RejectReason, text: str
) -> None:
    with pytest.raises(ParseError) as caught:
        decode(text, FMT)
    assert caught.value.reason is reason
    assert "\n" not in str(caught.value)


def test_a_text_cut_off_by_the_token_limit_is_refused_however_well_it_reads() -> None:
    with pytest.raises(ParseError) as caught:
        decode(NACL, FMT, complete=False)
    assert caught.value.reason is RejectReason.TRUNCATED


def test_every_reason_is_reached() -> None:
    assert {*REFUSED, RejectReason.TRUNCATED} == set(RejectReason)


def test_the_size_limit_is_the_formats() -> None:
    sites = [f"Po\n0.{place:02d} 0.00 0.00" for place in range(21)]
    assert len(decode(CELL + "\n".join(sites), TextFormat(max_atoms=21))) == 21
    assert len(decode(CELL + "\n".join(sites[:20]), FMT)) == 20


def test_atoms_one_tick_apart_do_not_coincide() -> None:
    assert len(decode(CELL + "Na\n0.00 0.00 0.99\nCl\n0.00 0.00 0.00", FMT)) == 2


words = st.one_of(
    st.sampled_from(["", "0.5", "1e400", "nan", "-inf", "1e-320", "1e308", "90", "Na", "Xx", "\r"]),
    st.floats().map(repr),
    st.integers().map(str),
    st.text(alphabet=string.digits + ".eE+-\u0664\u0131\u00b2", max_size=8),
)
numbers = st.tuples(words, words, words).map(" ".join)
good_numbers = st.tuples(*[st.floats(0.01, 179).map(repr)] * 3).map(" ".join)
near_crystals = st.tuples(
    st.one_of(numbers, good_numbers),
    st.one_of(numbers, good_numbers, st.just("90 90 90")),
    st.lists(
        st.tuples(st.one_of(st.sampled_from(SYMBOLS), words), st.one_of(numbers, good_numbers)).map(
            "\n".join
        ),
        max_size=4,
    ).map("\n".join),
).map("\n".join)


@given(st.one_of(st.text(), near_crystals))
@settings(deadline=None, max_examples=500)
def test_any_text_is_a_crystal_or_refused_with_a_reason(text: str) -> None:
    try:
        crystal = decode(text, FMT)
    except ParseError as error:
        assert error.reason in RejectReason
        assert len(str(error).splitlines()) == 1
        return
    assert math.isfinite(crystal.volume) and crystal.volume > 0
    assert (crystal.frac_coords >= 0).all() and (crystal.frac_coords < 1).all()
    assert isinstance(encode(crystal, FMT), str)


@pytest.mark.parametrize(
    ("angles", "closes"),
    [
        ((90, 90, 90), True),
        ((60, 60, 60), True),
        ((90, 90, 120), True),
        ((109.47, 109.47, 109.47), True),
        ((60, 60, 119), True),
        ((60, 60, 120), False),
        ((120, 120, 120), False),
        ((120, 120, 119), True),
        ((90, 90, 180), False),
        ((100, 130, 131), False),  # the three sum to more than 360
    ],
)
def test_angles_close_a_cell_if_they_span_a_volume(angles: tuple, closes: bool) -> None:
    assert closes_a_cell(angles) is closes


@given(st.tuples(*[st.floats(1, 179)] * 3))
@settings(deadline=None)
def test_angles_close_a_cell_if_their_gram_matrix_is_positive(angles: tuple) -> None:
    a, b, c = np.cos(np.radians(angles))
    squared_volume = np.linalg.det([[1, c, b], [c, 1, a], [b, a, 1]])
    assume(abs(squared_volume - 1e-4) > 1e-9)
    small, middle, large = sorted(angles)
    triangle = large < small + middle and sum(angles) < 360  # of directions on the sphere
    assert closes_a_cell(angles) is bool(squared_volume > 1e-4 and triangle)


# --- masking -------------------------------------------------------------------------------------


def test_masking_takes_whole_lines_so_that_carbon_is_not_the_start_of_calcium() -> None:
    text = CELL + "Ca\n0.00 0.00 0.00\nC\n0.50 0.50 0.50\nC\n0.25 0.25 0.25"
    assert mask_element(text, "C") == (
        CELL + "Ca\n0.00 0.00 0.00\n[MASK]\n0.50 0.50 0.50\n[MASK]\n0.25 0.25 0.25"
    )
    assert mask_element(text, "Ca") == text.replace("Ca", MASK)


@pytest.mark.parametrize("absent", ["C", "N", "a", "", "5.6 5.6 5.6", "90 90 90", MASK])
def test_only_an_element_of_the_crystal_can_be_masked(absent: str) -> None:
    with pytest.raises(PriorError, match=r"not in the crystal; mask one of \['Cl', 'Na'\]"):
        mask_element(NACL, absent)


@given(st.data())
@settings(deadline=None, max_examples=30)
def test_the_masked_element_put_back_is_the_text(data: st.DataObject) -> None:
    crystal = data.draw(crystals(FMT))
    text = encode(crystal, FMT)
    symbol = data.draw(st.sampled_from(site_symbols(crystal)))
    masked = mask_element(text, symbol)
    assert masked.count(MASK) == sum(site.specie.symbol == symbol for site in crystal)
    assert masked.replace(MASK, symbol) == text
