"""Model folders that bring code: nothing of them runs, and the folder is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llm_prior import BaseModel, Prior
from prior_support import FMT, refused, small_prior, with_trained_adapter
from support import Runs


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "it-ran"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_prior().save_pretrained(tmp_path / "prior")
    return tmp_path / "prior"


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def code(folder: Path, mark: Path) -> None:
    """Write a module that leaves a file when it is imported."""
    (folder / "mine.py").write_text(
        f"open({str(mark)!r}, 'w')\nclass Model: pass\nConfig = Model\n"
    )


def test_code_of_a_model_is_not_loaded(folder: Path, mark: Path) -> None:
    code(folder, mark)
    names = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
    change(folder / "config.json", auto_map=names)
    assert Prior.from_pretrained(folder).source  # transformers' own class
    change(folder / "config.json", model_type="mine")
    refused(lambda: Prior.from_pretrained(folder), str(folder))
    assert not mark.exists()


def test_code_of_a_tokenizer_is_not_loaded(folder: Path, mark: Path) -> None:
    code(folder, mark)
    change(
        folder / "tokenizer_config.json",
        tokenizer_class="Mine",
        auto_map={"AutoTokenizer": ["mine.Model", "mine.Model"]},
    )
    try:
        Prior.from_pretrained(folder)
    except ValueError as error:
        assert str(folder) in str(error)
    assert not mark.exists()


def test_attention_kernels_of_the_hub_are_not_loaded(folder: Path) -> None:
    change(folder / "config.json", attn_implementation="somebody/kernel")
    refused(lambda: Prior.from_pretrained(folder), "names the attention 'somebody/kernel'")


@pytest.mark.parametrize("harmless", [True, False])
def test_pickled_weights_are_not_loaded(folder: Path, mark: Path, harmless: bool) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights if harmless else {"a": Runs(mark)}, folder / "pytorch_model.bin")
    refused(lambda: Prior.from_pretrained(folder), str(folder), "model.safetensors")
    assert not mark.exists()


def test_a_pickled_adapter_is_not_loaded(base: str, tmp_path: Path, mark: Path) -> None:
    folder = tmp_path / "adapter"
    with_trained_adapter(base).save_pretrained(folder)
    (folder / "adapter_model.safetensors").unlink()
    torch.save({"a": Runs(mark)}, folder / "adapter_model.bin")
    refused(lambda: Prior.from_pretrained(folder), "has no adapter_model.safetensors")
    assert not mark.exists()


def test_an_adapter_imports_no_module_that_it_names(base: str, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    with_trained_adapter(base).save_pretrained(folder)
    module = "a_module_that_is_not_there"
    change(folder / "adapter_config.json", megatron_config={"a": 1}, megatron_core=module)
    refused(lambda: Prior.from_pretrained(folder), str(folder), module)
    change(
        folder / "adapter_config.json",
        megatron_config=None,
        auto_mapping={"base_model_class": "Model", "parent_library": module},
    )
    assert Prior.from_pretrained(folder).source


def test_a_base_in_a_recipe_brings_no_code(base: str, tmp_path: Path, mark: Path) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "copy"))
    code(folder, mark)
    change(folder / "config.json", model_type="mine", auto_map={"AutoConfig": "mine.Config"})
    refused(lambda: Prior.build(BaseModel(name=str(folder)), FMT), str(folder))
    assert not mark.exists()


@pytest.mark.parametrize("file", ["config.json", "prior.json", "tokenizer.json"])
def test_deep_nesting_is_damage(folder: Path, file: str) -> None:
    (folder / file).write_text("[" * 100_000)
    refused(lambda: Prior.from_pretrained(folder), str(folder))
