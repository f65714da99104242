"""Template libraries: what they keep of crystals, and files that are none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flowllm.crystals.crystal import Crystal
from flowllm.crystals.io import read
from flowllm.errors import UserError
from flowllm.metrics.csp import rms_distance
from flowllm.templates import library as library_module
from flowllm.templates.library import BUNDLED, TemplateLibrary, bundled
from support import MP20_SAMPLE, SALT, disordered

CRYSTALS = read(MP20_SAMPLE)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWLLM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def library() -> TemplateLibrary:
    return TemplateLibrary.build(CRYSTALS, source="sample", licence="CC BY 4.0")


def test_a_file_gives_the_crystals_back(library: TemplateLibrary, tmp_path: Path) -> None:
    again = TemplateLibrary.read(library.write(tmp_path / "lib.parquet"))
    assert again.ids == [crystal.id for crystal in CRYSTALS]
    assert (again.source, again.licence) == ("sample", "CC BY 4.0")
    for row, crystal in enumerate(CRYSTALS):
        kept = again.crystal(row)
        assert kept == library.crystal(row)
        distance = rms_distance(kept.primitive(), crystal.structure)
        assert distance is not None and distance < 0.02, crystal.id  # made symmetric at 0.1 A
        density = crystal.structure.volume / len(crystal.structure)
        assert again.volume_per_atom(row) == pytest.approx(density, rel=0.02)
    assert (
        library.write(tmp_path / "second.parquet").read_bytes()
        == (tmp_path / "lib.parquet").read_bytes()
    )


def test_families_hold_every_crystal_once(library: TemplateLibrary) -> None:
    families = list(library.families())
    rows = np.concatenate([family.rows for family in families])
    assert sorted(rows.tolist()) == list(range(len(library)))
    for family in families:
        assert family is library.family(family.counts)
        for row, elements, atoms in zip(
            family.rows, family.elements, family.num_atoms, strict=True
        ):
            crystal = library.crystal(row)
            assert crystal.num_atoms == atoms
            assert sorted(crystal.composition.values()) == [
                count * atoms // sum(family.counts) for count in family.counts
            ]
            assert len(set(elements.tolist())) == len(crystal.composition)
    assert library.family((1, 999)) is None


def test_energies_above_the_hull_are_kept_where_they_are_known() -> None:
    crystals = [
        Crystal(id="known", structure=SALT, properties={"e_above_hull": 0.25}),
        Crystal(id="unknown", structure=SALT),
    ]
    family = TemplateLibrary.build(crystals, source="two").family((1, 1))
    assert family is not None and family.e_above_hull.tolist() == [0.25, 0.0]


def test_a_crystal_of_many_elements_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    crowd = SALT.copy()
    for site, element in enumerate(["Li", "K", "Rb", "Cs", "F", "Br", "I"]):
        crowd.replace(site, element)
    library = TemplateLibrary.build(
        [Crystal(id="salt", structure=SALT), Crystal(id="crowd", structure=crowd)], source="x"
    )
    assert library.ids == ["salt"]
    assert "1 of 2 crystals have more than 6 elements" in caplog.text


def test_nothing_to_build_from() -> None:
    with pytest.raises(UserError, match="x: holds no crystal that can be a template"):
        TemplateLibrary.build([], source="x")
    bad = [Crystal(id="bad", structure=disordered())]
    with pytest.raises(UserError, match="crystal bad: "):
        TemplateLibrary.build(bad, source="x")


def test_files_that_are_no_library(library: TemplateLibrary, tmp_path: Path) -> None:
    good = library.write(tmp_path / "lib.parquet")
    text = tmp_path / "text.parquet"
    text.write_text("no parquet")
    content = bytearray(good.read_bytes())
    content[200] ^= 0xFF  # in the first column
    flipped = tmp_path / "flipped.parquet"
    flipped.write_bytes(content)
    short = tmp_path / "short.parquet"
    short.write_bytes(good.read_bytes()[:-100])
    table = pq.read_table(good)
    columns = tmp_path / "columns.parquet"
    pq.write_table(table.drop_columns("cell"), columns)
    empty = tmp_path / "empty.parquet"
    pq.write_table(table.slice(0, 0), empty)
    for path, problem in {
        tmp_path / "absent.parquet": "no such template library",
        text: "is not a template library, or is damaged",
        short: "is not a template library, or is damaged",
        MP20_SAMPLE: "is not a template library",
        flipped: "is damaged",
        columns: "has other columns than a template library",
        empty: "the template library is empty",
    }.items():
        with pytest.raises(UserError) as raised:
            TemplateLibrary.read(path)
        message = str(raised.value)
        assert message.startswith(str(path)) and problem in message and "\n" not in message
        assert "make it with flowllm templates build" in message


DAMAGE: dict[str, Callable[[dict[str, Any]], object]] = {
    "lacks 1 values": lambda row: row.update(counts=None),
    "an unknown element": lambda row: row["elements"].__setitem__(0, 0),
    "no space group from 1 to 230": lambda row: row.update(spacegroup=231),
    "no 1 to 6 elements": lambda row: row["elements"].pop(),
    "amounts that do not ascend": lambda row: row["counts"].reverse(),
    "bad swaps": lambda row: row.update(swaps=[0] * len(row["elements"])),
    "an unknown Wyckoff letter": lambda row: row["letters"].__setitem__(0, 40),
    "an orbit of an unknown element": lambda row: row["slots"].__setitem__(0, 9),
    "no orbits with an element each": lambda row: row["slots"].pop(),
    "orbits that do not have its amounts": lambda row: row["counts"].__setitem__(-1, 99),
    "another number of coordinates": lambda row: row["coords"].append(5),
    "no cell of its space group": lambda row: row["cell"].__setitem__(0, 0),
}


@pytest.mark.parametrize("problem", DAMAGE)
def test_records_that_are_no_crystals(
    library: TemplateLibrary, tmp_path: Path, problem: str
) -> None:
    path = library.write(tmp_path / "lib.parquet")
    table = pq.read_table(path)
    rows = table.to_pylist()
    place = next(place for place, row in enumerate(rows) if len(set(row["counts"])) > 1)
    DAMAGE[problem](rows[place])
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
    with pytest.raises(UserError) as raised:
        TemplateLibrary.read(path)
    assert problem in str(raised.value) and "make it with flowllm" in str(raised.value)


def test_another_version(
    library: TemplateLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library_module, "_VERSION", 2)
    path = library.write(tmp_path / "new.parquet")
    monkeypatch.undo()
    with pytest.raises(UserError, match="of version 2, and this program reads version 1"):
        TemplateLibrary.read(path)


def test_the_bundled_library_is_small_and_says_where_it_comes_from() -> None:
    assert BUNDLED.stat().st_size < 2e6
    library = bundled()
    assert len(library) == 26_243
    assert "Materials Project" in library.source and library.licence == "CC BY 4.0"
    metadata = pq.read_schema(BUNDLED).metadata
    assert b"1/10000" in metadata[b"flowllm_templates"]
    assert pa.types.is_floating(pq.read_schema(BUNDLED).field("e_above_hull").type)
