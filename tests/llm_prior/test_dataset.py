"""Training examples: tasks, conditions, translations, labels and batches."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from llm_prior.config import TaskMix
from llm_prior.dataset import (
    IGNORED,
    Collator,
    CrystalTextDataset,
    draw_example,
    tokenize,
)
from llm_prior.errors import PriorError
from llm_prior.prompts import ATTRIBUTES, INFILL_HEAD, generation_prompt
from llm_prior.text import MASK, TextFormat, decode
from llm_prior.tokenizer import compact_tokenizer
from prior_support import FMT, llama_tokenizer

PROPERTIES = {
    "spacegroup": 225,
    "e_above_hull": 0.0,
    "band_gap": 5.0,
    "formation_energy_per_atom": -2.1,
}
CRYSTALS = [
    (
        "rock-salt",
        Structure(Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
        PROPERTIES,
    ),
    (
        "perovskite",
        Structure(
            Lattice.cubic(3.9),
            ["Sr", "Ti", "O", "O", "O"],
            [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]],
        ),
        {"band_gap": float("nan"), "e_above_hull": None},
    ),
    (
        "copper",
        Structure(Lattice.from_parameters(2.6, 2.6, 2.6, 60, 60, 60), ["Cu"], [[0] * 3]),
        {},
    ),
]


@pytest.fixture(scope="module", params=["compact", "LLaMA-2"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    if request.param == "compact":
        return compact_tokenizer(FMT)
    return llama_tokenizer()


@pytest.fixture
def dataset(tokenizer: PreTrainedTokenizerBase) -> CrystalTextDataset:
    return CrystalTextDataset(CRYSTALS, tokenizer, FMT, TaskMix())


def draws(mix: TaskMix, number: int, crystal: int = 0) -> list:
    _, structure, properties = CRYSTALS[crystal]
    rng = np.random.default_rng(0)
    return [draw_example(structure, properties, FMT, mix, rng) for _ in range(number)]


# --- a draw --------------------------------------------------------------------------------------


def test_a_draw_is_a_function_of_the_index_and_the_generator(dataset: CrystalTextDataset) -> None:
    first = [dataset.draw(index, np.random.default_rng([7, index])) for index in (0, 1, 2)]
    for index in (2, 0, 1):  # in another order, after other draws
        dataset.draw(1, np.random.default_rng(99))
        assert dataset.draw(index, np.random.default_rng([7, index])) == first[index]
    assert dataset.draw(0, np.random.default_rng(8)) != first[0]


def test_a_draw_leaves_the_global_generators_alone(dataset: CrystalTextDataset) -> None:
    torch.manual_seed(0)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    dataset.draw(0, np.random.default_rng(0))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


def test_the_size_foretells_the_number_of_tokens(dataset: CrystalTextDataset) -> None:
    """Up to what is the same for all (the cell), and what joins of pieces save."""
    assert len(dataset) == 3
    rest, lengths = [], []
    for seed in range(60):
        size = dataset.size(seed % 3, np.random.default_rng(seed))
        drawn = dataset.draw(seed % 3, np.random.default_rng(seed))
        lengths.append(len(drawn["input_ids"]))
        rest.append(lengths[-1] - size)
    assert np.ptp(rest) <= 0.2 * np.ptp(lengths)


@pytest.mark.parametrize("infill", [0.0, 0.5])
def test_the_mean_number_of_labels_is_about_that_of_the_draws(infill: float) -> None:
    mix, text = TaskMix(infill=infill), TextFormat(layout="wyckoff")
    dataset = CrystalTextDataset(CRYSTALS, compact_tokenizer(text), text, mix)
    drawn = [dataset.draw(seed % 3, np.random.default_rng(seed)) for seed in range(300)]
    labels = np.mean([sum(label != IGNORED for label in draw["labels"]) for draw in drawn])
    # The size leaves out what all texts have.
    assert dataset.labels_per_draw() == pytest.approx(labels, abs=1.2)


def test_the_conditions_are_those_that_some_crystal_has(dataset: CrystalTextDataset) -> None:
    assert dataset.conditions() == [attribute.name for attribute in ATTRIBUTES]
    bare = CrystalTextDataset(CRYSTALS[1:], dataset.tokenizer, FMT, TaskMix())
    assert bare.conditions() == ["formula", "elements", "num_atoms"]


def test_the_labels_leave_out_exactly_the_prompt(
    dataset: CrystalTextDataset, tokenizer: PreTrainedTokenizerBase
) -> None:
    for seed in range(60):
        index = seed % 3
        drawn = dataset.draw(index, np.random.default_rng(seed))
        assert drawn["ids"] == CRYSTALS[index][0]
        ids, labels = drawn["input_ids"], drawn["labels"]
        start = sum(label == IGNORED for label in labels)
        assert labels == [IGNORED] * start + ids[start:]  # the prompt is one piece at the front
        assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id

        prompt, answer = tokenizer.decode(ids[1:start]), tokenizer.decode(ids[start:-1])
        _, structure, properties = CRYSTALS[index]
        example = draw_example(structure, properties, FMT, dataset.mix, np.random.default_rng(seed))
        assert (prompt, answer) == (example.prompt, example.answer)


def test_generation_from_the_prompt_alone_continues_the_example(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    for example in draws(TaskMix(), 20):
        ids, labels = tokenize(tokenizer, example.prompt, example.answer)
        alone = tokenizer(example.prompt, add_special_tokens=False)["input_ids"]
        assert ids[: 1 + len(alone)] == [tokenizer.bos_token_id, *alone]
        assert labels[len(alone)] == IGNORED and labels[1 + len(alone)] != IGNORED


def test_a_tokenizer_without_a_start_token_gets_none() -> None:
    plain = compact_tokenizer(FMT)
    plain.bos_token = None
    ids, labels = tokenize(plain, generation_prompt({}), "Na")
    assert len(ids) == len(labels) == 4
    assert labels == [IGNORED, IGNORED, ids[2], plain.eos_token_id]


def test_an_infill_example_asks_for_the_element_that_was_masked() -> None:
    seen = Counter()
    for example in draws(TaskMix(infill=1), 300, crystal=1):
        seen[example.answer] += 1
        text = example.prompt.removeprefix(INFILL_HEAD).partition("\nGenerate an element")[0]
        assert example.answer not in text.split("\n") and MASK in text.split("\n")
        completed = decode(text.replace(MASK, example.answer), FMT)
        assert completed.composition == CRYSTALS[1][1].composition
    assert set(seen) == {"Sr", "Ti", "O"}
    assert min(seen.values()) > 75  # 100 expected of each, however many atoms it has


def test_the_translation_is_uniform() -> None:
    """One atom at the origin lands in each tenth of each axis equally often (chi-squared with 9
    degrees of freedom, 99.99th percentile 33.7)."""
    texts = [example.answer for example in draws(TaskMix(infill=0), 2000, crystal=2)]
    coords = np.array([[float(word) for word in text.split("\n")[3].split()] for text in texts])
    for axis in range(3):
        # 0.00 stands for [-0.005, 0.005), so shift by half a tick before cutting into tenths.
        counts = np.histogram((coords[:, axis] + 0.005) % 1, bins=10, range=(0, 1))[0]
        assert ((counts - 200) ** 2 / 200).sum() < 33.7
    assert abs(np.corrcoef(coords.T) - np.eye(3)).max() < 0.1


def test_the_text_is_the_crystal_moved_as_a_whole() -> None:
    for example in draws(TaskMix(infill=0), 20):
        gap = np.subtract(*decode(example.answer, FMT).frac_coords) - 0.5
        np.testing.assert_allclose(gap, np.rint(gap), atol=0.011)


def test_crystals_stay_where_they_are_unless_they_are_translated() -> None:
    """The crystal has an atom at the origin and one at half a period; both are in the text of
    those that are not moved, and infilling moves all of them."""
    halves = {"0.00 0.00 0.00", "0.50 0.50 0.50"}
    for translated, low, high in ((0, 400, 400), (0.25, 240, 350), (1, 0, 3)):
        mix = TaskMix(infill=0, translated=translated)
        texts = [example.answer.split("\n") for example in draws(mix, 400)]
        assert low <= sum(halves <= set(text) for text in texts) <= high
    prompts = [e.prompt.split("\n") for e in draws(TaskMix(infill=1, translated=0), 400)]
    assert sum(halves <= set(prompt) for prompt in prompts) <= 3


# --- the mix -------------------------------------------------------------------------------------


def test_the_shares_are_those_of_the_mix() -> None:
    mix = TaskMix(infill=0.3, unconditional=0.2, formula=0.3, composition=0.1)
    number = 3000
    kinds = {
        generation_prompt({}): "unconditional",
        generation_prompt({"formula": "NaCl"}): "formula",
        generation_prompt({"formula": "NaCl", "num_atoms": 2}): "composition",
    }
    seen = Counter(
        "infill" if example.prompt.startswith(INFILL_HEAD) else kinds.get(example.prompt, "rest")
        for example in draws(mix, number)
    )
    rest = 1 - mix.unconditional - mix.formula - mix.composition
    # A random subset of the seven known conditions is each of the three kinds once in 2^7.
    for kind in ("unconditional", "formula", "composition"):
        share = (1 - mix.infill) * (getattr(mix, kind) + rest / 2**7)
        assert seen[kind] == pytest.approx(share * number, abs=4 * (share * number) ** 0.5)
    assert seen["infill"] == pytest.approx(900, abs=4 * (number * 0.3 * 0.7) ** 0.5)


def test_a_random_subset_holds_each_known_condition_half_the_time() -> None:
    mix = TaskMix(infill=0, unconditional=0, formula=0, composition=0)
    prompts = [example.prompt for example in draws(mix, 1000)]
    held = np.array([[a.sentence in prompt for a in ATTRIBUTES] for prompt in prompts])
    assert (abs(held.mean(0) - 0.5) < 0.065).all()  # 4 standard deviations
    assert abs(np.corrcoef(held.T) - np.eye(len(ATTRIBUTES))).max() < 0.13


def test_a_condition_that_is_not_known_is_never_asked_for() -> None:
    mix = TaskMix(infill=0, unconditional=0, formula=0, composition=0)
    known = {"formula", "elements", "num_atoms"}
    for example in draws(mix, 200, crystal=1):
        assert "nan" not in example.prompt and "None" not in example.prompt
        for attribute in ATTRIBUTES:
            assert attribute.name in known or attribute.sentence not in example.prompt


@pytest.mark.parametrize(
    ("mix", "kind"),
    [
        (TaskMix(infill=0, unconditional=1, formula=0, composition=0), {}),
        (TaskMix(infill=0, unconditional=0, formula=1, composition=0), {"formula": "NaCl"}),
        (
            TaskMix(infill=0, unconditional=0, formula=0, composition=1),
            {"formula": "NaCl", "num_atoms": 2},
        ),
    ],
)
def test_a_share_of_one_is_always_drawn(mix: TaskMix, kind: dict) -> None:
    assert {example.prompt for example in draws(mix, 50)} == {generation_prompt(kind)}


@pytest.mark.parametrize(
    "shares",
    [
        {"infill": -0.1},
        {"infill": 1.1},
        {"formula": -0.5},
        {"unconditional": 0.5, "formula": 0.5, "composition": 0.1},
        {"infill": float("nan")},
        {"composition": float("nan")},
    ],
)
def test_shares_that_are_none_are_refused(shares: dict) -> None:
    with pytest.raises(PriorError, match="shares are at least 0"):
        TaskMix(**shares)


@pytest.mark.parametrize("translated", [-0.1, 1.1, float("nan")])
def test_a_share_of_translated_crystals_is_from_0_to_1(translated: float) -> None:
    with pytest.raises(PriorError, match="translated is .*; it is from 0 to 1"):
        TaskMix(translated=translated)


# --- what is refused -----------------------------------------------------------------------------


def test_an_empty_training_set_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(PriorError, match="the training set has no crystal; check the data file"):
        CrystalTextDataset([], tokenizer, FMT, TaskMix())


def test_a_crystal_that_cannot_be_written_is_named(tokenizer: PreTrainedTokenizerBase) -> None:
    name, structure, _ = CRYSTALS[1]
    always = TaskMix(infill=0, unconditional=0, formula=0, composition=0)
    big = CrystalTextDataset([(name, structure, {})], tokenizer, TextFormat(max_atoms=4), always)
    with pytest.raises(PriorError, match="crystal perovskite: .*5 atoms, the text format allows 4"):
        big.draw(0, np.random.default_rng(0))
    bad = CrystalTextDataset([(name, structure, {"spacegroup": 0})], tokenizer, FMT, always)
    with pytest.raises(PriorError, match="crystal perovskite: spacegroup 0 is not"):
        for seed in range(20):
            bad.draw(0, np.random.default_rng(seed))


# --- batches -------------------------------------------------------------------------------------


def test_a_batch_is_padded_on_the_right() -> None:
    items = [
        {"ids": "a", "input_ids": [1, 5, 6, 2], "labels": [IGNORED, IGNORED, 6, 2]},
        {"ids": "b", "input_ids": [1, 2], "labels": [IGNORED, 2]},
    ]
    batch = Collator(pad_token_id=9)(items)
    assert batch["ids"] == ["a", "b"]
    assert batch["input_ids"].tolist() == [[1, 5, 6, 2, 9, 9, 9, 9], [1, 2, *[9] * 6]]
    assert batch["attention_mask"].tolist() == [[1] * 4 + [0] * 4, [1] * 2 + [0] * 6]
    assert batch["labels"].tolist() == [
        [IGNORED, IGNORED, 6, 2, *[IGNORED] * 4],
        [IGNORED, 2, *[IGNORED] * 6],
    ]


def test_the_loss_is_that_of_all_logits_though_only_those_of_answers_are_computed(
    dataset: CrystalTextDataset,
) -> None:
    """An answer's tokens are a part of a batch, and few sizes of that part occur: on a CPU every
    shape costs a kernel."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(dataset.tokenizer) + 1,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
    )
    items = [dataset.draw(index % 3, np.random.default_rng(index)) for index in range(24)]
    batch = Collator(pad_token_id=0)(items)
    batch.pop("ids")
    found = model(**batch)
    few = {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}
    expected = model(**few)
    assert found.logits.shape[0] % 256 == 0
    assert found.logits.shape[0] < expected.logits.shape[0] * expected.logits.shape[1]
    torch.testing.assert_close(found.loss, expected.loss)


def test_a_batch_of_draws_holds_every_example_whole(dataset: CrystalTextDataset) -> None:
    items = [dataset.draw(index % 3, np.random.default_rng(index)) for index in range(6)]
    batch = Collator(pad_token_id=0)(items)
    longest = max(len(item["input_ids"]) for item in items)
    assert batch["input_ids"].shape == batch["labels"].shape == (6, -(-longest // 8) * 8)
    for row, item in enumerate(items):
        real = batch["attention_mask"][row].bool()
        assert batch["input_ids"][row][real].tolist() == item["input_ids"]
        assert batch["labels"][row][real].tolist() == item["labels"]
        assert (batch["labels"][row][~real] == IGNORED).all()


def test_crystals_far_above_the_hull_are_only_shown_with_their_energy() -> None:
    mix = TaskMix(infill=0.2, unconditional=0.5, formula=0.2, composition=0.1, near_hull=0.1)
    rng = np.random.default_rng(0)
    _, salt, properties = CRYSTALS[0]
    for energy, stated in ((0.05, False), (0.3, True)):
        seen = {
            draw_example(salt, {**properties, "e_above_hull": energy}, FMT, mix, rng).prompt
            for _ in range(100)
        }
        asked = {prompt for prompt in seen if not prompt.startswith(INFILL_HEAD)}
        sentence = f"The energy above the convex hull is {energy:.2f}. "
        assert all(sentence in prompt for prompt in asked) == stated
        assert (
            generation_prompt({"formula": "NaCl", **({"e_above_hull": energy} if stated else {})})
            in asked
        )
    with pytest.raises(PriorError, match="near_hull is -1"):
        TaskMix(near_hull=-1)


def test_one_property_is_a_share_of_the_prompts() -> None:
    mix = TaskMix(infill=0, unconditional=0, formula=0, composition=0.4, one_property=0.6)
    rng = np.random.default_rng(0)
    (_, salt, properties), (_, perovskite, unknown) = CRYSTALS[:2]
    seen = Counter(draw_example(salt, properties, FMT, mix, rng).prompt for _ in range(900))
    expected = {
        generation_prompt({name: properties[name]}): 0.15
        for name in ("spacegroup", "e_above_hull", "band_gap", "formation_energy_per_atom")
    }
    expected[generation_prompt({"formula": "NaCl", "num_atoms": 2})] = 0.4
    assert set(seen) == set(expected)
    for prompt, share in expected.items():
        assert seen[prompt] / 900 == pytest.approx(share, abs=0.06)
    bare = {draw_example(perovskite, unknown, FMT, mix, rng).prompt for _ in range(50)}
    assert bare == {
        generation_prompt({}), generation_prompt({"formula": "SrTiO3", "num_atoms": 5})
    }  # fmt: skip
    with pytest.raises(PriorError, match="one_property together at most 1"):
        TaskMix(one_property=0.5)
