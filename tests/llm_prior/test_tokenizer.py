"""The compact tokenizer: exact texts, one token for each thing, embeddings of numbers."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from llm_prior.config import Architecture, BaseModel
from llm_prior.errors import PriorError
from llm_prior.model import Prior
from llm_prior.prompts import generation_prompt, infill_prompt, known_conditions
from llm_prior.text import SYMBOLS, TextFormat, encode, mask_element
from llm_prior.tokenizer import SPECIAL_TOKENS, compact_tokenizer
from prior_support import FMT, llama_tokenizer, real_crystals

FORMATS = [TextFormat(coord_decimals=decimals) for decimals in (1, 2, 3)]
COMPACT = {fmt: compact_tokenizer(fmt) for fmt in FORMATS}
each_format = pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: f"{fmt.coord_decimals}d")


@pytest.fixture(scope="module")
def llama() -> PreTrainedTokenizerBase:
    return llama_tokenizer()


@pytest.fixture(scope="module", params=["compact", "LLaMA-2"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    """Each of the two kinds."""
    return COMPACT[FMT] if request.param == "compact" else request.getfixturevalue("llama")


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


@st.composite
def texts(draw: st.DrawFn, fmt: TextFormat, longest: float = 39.9) -> str:
    """A crystal's text with any tokens, built line by line; it need not be a possible crystal."""
    tenth = st.integers(0, round(10 * longest)).map(lambda tick: f"{tick / 10:.1f}")
    scale = 10**fmt.coord_decimals
    coord = st.integers(0, scale - 1).map(lambda tick: f"{tick / scale:.{fmt.coord_decimals}f}")
    lines = [
        " ".join(draw(st.tuples(tenth, tenth, tenth))),
        " ".join(map(str, draw(st.tuples(*[st.integers(10, 179)] * 3)))),
    ]
    for symbol in draw(st.lists(st.sampled_from(SYMBOLS), min_size=1, max_size=20)):
        lines += [symbol, " ".join(draw(st.tuples(coord, coord, coord)))]
    return "\n".join(lines)


@st.composite
def conditions(draw: st.DrawFn) -> dict:
    """Any subset of the conditions, with any values."""
    symbols = st.lists(st.sampled_from(SYMBOLS[:94]), min_size=1, max_size=6, unique=True)
    energy = st.floats(-99999, 99999)
    every = {
        "formula": symbols.map(lambda s: "".join(f"{x}{i + 1}" for i, x in enumerate(s))),
        "elements": symbols,
        "num_atoms": st.integers(1, 999),
        "spacegroup": st.integers(1, 230),
        "e_above_hull": energy,
        "formation_energy_per_atom": energy,
        "band_gap": st.floats(0, 99999),
    }
    names = draw(st.sets(st.sampled_from(list(every))))
    return {name: draw(strategy) for name, strategy in every.items() if name in names}


# pymatgen orders formulas by electronegativity, which some elements lack; it says so once each.
ignores_electronegativity = pytest.mark.filterwarnings("ignore:No Pauling electronegativity")


# --- every text is reproduced --------------------------------------------------------------------


@ignores_electronegativity
@each_format
@settings(deadline=None)
@given(data=st.data())
def test_a_prompt_and_its_answer_are_reproduced(fmt: TextFormat, data: st.DataObject) -> None:
    tokenizer = COMPACT[fmt]
    text = data.draw(texts(fmt, longest=99.9))
    masked = mask_element(text, text.split("\n")[2])
    for whole in (generation_prompt(data.draw(conditions())) + text, infill_prompt(masked) + "Na"):
        ids = ids_of(tokenizer, whole)
        assert tokenizer.decode(ids) == whole
        assert tokenizer.unk_token_id not in ids


@each_format
@settings(deadline=None)
@given(text=st.text(alphabet=[chr(code) for code in range(32, 127)] + ["\n", "\t"]))
def test_any_printable_ascii_is_reproduced_without_unknown_tokens(
    fmt: TextFormat, text: str
) -> None:
    assume(not any(special in text for special in SPECIAL_TOKENS))
    ids = ids_of(COMPACT[fmt], text)
    assert COMPACT[fmt].unk_token_id not in ids
    assert COMPACT[fmt].decode(ids) == text


near_text = st.lists(
    st.one_of(
        st.sampled_from(["\n", " ", "0.", "1.", "12", "3", ".", "90", "179", "180", "40.0", "0.5"]),
        st.sampled_from(
            ["[MASK]", "\n[MASK]", "Na", "\nN", "Below is a ", ". ", "The band gap is "]
        ),
        st.sampled_from(list(string.digits + "NaCl.[]")),
    ),
    max_size=30,
).map("".join)


@each_format
@settings(deadline=None)
@given(text=near_text)
def test_what_nearly_reads_as_a_token_is_reproduced_too(fmt: TextFormat, text: str) -> None:
    ids = ids_of(COMPACT[fmt], text)
    assert COMPACT[fmt].unk_token_id not in ids
    assert COMPACT[fmt].decode(ids) == text


# --- one token for each thing --------------------------------------------------------------------


@each_format
@settings(deadline=None)
@given(data=st.data())
def test_a_crystal_of_n_atoms_takes_6_and_4n_tokens(fmt: TextFormat, data: st.DataObject) -> None:
    text = data.draw(texts(fmt))
    num_atoms = len(text.split("\n")) // 2 - 1
    assert len(ids_of(COMPACT[fmt], text)) == 6 + 4 * num_atoms


def test_a_length_beyond_the_vocabulary_is_spelled() -> None:
    text = "39.9 40.0 123.4\n90 90 90\nNa\n0.00 0.00 0.00"
    tokens = COMPACT[FMT].convert_ids_to_tokens(ids_of(COMPACT[FMT], text))
    assert (
        tokens
        == ["39.9", *" 40.0", *" 123.4", "\n90", " 90", " 90", "\nNa", "\n0.00"] + [" 0.00"] * 2
    )


def test_the_prompts_fixed_sentences_are_one_token_each() -> None:
    prompt = generation_prompt({"formula": "Na2SO4", "num_atoms": 14, "e_above_hull": 0.25})
    tokens = COMPACT[FMT].convert_ids_to_tokens(ids_of(COMPACT[FMT], prompt))
    assert tokens[1:-1] == [
        "The chemical formula is ", "Na", "2", "S", "O", "4", ". ",
        "The number of atoms is ", "1", "4", ". ",
        "The energy above the convex hull is ", "0", ".", "2", "5", ". ",
    ]  # fmt: skip


def test_a_masked_site_is_one_token_and_the_answer_another() -> None:
    whole = infill_prompt("4.0 4.0 4.0\n90 90 90\n[MASK]\n0.00 0.00 0.00") + "Ca"
    tokens = COMPACT[FMT].convert_ids_to_tokens(ids_of(COMPACT[FMT], whole))
    assert tokens[7] == "\n[MASK]" and tokens[-1] == "Ca" and len(tokens) == 1 + 10 + 1 + 1


def test_every_element_has_its_two_tokens() -> None:
    vocabulary = COMPACT[FMT].get_vocab()
    assert all(symbol in vocabulary and "\n" + symbol in vocabulary for symbol in SYMBOLS)


# --- where the prompt ends -----------------------------------------------------------------------


@ignores_electronegativity
@settings(deadline=None)
@given(data=st.data())
def test_the_tokens_of_the_prompt_alone_begin_those_of_prompt_and_answer(
    tokenizer: PreTrainedTokenizerBase, data: st.DataObject
) -> None:
    text = data.draw(texts(FMT, longest=99.9))
    symbol = text.split("\n")[2]
    for prompt, answer in (
        (generation_prompt(data.draw(conditions())), text),
        (infill_prompt(mask_element(text, symbol)), symbol),
    ):
        alone = ids_of(tokenizer, prompt)
        together = ids_of(tokenizer, prompt + answer)
        assert together[: len(alone)] == alone
        assert tokenizer.decode(together[len(alone) :]) == answer


# --- files and settings --------------------------------------------------------------------------


def test_special_tokens_come_first_and_padding_goes_left() -> None:
    tokenizer = COMPACT[FMT]
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3]
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.padding_side == "left"


def test_a_saved_tokenizer_gives_the_same_tokens(tmp_path: Path) -> None:
    tokenizer = COMPACT[FMT]
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "5.6 5.6 41.0\n90 90 120\nNa\n0.00 0.00 0.00\nCl\n0.50 0.50 0.50"
    whole = generation_prompt({"formula": "NaCl", "e_above_hull": 0.1}) + text
    assert ids_of(again, whole) == ids_of(tokenizer, whole)
    assert again.decode(ids_of(again, whole)) == whole
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.all_special_tokens == tokenizer.all_special_tokens
    assert (again.pad_token_id, again.padding_side) == (0, "left")


@pytest.mark.parametrize(
    "fmt",
    [TextFormat(coord_decimals=4), TextFormat(length_decimals=2), TextFormat(angle_decimals=1)],
    ids=["coordinates", "lengths", "angles"],
)
def test_a_precision_of_too_many_tokens_is_refused(fmt: TextFormat) -> None:
    with pytest.raises(PriorError, match="needs a pretrained tokenizer"):
        compact_tokenizer(fmt)


# --- real crystals -------------------------------------------------------------------------------


def test_real_crystals_and_their_prompts_need_no_unknown_token(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    for structure, properties in real_crystals():
        prompt = generation_prompt(known_conditions(structure, properties))
        whole = prompt + encode(structure, FMT)
        ids = ids_of(tokenizer, whole)
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == whole
        assert ids[: len(ids_of(tokenizer, prompt))] == ids_of(tokenizer, prompt)


def test_real_crystals_take_the_tokens_the_design_says(
    llama: PreTrainedTokenizerBase,
) -> None:
    """About 50 to 60 tokens instead of about 210."""
    lines = [encode(structure, FMT) for structure, _ in real_crystals()]
    compact = sum(len(ids_of(COMPACT[FMT], text)) for text in lines) / len(lines)
    spelled = sum(len(ids_of(llama, text)) for text in lines) / len(lines)
    assert 40 < compact < 60 and 190 < spelled < 230
    assert spelled / compact > 3


def test_formulas_are_rendered_as_materials_project_prints_them() -> None:
    for _, properties in real_crystals():
        formula = properties["pretty_formula"]
        assert f"The chemical formula is {formula}. " in generation_prompt({"formula": formula})


# --- initial embeddings --------------------------------------------------------------------------

SMALL = Architecture(
    hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
)


def _cosine(prior: Prior, one: str, other: str) -> float:
    rows = prior.model.get_input_embeddings().weight.detach()[:, :32]  # the half that is not random
    vocabulary = prior.tokenizer.get_vocab()
    return float(torch.cosine_similarity(rows[vocabulary[one]], rows[vocabulary[other]], dim=0))


def test_near_numbers_begin_alike_and_coordinates_are_periodic() -> None:
    prior = Prior.build(BaseModel(architecture=SMALL), FMT, seed=0)
    assert _cosine(prior, " 0.99", " 0.00") > 0.8
    assert _cosine(prior, " 0.99", " 0.00") > _cosine(prior, " 0.95", " 0.00")
    assert _cosine(prior, " 0.50", " 0.00") < 0.6
    assert _cosine(prior, " 5.6", " 5.7") > 0.7 > _cosine(prior, " 5.6", " 9.9")
    assert _cosine(prior, " 90", " 91") > 0.7 > _cosine(prior, " 90", " 120")


def test_the_scale_of_the_embeddings_stays() -> None:
    prior = Prior.build(BaseModel(architecture=SMALL), FMT, seed=0)
    weight = prior.model.get_input_embeddings().weight.detach()
    rows = [prior.tokenizer.get_vocab()[f" 0.{tick:02d}"] for tick in range(100)]
    assert abs(float(weight[rows].std() / weight.std()) - 1) < 0.2
