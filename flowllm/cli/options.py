"""Options that several commands share, and options derived from config classes."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import dataclasses

    from flowllm.runs.outputs import Outcome
    from flowllm.system.options import OptionSpec

PATH = click.Path(path_type=Path)


class Option(click.Option):
    """An option that is listed under a heading."""

    def __init__(self, *args: Any, section: str = "Run", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class Command(click.Command):
    """A command whose options are derived from a config class and listed under headings.

    Args:
        config: `MODULE:CLASS` of an `Options` class; it is imported when its options are needed,
            so that `flowllm --help` imports nothing.
        leave_out: names of fields that are no options of this command.
        conditions: add one option for each condition of the prior.
    """

    def __init__(
        self,
        *args: Any,
        config: str | None = None,
        leave_out: tuple[str, ...] = (),
        conditions: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.config = config
        self.leave_out = leave_out
        self.conditions = conditions

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        params = super().get_params(ctx)
        derived: list[click.Parameter] = []
        if self.conditions:
            derived += _condition_options()
        if self.config is not None:
            derived += _config_options(self.config, self.leave_out)
        # After the arguments and options that have no default, before those about the run.
        place = sum(1 for p in params if not isinstance(p, Option) or p.section != "Run")
        return [*params[:place], *derived, *params[place:]]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                sections.setdefault(getattr(param, "section", "Run"), []).append(record)
        sections["Run"] = sections.pop("Run", [])  # the general ones last
        for section, rows in sections.items():
            with formatter.section(section):
                formatter.write_dl(rows)


def _condition_options() -> list[click.Parameter]:
    from llm_prior.prompts import ATTRIBUTES

    return [
        Option(["--" + a.name.replace("_", "-"), a.name], help=a.help, section="Conditions")
        for a in ATTRIBUTES
    ]


def _config_options(config: str, leave_out: tuple[str, ...]) -> list[click.Parameter]:
    from flowllm.system.options import plain_types, specs

    module, name = config.split(":")
    cls = getattr(importlib.import_module(module), name)
    kinds = plain_types(cls)
    return [
        _option(name, declared, spec, kinds[name])
        for name, (declared, spec) in specs(cls).items()
        if not spec.hidden and name not in leave_out
    ]


def _option(
    name: str, declared: dataclasses.Field[Any], spec: OptionSpec, kind: type | None
) -> click.Parameter:
    """Return the option of a field. It is None where the user does not give it."""
    flag = "--" + name.replace("_", "-")
    default = spec.default_text
    if default is None and declared.default not in (None, ()) and kind is not bool:
        default = str(declared.default)
    details = [text for text in (spec.range, default and f"default: {default}") if text]
    shown: dict[str, Any] = {
        "help": spec.full_help + (f"  [{'; '.join(details)}]" if details else ""),
        "section": spec.section or "Options",
        "default": None,
    }
    if kind is bool:
        names = [f"{flag}/--no-{name.replace('_', '-')}" if declared.default else flag, name]
        if declared.default:
            shown["help"] += "  [default: on]"
        return Option(names, is_flag=True, **shown)
    if spec.choices is not None:
        shown["type"] = click.Choice([str(c) for c in spec.choices], case_sensitive=False)
    elif spec.path:
        shown["type"] = PATH
    elif kind is not None:
        shown["type"] = kind
    if spec.path and declared.default == ():
        shown["multiple"] = True
    return Option([flag, name], **shown)


def run_option(*names: str, **kwargs: Any) -> Callable[..., Any]:
    """Return a decorator that adds an option about the run."""
    return click.option(*names, cls=Option, **kwargs)


def _default_folder(ctx: click.Context, parameter: click.Parameter, value: Path | None) -> Path:
    if value is not None:
        return value
    return Path(f"{ctx.info_name}-{time.strftime('%Y%m%d-%H%M%S')}")


OUT = run_option(
    "-o",
    "--out",
    type=PATH,
    callback=_default_folder,
    help="Folder to write.  [default: COMMAND-DATE-TIME]",
)
TABLE = run_option("-o", "--out", type=PATH, help="CSV file to write.")
SEED = run_option("--seed", type=int, help="Seed of every draw.  [default: 0]")
COUNT = click.option(
    "-n",
    "n",
    cls=Option,
    section="Request",
    type=int,
    required=True,
    help="Number of crystals.",
)
DEVICE = run_option(
    "--device",
    shell_complete=lambda ctx, param, start: ["auto", "cpu", "cuda"],
    help="cpu, cuda, cuda:NUMBER or auto.  [default: auto]",
)
WORKERS = run_option("--workers", type=click.IntRange(min=1), help="Processes.  [default: 1]")
SKIP = run_option("--skip-invalid", is_flag=True, help="Leave out bad crystals and count them.")
LIMIT = run_option("--limit", type=click.IntRange(min=1), help="Read the first so many crystals.")
PRIOR = run_option("--prior", help="Folder or hub id of a prior.  [default: bundled]")
REFINER = run_option("--refiner", help="Folder or hub id of a refiner.  [default: bundled]")
RESUME = run_option("--resume", is_flag=True, help="Go on from the newest complete checkpoint.")
VALIDATION = run_option("--validation", type=PATH, help="Crystals or pairs of the validation set.")
OVERRIDES = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
FILE = click.argument("file", type=PATH)


def given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that the user gave; the function has the defaults of the others."""
    return {name: value for name, value in arguments.items() if value not in (None, ())}


def report(outcome: Outcome, requested: int) -> None:
    """Show the crystals of a run, and exit with code 1 if some are missing."""
    from flowllm.cli.table import crystal_table

    click.echo(crystal_table(outcome.crystals))
    made = len(outcome.crystals)
    click.echo(f"{made} of {requested} crystals in {outcome.folder}")
    if outcome.rejects:
        click.echo(f"rejected texts: {counts(outcome.rejects)}", err=True)
    if made < requested:
        click.echo(f"failed: {counts(outcome.failures)}", err=True)
        sys.exit(1)


def counts(numbers: Mapping[str, int]) -> str:
    """Return counts as `reason number, ...`, or `none`."""
    return ", ".join(f"{name} {count}" for name, count in numbers.items()) or "none"
