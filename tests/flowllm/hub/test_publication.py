"""Models that are saved, uploaded to a hub on this machine, and loaded again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_support import environment
from hub_support import Hub, running_hub
from huggingface_hub import ModelCard

import flowllm
from flowllm import FlowLLM, UserError
from flowllm.hub.locate import BUNDLED_PRIOR, BUNDLED_REFINER, resolve, resolve_pair
from flowllm.system.files import sha256_file
from support import BUNDLED_PRIOR as SITES_PRIOR
from support import BUNDLED_REFINER as SITES_REFINER
from support import same_bits

WEIGHTS = ("prior/model.safetensors", "refiner/model.safetensors")


@pytest.fixture(scope="module")
def model() -> FlowLLM:
    return FlowLLM.from_pretrained(device="cpu")


@pytest.fixture(scope="module")
def saved(model: FlowLLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model.save_pretrained(tmp_path_factory.mktemp("models") / "my-pair")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with running_hub() as running:
        # huggingface_hub reads its environment when it is imported.
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", running.url)
        template = f"{running.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        yield running


def test_a_saved_pair_gives_the_same_crystals(model: FlowLLM, saved: Path) -> None:
    files = {path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()}
    assert {"README.md", "prior/prior.json", "refiner/config.json", *WEIGHTS} <= files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl"))]
    again = FlowLLM.from_pretrained(saved, device="cpu")  # one name for both
    before, after = (m.sample(2, formula="NaCl", seed=3, steps=2) for m in (model, again))
    assert [s.text for s in before] == [s.text for s in after]
    assert all(same_bits(a.structure, b.structure) for a, b in zip(before, after, strict=True))
    assert before[0].structure is not None


def test_the_card_of_a_saved_pair_says_what_its_files_say(saved: Path) -> None:
    card = ModelCard.load(saved / "README.md")
    assert card.data.library_name == "flowllm-crystal"
    assert card.data.weights_sha256 == {name: sha256_file(saved / name) for name in WEIGHTS}
    assert card.data.eval_results is None  # nothing was measured
    for text in (
        'FlowLLM.from_pretrained("my-pair")',
        "text layout `wyckoff`, at most 20 atoms",
        "trained on 32,188 crystals",
        "6 layers of width 192",
    ):
        assert text in card.text


def test_nothing_is_overwritten(model: FlowLLM, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="my-pair exists; choose another name"):
        model.save_pretrained(saved)
    with pytest.raises(UserError, match="neither a prior nor a refiner"):
        FlowLLM(None, None).save_pretrained(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_the_name_of_a_pair_stands_for_both(saved: Path, tmp_path: Path) -> None:
    assert resolve(saved, BUNDLED_PRIOR) == saved / "prior"
    assert resolve(saved, BUNDLED_REFINER) == saved / "refiner"
    assert resolve_pair(saved, None) == (saved / "prior", saved / "refiner")
    assert resolve_pair(saved, "bundled:sites") == (saved / "prior", SITES_REFINER)
    assert resolve_pair(None, saved) == (BUNDLED_PRIOR, saved / "refiner")
    assert resolve_pair("bundled:sites", None) == (SITES_PRIOR, SITES_REFINER)
    assert resolve_pair(saved / "prior", None) == (saved / "prior", BUNDLED_REFINER)
    half = tmp_path / "half"
    shutil.copytree(saved / "prior", half / "prior")
    assert resolve_pair(half, None) == (half / "prior", BUNDLED_REFINER)
    assert resolve_pair(half, "bundled:sites")[0] == half / "prior"
    # Weights other than those of the card of the pair are refused.
    changed = Path(shutil.copytree(saved, tmp_path / "changed"))
    (changed / WEIGHTS[1]).write_bytes(b"other")
    with pytest.raises(UserError, match="is not what its model card describes"):
        resolve(changed, BUNDLED_PRIOR)


def test_a_pair_goes_to_the_hub_and_comes_back(model: FlowLLM, hub: Hub, saved: Path) -> None:
    url = model.push_to_hub("me/pair", private=True, token="hf_test")
    assert url == f"{hub.url}/me/pair" and hub.private == {"me/pair"}
    files = hub.repos["me/pair"]
    assert {"README.md", *WEIGHTS} <= files.keys()
    assert 'FlowLLM.from_pretrained("me/pair")' in files["README.md"].decode()
    files["evil.bin"] = b"not wanted"
    prior, refiner = resolve_pair("me/pair", None)
    assert prior.parent == refiner.parent
    assert not (prior.parent / "evil.bin").exists()
    for name in WEIGHTS:
        assert (prior.parent / name).read_bytes() == (saved / name).read_bytes()
    again = FlowLLM.from_pretrained("me/pair", device="cpu")
    (one,), (two,) = (m.sample(1, formula="NaCl", seed=1, refine=False) for m in (model, again))
    assert one.text == two.text


@pytest.mark.parametrize(("folder", "role"), [(SITES_PRIOR, "prior"), (SITES_REFINER, "refiner")])
def test_a_model_alone_goes_to_the_hub_with_its_card(folder: Path, role: str, hub: Hub) -> None:
    flowllm.push_to_hub(folder, "me/one", token="hf_test")
    files = hub.repos["me/one"]
    assert files["README.md"] == (folder / "README.md").read_bytes()
    found = resolve("me/one", BUNDLED_PRIOR if role == "prior" else BUNDLED_REFINER)
    assert sha256_file(found / "model.safetensors") == sha256_file(folder / "model.safetensors")


def test_a_model_without_a_card_gets_one_on_the_hub_alone(hub: Hub, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SITES_REFINER, tmp_path / "mine"))
    (folder / "README.md").unlink()
    (folder / "notes.log").write_text("private")
    flowllm.push_to_hub(folder, "me/mine", token="hf_test")
    assert hub.repos["me/mine"].keys() == {"README.md", "config.json", "model.safetensors"}
    assert b'from_pretrained(refiner="me/mine")' in hub.repos["me/mine"]["README.md"]
    assert not (folder / "README.md").exists()


def test_what_others_could_not_load_is_not_uploaded(hub: Hub, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SITES_PRIOR, tmp_path / "mine"))
    (folder / "pytorch_model.bin").touch()
    with pytest.raises(UserError, match=r"pytorch_model\.bin, which may be pickled"):
        flowllm.push_to_hub(folder, "me/mine", token="hf_test")
    (folder / "pytorch_model.bin").unlink()
    base = {"base_model_name_or_path": str(tmp_path / "base")}
    (folder / "adapter_config.json").write_text(json.dumps(base))
    with pytest.raises(UserError, match="a base that only this machine has"):
        flowllm.push_to_hub(folder, "me/mine", token="hf_test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no weights"):
        flowllm.push_to_hub(tmp_path / "empty", "me/mine", token="hf_test")
    with pytest.raises(UserError, match="there is no model folder nowhere"):
        flowllm.push_to_hub("nowhere", "me/mine", token="hf_test")
    for name in ("mine", "me/mine/more", "me/mi ne"):
        with pytest.raises(UserError, match="give OWNER/NAME"):
            flowllm.push_to_hub(folder, name, token="hf_test")
    assert hub.requests == []


def test_a_hub_that_refuses_or_is_away_is_one_line(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        flowllm.push_to_hub(SITES_REFINER, "me/one")  # without a token
    assert "me/one" in str(error.value) or "hf auth login" in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(UserError, match="me/none is neither a folder here nor a model on a hub"):
        resolve("me/none", BUNDLED_PRIOR)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(UserError, match="me/one cannot be uploaded: "):
        flowllm.push_to_hub(SITES_REFINER, "me/one", token="hf_test")


def test_a_command_loads_a_pair_from_the_hub(hub: Hub, tmp_path: Path, saved: Path) -> None:
    flowllm.push_to_hub(saved, "me/pair", token="hf_test")
    arguments = ["sample", "-n", "1", "--formula", "NaCl", "--steps", "2", "--prior", "me/pair"]
    variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    ran = subprocess.run(
        [sys.executable, "-m", "flowllm", *arguments, "-o", str(tmp_path / "run")],
        env=environment(**variables),
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("models--me--pair") == 2  # prior and refiner
