"""The cache of parsed files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import platformdirs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from platformdirs import windows
from platformdirs.macos import MacOS
from platformdirs.unix import Unix

from flowllm.crystals import cache as data_cache
from flowllm.crystals import io as data
from flowllm.crystals import readers as rows
from flowllm.crystals.io import Crystal, cache_folder, read, write
from flowllm.errors import UserError
from support import SYMMETRIC_CIF, cif, perovskite, table


@pytest.fixture
def many(tmp_path, monkeypatch) -> Path:
    """A table long enough for the cache (whose threshold is lowered): good rows and bad ones."""
    monkeypatch.setattr(data, "_WORTH_CACHING", 10)
    records = [
        {"id": f"m{i}", "band_gap": i / 3, "cif": cif(perovskite(3.9 + 0.01 * i))}
        for i in range(12)
    ]
    records[3]["cif"] = "nonsense"
    records[5]["cif"] = SYMMETRIC_CIF
    return table(tmp_path / "many.csv", records)


def two() -> list[Crystal]:
    return [Crystal(id=name, structure=perovskite()) for name in ("a-1", "b-2")]


def equal(one: list[Crystal], other: list[Crystal]) -> bool:
    return len(one) == len(other) and all(
        (a.id, a.properties, a.structure) == (b.id, b.properties, b.structure)
        and np.array_equal(a.structure.frac_coords, b.structure.frac_coords)
        and np.array_equal(a.structure.lattice.matrix, b.structure.lattice.matrix)
        for a, b in zip(one, other, strict=True)
    )


def no_parsing(*_: object) -> None:
    raise AssertionError("parsed in spite of the cache")


def test_cache_gives_the_same_rows_and_errors(many, monkeypatch):
    first = read(many, skip_invalid=True)
    with pytest.raises(UserError) as parsed_error:
        read(many)
    monkeypatch.setattr(data, "_resolve", no_parsing)
    again = read(many, skip_invalid=True)
    assert len(again) == 11 and equal(first, again)
    assert again.skipped == first.skipped == Counter(unreadable=1)
    assert [c.id for c in read(many, skip_invalid=True, max_atoms=4)] == ["m5"]
    with pytest.raises(UserError) as cached_error:
        read(many)
    assert str(cached_error.value) == str(parsed_error.value)


def test_cached_crystals_can_be_changed(many):
    read(many, skip_invalid=True)
    crystal = read(many, skip_invalid=True)[0]
    crystal.structure.translate_sites([0], [0.1, 0.1, 0.1])
    crystal.structure.replace(0, "Ba")
    assert crystal.structure[0].frac_coords == pytest.approx([0.1] * 3)


@pytest.mark.parametrize("change", ["content", "reduce", "limit", "format", "suffix"])
def test_cache_is_for_this_content_and_these_settings(many, monkeypatch, change):
    read(many, skip_invalid=True)
    settings: dict = {}
    if change == "content":
        many.write_text(many.read_text().replace("m11,", "m12,"))
    elif change == "format":
        monkeypatch.setattr(data_cache, "_CACHE_FORMAT", -1)
    elif change == "suffix":
        many = many.rename(many.with_suffix(".json"))
    else:
        settings = {"reduce": False} if change == "reduce" else {"limit": 11}
    monkeypatch.setattr(data, "_resolve", no_parsing)
    monkeypatch.setattr(rows, "_json_rows", no_parsing)
    with pytest.raises((AssertionError, TypeError)):
        read(many, skip_invalid=True, **settings)


@given(position=st.integers(0, 10**6), value=st.integers(1, 255), cut=st.booleans())
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_damaged_cache_is_not_used(many, position, value, cut):
    expected = read(many, skip_invalid=True)
    (entry,) = cache_folder().iterdir()
    content = bytearray(entry.read_bytes())
    position %= len(content)
    content[position] ^= value
    entry.write_bytes(content[:position] if cut else content)
    assert equal(read(many, skip_invalid=True), expected)
    assert [entry] == list(cache_folder().iterdir())  # rebuilt in place


def test_cache_that_cannot_be_written_only_warns(many, tmp_path, monkeypatch, caplog):
    (tmp_path / "occupied").write_text("a file")
    monkeypatch.setenv("FLOWLLM_CACHE", str(tmp_path / "occupied"))
    assert len(read(many, skip_invalid=True)) == 11
    assert "cannot cache parsed crystals" in caplog.text


def test_small_files_are_not_cached(tmp_path):
    read(write(two(), tmp_path / "t.csv"))
    assert not cache_folder().exists()


def test_folder_of_cifs_is_cached_by_name_and_content(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_WORTH_CACHING", 2)
    folder = write(two(), tmp_path / "cifs")
    assert [c.id for c in read(folder)] == ["a-1", "b-2"]
    (folder / "a-1.cif").rename(folder / "a-3.cif")
    assert [c.id for c in read(folder)] == ["a-3", "b-2"]


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        (Unix, {"XDG_CACHE_HOME": "/x"}, Path("/x/flowllm")),
        (Unix, {}, Path.home() / ".cache" / "flowllm"),
        (MacOS, {}, Path.home() / "Library" / "Caches" / "flowllm"),
        (windows.Windows, {"LOCALAPPDATA": "/y"}, Path("/y/flowllm")),
        (Unix, {"FLOWLLM_CACHE": "/z"}, Path("/z")),
    ],
)
def test_the_cache_is_in_the_users_cache_folder(monkeypatch, platform, variables, expected):
    for name in ("FLOWLLM_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(platformdirs, "PlatformDirs", platform)
    # Windows itself would be asked, which is not there.
    monkeypatch.setattr(windows, "get_win_folder", windows.get_win_folder_from_env_vars)
    assert cache_folder() == expected
