"""Training examples of the wyckoff layout."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from llm_prior import PriorError, TaskMix, TextFormat
from llm_prior.dataset import CrystalTextDataset, draw_example
from llm_prior.layouts import layout_of
from llm_prior.prompts import INFILL_HEAD
from llm_prior.text import MASK
from llm_prior.tokenizer import compact_tokenizer
from support import perovskite

WYCKOFF = TextFormat(layout="wyckoff")
GENERATE = TaskMix(infill=0, unconditional=0, formula=0, composition=0)


def texts(structure: Structure, mix: TaskMix, number: int = 40) -> list[str]:
    rng = np.random.default_rng(0)
    return [draw_example(structure, {}, WYCKOFF, mix, rng).answer for _ in range(number)]


def test_texts_are_canonical_or_drawn_over_the_normalizer() -> None:
    structure = perovskite()
    canonical = layout_of(WYCKOFF).describe(structure).text()
    assert set(texts(structure, GENERATE)) == {canonical}
    drawn = texts(structure, TaskMix(infill=0, augmented=1.0))
    # Two origins: titanium or strontium at the corner.
    assert set(drawn) == {canonical, "221\nSr b\nTi a\nO d\n3.9"}
    some = texts(structure, TaskMix(infill=0, augmented=0.5), 200)
    assert 25 <= sum(text != canonical for text in some) <= 75  # a quarter is expected


def test_a_prompt_states_group_and_atoms_of_the_text() -> None:
    doubled = perovskite() * (1, 1, 2)
    rng = np.random.default_rng(0)
    wrong = {"spacegroup": 99}
    prompts = [draw_example(doubled, wrong, WYCKOFF, GENERATE, rng).prompt for _ in range(30)]
    stated = [prompt for prompt in prompts if "spacegroup" in prompt]
    assert stated and all("The spacegroup number is 221. " in prompt for prompt in stated)
    counted = [prompt for prompt in prompts if "number of atoms" in prompt]
    assert counted and all("The number of atoms is 5. " in prompt for prompt in counted)


def test_an_infill_example_masks_the_orbits_of_an_element() -> None:
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(30):
        example = draw_example(perovskite(), {}, WYCKOFF, TaskMix(infill=1), rng)
        text = example.prompt.removeprefix(INFILL_HEAD).partition("\nGenerate an element")[0]
        assert text.replace(MASK, example.answer) == "221\nSr a\nTi b\nO c\n3.9"
        seen.add(example.answer)
    assert seen == {"Sr", "Ti", "O"}


def test_a_draw_is_a_function_of_the_generator_and_its_size_is_foretold(
    crystals: list[Structure],
) -> None:
    rows = [(str(k), structure, {}) for k, structure in enumerate(crystals)]
    mix = TaskMix(infill=0.1, augmented=0.5)
    tokenizer = compact_tokenizer(WYCKOFF)
    data = CrystalTextDataset(rows, tokenizer, WYCKOFF, mix)
    assert data.conditions() == ["formula", "elements", "num_atoms", "spacegroup"]
    gaps, lengths = [], []
    for index in range(len(rows)):
        drawn = data.draw(index, np.random.default_rng(index))
        again = CrystalTextDataset(rows, tokenizer, WYCKOFF, mix)
        assert again.draw(index, np.random.default_rng(index)) == drawn
        lengths.append(len(drawn["input_ids"]))
        gaps.append(lengths[-1] - data.size(index, np.random.default_rng(index)))
    assert np.ptp(gaps) <= 0.2 * np.ptp(lengths)


def test_a_crystal_that_cannot_be_written_is_named() -> None:
    big = Structure(Lattice.cubic(9), ["Na"] * 3, np.random.default_rng(0).random((3, 3)))
    fmt = TextFormat(layout="wyckoff", max_atoms=2)
    data = CrystalTextDataset([("big", big, {})], compact_tokenizer(fmt), fmt, TaskMix())
    with pytest.raises(PriorError, match="crystal big: Na3 has 3 atoms in the primitive cell"):
        data.draw(0, np.random.default_rng(0))


def test_the_share_of_augmented_texts_is_from_0_to_1() -> None:
    with pytest.raises(PriorError, match="augmented is 1.5; it is from 0 to 1"):
        TaskMix(augmented=1.5)
