"""The group of all commands: logging, and errors as one line."""

from __future__ import annotations

import errno
import logging
from typing import Any

import click


class _Mistake(click.ClickException):
    """An error that the user can mend."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        click.echo(f"error: {' '.join(self.message.split())}", file=file, err=True)


class Group(click.Group):
    """Turns the three packages' own errors into one line."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command, which takes --verbose after its name as well."""
        cmd.params.append(
            click.Option(
                ["-v", "--verbose"],
                is_flag=True,
                expose_value=False,
                callback=_log_more,
                help="Log more.",
            )
        )
        super().add_command(cmd, name)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ValueError as error:
            if any((k.__module__, k.__name__) in _OWN_ERRORS for k in type(error).__mro__):
                raise _Mistake(str(error)) from error
            raise
        except OSError as error:
            if error.errno in _PLACE_ERRORS:
                raise _Mistake(f"{error.filename}: {error.strerror}; mend that first") from error
            raise


def _log_more(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        logging.getLogger().setLevel(logging.INFO)


# By name, so that no package is imported that the command does not use.
_OWN_ERRORS = {
    ("flowllm.errors", "UserError"),
    ("llm_prior.errors", "PriorError"),
    ("rfm.errors", "RefinerError"),
}
# A folder that cannot be written or read, a full disk.
_PLACE_ERRORS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.ENOTDIR, errno.EDQUOT}
