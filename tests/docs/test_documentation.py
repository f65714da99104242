"""Every command and every Python block of README and docs.

A block `bash` or `python` runs, in the order of its page, in a folder with the files of `files`,
and with the settings of `smaller`. What needs a GPU, the network, an extra or hours is in blocks
`sh` and `py`: the commands are only parsed, the code is only compiled. Of blocks without a language
the commands of flowllm are parsed.
"""

from __future__ import annotations

import re
import shlex
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from training_support import ARCHITECTURE, NETWORK

from flowllm.cli import cli
from flowllm.crystals.io import read, write
from support import MP20_SAMPLE, ROOT, SALT, perovskite, run_command

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = {"bash", "python", "sh", "py", "text", "yaml", ""}
# Programs that blocks `sh` may call besides flowllm.
OTHERS = {".", "accelerate", "apptainer", "conda", "docker", "eval", "git", "make", "pip", "python"}
OTHERS |= {"OMP_NUM_THREADS=1", "bash", "export", "salloc", "sbatch"}
PRIOR = [*ARCHITECTURE, "training.epochs=1", "training.warmup_steps=1", "training.bf16=false"]
REFINER = [*NETWORK, "training.epochs=1", "training.warmup_steps=1"]


@dataclass(frozen=True)
class Block:
    """A block of code of a page."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    """Return the blocks of code of a page, also those within lists."""
    fence: tuple[str, int] | None = None
    lines: list[str] = []
    for number, line in enumerate(page.read_text().splitlines(), start=1):
        if not line.lstrip().startswith("```"):
            lines.append(line)
        elif fence is None:
            fence, lines = (line.strip().strip("`"), number), []
        else:
            yield Block(fence[0], textwrap.dedent("\n".join(lines)), fence[1])
            fence = None
    assert fence is None, f"{page}: the block of line {fence[1] if fence else 0} does not end"


def commands(block: Block) -> Iterator[list[str]]:
    """Return the command lines of a block as words."""
    variables = {"SCRATCH": "scratch", "SLURM_ARRAY_TASK_ID": "3"}
    for line in block.text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= {";", "&"}:
                if words:
                    yield words
                words = []
            else:
                words.append(re.sub(r"\$(\w+)", lambda found: variables[found[1]], word))


def smaller(words: list[str]) -> list[str]:
    """Return the arguments of a command with little to do: few crystals, few steps, tiny models."""
    name, *arguments = words
    for place, word in enumerate(arguments[:-1]):
        if word == "-n":
            arguments[place + 1] = str(min(2, int(arguments[place + 1])))
        elif word in ("--workers", "--samples-per-target"):
            arguments[place + 1] = "1"
    if name == "sample" and "--no-refine" not in arguments or name == "refine":
        arguments += ["--steps", "10"]
    if name == "predict" and "--num-samples" not in arguments:
        arguments += ["--num-samples", "1"]
    if name == "train-llm":
        arguments = [a for a in arguments if "training." not in a] + PRIOR
    if name == "train-rfm":
        arguments += REFINER
    return [name, *arguments]


def parse(words: list[str]) -> None:
    """Parse a command line of flowllm."""
    with cli.make_context("flowllm", list(words)) as ctx:
        command: Any = cli
        rest = [*ctx._protected_args, *ctx.args]
        while hasattr(command, "commands"):
            name, command, rest = command.resolve_command(ctx, rest)
            assert command is not None and name is not None
            if hasattr(command, "commands"):
                ctx = command.make_context(name, rest, parent=ctx)
                rest = [*ctx._protected_args, *ctx.args]
        command.make_context(name, rest, parent=ctx)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the pages speak of, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOWLLM_CACHE", str(tmp_path / "cache"))
    table = pd.read_parquet(MP20_SAMPLE)
    small = table[table["cif"].str.len() < table["cif"].str.len().quantile(0.4)]
    small[:6].to_parquet("train.parquet")
    small[6:9].to_parquet("val.parquet")
    small[9:15].to_parquet("test.parquet")
    rough = [replace(c, structure=c.structure.copy().perturb(0.1)) for c in read("train.parquet")]
    write(rough, "rough.extxyz")
    write([SALT.get_primitive_structure()], "known.cif")
    write([perovskite().perturb(0.1)], "rough.cif")
    write([perovskite(), SALT.get_primitive_structure()], "other")
    shutil.make_archive("other", "zip", "other")
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_run(page: Path, files: Path) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page):
        place = f"{page.relative_to(ROOT)}, line {block.line}"
        assert block.language in LANGUAGES, f"{place}: unknown language {block.language!r}"
        if block.language == "python":
            exec(compile(block.text, place, "exec"), names)  # noqa: S102
        elif block.language == "bash":
            for words in commands(block):
                assert words[0] == "flowllm", f"{place}: {words[0]} is not run; use sh"
                result = run_command(*smaller(words[1:]))
                said = f"{place}: {shlex.join(words)}\n{result.output}"
                # Models of one step of training may make no crystal.
                assert result.exit_code in ({0, 1} if "--refiner" in words else {0}), said
        elif block.language == "py":
            compile(block.text, place, "exec")
        elif block.language == "sh":
            for words in commands(block):
                check_command(words, place)
        elif block.language == "":
            for line in block.text.replace("\\\n", " ").splitlines():
                if line.startswith(("flowllm ", "python ")):
                    for words in commands(replace(block, text=line)):
                        check_command(words, place)


def check_command(words: list[str], place: str) -> None:
    """Check a command line that is not run."""
    if words[0] == "flowllm" or ["-m", "flowllm"] in map(list, pairwise(words)):
        parse(words[words.index("flowllm") + 1 :])
        return
    assert words[0] in OTHERS, f"{place}: unknown program {words[0]}"
    for word in words:
        if word.endswith(".py") and "/" in word:
            assert (ROOT / word).is_file(), f"{place}: there is no {word}"


def test_links_of_the_readme_lead_to_files() -> None:
    text = (ROOT / "README.md").read_text()
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    links += re.findall(r'(?:src|href)="([^":]+)"', text)
    assert links
    for link in links:
        assert (ROOT / link.partition("#")[0]).exists(), link
