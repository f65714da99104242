"""Models by name: bundled, in a folder or on the hub, and their identities."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flowllm.errors import UserError
from flowllm.hub.locate import (
    BUNDLED_PRIOR,
    BUNDLED_REFINER,
    announce,
    identity,
    resolve,
    resolve_pair,
)
from support import BUNDLED_REFINER as SITES_REFINER


def test_a_model_is_bundled_or_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(None, BUNDLED_PRIOR) == BUNDLED_PRIOR
    assert resolve("bundled:sites", BUNDLED_REFINER) == SITES_REFINER
    with pytest.raises(UserError, match="there is no bundled pair 'site'; choose .*sites"):
        resolve("bundled:site", BUNDLED_PRIOR)
    assert resolve(str(tmp_path), BUNDLED_PRIOR) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert resolve(f"~/{tmp_path.name}", BUNDLED_PRIOR) == tmp_path
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file; give the folder of a model"):
        resolve(tmp_path / "file", BUNDLED_PRIOR)


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "runs/prior/model", "~/x", "/no/x"])
def test_a_name_that_can_only_be_a_folder_is_refused_if_there_is_none(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"there is no model folder {name}; give a folder or"):
        resolve(name, BUNDLED_PRIOR)


def test_a_run_of_training_stands_for_its_model(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match="the training is not finished; resume it"):
        resolve(tmp_path, BUNDLED_PRIOR)
    (tmp_path / "model").mkdir()
    assert resolve(tmp_path, BUNDLED_PRIOR) == tmp_path / "model"


@pytest.mark.parametrize("name", ["some one/model", "owner/model--x", "owner/model.", "ow:ner/m"])
def test_a_name_that_cannot_be_a_hub_id_is_refused_without_the_hub(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://localhost:1")
    with pytest.raises(UserError) as error:
        resolve(name, BUNDLED_PRIOR)
    assert str(error.value) == (
        f"{name!r} is neither a folder here nor a valid hub id (OWNER/NAME); check the name"
    )


def test_the_identity_of_a_model_is_its_content(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"1")
    before = identity(tmp_path / "model")
    (tmp_path / "model" / "weights").write_bytes(b"2")
    assert before["name"] == "model" and identity(tmp_path / "model") != before
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(UserError):
        identity(tmp_path / "model")


def test_the_identity_of_an_adapter_includes_its_base(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    settings = tmp_path / "adapter" / "adapter_config.json"
    base = tmp_path / "base"
    base.mkdir()
    gguf = tmp_path / "base.gguf"
    for place, weights in ((base, base / "model.safetensors"), (gguf, gguf)):
        settings.write_text(json.dumps({"base_model_name_or_path": str(place)}))
        weights.write_bytes(b"1")
        before = identity(tmp_path / "adapter")
        weights.write_bytes(b"2")
        after = identity(tmp_path / "adapter")
        assert before["sha256"] == after["sha256"] and before["base"] != after["base"]
        assert after["base"]["name"] == place.name
    settings.write_text(json.dumps({"base_model_name_or_path": "org/model"}))
    assert identity(tmp_path / "adapter")["base"] == {"name": "org/model"}
    settings.write_text("{}")
    with pytest.raises(UserError, match="adapter_config.json names no base model"):
        identity(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("folder", "source"), [(SITES_REFINER, "bundled:sites"), (Path("my/model"), "my/model")]
)
def test_the_log_names_source_size_and_hash_of_a_model(
    folder: Path, source: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    model: Any = SimpleNamespace(num_parameters=1_000_000, device=torch.device("cpu"))
    assert announce("refiner", folder, {"sha256": "0123456789abcdef"}, model) == 1_000_000
    (line,) = caplog.messages
    assert line == f"refiner: {source}, 1.0 M parameters, sha256 01234567, on cpu"


def test_a_pair_without_a_refiner_goes_with_the_bundled_one(tmp_path: Path) -> None:
    (tmp_path / "prior").mkdir()
    assert resolve_pair(tmp_path, None) == (tmp_path / "prior", BUNDLED_REFINER)
    (tmp_path / "prior").rename(tmp_path / "refiner")
    with pytest.raises(UserError, match="holds no prior; give another folder .* for its refiner"):
        resolve_pair(tmp_path, None)
    assert resolve_pair(None, tmp_path) == (BUNDLED_PRIOR, tmp_path / "refiner")
