"""Descriptions of training crystals, from the cache and anew."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from flowllm.crystals.descriptions import describe_crystals
from flowllm.crystals.io import read
from flowllm.errors import UserError
from llm_prior import TextFormat
from llm_prior.layouts.wyckoff import WyckoffLayout
from support import MP20_SAMPLE

WYCKOFF = TextFormat(layout="wyckoff")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLOWLLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def rows(limit: int = 12) -> list[tuple[str, Structure, dict]]:
    return [(c.id, c.structure, c.properties) for c in read(MP20_SAMPLE, limit=limit)]


def test_a_second_call_searches_no_symmetry_and_finds_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, first = describe_crystals(rows(), WYCKOFF, skip_invalid=False)

    def refuse(*_: object) -> None:
        raise AssertionError("described anew")

    monkeypatch.setattr(WyckoffLayout, "describe", refuse)
    _, again = describe_crystals(rows(), WYCKOFF, skip_invalid=False)
    assert [d.text() for d in again] == [d.text() for d in first]
    assert [d.conditions({}) for d in again] == [d.conditions({}) for d in first]
    with pytest.raises(AssertionError, match="described anew"):
        # Another tolerance may find another symmetry.
        other = TextFormat(layout="wyckoff", symprec=0.01)
        describe_crystals(rows(1), other, skip_invalid=False)


def test_a_damaged_cache_changes_nothing(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, first = describe_crystals(rows(4), WYCKOFF, skip_invalid=False)
    (file,) = cache.glob("descriptions-*.sqlite")
    file.write_bytes(b"no database" * 1000)
    with caplog.at_level(logging.WARNING):
        _, again = describe_crystals(rows(4), WYCKOFF, skip_invalid=False)
    assert [d.text() for d in again] == [d.text() for d in first]
    assert "results are not kept in" in caplog.text


def test_a_crystal_without_symmetry_is_named_or_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    coords = np.random.default_rng(0).random((3, 3))
    big = ("big", Structure(Lattice.cubic(9), ["Na"] * 3, coords), {})
    fmt = TextFormat(layout="wyckoff", max_atoms=2)
    small = [row for row in rows(40) if len(row[1]) <= 2]
    assert small
    with pytest.raises(UserError, match="crystal big: Na3 has 3 atoms .*--skip-invalid"):
        describe_crystals([*small, big], fmt, skip_invalid=False)
    with caplog.at_level(logging.WARNING):
        kept, described = describe_crystals([big, *small], fmt, skip_invalid=True)
    assert [row[0] for row in kept] == [row[0] for row in small]
    assert len(described) == len(small)
    assert f"1 of {len(small) + 1} crystals cannot be written" in caplog.text


def test_the_layout_sites_keeps_nothing(cache: Path) -> None:
    kept, described = describe_crystals(rows(3), TextFormat(), skip_invalid=False)
    assert [d.text() for d in described] and len(kept) == 3
    assert not list(cache.glob("descriptions-*.sqlite*"))


def test_the_size_limit_holds_for_crystals_that_are_cached(
    caplog: pytest.LogCaptureFixture,
) -> None:
    wide = TextFormat(layout="wyckoff", max_atoms=100)
    narrow = TextFormat(layout="wyckoff", max_atoms=4)
    kept, _ = describe_crystals(rows(), wide, skip_invalid=False)
    assert any(len(row[1]) > 4 for row in kept)
    small, described = describe_crystals(rows(), narrow, skip_invalid=True)
    assert 0 < len(small) < len(kept)
    assert all(d.conditions({})["num_atoms"] <= 4 for d in described)
