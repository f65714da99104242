"""Folders of matgl potentials that name other classes than matgl's models: nothing of them runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from flowllm.crystals.io import write
from flowllm.energy.calculators import check_potential_name, load_calculator
from flowllm.energy.matgl_folder import element_types, load_model
from flowllm.errors import UserError
from support import SALT, Runs, run_command


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "it-ran"


def named(module: object, name: object, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"@class": name, "@module": module, "@model_version": 3, "init_args": arguments or {}}


def touching(mark: Path) -> dict[str, Any]:
    return named("subprocess", "Popen", {"args": ["touch", str(mark)]})


def folder(path: Path, *, model: Any = None, arguments: Any = None, weights: Any = None) -> Path:
    """Write the three files of a potential."""
    path.mkdir()
    torch.save({} if arguments is None else arguments, path / "model.pt")
    torch.save({} if weights is None else weights, path / "state.pt")
    if model is None:
        model = {"@class": "Potential", "@module": "matgl.apps._pes", "kwargs": {}}
    (path / "model.json").write_text(json.dumps(model))
    return path


def test_a_foreign_class_is_refused_by_name_and_nothing_runs(tmp_path: Path, mark: Path) -> None:
    evil = folder(tmp_path / "evil", arguments={"model": touching(mark)})
    crystals = write(SALT, tmp_path / "salt.cif")
    result = run_command("relax", crystals, "--potential", f"matgl:{evil}", "--out", tmp_path / "o")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert str(evil) in line and "the class Popen of the module subprocess" in line
    assert not mark.exists() and not (tmp_path / "o").exists()


@pytest.mark.parametrize("depth", [0, 1, 5, 200])
@pytest.mark.parametrize("wrap", [lambda item: [item], lambda item: {"init_args": item}])
def test_a_foreign_class_is_found_at_any_depth_of_the_arguments(
    tmp_path: Path, mark: Path, depth: int, wrap: Any
) -> None:
    value: Any = touching(mark)
    for _ in range(depth):
        value = wrap(value)
    evil = folder(
        tmp_path / "evil",
        arguments={"model": named("matgl.models", "TensorNet", {"element_types": value})},
    )
    with pytest.raises(UserError, match="class Popen of the module subprocess"):
        load_model(evil)
    assert not mark.exists()


@pytest.mark.parametrize(
    "model",
    [
        named("subprocess", "Popen"),
        named("matgl.apps.pes", "Potential", {"model": named("os", "system")}),
        {**named("matgl.apps.pes", "Potential"), "kwargs": [{"@module": "os"}]},
        {**named("matgl.apps.pes", "Potential"), "metadata": {"@class": "Popen"}},
        named("matgl.models.subprocess", "Popen"),
        named("matgl.models._x.os", "system"),
        named("matgl.utils.io", "load_model"),
        named("matglevil", "Potential"),
        named(["os"], "system"),
        named("matgl.apps.pes", ["Potential"]),
        named("matgl.models\n", "TensorNet"),
        {},
        [],
        "matgl",
    ],
)
def test_model_json_is_refused_before_anything_is_imported(tmp_path: Path, model: Any) -> None:
    evil = folder(tmp_path / "evil", model=model)
    with pytest.raises(UserError, match=r"model.json names (no|the) class.*give another potential"):
        check_potential_name(f"matgl:{evil}")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("matgl.apps.pes", "IOMixIn"),
        ("matgl.apps.pes", "nullcontext"),
        ("matgl.apps.pes", "copy"),
        ("matgl.models", "annotations"),
        ("matgl.models._core", "ABCMeta"),
        ("matgl.models", "__loader__"),
    ],
)
def test_what_a_module_of_matgl_holds_beside_its_models_is_refused(
    tmp_path: Path, module: str, name: str
) -> None:
    evil = folder(tmp_path / "evil", arguments={"model": named(module, name)})
    with pytest.raises(UserError, match=f"{name}, which is no model class of matgl"):
        load_model(evil)


@pytest.mark.parametrize("file", ["arguments", "weights"])
def test_pickled_commands_are_refused(tmp_path: Path, mark: Path, file: str) -> None:
    model = None
    evil = folder(tmp_path / "evil", model=model, **{file: {"model": Runs(mark)}})
    with pytest.raises(UserError, match="is damaged or no plain data|holds no matgl potential"):
        load_model(evil)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["model.json", "model.pt", "state.pt"])
def test_a_missing_file_is_named_and_not_looked_up_elsewhere(tmp_path: Path, name: str) -> None:
    part = folder(tmp_path / "part")
    (part / name).unlink()
    with pytest.raises(UserError, match=f"it has no {name}"):
        check_potential_name(f"matgl:{part}")


def test_a_deeply_nested_model_json_is_damaged(tmp_path: Path) -> None:
    part = folder(tmp_path / "part")
    (part / "model.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="model.json is damaged: lists .* nested too deeply"):
        load_calculator(f"matgl:{part}")
    assert element_types(part) is None


def test_a_model_that_is_no_potential_is_refused(tmp_path: Path) -> None:
    part = folder(tmp_path / "part", model=named("matgl.models", "MEGNet"))
    with pytest.raises(UserError, match="holds (no matgl potential|a MEGNet, not a potential)"):
        load_model(part)
