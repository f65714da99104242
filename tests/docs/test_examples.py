"""The scripts and notebooks of `examples/`, on small data and with small models."""

from __future__ import annotations

import ast
import json
import runpy
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import pytest
from training_support import ARCHITECTURE, NETWORK

from support import MP20_SAMPLE, ROOT

EXAMPLES = ROOT / "examples"
PRIOR = [*ARCHITECTURE, "training.epochs=1", "training.bf16=false"]
REFINER = [*NETWORK, "training.epochs=1", "base.symmetry=free"]
# Arguments of `main` of the scripts, and parameters of the notebooks; DATA is a file of crystals.
SMALL: dict[str, dict[str, Any]] = {
    "best_of.py": {"n": 1, "candidates": 2},
    "chemistry.py": {"n": 2},
    "elements.py": {"n": 1},
    "evaluate.py": {"n": 2},
    "generate.py": {"n": 2},
    "predict.py": {"n": 1},
    "refine_rattled.py": {},
    "relax.py": {"n": 1},
    "templates.py": {"n": 2},
    "train.py": {"data": "DATA", "settings": PRIOR},
    "trajectory.py": {},
    "evaluate.ipynb": {"N": 2, "TRAIN": "DATA"},
    "look.ipynb": {"N": 2},
    "train.ipynb": {"DATA": "DATA", "PRIOR_SETTINGS": PRIOR, "REFINER_SETTINGS": REFINER},
}


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file DATA in the current folder, and no window."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOWLLM_CACHE", str(tmp_path / "cache"))
    table = pd.read_parquet(MP20_SAMPLE)
    table[table["cif"].str.len() < 1500][:6].to_parquet("DATA.parquet")
    matplotlib.use("Agg")


def filled(values: dict[str, Any]) -> dict[str, Any]:
    return {name: "DATA.parquet" if value == "DATA" else value for name, value in values.items()}


def test_every_example_is_tested_and_listed() -> None:
    found = {path.name for suffix in ("py", "ipynb") for path in EXAMPLES.glob(f"*.{suffix}")}
    assert found == set(SMALL)
    listed = (EXAMPLES / "README.md").read_text()
    assert all(f"]({name})" in listed for name in found)


@pytest.mark.parametrize("name", [name for name in SMALL if name.endswith(".py")])
def test_a_script_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / name))["main"](**filled(SMALL[name]))
    assert capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name in SMALL if name.endswith(".ipynb")])
def test_a_notebook_runs(name: str) -> None:
    cells = json.loads((EXAMPLES / name).read_text())["cells"]
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = 0
    for place, cell in enumerate(cells):
        if cell["cell_type"] != "code":
            continue
        source = "".join(cell["source"])
        if "parameters" in cell["metadata"].get("tags", ()):
            exec(source, names)
            assert set(SMALL[name]) <= set(names)
            names |= filled(SMALL[name])
            continue
        shown += show(source, f"{name}, cell {place}", names)
    assert shown


def show(source: str, place: str, names: dict[str, Any]) -> bool:
    """Run a cell as Jupyter does; return whether its last line is a value, which is shown."""
    tree = ast.parse(source, place)
    last = tree.body[-1]
    if not isinstance(last, ast.Expr):
        exec(compile(tree, place, "exec"), names)
        return False
    exec(compile(ast.Module(tree.body[:-1], []), place, "exec"), names)
    value = eval(compile(ast.Expression(last.value), place, "eval"), names)
    return bool(repr(value)) and value is not None
