"""Model cards: what they say, and that weights other than theirs are refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from huggingface_hub import ModelCard

from flowllm import FlowLLM, UserError
from flowllm.cli import cli
from flowllm.hub.card import CARD_FILE, Measurement, check_weights, write_card
from flowllm.hub.locate import BUNDLED_PRIOR, BUNDLED_REFINER
from flowllm.system.files import sha256_file

WEIGHTS = "model.safetensors"


@pytest.fixture
def refiner(tmp_path: Path) -> Path:
    """A copy of the bundled refiner with one bit of one weight turned."""
    folder = shutil.copytree(BUNDLED_REFINER, tmp_path / "refiner")
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    return folder


@pytest.mark.parametrize("folder", [BUNDLED_PRIOR, BUNDLED_REFINER])
def test_the_bundled_models_have_cards_that_the_hub_can_read(folder: Path) -> None:
    card = ModelCard.load(folder / CARD_FILE)
    assert card.data.license == "mit"
    assert card.data.datasets == ["mp_20"]
    assert card.data.weights_sha256 == {WEIGHTS: sha256_file(folder / WEIGHTS)}
    figures = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert 0 < figures["match rate, raw"] < figures["match rate, refined"] <= 1
    assert "CC BY 4.0" in card.text
    assert {"## Data", "## Intended use", "## Limits", "## Figures"} <= set(card.text.split("\n"))


def test_weights_that_are_not_those_of_the_card_are_refused(refiner: Path) -> None:
    with pytest.raises(UserError, match="is not what its model card describes") as caught:
        FlowLLM.from_pretrained(refiner=refiner, device="cpu")
    assert str(refiner / WEIGHTS) in str(caught.value)
    out = refiner.parent / "out"
    arguments = ["sample", "-n", "1", "--refine", "--refiner", str(refiner), "--out", str(out)]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1 and "model card" in result.stderr
    assert not out.exists()


def test_weights_without_a_card_or_with_a_card_of_others_load(refiner: Path) -> None:
    for card in ("# A model\n", "---\nlicense: mit\n---\n# A model\n", "---\n---\n", None):
        if card is None:
            (refiner / CARD_FILE).unlink()
        else:
            (refiner / CARD_FILE).write_text(card)
        FlowLLM.from_pretrained(refiner=refiner, device="cpu")


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("---\n: [\n---\n", "its head is no YAML"),
        ("---\n- a list\n---\n", "its head is no YAML"),
        ("---\nweights_sha256: words\n---\n", "its head is no YAML"),
        (f"---\nweights_sha256: {{{WEIGHTS}: 0, more: 1}}\n---\n", "copy the model again"),
    ],
)
def test_a_damaged_card_is_one_clear_line(tmp_path: Path, card: str, message: str) -> None:
    (tmp_path / CARD_FILE).write_text(card)
    with pytest.raises(UserError, match=message) as caught:
        check_weights(tmp_path)
    assert "\n" not in str(caught.value)


def test_figures_reach_the_card_with_their_intervals(tmp_path: Path) -> None:
    shutil.copy(BUNDLED_REFINER / WEIGHTS, tmp_path)
    figures = {
        "match rate": {"value": 0.3125, "low": 0.25, "high": 0.375, "count": 64},
        "rmsd": {"value": None, "low": None, "high": None, "count": 0},
    }
    what = {"what": "Ten targets", "dataset": "MP-20", "command": "flowllm evaluate"}
    measurement = Measurement(figures=figures, **what)
    card = ModelCard.load(
        write_card(tmp_path, name="one", sections={"": "Words."}, measurements=[measurement])
    )
    assert "| match rate | 0.312 | 0.25 to 0.375 | 64 |" in card.text.split("\n")
    assert "| rmsd | none |  | 0 |" in card.text.split("\n")
    (result,) = card.data.eval_results  # what has no value is no result
    assert (result.metric_name, result.metric_value) == ("match rate", 0.3125)
