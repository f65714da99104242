"""Bad numbers for every option of every command: exit code 2, one line, nothing written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from cli_support import NEEDED, check_mistake, commands

from flowllm.cli.options import Option
from flowllm.system.options import OptionSpec
from support import run_command


def numeric_options() -> Iterator[tuple[str, Option]]:
    """Yield every option of every command that takes a number."""
    for name, command in commands().items():
        for option in command.get_params(click.Context(command)):
            if isinstance(option, Option) and option.type in (click.INT, click.FLOAT):
                yield name, option


def outside(spec: OptionSpec, whole: bool) -> list[str]:
    """Return numbers outside the range of an option, at the nearest distance that it allows."""
    step = 1 if whole else 0.001
    numbers = {
        spec.minimum: -step,
        spec.above: 0,
        spec.maximum: step,
        spec.below: 0,
    }
    found = [bound + change for bound, change in numbers.items() if bound is not None]
    return [str(int(number) if whole else number) for number in found]


CASES = [
    pytest.param(name, option.opts[-1], text, id=f"{name} {option.opts[-1]} {text}")
    for name, option in numeric_options()
    for text in [
        *outside(option.spec, option.type is click.INT),
        *("-1", "x", "nan", "inf", ""),
        *(["1.5"] if option.type is click.INT else []),
    ]
]


def test_every_number_has_a_range() -> None:
    options = list(numeric_options())
    assert {name for name, _ in options} == NEEDED.keys() - {"merge"}
    assert not [option.name for _, option in options if not option.spec.range]


@pytest.mark.parametrize(("command", "flag", "text"), CASES)
def test_a_bad_number_is_one_line_and_writes_nothing(
    command: str,
    flag: str,
    text: str,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    check_mistake(run_command(*command.split(), *needed(command, files), flag, text), flag)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "condition",
    [
        *("--num-atoms 0", "--num-atoms -1", "--num-atoms 1.5", "--num-atoms x"),
        *("--num-atoms 10-5", "--spacegroup 0", "--spacegroup -1", "--spacegroup 231"),
        *("--spacegroup nan", "--e-above-hull nan", "--e-above-hull x", "--band-gap -1"),
        *("--band-gap inf", "--formation-energy-per-atom nan"),
    ],
)
def test_a_bad_condition_is_one_line_and_writes_nothing(
    condition: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = condition.split()[0].removeprefix("--").replace("-", "_")
    check_mistake(run_command("sample", "-n", 1, *condition.split()), name)
    assert list(tmp_path.iterdir()) == []


def needed(command: str, files: Path) -> list[str]:
    """Return the arguments that a command needs, with the paths of its files."""
    words = NEEDED[command].split()
    return [str(files / word) if (files / word).exists() else word for word in words]
