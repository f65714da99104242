"""Run folders as input; `tests/flowllm/crystals/test_run_folders.py` has the other commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_support import ARCHITECTURE, NETWORK

from support import run_command

EMT = "ase.calculators.emt:EMT"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one crystal."""
    folder = tmp_path_factory.mktemp("sampled") / "run"
    assert run_command("sample", "-n", 1, "--formula", "NaCl", "--out", folder).exit_code == 0
    return folder


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    """The folder of an evaluation, where its packages are installed."""
    for module in ("smact", "plotly", "jinja2"):
        pytest.importorskip(module, reason=f"{module} is not installed")
    return tmp_path / "evaluation"


def test_a_run_is_a_training_set_and_a_reference_of_an_evaluation(
    run: Path, evaluation: Path
) -> None:
    pytest.importorskip("matminer", reason="matminer is not installed")
    result = run_command("evaluate", run, "--train", run, "--reference", run, "--out", evaluation)
    assert result.exit_code == 0, result.output
    *metrics, folder, report = result.stdout.splitlines()
    assert (folder, report) == (str(evaluation), str(evaluation / "report.html"))
    rows = {line.split()[0]: line.split()[1] for line in metrics[1:]}
    assert (rows["crystals"], rows["novelty[run]"], rows["coverage_recall"]) == ("1", "0", "1")


def test_an_evaluation_is_extended_by_a_potential(files: Path, evaluation: Path) -> None:
    words = ("evaluate", files / "copper.cif", "--out", evaluation)
    before = run_command(*words)
    assert before.exit_code == 0, before.output
    after = run_command(*words, "--potential", EMT)
    assert after.exit_code == 0, after.output
    assert "relaxed_match_rate" not in before.stdout and "relaxed_match_rate" in after.stdout
    assert (evaluation / "relaxed.parquet").is_file()


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("pair", ["--max-attempts", 1]),
        ("train-llm --data", ["training.max_steps=1", *ARCHITECTURE]),
        ("train-rfm --config rfm/uniform --data", ["training.max_steps=1", *NETWORK]),
    ],
    ids=["pair", "train-llm", "train-rfm"],
)
def test_models_are_trained_on_a_run(
    command: str, options: list[object], run: Path, tmp_path: Path
) -> None:
    words = (*command.split(), run, "--device", "cpu", "--out", tmp_path / "out")
    result = run_command(*words, *options)
    assert result.exit_code == 0, result.output
    assert Path(result.stdout.splitlines()[0]).exists()
