"""Options: dataclass fields that carry their help text, unit and check.

A config class declares each option once:

    @dataclass(frozen=True, kw_only=True)
    class RelaxationConfig(Options):
        force_limit: float = option(0.05, "Largest force at the end.", unit="eV/Angstrom", above=0)

Its constructor checks every value and raises `OptionError`; `flowllm.cli.options` derives the
command line options from the same fields.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, get_args, get_type_hints

from flowllm.errors import UserError

_KEY = "option"


class OptionError(UserError):
    """Bad value of an option.

    Attributes:
        name: name of the option, as a Python argument.
        problem: the rest of the message.
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(name, problem)
        self.name = name
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.name} {self.problem}"


Config = TypeVar("Config", bound="Options")


@dataclass(frozen=True, kw_only=True)
class OptionSpec:
    """Help, unit and check of an option.

    Attributes:
        help: one sentence for the command line.
        unit: of the value, such as `eV/Angstrom`; empty if it has none.
        section: heading under which the command line lists the option.
        choices: the values that are allowed, if they can be listed.
        minimum, maximum: inclusive bounds of a number.
        above, below: exclusive bounds of a number.
        default_text: shown on the command line instead of the default.
        parse: brings a given value to its canonical form; raises `ValueError`.
        path: the value is a path on the command line.
        hidden: the command line has no such option.
    """

    help: str
    unit: str = ""
    section: str = ""
    choices: tuple[Any, ...] | None = None
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    default_text: str | None = None
    parse: Callable[[Any], Any] | None = None
    path: bool = False
    hidden: bool = False

    @property
    def full_help(self) -> str:
        """The help text with the unit."""
        return f"{self.help} [{self.unit}]" if self.unit else self.help

    @property
    def range(self) -> str:
        """The allowed range in words, such as `above 0`; empty if every number is allowed."""
        words = []
        for name, word in (("above", "above"), ("minimum", "at least")):
            if (bound := getattr(self, name)) is not None:
                words.append(f"{word} {bound:g}")
        for name, word in (("below", "below"), ("maximum", "at most")):
            if (bound := getattr(self, name)) is not None:
                words.append(f"{word} {bound:g}")
        return " and ".join(words)

    def check(self, name: str, value: Any, kind: type | None = None) -> None:
        """Check a value.

        Args:
            name: of the option.
            value: of the option.
            kind: int, float, bool or str; None: any.

        Raises:
            OptionError: if the value is no `kind`, not among the choices, or out of range.
        """
        if self.choices is not None and value not in self.choices:
            known = ", ".join(map(str, self.choices))
            raise OptionError(name, f"{value!r} is unknown; choose one of {known}")
        if kind in (int, float):
            number = _finite(value, kind)
            if number is None or not self._contains(number):
                what = "a whole number" if kind is int else "a number"
                raise OptionError(name, f"is {value!r}; give {what} {self.range}".rstrip())
        elif kind is not None and not isinstance(value, kind):
            raise OptionError(name, f"is {value!r}; give a value of type {kind.__name__}")

    def _contains(self, value: float) -> bool:
        return (
            (self.minimum is None or value >= self.minimum)
            and (self.maximum is None or value <= self.maximum)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )


def _finite(value: Any, kind: type) -> float | None:
    """Return a finite number, numpy's as well, as Python's own; None if it is none."""
    if isinstance(value, bool):
        return None
    if kind is int:
        return int(value) if isinstance(value, numbers.Integral) else None
    try:
        number = float(value) if isinstance(value, numbers.Real) else math.nan
    except OverflowError:  # a whole number that no float holds
        return None
    return number if math.isfinite(number) else None


def option(default: Any, help: str, **spec: Any) -> Any:
    """Return a dataclass field with a default and an `OptionSpec`.

    Args:
        default: value of the field; a list, dict or set is copied for each instance.
        help: see `OptionSpec`.
        **spec: further attributes of `OptionSpec`.

    Returns:
        The field.
    """
    metadata = {_KEY: OptionSpec(help=help, **spec)}
    if isinstance(default, list | dict | set):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def specs(config: type[Options] | Options) -> dict[str, tuple[dataclasses.Field[Any], OptionSpec]]:
    """Return the options of a config class by name, in the order of their declaration.

    Args:
        config: the class or an instance.

    Returns:
        Field and description of each option.
    """
    return {f.name: (f, f.metadata[_KEY]) for f in fields(config) if _KEY in f.metadata}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of config classes: parses and checks every option when an instance is made.

    None is allowed for every option whose default is None and is not checked.

    Raises:
        OptionError: if a value is unknown, of the wrong type, or out of range.
    """

    def __post_init__(self) -> None:
        kinds = plain_types(type(self))
        for name, (declared, spec) in specs(self).items():
            value = getattr(self, name)
            if value is None and declared.default is None:
                continue
            if spec.parse is not None:
                try:
                    value = spec.parse(value)
                except TypeError:
                    given = type(value).__name__
                    raise OptionError(
                        name, f"is {value!r}, of the type {given}; give another one"
                    ) from None
                object.__setattr__(self, name, value)
            kind = kinds[name]
            spec.check(name, value, kind)
            if kind in (int, float):  # so that equal values are written alike
                object.__setattr__(self, name, kind(value))


def check_count(name: str, value: Any, minimum: int) -> None:
    """Check an argument that counts something.

    Args:
        name: of the argument.
        value: of the argument.
        minimum: smallest allowed number.

    Raises:
        OptionError: if the value is no whole number of at least `minimum`.
    """
    OptionSpec(help="", minimum=minimum).check(name, value, int)


def plain_types(config: type[Options]) -> dict[str, type | None]:
    """Return int, float, bool or str for each option annotated so (or with None); else None.

    Args:
        config: the class.
    """
    found: dict[str, type | None] = {}
    for name, hint in get_type_hints(config).items():
        kinds = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
        plain = len(kinds) == 1 and kinds[0] in (int, float, bool, str)
        found[name] = kinds[0] if plain else None
    return found


def from_arguments(
    config: type[Config], arguments: dict[str, Any], *, base: Config | None = None
) -> Config:
    """Return a config made from keyword arguments.

    Args:
        config: the class.
        arguments: values by field name.
        base: has the values of the other fields; None: the defaults.

    Returns:
        The config.

    Raises:
        UserError: if a name is unknown; the message lists the known ones.
        OptionError: if a value is bad.
    """
    known = {f.name for f in fields(config)}
    for name in arguments:
        if name not in known:
            raise UserError(f"unknown option {name!r}; known are {', '.join(sorted(known))}")
    return config(**arguments) if base is None else dataclasses.replace(base, **arguments)


def as_tuple(value: Any) -> tuple[Any, ...]:
    """Return a value or a sequence of values as a tuple.

    Args:
        value: a string or a path counts as one value, None as no value.
    """
    if value is None:
        return ()
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return tuple(value)
    return (value,)
