"""Damaged files: a crystal that other programs read equally, or an error on one line."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from fuzzing import KINDS, SUFFIXES, TOKENS, Damage, damaged, fault, whole_files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support import run_command

_DAMAGE = st.builds(
    Damage,
    kind=st.sampled_from(KINDS),
    place=st.floats(0, 1, exclude_max=True),
    length=st.integers(0, 8).map(lambda power: 1 << power),
    token=st.sampled_from(TOKENS) | st.binary(min_size=1, max_size=4),
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWLLM_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_whole_files_are_read_as_other_programs_read_them(suffix: str, tmp_path: Path) -> None:
    assert [fault(content, suffix, tmp_path) for content in whole_files(suffix)] == [
        None for _ in whole_files(suffix)
    ]


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_damaged_file_gives_an_equal_crystal_or_one_line(
    suffix: str, data: st.DataObject
) -> None:
    content = data.draw(st.sampled_from(whole_files(suffix)))
    content = damaged(content, data.draw(st.lists(_DAMAGE, min_size=1, max_size=4)))
    with tempfile.TemporaryDirectory() as folder:
        assert fault(content, suffix, Path(folder)) is None


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_command_refuses_a_damaged_file_in_one_line(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"half{suffix}"
    whole = whole_files(suffix)[0]
    file.write_bytes(whole[: int(0.6 * len(whole))])
    result = run_command("data", file, tmp_path / "out.json")
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1, result.stderr
    assert str(file) in result.stderr and not (tmp_path / "out.json").exists()
