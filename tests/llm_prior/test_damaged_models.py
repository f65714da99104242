"""Models that cannot be loaded: paths to nothing, damaged files, adapters without their base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from llm_prior import BaseModel, Prior
from prior_support import (
    FMT,
    byte_tokenizer,
    make_base,
    refused,
    small_prior,
    with_trained_adapter,
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "prior"
    small_prior().save_pretrained(folder)
    return folder


@pytest.fixture
def prior_folder(saved: Path, tmp_path: Path) -> Path:
    """A good prior that a test may break."""
    assert Prior.from_pretrained(saved).source
    return Path(shutil.copytree(saved, tmp_path / "prior"))


@pytest.fixture
def adapter_folder(base: str, tmp_path: Path) -> Path:
    with_trained_adapter(base).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("name", ["/nowhere/prior", "./prior", "runs/small/model", "tiny.gguf"])
def test_a_path_to_nothing_is_refused_and_never_looked_up(name: str) -> None:
    refused(lambda: Prior.from_pretrained(name), f"there is no {name}; give a model folder")
    refused(lambda: Prior.build(BaseModel(name=name), FMT), f"there is no {name}; give a model")


@pytest.mark.parametrize("name", ["nobody/nothing", "nothing"])
def test_a_hub_id_that_cannot_be_reached_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # What HF_HUB_OFFLINE=1 and HF_HOME set when the package is imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    refused(lambda: Prior.from_pretrained(name), f"{name} is neither a folder here nor a prior")
    refused(
        lambda: Prior.build(BaseModel(name=name), FMT),
        f"{name} is neither a folder here nor a model on the hub",
        "give a model folder or hub id",
    )


def test_a_file_is_no_model_folder(tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(b"0")
    refused(lambda: Prior.from_pretrained(file), f"{file} is not a model folder")
    refused(lambda: Prior.build(BaseModel(name=str(file)), FMT), "is not a model folder")


def test_a_language_model_that_knows_no_crystals_is_no_prior(base: str) -> None:
    refused(lambda: Prior.from_pretrained(base), base, "has no prior.json: it is not a prior")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"{}",
        b'{"version": 1}',
        b'{"version": 1, "text": []}',
        b'{"version": 1, "text": {"colour": 1}}',
        b"\xff\xfe\x00",
    ],
)
def test_a_corrupt_settings_file_is_refused(prior_folder: Path, content: bytes) -> None:
    (prior_folder / "prior.json").write_bytes(content)
    refused(lambda: Prior.from_pretrained(prior_folder), "prior.json is damaged", "train the model")


def test_settings_of_another_version_or_an_impossible_format_are_refused(
    prior_folder: Path,
) -> None:
    file = prior_folder / "prior.json"
    file.write_text('{"version": 2, "text": {}}')
    refused(lambda: Prior.from_pretrained(prior_folder), "version 2, this program reads 1")
    file.write_text('{"version": 1, "text": {"coord_decimals": "two"}}')
    refused(lambda: Prior.from_pretrained(prior_folder), "text.coord_decimals 'two' is not")


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.999])
def test_truncated_weights_are_refused(prior_folder: Path, kept: float) -> None:
    file = prior_folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    refused(lambda: Prior.from_pretrained(prior_folder), str(prior_folder), "damaged", "again")


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_a_folder_with_a_file_missing_or_damaged_is_refused(prior_folder: Path, name: str) -> None:
    file = prior_folder / name
    content = file.read_bytes()
    file.unlink()
    refused(lambda: Prior.from_pretrained(prior_folder), str(prior_folder), ";")
    for damaged in (b"", content[:50], b"\xff\xfe\x00junk"):
        file.write_bytes(damaged)
        refused(lambda: Prior.from_pretrained(prior_folder), str(prior_folder), ";")


@pytest.mark.parametrize("change", [{"num_hidden_layers": 3}, {"intermediate_size": 32}])
def test_weights_that_do_not_fit_the_config_are_never_filled_with_random_numbers(
    prior_folder: Path, change: dict
) -> None:
    file = prior_folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    refused(
        lambda: Prior.from_pretrained(prior_folder),
        f"the weights in {prior_folder} do not fit its config.json",
        "model.layers.",
    )


def test_an_adapter_without_its_base_is_refused(adapter_folder: Path, base: str) -> None:
    shutil.rmtree(base)
    refused(
        lambda: Prior.from_pretrained(adapter_folder),
        f"{adapter_folder} is an adapter without its base (there is no {base}",
        "correct base_model_name_or_path",
    )


def test_an_adapter_on_another_base_is_refused(adapter_folder: Path, base: str) -> None:
    shutil.rmtree(base)
    wide = LlamaConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    LlamaForCausalLM(wide).save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    refused(
        lambda: Prior.from_pretrained(adapter_folder),
        f"the adapter {adapter_folder} does not fit its base {base}",
    )


def test_an_adapter_without_its_files_is_refused(adapter_folder: Path) -> None:
    weights = adapter_folder / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    refused(lambda: Prior.from_pretrained(adapter_folder), str(adapter_folder), "damaged")
    weights.unlink()
    refused(lambda: Prior.from_pretrained(adapter_folder), "has no adapter_model.safetensors")
    (adapter_folder / "adapter_config.json").write_text("{}")
    refused(lambda: Prior.from_pretrained(adapter_folder), "names no base_model_name_or_path")


def test_a_tokenizer_that_cannot_end_a_text_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    byte_tokenizer(eos_token=None).save_pretrained(base)
    refused(lambda: Prior.build(BaseModel(name=base), FMT), base, "has no eos_token; name one")


def test_a_missing_tensor_is_named(prior_folder: Path) -> None:
    file = prior_folder / "model.safetensors"
    weights = load_file(file)
    del weights["model.norm.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    refused(lambda: Prior.from_pretrained(prior_folder), "1 such as model.norm.weight")
