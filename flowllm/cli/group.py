"""The group of all commands: help by task, logging, and errors as one line."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from flowllm.errors import FlowLLMError

# A folder that cannot be written or read, a full disk.
_PLACE_ERRORS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.ENOTDIR, errno.EDQUOT}
_INTERRUPTED = 130  # exit code of a shell after Ctrl-C


class _OneLine(click.ClickException):
    """An error that the user can fix, shown on one line."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        click.echo(f"error: {' '.join(self.message.split())}", file=file, err=True)


class Group(click.Group):
    """A group that lists its commands by task and shows each error as one line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tasks: dict[str, list[str]] = {}

    def add_commands(self, task: str, *commands: click.Command) -> None:
        """Add the commands of a task, each of which takes --verbose after its name as well."""
        for command in commands:
            command.params.append(
                click.Option(
                    ["-v", "--verbose"],
                    is_flag=True,
                    expose_value=False,
                    callback=_log_more,
                    help="Log more.",
                )
            )
            self.add_command(command)
        self.tasks[task] = [command.name or "" for command in commands]

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for names in self.tasks.values() for name in names]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = formatter.width - 6 - max(len(name) for name in self.list_commands(ctx))
        for task, names in self.tasks.items():
            rows = [(name, self.commands[name].get_short_help_str(width)) for name in names]
            with formatter.section(task):
                formatter.write_dl(rows, col_max=max(map(len, self.list_commands(ctx))))

    def invoke(self, ctx: click.Context) -> Any:
        with _errors_as_one_line(ctx):
            return super().invoke(ctx)


@contextmanager
def _errors_as_one_line(ctx: click.Context) -> Iterator[None]:
    try:
        yield
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else ctx.command_path
        message = error.format_message().rstrip(".")
        raise _OneLine(f"{message}; see {path} --help") from error
    except FlowLLMError as error:
        raise _OneLine(_as_typed(error)) from error
    except OSError as error:
        if error.errno in _PLACE_ERRORS:
            raise _OneLine(f"{error.filename}: {error.strerror}; fix that first") from error
        raise
    except KeyboardInterrupt:
        click.echo("interrupted; the same command goes on from what is finished", err=True)
        ctx.exit(_INTERRUPTED)


def _as_typed(error: FlowLLMError) -> str:
    """Return the message with the option spelled as on the command line."""
    name, problem = getattr(error, "name", None), getattr(error, "problem", None)
    return f"--{name.replace('_', '-')} {problem}" if name and problem else str(error)


def _log_more(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        logging.getLogger().setLevel(logging.INFO)
