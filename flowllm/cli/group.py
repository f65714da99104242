"""The group of all commands: help by task, errors and interruptions as one line."""

from __future__ import annotations

import errno
import io
import logging
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from click.exceptions import NoArgsIsHelpError

from flowllm.cli.options import FOLDER, NAMED_BY
from flowllm.errors import FlowLLMError
from flowllm.runs.parts import Unfinished
from flowllm.system.options import OptionError

# A path that cannot be written or read, or is of another kind than it should be; a full disk.
_PLACE_ERRORS = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ELOOP),
    *(errno.ENAMETOOLONG, errno.EILSEQ),
}
_INTERRUPTED = 130  # exit code of a shell after Ctrl-C
_ARGUMENTS = f"{__name__}.arguments"  # key of `click.Context.meta`


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
        longest = max(map(len, self.list_commands(ctx)))
        width = formatter.width - 6 - longest
        for task, names in self.tasks.items():
            rows = [
                (name.ljust(longest), self.commands[name].get_short_help_str(width))
                for name in names
            ]
            with formatter.section(task):
                formatter.write_dl(rows)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_ARGUMENTS] = list(args)
        with _errors_as_one_line(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        with _errors_as_one_line(ctx):
            return super().invoke(ctx)


@contextmanager
def _errors_as_one_line(ctx: click.Context) -> Iterator[None]:
    # A name may hold bytes that are no text, or letters that the terminal's encoding lacks.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else ctx.command_path
        message = error.format_message().rstrip(".")
        raise _OneLine(f"{message}; see {path} --help") from error
    except Unfinished as error:
        click.echo(error)
    except OptionError as error:
        raise _OneLine(f"{_flag(ctx, error.name)} {error.problem}") from error
    except FlowLLMError as error:
        raise _OneLine(str(error)) from error
    except OSError as error:
        if error.errno not in _PLACE_ERRORS:
            raise
        place = f"{error.filename}: " if error.filename else ""
        raise _OneLine(f"{place}{error.strerror}; choose another place") from error
    except UnicodeEncodeError as error:
        if error.encoding != sys.getfilesystemencoding():
            raise
        raise _OneLine(
            f"{error.object} cannot be a file name in the encoding {error.encoding}; choose "
            "another name, or set LC_ALL=C.UTF-8"
        ) from error
    except MemoryError as error:
        raise _OneLine(
            "memory ran out; give fewer or smaller crystals (--limit, --max-atoms where they "
            "exist), or use fewer workers"
        ) from error
    except KeyboardInterrupt:
        click.echo(f"interrupted; {_how_to_go_on(ctx)}", err=True)
        ctx.exit(_INTERRUPTED)


def _flag(ctx: click.Context, name: str) -> str:
    """Return an option as it is spelled on the command line."""
    for param in _command(ctx).get_params(ctx):
        if isinstance(param, click.Option) and param.name == name:
            return param.opts[-1]
    return name


def _command(ctx: click.Context) -> click.Command:
    """Return the command that runs in the context of the group."""
    assert isinstance(ctx.command, click.Group)
    return ctx.command.commands.get(ctx.invoked_subcommand or "", ctx.command)


def _how_to_go_on(ctx: click.Context) -> str:
    """Return the command line that goes on after an interruption."""
    folder = ctx.meta.get(FOLDER)
    if folder is None or not folder.exists():
        return "nothing was written"
    added = list(ctx.meta.get(NAMED_BY, ()))
    words = ctx.meta[_ARGUMENTS]
    if "--resume" not in words and any(p.name == "resume" for p in _command(ctx).params):
        added.append("--resume")
    end = words.index("--") if "--" in words else len(words)
    line = shlex.join([ctx.command_path, *words[:end], *added, *words[end:]])
    return f"to go on: {line}"


def _log_more(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        logging.getLogger().setLevel(logging.INFO)
        logging.getLogger("py.warnings").setLevel(logging.WARNING)
