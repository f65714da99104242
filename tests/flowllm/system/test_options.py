"""Options: fields of config dataclasses with their checks."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest

from flowllm.errors import UserError
from flowllm.system.options import (
    OptionError,
    Options,
    OptionSpec,
    as_tuple,
    check_count,
    from_arguments,
    option,
    plain_types,
    specs,
)


def parse_words(value: Any) -> tuple[str, ...]:
    return tuple(value.split(",")) if isinstance(value, str) else tuple(value)


@dataclass(frozen=True, kw_only=True)
class Base(Options):
    """Options that another class inherits."""

    limit: float = option(0.5, "Largest force.", unit="eV/Angstrom", above=0, maximum=10)
    steps: int = option(3, "Steps.", minimum=1)


@dataclass(frozen=True, kw_only=True)
class Config(Base):
    """One option of each kind."""

    number: int | None = option(None, "May be left out.", minimum=0, below=10)
    flag: bool = option(False, "A switch.")
    name: str = option("x", "A text.")
    kind: Literal["a", "b"] = option("a", "A choice.", choices=("a", "b"))
    words: tuple[str, ...] = option((), "Parsed.", parse=parse_words, section="Words")
    values: dict[str, int] = option({}, "Copied.", hidden=True)
    plain: int = 0  # a field that is no option


# Checks


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"limit": 0}, "limit is 0; give a number above 0 and at most 10"),
        ({"limit": 10.5}, "limit is 10.5; give a number above 0 and at most 10"),
        ({"limit": math.nan}, "limit is nan; give a number above 0 and at most 10"),
        ({"limit": "1"}, "limit is '1'; give a number above 0 and at most 10"),
        ({"limit": True}, "limit is True; give a number above 0 and at most 10"),
        ({"limit": None}, "limit is None; give a number above 0 and at most 10"),
        ({"steps": 0}, "steps is 0; give a whole number at least 1"),
        ({"steps": 2.0}, "steps is 2.0; give a whole number at least 1"),
        ({"steps": True}, "steps is True; give a whole number at least 1"),
        ({"number": -1}, "number is -1; give a whole number at least 0 and below 10"),
        ({"number": 10}, "number is 10; give a whole number at least 0 and below 10"),
        ({"flag": 1}, "flag is 1; give a value of type bool"),
        ({"name": 1}, "name is 1; give a value of type str"),
        ({"name": None}, "name is None; give a value of type str"),
        ({"kind": "c"}, "kind 'c' is unknown; choose one of a, b"),
    ],
)
def test_a_bad_value_is_refused_with_name_value_and_range(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError) as error:
        Config(**arguments)
    assert str(error.value) == message
    (name,) = arguments
    assert (error.value.name, f"{name} {error.value.problem}") == (name, message)
    assert isinstance(error.value, UserError)


def test_the_bounds_themselves_are_allowed_if_they_are_inclusive() -> None:
    assert Config(limit=10, steps=1, number=0).limit == 10
    assert Config(number=None).number is None  # as its default


@pytest.mark.parametrize("value", [math.inf, -math.inf, 10**400])
def test_a_number_without_bounds_has_to_be_finite(value: float) -> None:
    spec = OptionSpec(help="")
    with pytest.raises(OptionError, match="x is .*; give a number$"):
        spec.check("x", value, float)
    spec.check("x", -1e300, float)


def test_a_whole_number_may_have_any_size() -> None:
    assert Config(steps=10**400).steps == 10**400


def test_numbers_of_numpy_become_those_of_python() -> None:
    config = Config(steps=np.int64(2), limit=np.float32(0.5), number=np.uint8(3))
    assert [type(v) for v in (config.steps, config.limit, config.number)] == [int, float, int]
    assert config == Config(steps=2, limit=0.5, number=3)


def test_equal_numbers_are_stored_alike() -> None:
    assert repr(Config(limit=1)) == repr(Config(limit=1.0))


def test_a_value_is_parsed_before_its_check() -> None:
    assert Config(words="a,b").words == Config(words=["a", "b"]).words == ("a", "b")


def test_a_default_that_can_change_is_copied() -> None:
    assert Config().values == {} and Config().values is not Config().values


def test_a_count_is_a_whole_number_from_its_minimum_on() -> None:
    check_count("n", 0, 0)
    check_count("n", np.int64(3), 1)
    for value in (0, 1.5, "2", True, None, math.nan):
        with pytest.raises(OptionError, match=r"^n is .*; give a whole number at least 1$"):
            check_count("n", value, 1)


# Descriptions


def test_the_options_of_a_class_include_those_of_its_base_in_order() -> None:
    found = specs(Config)
    assert list(found) == ["limit", "steps", "number", "flag", "name", "kind", "words", "values"]
    assert specs(Config()).keys() == found.keys()
    declared, spec = found["words"]
    assert (declared.default, spec.help, spec.section) == ((), "Parsed.", "Words")


def test_the_help_text_ends_with_the_unit() -> None:
    assert specs(Config)["limit"][1].full_help == "Largest force. [eV/Angstrom]"
    assert specs(Config)["steps"][1].full_help == "Steps."


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ({}, ""),
        ({"minimum": 0}, "at least 0"),
        ({"above": 0, "below": 1}, "above 0 and below 1"),
        ({"minimum": 0.5, "maximum": 2.0}, "at least 0.5 and at most 2"),
    ],
)
def test_a_range_is_told_in_words(bounds: dict[str, float], words: str) -> None:
    assert OptionSpec(help="", **bounds).range == words


def test_plain_types_are_known_with_or_without_none() -> None:
    kinds = plain_types(Config)
    assert (kinds["limit"], kinds["steps"], kinds["number"]) == (float, int, int)
    assert (kinds["flag"], kinds["name"]) == (bool, str)
    assert (kinds["kind"], kinds["words"], kinds["values"]) == (None, None, None)


# Arguments


def test_arguments_make_a_config() -> None:
    assert from_arguments(Config, {}) == Config()
    assert from_arguments(Config, {"steps": 5}) == Config(steps=5)
    base = Config(steps=5, flag=True)
    assert from_arguments(Config, {"steps": 6}, base=base) == Config(steps=6, flag=True)
    assert base.steps == 5


def test_arguments_are_checked() -> None:
    with pytest.raises(UserError, match=r"unknown option 'step'; known are flag, kind, limit, nam"):
        from_arguments(Config, {"step": 5})
    for base in (None, Config()):
        with pytest.raises(OptionError, match="steps is 0"):
            from_arguments(Config, {"steps": 0}, base=base)


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().steps = 5  # type: ignore[misc]  # the error is the point


def test_a_text_counts_as_one_value() -> None:
    assert as_tuple("ab") == ("ab",) and as_tuple(b"ab") == (b"ab",) and as_tuple(3) == (3,)
    assert as_tuple(None) == ()
    assert as_tuple(["a", "b"]) == as_tuple(("a", "b")) == ("a", "b")
