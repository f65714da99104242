"""Names of space groups, against the tables of spglib and gemmi."""

from __future__ import annotations

import gemmi
import pytest
import spglib

from flowllm.crystals.cif.operations import from_gemmi
from flowllm.crystals.cif.space_groups import (
    number_of_schoenflies,
    operations_of_hall,
    settings_of_number,
    settings_of_symbol,
)

TYPES = [spglib.get_spacegroup_type(hall) for hall in range(1, 531)]
SETTINGS = list(gemmi.spacegroup_table())


def test_every_symbol_of_spglib_is_the_group_of_its_number():
    for group in TYPES:
        names = [group.international_full, group.international_short]
        for name in names + group.international.split(" = "):
            for spelling in (name, name.replace(" ", ""), name.replace("_", ""), name.upper()):
                numbers = {setting.number for setting in settings_of_symbol(spelling)}
                assert numbers == {group.number}, (spelling, numbers)


def test_every_setting_of_gemmi_is_found_by_its_name_with_suffix():
    for group in SETTINGS:
        found = settings_of_symbol(group.xhm())
        assert [setting.hall for setting in found] == [group.hall]
        assert found[0].operations.number == group.number == found[0].number
        assert found[0].operations.same_as(from_gemmi(group.operations()))


def test_every_full_symbol_of_spglib_means_its_own_operations():
    for group in TYPES:
        own = operations_of_hall(group.hall_symbol)
        settings = settings_of_symbol(group.international_full)
        assert own.number == group.number
        assert any(setting.operations.same_as(own) for setting in settings)


@pytest.mark.parametrize(
    ("symbol", "names"),
    [
        ("F m 3 m", ["F m -3 m"]),  # before 1983
        ("Ia3d", ["I a -3 d"]),
        ("Fm-3m", ["F m -3 m"]),
        ("F m \N{MINUS SIGN}3 m", ["F m -3 m"]),
        ("F 4/m -3 2/m", ["F m -3 m"]),
        ("P 63/m 2/m 2/c", ["P 63/m m c"]),
        ("P6_{3}/mmc", ["P 63/m m c"]),
        ("C m c e", ["C m c a"]),  # since 1992
        ("P21/c", ["P 1 21/c 1", "P 21/c 1 1"]),
        ("P2(1)/c", ["P 1 21/c 1", "P 21/c 1 1"]),  # SHELX
        ("P 1 21/c 1", ["P 1 21/c 1"]),
        ("P 1 1 21/b", ["P 1 1 21/b"]),
        ("B b", ["B 1 1 b", "B b 1 1"]),
        ("C 2", ["C 1 2 1", "C 2 1 1"]),
        ("P 21/n", ["P 1 21/n 1", "P 1 1 21/n", "P 21/n 1 1"]),
        ("Pbnm", ["P b n m"]),
        ("F -1", ["F -1"]),
        ("F d -3 m", ["F d -3 m :1", "F d -3 m :2"]),
        ("F d -3 m :1", ["F d -3 m :1"]),
        ("Fd-3m:2", ["F d -3 m :2"]),
        ("F d 3 m :2", ["F d -3 m :2"]),
        ("F d -3 m S", ["F d -3 m :1"]),  # ICSD
        ("F d -3 m Z", ["F d -3 m :2"]),
        ("P 4/n m m (origin choice 2)", ["P 4/n m m :2"]),
        ("R -3 m", ["R -3 m :H", "R -3 m :R"]),
        ("R-3mR", ["R -3 m :R"]),
        ("R -3 m H", ["R -3 m :H"]),
        ("R -3 m :h", ["R -3 m :H"]),
        ("C 1 2/c 1:b1", ["C 1 2/c 1"]),
        ("P b n m:cab", ["P b n m"]),
        ("P 1 21/c 1 (14)", ["P 1 21/c 1"]),
        ("225", ["F m -3 m"]),
        ("P 1 21/c 1 (15)", []),
        ("F m -3 m :2", []),
        ("P -3 m", []),
        ("Fm-3q", []),
        ("231", []),
        ("", []),
    ],
)
def test_spellings(symbol, names):
    assert [setting.name for setting in settings_of_symbol(symbol)] == names


def test_the_standard_setting_of_a_number():
    assert [s.name for s in settings_of_number(14)] == ["P 1 21/c 1"]
    assert [s.name for s in settings_of_number(166)] == ["R -3 m :H", "R -3 m :R"]
    assert [s.name for s in settings_of_number(227)] == ["F d -3 m :1", "F d -3 m :2"]
    assert settings_of_number(0) == settings_of_number(231) == []
    for number in range(1, 231):
        assert {s.number for s in settings_of_number(number)} == {number}


def test_schoenflies_symbols():
    assert {number_of_schoenflies(g.schoenflies) == g.number for g in TYPES} == {True}
    assert number_of_schoenflies("C2h.5") == number_of_schoenflies("C_2h^5") == 14
    assert number_of_schoenflies("Oh^99") is None


@pytest.mark.parametrize(("symbol", "size"), [("-F 4 2 3", 192), ("-P_2ybc", 4)])
def test_hall_symbols(symbol, size):
    assert len(operations_of_hall(symbol)) == size


def test_hall_symbols_beyond_the_tables():
    shifted = operations_of_hall("P 2yb (x+1/8,y,z)")
    assert shifted.number == 4
    assert not any(shifted.same_as(s.operations) for s in settings_of_symbol("P 21"))
    assert operations_of_hall("F m -3 m") is None and operations_of_hall("") is None
