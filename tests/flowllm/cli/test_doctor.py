"""`flowllm doctor`: the diagnosis of an installation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from flowllm import doctor
from support import run_command


def test_a_sound_installation_is_reported() -> None:
    result = run_command("doctor")
    assert result.exit_code == 0, result.stdout
    lines = result.stdout.splitlines()
    assert "ok: no other package claims the name flowllm" in lines
    assert {"ok: prior bundled:sites", "ok: refiner bundled:sites"} <= set(lines)
    assert any(re.fullmatch(r"torch \d.*", line) for line in lines)


def test_potentials_are_listed_with_their_versions_or_how_to_get_them() -> None:
    lines = run_command("doctor").stdout.splitlines()
    for name in ("chgnet", "matgl"):
        (line,) = [line for line in lines if line.startswith(f"potential {name}: ")]
        assert re.fullmatch(rf"potential {name}: (\d[\w.]*|not installed; pip install .+)", line)


@pytest.mark.parametrize(
    ("names", "line"),
    [
        ([], "GPUs 0, runs on the CPU"),
        (["NVIDIA H100", "NVIDIA A100"], "GPUs 2 (NVIDIA H100, NVIDIA A100)"),
    ],
)
def test_gpus_are_counted_and_named(
    names: list[str], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: names[index])
    assert line in run_command("doctor").stdout.splitlines()


def test_the_unrelated_package_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "flowllm-0.3.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: flowllm\nVersion: 0.3.1\n")
    monkeypatch.syspath_prepend(tmp_path)
    result = run_command("doctor")
    assert result.exit_code == 1
    (problem,) = [line for line in result.stdout.splitlines() if line.startswith("problem")]
    assert "unrelated package flowllm 0.3.1" in problem and "pip uninstall flowllm" in problem


def test_missing_weights_are_a_problem(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "bundled_pairs", lambda: {"lost": files / "missing"})
    lines, healthy = doctor.diagnose()
    assert not healthy
    assert "problem: the prior bundled:lost is missing; reinstall the package" in lines


def test_a_plan_says_on_which_gpus_a_training_fits() -> None:
    result = run_command("doctor", "--plan", "llm/llama2-70b", "--gpus", "8")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "llm/llama2-70b on 8 GPUs"
    assert lines[1] == "weights 68,976,648,192, trained 32,768,000"
    assert "256 crystals for each optimiser step" in lines[2]
    fits = {line.split()[2]: line.split()[4:] for line in lines if line.startswith("fits in")}
    assert fits == {
        "24": ["no", "no"], "40": ["no", "no"], "80": ["yes", "yes"], "140": ["yes", "yes"]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plan", "llm/nothing"], "there is no config 'llm/nothing'"),
        (["--plan", "llm/small", "--gpus", "0"], "--gpus is 0"),
        (["--gpus", "8"], "--gpus belongs to --plan RECIPE"),
        (["--plan", "hub.yaml"], "the sizes of someone/model are not known"),
        (["--plan", "empty.yaml"], "empty.yaml holds no settings"),
    ],
)
def test_a_bad_plan_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hub.yaml").write_text("model: {name: someone/model}\ntraining: {}\n")
    (tmp_path / "empty.yaml").write_text("")
    result = run_command("doctor", *arguments)
    assert result.exit_code == 2 and not result.stdout
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {message}")
