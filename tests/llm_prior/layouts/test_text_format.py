"""The text format names the layout, and texts of both layouts go through one interface."""

from __future__ import annotations

import re

import pytest
import torch
from pymatgen.core import Structure

from llm_prior import ParseError, PriorError, TextFormat, decode, encode, generation_prompt
from llm_prior.layouts import layout_of
from llm_prior.text import MASK, mask_element
from llm_prior.tokenizer import compact_tokenizer, embed_numbers
from llm_prior.wyckoff import actual_group
from support import perovskite

SITES, WYCKOFF = TextFormat(), TextFormat(layout="wyckoff")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layout": "orbits"}, "text.layout 'orbits' is unknown; give sites or wyckoff"),
        ({"symprec": 0.01}, "text.symprec is a setting of the layout wyckoff"),
        ({"coord_bins": 200}, "text.coord_bins is a setting of the layout wyckoff"),
        ({"keep_hand": True}, "text.keep_hand is a setting of the layout wyckoff"),
        (
            {"layout": "wyckoff", "coord_bins": 200},
            "text.coord_bins 200 cannot be written with 2 decimals",
        ),
        ({"layout": "wyckoff", "coord_decimals": 4}, "coord_decimals 4 is not a whole number from"),
        ({"layout": "wyckoff", "symprec": 0.0}, "text.symprec 0.0 is not above 0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(PriorError, match=re.escape(message)):
        TextFormat(**settings)


def test_the_record_of_a_format_holds_the_settings_of_its_layout() -> None:
    assert SITES.to_dict() == {
        "layout": "sites",
        "coord_decimals": 2,
        "length_decimals": 1,
        "angle_decimals": 0,
        "max_atoms": 20,
    }
    for fmt in (SITES, WYCKOFF, TextFormat(layout="wyckoff", coord_decimals=3, coord_bins=200)):
        assert TextFormat(**fmt.to_dict()) == fmt
    assert TextFormat(coord_decimals=2, max_atoms=20) == SITES  # a record without the layout


@pytest.mark.parametrize("fmt", [SITES, WYCKOFF], ids=["sites", "wyckoff"])
def test_a_crystal_comes_back_from_its_text(fmt: TextFormat, crystals: list[Structure]) -> None:
    for structure in crystals:
        found = decode(encode(structure, fmt), fmt)
        assert found.composition.reduced_formula == structure.composition.reduced_formula
        assert found.volume / len(found) == pytest.approx(
            structure.volume / len(structure), rel=0.1
        )
    with pytest.raises(ParseError, match="cut off by the token limit"):
        decode(encode(structure, fmt), fmt, complete=False)


def test_a_wyckoff_text_keeps_group_and_orbits(crystals: list[Structure]) -> None:
    layout = layout_of(WYCKOFF)
    for structure in crystals:
        described = layout.describe(structure)
        reading = layout.read(described.text())
        assert reading.crystal is not None
        assert reading.crystal.spacegroup == described.conditions({})["spacegroup"]
        assert actual_group(reading.structure) == reading.crystal.spacegroup
        names = [reading.crystal.orbits[k].element for k in reading.crystal.site_orbits()]
        assert names == [site.specie.symbol for site in reading.structure]
    assert layout.shift_invariant and not layout_of(SITES).shift_invariant


def test_a_larger_cell_is_written_as_the_primitive_one() -> None:
    doubled = perovskite() * (2, 1, 1)
    known = layout_of(WYCKOFF).describe(doubled).conditions({"spacegroup": 1, "band_gap": 1.5})
    assert known == {
        "formula": "SrTiO3",
        "elements": ["Sr", "Ti", "O"],
        "num_atoms": 5,
        "spacegroup": 221,
        "band_gap": 1.5,
    }
    small = TextFormat(layout="wyckoff", max_atoms=4)
    with pytest.raises(PriorError, match="has 5 atoms in the primitive cell, .* allows 4; drop"):
        encode(doubled, small)


def test_one_sentence_of_the_prompt_names_the_layout() -> None:
    conditions = {"formula": "NaCl", "spacegroup": "Fm-3m"}
    sites, wyckoff = (layout_of(fmt).prompt(conditions) for fmt in (SITES, WYCKOFF))
    assert sites == generation_prompt(conditions)
    common = "Below is a description of a bulk material. The chemical formula is NaCl. The "
    common += "spacegroup number is 225. Generate a description of the "
    assert sites.startswith(common) and wyckoff.startswith(common)
    assert sites.endswith("coordinates for each atom within the lattice:\n")
    assert wyckoff.endswith("the free coordinates of each orbit:\n")


def test_all_orbits_of_an_element_are_masked() -> None:
    text = encode(perovskite(), WYCKOFF)
    assert text == "221\nSr a\nTi b\nO c\n3.9"
    assert mask_element(text, "O") == f"221\nSr a\nTi b\n{MASK} c\n3.9"
    with pytest.raises(PriorError, match=r"C is not in the crystal; mask one of \['O', 'Sr', 'Ti'"):
        mask_element(text, "C")


@pytest.mark.parametrize("bins", [20, 100, 200])
def test_the_compact_tokenizer_has_one_token_per_field(
    bins: int, crystals: list[Structure]
) -> None:
    fmt = TextFormat(layout="wyckoff", coord_bins=bins, coord_decimals=3 if bins == 200 else 2)
    tokenizer = compact_tokenizer(fmt)
    layout = layout_of(fmt)
    for structure in crystals:
        described = layout.describe(structure)
        prompt, text = layout.prompt(described.conditions({"band_gap": 0.5})), described.text()
        ids = tokenizer(prompt + text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == prompt + text
        assert tokenizer.unk_token_id not in ids
        # An element, its letter and a number are words; an edge from 40 Angstrom on is spelled.
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        spelled = sum(len(word) for word in text.split() if "." in word and float(word) >= 40)
        assert len(ids) == len(text.split()) + spelled
        alone = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert tokenizer(prompt + text, add_special_tokens=False)["input_ids"] == alone + ids


def test_a_long_edge_is_spelled() -> None:
    tokenizer = compact_tokenizer(WYCKOFF)
    text = "166\nNa a\n3.9 108.2"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text and tokenizer.unk_token_id not in ids
    assert len(ids) == 4 + len(" 108.2")


def test_lengths_at_both_places_of_a_line_begin_with_the_features_of_their_value() -> None:
    vocabulary = compact_tokenizer(WYCKOFF).get_vocab()
    embedding = torch.randn(len(vocabulary), 32, generator=torch.Generator().manual_seed(0))
    embed_numbers(embedding, vocabulary)
    first, later = (embedding[vocabulary[space + "5.6"], :16] for space in "\n ")
    torch.testing.assert_close(first, later)


def test_a_precision_with_too_many_values_needs_a_pretrained_tokenizer() -> None:
    with pytest.raises(PriorError, match="needs a pretrained tokenizer"):
        compact_tokenizer(TextFormat(layout="wyckoff", length_decimals=2))
