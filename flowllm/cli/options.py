"""Options of the commands: those that several share, and those derived from config classes."""

from __future__ import annotations

import functools
import importlib
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowllm.runs.cif_form import CIF_FORMS
from flowllm.system.device import check_device
from flowllm.system.options import OptionSpec, plain_types, specs

if TYPE_CHECKING:
    import dataclasses

    from click.shell_completion import CompletionItem

    from flowllm.runs.outputs import Outcome
    from flowllm.training.pairing.records import PairingOutcome

PATH = click.Path(path_type=Path)
# Keys of `click.Context.meta`: the folder that a command writes, and the options that name it if
# the user did not.
FOLDER = f"{__name__}.folder"
NAMED_BY = f"{__name__}.named_by"

_RUN = "Run"  # heading of the options that do not belong to a task


class Option(click.Option):
    """An option under a heading. Its help ends with unit, range and default.

    A number is checked when the command line is read, so before the command does anything.

    Args:
        spec: help, heading, unit and range.
        default_text: shown as the default; None: nothing is shown.
    """

    def __init__(
        self, *args: Any, spec: OptionSpec, default_text: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **{**kwargs, "help": spec.help})
        self.spec = spec
        self.section = spec.section or "Options"
        self.default_text = default_text

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        value = super().type_cast_value(ctx, value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            self.spec.check(self.name or "", value, type(value))
        return value

    def get_help_extra(self, ctx: click.Context) -> Any:
        extra = super().get_help_extra(ctx)
        default = self.default_text and f"default: {self.default_text}"
        details = [text for text in (self.spec.unit, self.spec.range, default) if text]
        if details:
            extra["range"] = "; ".join(details)  # click shows this text as it is
        return extra


class Command(click.Command):
    """A command whose options are derived from a config class and listed under headings.

    Args:
        config: `MODULE:CLASS` of an `Options` class. It is imported when its options are needed,
            so that `flowllm --help` imports none.
        conditions: add an option for each condition of the prior.
    """

    def __init__(
        self, *args: Any, config: str | None = None, conditions: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.config = config
        self.conditions = conditions

    @functools.cached_property
    def derived(self) -> list[click.Parameter]:
        """The options that are not written in `flowllm.cli`."""
        options: list[click.Parameter] = []
        if self.conditions:
            options += _condition_options()
        if self.config is not None:
            options += _config_options(self.config)
        return options

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*super().get_params(ctx), *self.derived]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and not isinstance(param, click.Argument):
                sections.setdefault(getattr(param, "section", _RUN), []).append(record)
        sections[_RUN] = sections.pop(_RUN)  # to the end; every command has --help there
        for section, rows in sections.items():
            with formatter.section(section):
                formatter.write_dl(rows)


def _condition_options() -> list[click.Parameter]:
    from llm_prior import ATTRIBUTES

    return [
        Option([_flag(a.name), a.name], spec=OptionSpec(help=a.help, section="Conditions"))
        for a in ATTRIBUTES
    ]


def _config_options(config: str) -> list[click.Parameter]:
    module, name = config.split(":")
    cls = getattr(importlib.import_module(module), name)
    kinds = plain_types(cls)
    return [
        _config_option(declared, spec, kinds[name])
        for name, (declared, spec) in specs(cls).items()
        if not spec.hidden
    ]


def _config_option(
    declared: dataclasses.Field[Any], spec: OptionSpec, kind: type | None
) -> click.Parameter:
    """Return the option of a field. It is None where the user does not give it."""
    name, default = declared.name, declared.default
    flag = _flag(name)
    if kind is bool:
        both = f"{flag}/{_flag(f'no_{name}')}" if default else flag
        shown = "on" if default else None
        return Option([both, name], spec=spec, default_text=shown, is_flag=True, default=None)
    type_: Any = kind
    if spec.choices is not None:
        type_ = click.Choice([str(choice) for choice in spec.choices], case_sensitive=False)
    elif spec.path:
        type_ = PATH
    shown = spec.default_text
    if shown is None and default not in (None, ()):
        shown = f"{default:g}" if kind is float else str(default)
    several = spec.path and default == ()
    return Option([flag, name], spec=spec, default_text=shown, type=type_, multiple=several)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def common_option(
    *names: str,
    help: str,
    section: str = _RUN,
    minimum: int | None = None,
    default_text: str | None = None,
    **kwargs: Any,
) -> Callable[..., Any]:
    """Return a decorator that adds an option which belongs to no config class.

    Args:
        *names: as for `click.option`.
        help: one sentence.
        section: heading.
        minimum: smallest number.
        default_text: shown as the default, which the function behind the command has.
        **kwargs: for `click.option`.
    """
    spec = OptionSpec(help=help, section=section, minimum=minimum)
    return click.option(*names, cls=Option, spec=spec, default_text=default_text, **kwargs)


class _Device(click.ParamType):
    """Name of a device in any case, checked when the command line is read."""

    name = "device"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return check_device(value.lower())

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        names = ("auto", "cpu", "cuda")
        return [CompletionItem(name) for name in names if name.startswith(incomplete.lower())]


def _folder(ctx: click.Context, parameter: click.Parameter, value: Path | None) -> Path:
    """Return the folder to write, with a name from command and time if the user gives none."""
    if value is None:
        # Options that the user gave come before those that he left out, so --resume is known.
        if ctx.params.get("resume"):
            raise click.UsageError("--resume goes on with a run; give its folder with --out", ctx)
        if ctx.params.get("part"):
            raise click.UsageError("--part shares a folder with others; give it with --out", ctx)
        value = Path(f"{ctx.info_name}-{time.strftime('%Y%m%d-%H%M%S')}")
        ctx.meta[NAMED_BY] = ["-o", str(value)]
    ctx.meta[FOLDER] = value
    return value


OUT = common_option(
    "-o",
    "--out",
    type=PATH,
    callback=_folder,
    help="Folder to write.",
    default_text="COMMAND-DATE-TIME",
)
CIF = common_option(
    "--cif",
    type=click.Choice(CIF_FORMS),
    help="Form of the CIFs: with space group and Wyckoff letters, or all sites of the run's cell.",
    default_text="symmetrized",
)
TABLE = common_option("-o", "--out", type=PATH, help="CSV file to write.")
COUNT = common_option(
    "-n", "n", section="Request", type=int, minimum=1, required=True, help="Number of crystals."
)
DEVICE = common_option(
    "--device", type=_Device(), help="cpu, cuda, cuda:NUMBER or auto.", default_text="auto"
)
LIMIT = common_option("--limit", type=int, minimum=1, help="Read the first so many crystals.")
OVERRIDES = click.argument(
    "overrides",
    nargs=-1,
    metavar="[KEY=VALUE]...",
    help="Changes to the recipe, such as training.epochs=3.",
)
# Text and no `pathlib.Path`, which would make ./model the hub id model.
PRIOR = common_option(
    "--prior",
    type=click.Path(),
    help="Folder or hub id of a prior or a pair, or bundled:sites.",
    default_text="bundled",
)
REFINER = common_option(
    "--refiner",
    type=click.Path(),
    help="Folder or hub id of a refiner or a pair, or bundled:sites.",
    default_text="that of the pair, or bundled",
)
RESUME = common_option("--resume", is_flag=True, help="Go on from the newest complete checkpoint.")
SEED = common_option("--seed", type=int, minimum=0, help="Seed of every draw.", default_text="0")
SKIP = common_option("--skip-invalid", is_flag=True, help="Leave out bad crystals and count them.")
VALIDATION = common_option(
    "--validation",
    section="Training",
    type=PATH,
    help="Crystals or pairs of the validation set: a file or a run folder.",
)
EXECUTOR = common_option(
    "--executor",
    help="Where the workers run: local, slurm (this allocation) or MODULE:FACTORY.",
    default_text="local",
)
PART = common_option(
    "--part",
    metavar="I/N",
    help="Compute every N-th shard, beside the other parts in the same folder.",
)
WORKERS = common_option("--workers", type=int, minimum=1, help="Processes.", default_text="1")
FILE = click.argument(
    "file",
    type=PATH,
    help="Crystals: CIF, POSCAR, extxyz, JSON, CSV, parquet, ASE database, a folder or archive of "
    "them, a run folder, or - (standard input).",
)


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


def report_pairs(outcome: PairingOutcome) -> None:
    """Show the result of a pairing."""
    click.echo(outcome.file)
    click.echo(
        f"{outcome.kept} of {outcome.requested} samples kept ({outcome.first_try} at the first "
        f"attempt); rejected: {counts(outcome.rejects)}"
    )


def counts(numbers: Mapping[str, int]) -> str:
    """Return counts as `reason number, ...`, or `none`."""
    return ", ".join(f"{name} {count}" for name, count in numbers.items()) or "none"
