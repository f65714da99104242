"""A prior of the wyckoff layout: sampling, scoring, infilling, and its files."""

from __future__ import annotations

import json
import math
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pymatgen.core import Structure
from transformers import LlamaConfig, LlamaForCausalLM

from llm_prior import (
    BaseModel,
    Lora,
    Prior,
    PriorError,
    TextFormat,
    element_probabilities,
    increase_in_perplexity,
    log_likelihood,
    proposals,
    propose,
)
from llm_prior.prompts import generation_prompt
from llm_prior.wyckoff import actual_group
from prior_support import (
    TINY,
    Script,
    ask,
    llama_tokenizer,
    make_base,
    one_layer_prior,
    refused,
)
from support import perovskite

WYCKOFF = TextFormat(layout="wyckoff")
SRTIO3 = {"formula": "SrTiO3", "num_atoms": 5}
PEROVSKITE = "221\nSr a\nTi b\nO c\n3.9"
NAMES = ("formula", "num_atoms", "spacegroup")


# --- sampling ------------------------------------------------------------------------------------


def test_proposals_have_the_atoms_and_the_group(
    wyckoff_prior: Prior, crystals: list[Structure]
) -> None:
    requests = []
    for structure in crystals[::2]:
        known = wyckoff_prior.layout.describe(structure).conditions({})
        requests.append({name: known[name] for name in NAMES})
    found = propose(wyckoff_prior, requests, seed=0, temperature=1.0)
    for proposal, conditions in zip(found, requests, strict=True):
        structure, crystal = proposal.structure, proposal.crystal
        assert structure is not None and crystal is not None
        assert proposal.text.startswith(f"{conditions['spacegroup']}\n")
        assert structure.composition.reduced_formula == conditions["formula"]
        assert len(structure) == conditions["num_atoms"]
        assert actual_group(structure) == conditions["spacegroup"] == crystal.spacegroup
        elements = [crystal.orbits[k].element for k in crystal.site_orbits()]
        assert elements == [site.specie.symbol for site in structure]
    again = propose(wyckoff_prior, requests, seed=0, temperature=1.0, slots=3)
    assert [proposal.text for proposal in again] == [proposal.text for proposal in found]


def test_a_group_may_be_given_by_symbol(wyckoff_prior: Prior) -> None:
    texts = [
        propose(wyckoff_prior, [{**SRTIO3, "spacegroup": group}], seed=1)[0].text
        for group in (221, "Pm-3m")
    ]
    assert texts[0] == texts[1] and texts[0].startswith("221\n")


def test_of_two_enantiomorphic_groups_the_requested_one_comes_out(wyckoff_prior: Prior) -> None:
    """SiO2 in P3_1 2 1 (152) and in P3_2 2 1 (154), which is written as 152."""
    for group in (152, 154):
        request = {"formula": "SiO2", "num_atoms": 9, "spacegroup": group}
        (found,) = propose(wyckoff_prior, [request], seed=0)
        assert found.text.startswith("152\n") and "number is 152." in found.prompt
        assert found.structure is not None and found.crystal is not None
        assert actual_group(found.structure) == found.crystal.spacegroup == group


def test_a_group_of_a_set_is_written_and_not_stated(wyckoff_prior: Prior) -> None:
    """Perovskites in cubic groups, of which 221 and some subgroups can hold them."""
    request = {**SRTIO3, "spacegroup": range(195, 231)}
    found = propose(wyckoff_prior, [request] * 20, seed=0, temperature=1.0, top_p=1.0)
    for proposal in found:
        assert proposal.structure is not None and proposal.crystal is not None
        assert actual_group(proposal.structure) == proposal.crystal.spacegroup in range(195, 231)
        assert proposal.text.startswith(f"{proposal.crystal.spacegroup}\n")
        assert proposal.prompt == generation_prompt(SRTIO3, "wyckoff")
    again = propose(wyckoff_prior, [request], seed=0, temperature=1.0, top_p=1.0, indices=[7])
    assert again[0].text == found[7].text


def test_the_group_of_a_set_has_the_probability_of_the_model(wyckoff_prior: Prior) -> None:
    """The draws are those from p(group | composition, group in the set)."""
    sets = (99, 123), (123, 221)
    groups = [
        Counter(
            proposal.text.split("\n")[0]
            for proposal in propose(
                wyckoff_prior,
                [{**SRTIO3, "spacegroup": pair}] * 200,
                seed=1,
                temperature=1.0,
                top_p=1.0,
                max_attempts=1,
            )
        )
        for pair in sets
    ]
    ids = wyckoff_prior.tokenizer(
        wyckoff_prior.tokenizer.bos_token + generation_prompt(SRTIO3, "wyckoff"),
        add_special_tokens=False,
        return_tensors="pt",
    )["input_ids"]
    with torch.no_grad():
        logits = wyckoff_prior.model(ids).logits[0, -1]
    for pair, counts in zip(sets, groups, strict=True):
        assert counts.keys() <= {str(group) for group in pair}
        tokens = [wyckoff_prior.tokenizer.convert_tokens_to_ids(str(group)) for group in pair]
        share = float(logits[tokens].softmax(0)[0])
        error = math.sqrt(share * (1 - share) / 200)
        assert abs(counts[str(pair[0])] / 200 - share) < 4 * error


def test_without_constraint_a_group_outside_the_set_is_drawn_again() -> None:
    script = Script(["123\nSr a\nTi d\nO c\nO e\n3.9 4.1", PEROVSKITE])
    (found,) = ask(
        script, [{**SRTIO3, "spacegroup": "200-230"}], prior=one_layer_prior(512, layout="wyckoff")
    )
    assert dict(found.rejects) == {"other_spacegroup": 1} and found.text == PEROVSKITE


def test_a_set_with_one_enantiomorph_gives_that_one(wyckoff_prior: Prior) -> None:
    request = {"formula": "SiO2", "num_atoms": 9, "spacegroup": [154, 180]}
    for proposal in propose(wyckoff_prior, [request] * 4, seed=2):
        assert proposal.structure is not None
        assert actual_group(proposal.structure) in (154, 180)


def test_a_request_that_no_crystal_can_meet_is_refused(wyckoff_prior: Prior) -> None:
    for constrain in (True, False):
        refused(
            lambda c=constrain: propose(
                wyckoff_prior, [{**SRTIO3, "spacegroup": 230}], seed=0, constrain=c
            ),
            "exactly space group 230",
            "groups that can: ",
        )


def test_without_constraint_another_group_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text of another group, and one whose cell happens to fit a higher one."""
    tetragonal = "123\nSr a\nTi d\nO c\nO e\n3.9 4.1"
    script = Script([PEROVSKITE, "nonsense", tetragonal.replace("4.1", "3.9"), tetragonal])
    monkeypatch.setattr(proposals, "generate_texts", script)
    prior = one_layer_prior(512, layout="wyckoff")
    (found,) = propose(prior, [{**SRTIO3, "spacegroup": 123}], seed=0, constrain=False)
    assert found.attempts == 4 and found.structure is not None
    assert dict(found.rejects) == {"other_spacegroup": 2, "unknown_group": 1}


class _Crowded:
    """The end of a text whose last coordinates had no place left."""

    is_certain = False


def test_a_crowded_crystal_is_drawn_again(wyckoff_prior: Prior) -> None:
    layout = wyckoff_prior.layout
    near = layout.read("1\nH a\nO a\n4.0 4.1 4.2 80 85 87\n0.10 0.00 0.00")
    assert layout.refusal(near, {}) is None
    assert layout.refusal(near, {}, _Crowded()) == "near_atoms"
    apart = layout.read("1\nH a\nO a\n4.0 4.1 4.2 80 85 87\n0.50 0.10 0.30")
    assert layout.refusal(apart, {"spacegroup": 1}, _Crowded()) is None
    assert layout.refusal(apart, {"spacegroup": 2}, _Crowded()) == "other_spacegroup"


def test_the_longest_text_is_an_upper_bound(wyckoff_prior: Prior) -> None:
    bound = proposals.longest_answer(wyckoff_prior)
    assert bound >= 1 + 2 * 20 + 6 + 3 * 20
    assert bound <= wyckoff_prior.grammar.constraint({}).max_tokens + 20


# --- likelihoods ---------------------------------------------------------------------------------


def test_the_grammar_raises_the_likelihood_of_a_text(
    wyckoff_prior: Prior, crystals: list[Structure]
) -> None:
    arguments: dict[str, Any] = {"conditions": NAMES}
    free = log_likelihood(wyckoff_prior, crystals[:6], **arguments)
    bound = log_likelihood(wyckoff_prior, crystals[:6], grammar=wyckoff_prior.grammar, **arguments)
    for one, other in zip(free, bound, strict=True):
        assert one.num_tokens == other.num_tokens
        assert -math.inf < one.log_likelihood < other.log_likelihood <= 0


def test_a_translation_does_not_change_the_text(
    wyckoff_prior: Prior, crystals: list[Structure]
) -> None:
    """So the increase in perplexity is 0 by construction."""
    rng = np.random.default_rng(0)
    for structure in crystals[:8]:
        moved = structure.copy()
        moved.translate_sites(range(len(moved)), rng.random(3), to_unit_cell=True)
        texts = [wyckoff_prior.layout.describe(s).text() for s in (structure, moved)]
        assert texts[0].split("\n")[:2] == texts[1].split("\n")[:2]
    (found,) = increase_in_perplexity(wyckoff_prior, crystals[:1])
    assert found.ipt == 0 and found.mean_perplexity == found.min_perplexity > 1
    with pytest.raises(PriorError, match="num_translations 0 must be at least 1"):
        increase_in_perplexity(wyckoff_prior, crystals[:1], num_translations=0)


def test_elements_are_infilled_on_their_orbits(wyckoff_prior: Prior) -> None:
    doubled = perovskite() * (2, 1, 1)
    found = element_probabilities(wyckoff_prior, [perovskite(), doubled], ["O", "O"])
    assert sum(found[0].values()) == pytest.approx(1)
    assert found[0] == pytest.approx(found[1])  # the same orbits
    refused(
        lambda: element_probabilities(wyckoff_prior, [doubled], ["C"]), "C is not in the crystal"
    )


# --- pretrained tokenizers -----------------------------------------------------------------------


@cache
def llama_prior() -> Prior:
    """A small random model with the real LLaMA-2 vocabulary."""
    tokenizer = llama_tokenizer(pad_token="<unk>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.3,  # far from even, so that a mistake shows
    )
    return Prior(model=LlamaForCausalLM(config).eval(), tokenizer=tokenizer, fmt=WYCKOFF)


def test_the_llama_vocabulary_samples_scores_and_infills(crystals: list[Structure]) -> None:
    prior = llama_prior()
    chosen = [s for s in crystals if len(s) < 12][:6]
    requests = []
    for structure in chosen:
        described = prior.layout.describe(structure)
        text = described.text()
        ids = prior.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert prior.tokenizer.decode(ids) == text
        known = described.conditions({})
        requests.append({name: known[name] for name in NAMES})
    found = propose(prior, requests, seed=0, temperature=1.0)
    for proposal, conditions in zip(found, requests, strict=True):
        assert proposal.structure is not None and proposal.crystal is not None
        assert proposal.structure.composition.reduced_formula == conditions["formula"]
        assert actual_group(proposal.structure) == conditions["spacegroup"]
    free = log_likelihood(prior, chosen, conditions=NAMES)
    bound = log_likelihood(prior, chosen, conditions=NAMES, grammar=prior.grammar)
    for one, other in zip(free, bound, strict=True):
        assert one.log_likelihood < other.log_likelihood <= 0
    masks = [s.composition.elements[0].symbol for s in chosen]
    for probabilities in element_probabilities(prior, chosen, masks):
        assert len(probabilities) == 118 and sum(probabilities.values()) == pytest.approx(1)


# --- files ---------------------------------------------------------------------------------------


def test_the_layout_is_recorded_with_the_model(wyckoff_prior: Prior, tmp_path: Path) -> None:
    wyckoff_prior.save_pretrained(tmp_path / "prior")
    text = json.loads((tmp_path / "prior" / "prior.json").read_text())["text"]
    assert (text["layout"], text["symprec"]) == ("wyckoff", 0.1)
    loaded = Prior.from_pretrained(tmp_path / "prior")
    assert loaded.fmt == WYCKOFF and loaded.layout.shift_invariant
    one, other = (propose(p, [SRTIO3], seed=3)[0].text for p in (wyckoff_prior, loaded))
    assert one == other


@pytest.mark.parametrize(("trained", "wanted"), [("sites", "wyckoff"), ("wyckoff", "sites")])
def test_a_base_of_the_other_layout_is_refused(trained: Any, wanted: Any, tmp_path: Path) -> None:
    base = Prior.build(BaseModel(architecture=TINY), TextFormat(layout=trained))
    base.save_pretrained(tmp_path / "base")
    for lora in (None, Lora()):
        refused(
            lambda lora=lora: Prior.build(
                BaseModel(name=str(tmp_path / "base"), lora=lora), TextFormat(layout=wanted)
            ),
            f"was trained with text.layout={trained}, the recipe has {wanted}",
            f"set text.layout={trained}",
        )


def test_a_pretrained_model_reads_the_layout_as_plain_text(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", sizes={"max_position_embeddings": 2048})
    prior = Prior.build(BaseModel(name=base, lora=Lora(r=2)), WYCKOFF)
    prior.model.eval()
    (found,) = propose(prior, [{**SRTIO3, "spacegroup": 221}], seed=0)
    assert found.structure is not None and found.text.startswith("221\n")
    assert actual_group(found.structure) == 221
    (score,) = log_likelihood(prior, [found.structure], grammar=prior.grammar)
    assert math.isfinite(score.log_likelihood)
