"""Extension of Python-Markdown: the line `::: commands` becomes the reference of all commands.

mkdocs-click knows neither the headings nor the defaults of `flowllm.cli.options`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import click
from markdown import Extension, Markdown
from markdown.preprocessors import Preprocessor

from flowllm.cli import cli

_MARK = "::: commands"


class _Commands(Preprocessor):
    """Replaces the mark by Markdown."""

    def run(self, lines: list[str]) -> list[str]:
        """Return the lines of a page with the reference in place of the mark.

        Args:
            lines: Markdown.
        """
        replaced: list[str] = []
        for line in lines:
            replaced += _reference() if line.strip() == _MARK else [line]
        return replaced


class Commands(Extension):
    """The reference of all commands."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802  # the name is Markdown's
        """Add the preprocessor, before those that look at blocks of code.

        Args:
            md: the converter.
        """
        md.preprocessors.register(_Commands(md), "commands", 60)


def makeExtension(**settings: Any) -> Commands:  # noqa: N802
    """Return the extension; Markdown calls this function by its name."""
    return Commands(**settings)


def _reference() -> list[str]:
    lines: list[str] = []
    for task, names in cli.tasks.items():
        lines += [f"## {task}", ""]
        for name in names:
            command = cli.commands[name]
            if isinstance(command, click.Group):
                for part, inner in command.commands.items():
                    lines += _command(f"flowllm {name} {part}", inner)
            else:
                lines += _command(f"flowllm {name}", command)
    return lines


def _command(name: str, command: click.Command) -> Iterator[str]:
    ctx = click.Context(command, info_name=name)
    yield from (f"### {name}", "", inspect.cleandoc(command.help or ""), "")
    yield from ("```text", f"{name} {' '.join(command.collect_usage_pieces(ctx))}", "```", "")
    tables: dict[str, list[tuple[str, str]]] = {}
    last: list[tuple[str, str]] = []
    for param in command.get_params(ctx):
        if isinstance(param, click.Argument):
            row = (param.make_metavar(ctx), getattr(param, "help", None) or "")
            tables.setdefault("Argument", []).append(row)
        elif (record := param.get_help_record(ctx)) is not None:
            section = getattr(param, "section", "Run")
            (last if section == "Run" else tables.setdefault(section, [])).append(record)
    for section, rows in {**tables, "Run": last}.items():
        yield from (f"| {section} | |", "|---|---|")
        yield from (f"| `{left}` | {_escaped(right)} |" for left, right in rows)
        yield ""


def _escaped(text: str) -> str:
    return "".join("\\" + c if c in r"|*_<>[]`" else c for c in " ".join(text.split()))
