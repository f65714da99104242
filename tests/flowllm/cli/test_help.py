"""Help, completion, and the options of every command."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from typing import Any

import click
import pytest
from cli_support import NEEDED, commands, environment, process

import flowllm
from flowllm.cli import cli
from flowllm.cli.options import Command, Option, given
from flowllm.system.options import Options, specs
from llm_prior import ATTRIBUTES
from support import run_command

# The function behind each command, apart from `data` and `doctor`.
FUNCTIONS = {
    "predict": "prediction.run:predict",
    "sample": "generation.sampling_run:run_sampling",
    "refine": "generation.sampling_run:run_refinement",
    "mutate": "generation.mutation:mutate",
    "evaluate": "evaluation.evaluate:evaluate",
    "score": "generation.scoring:score",
    "ipt": "generation.scoring:ipt",
    "infill": "generation.infilling:infill",
    "relax": "energy.relaxation:relax",
    "export-vasp": "energy.vasp:export_vasp",
    "train-llm": "training.prior:train_prior",
    "tune-llm": "training.tuning:tune_prior",
    "pair": "training.pairing.run:pair",
    "train-rfm": "training.refiner:train_refiner",
    "templates build": "templates.library:build_library",
}
NO_OPTIONS = {"config", "progress", "options"}  # `config` of commands with a config class


def the_command(name: str) -> Command:
    command = commands()[name]
    assert isinstance(command, Command)
    return command


def load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def fields(command: Command) -> dict[str, Any]:
    """Return the fields of the command's config class that are options, with their defaults."""
    if command.config is None:
        return {}
    config: type[Options] = load(command.config)
    return {name: f.default for name, (f, spec) in specs(config).items() if not spec.hidden}


# --- help ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(NEEDED))
def test_every_command_has_help(name: str) -> None:
    result = run_command(*name.split(), "--help")
    assert result.exit_code == 0 and result.stderr == ""
    assert result.stdout.startswith(f"Usage: flowllm {name} ")
    command = the_command(name)
    assert command.help is not None
    assert command.help.splitlines()[0] in result.stdout
    sections = [line for line in result.stdout.splitlines() if line[:1].strip() and line[-1] == ":"]
    assert sections[-1] == "Run:" and len(set(sections)) == len(sections)


def test_every_command_is_listed_once_by_its_task_with_a_whole_sentence() -> None:
    _, *tasks = run_command("--help").stdout.split("\n\n")[2:]
    listed = [line.split()[0] for task in tasks for line in task.splitlines()[1:]]
    assert sorted(listed) == sorted(cli.commands)
    assert sorted(commands()) == sorted(NEEDED)
    assert [task.splitlines()[0] for task in tasks] == [
        *("Generate:", "Analyse:", "Relax:", "Train:", "Files and installation:")
    ]
    assert not [line for task in tasks for line in task.splitlines() if line.endswith("...")]


def test_without_a_command_the_help_is_shown() -> None:
    result = run_command()
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == run_command("--help").stdout


def test_unit_range_and_default_are_shown_once() -> None:
    words = " ".join(run_command("relax", "--help").stdout.split())
    for text in (
        "at the end. [eV/Angstrom; above 0; default: 0.05] --stress-limit",
        "has failed. [at least 1; default: 500] --time-limit",
        "of the machine. [seconds; above 0; default: 600] --symmetry",
        "--workers INTEGER Processes. [at least 1; default: 1]",
    ):
        assert words.count(text) == 1, text
    words = " ".join(run_command("sample", "--help").stdout.split())
    for text in (
        "-n INTEGER Number of crystals. [at least 1; required]",
        "[above 0 and at most 1; default: 0.9]",
        "--refine / --no-refine Refine the crystals. [default: on]",
        "[prior|energy|flow]",
        "[default: COMMAND-DATE-TIME]",
    ):
        assert words.count(text) == 1, text


def test_help_is_fast_and_imports_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "pymatgen", "numpy", "pandas"}
    cheap = {"sample": {"torch", "transformers", "pandas"}, "data": heavy, "relax": {"torch"}}
    for arguments, absent in [((), heavy), *(((name,), absent) for name, absent in cheap.items())]:
        ended = process(*arguments, "--help")
        assert ended.code == 0, ended.stderr
        assert not absent & ended.modules
        assert ended.seconds < 1


@pytest.mark.parametrize("name", sorted(NEEDED))
def test_the_help_of_a_command_needs_no_torch(name: str) -> None:
    command = the_command(name)
    place = command.config.partition(":")[0] if command.config else "flowllm.cli"
    code = f"import sys, {place}, flowllm.cli; print('torch' in sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment()
    )
    assert ran.stdout == "False\n", ran.stderr


def test_the_version_is_the_packages() -> None:
    assert run_command("--version").stdout.strip() == f"flowllm, version {flowllm.__version__}"


# --- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_options_are_arguments_of_the_function_or_fields_of_its_config(name: str) -> None:
    command = the_command(name)
    arguments = inspect.signature(load(f"flowllm.{FUNCTIONS[name]}")).parameters
    known = arguments.keys() - (NO_OPTIONS if command.config else {"progress"})
    known |= fields(command).keys()
    if command.conditions:
        known |= {attribute.name for attribute in ATTRIBUTES}
    words = NEEDED[name].split()
    values = command.make_context(name, [*words, "--out", "y"]).params
    assert values.keys() == known
    for key, value in given(values).items():  # the function has the defaults of the others
        if key in arguments and arguments[key].default is not inspect.Parameter.empty:
            assert f"--{key}" in ("--out", *words) or value == arguments[key].default, key


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_the_default_in_the_help_is_that_of_the_function_or_the_config(name: str) -> None:
    command = the_command(name)
    arguments = inspect.signature(load(f"flowllm.{FUNCTIONS[name]}")).parameters
    defaults = {key: argument.default for key, argument in arguments.items()} | fields(command)
    for option in command.get_params(click.Context(command)):
        if not isinstance(option, Option) or option.name in ("out", "prior", "refiner"):
            continue  # those three are made or found at the start
        if option.spec.default_text is not None:
            assert option.default_text == option.spec.default_text
        elif option.default_text is not None:
            assert option.default_text == as_shown(defaults[option.name or ""])


def as_shown(default: Any) -> str:
    if default is True:
        return "on"
    return f"{default:g}" if isinstance(default, float) else str(default)


# --- completion ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("flowllm sc", ["plain,score"]),
        ("flowllm train", ["plain,train-llm", "plain,train-rfm"]),
        ("flowllm sample --rank ", ["plain,prior", "plain,energy", "plain,flow"]),
        ("flowllm sample --rank E", ["plain,energy"]),
        ("flowllm sample --no-r", ["plain,--no-refine"]),
        ("flowllm sample --device C", ["plain,cpu", "plain,cuda"]),
        ("flowllm evaluate --oxidation-states smact", ["plain,smact14"]),
        ("flowllm evaluate run --train x", ["file,x"]),
        ("flowllm sample --prior ./m", ["file,./m"]),
        ("flowllm refine nacl", ["file,nacl"]),
    ],
)
def test_the_shell_completes_commands_options_choices_and_paths(
    line: str, offered: list[str]
) -> None:
    words = line.split(" ")
    ended = process(
        _FLOWLLM_COMPLETE="bash_complete", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1)
    )
    assert ended.code == 0, ended.stderr
    assert ended.stdout.splitlines() == offered
    assert "torch" not in ended.modules
