"""`FlowLLM.sample`: prior and refiner together, in memory."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.utils.logging import set_tqdm_hook

from flowllm import FlowLLM, PriorError, RefinerError, Sample, SamplingConfig, UserError
from flowllm.crystals.formulas import KnownFormulas
from flowllm.generation import pipeline
from flowllm.generation.capabilities import unknown_elements
from flowllm.hub.locate import BUNDLED_PRIOR, BUNDLED_REFINER
from llm_prior import Proposal, proposals
from llm_prior.proposals import Question
from prior_support import NACL
from rfm import Failure, Refinement
from support import SALT, same_bits

QUICK = {"steps": 3}
GAS = "0.1 0.1 0.1\n90 90 90\nH\n0.00 0.00 0.00"  # a text that decodes to no crystal


@pytest.fixture(scope="module")
def samples(model: FlowLLM) -> list[Sample]:
    return model.sample(4, formula="NaCl", seed=3, **QUICK)


def same_samples(ones: list[Sample], others: list[Sample]) -> bool:
    return len(ones) == len(others) and all(
        (one.id, one.text, one.prompt) == (other.id, other.text, other.prompt)
        and same_bits(one.prior_structure, other.prior_structure)
        and same_bits(one.structure, other.structure)
        for one, other in zip(ones, others, strict=True)
    )


# Results


def test_the_seed_decides_the_structures(model: FlowLLM, samples: list[Sample]) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    again = model.sample(4, formula="NaCl", seed=3, **QUICK)
    assert same_samples(again, samples)
    assert torch.equal(torch.get_rng_state(), before)
    assert not same_samples(model.sample(4, formula="NaCl", seed=4, **QUICK), samples)


def test_a_config_and_keywords_give_the_same(model: FlowLLM, samples: list[Sample]) -> None:
    config = SamplingConfig.of(formula="NaCl", seed=3, **QUICK)
    assert same_samples(model.sample(4, config), samples)
    other = SamplingConfig.of(formula="KCl", seed=4, **QUICK)
    assert same_samples(model.sample(4, other, formula="NaCl", seed=3), samples)


def test_every_request_gets_its_answer(samples: list[Sample]) -> None:
    assert [sample.id for sample in samples] == [f"sample-{i:05d}" for i in range(4)]
    assert sum(sample.structure is not None for sample in samples) >= 2
    for sample in samples:
        assert sample.prompt.startswith("Below is a description of a bulk material. The chemical")
        assert (sample.structure is None) == (sample.failure is not None)
        assert 1 <= sample.attempts <= 10


def test_refining_moves_atoms_and_keeps_their_order(samples: list[Sample]) -> None:
    for sample in samples:
        if sample.structure is None:
            continue
        assert sample.prior_structure is not None
        assert sample.structure.species == sample.prior_structure.species
        assert not same_bits(sample.structure, sample.prior_structure)
        coords = sample.structure.frac_coords
        assert (coords >= 0).all() and (coords < 1).all()
        assert sample.structure.volume > 0.1


def test_without_refining_it_is_the_language_model_alone(
    model: FlowLLM, samples: list[Sample]
) -> None:
    alone = FlowLLM(model.prior, None).sample(4, formula="NaCl", seed=3, refine=False)
    for plain, refined in zip(alone, samples, strict=True):
        assert plain.text == refined.text
        assert same_bits(plain.structure, refined.prior_structure)
        assert same_bits(plain.structure, plain.prior_structure)


def test_guidance_reaches_the_prior(model: FlowLLM, samples: list[Sample]) -> None:
    options: dict[str, Any] = {"formula": "NaCl", "seed": 3, "refine": False}
    guided = model.sample(4, guidance=3, batch_size=1, **options)
    found = proposals.propose(model.prior, [{"formula": "NaCl"}] * 4, seed=3, guidance=3)
    assert [sample.text for sample in guided] == [proposal.text for proposal in found]
    assert [sample.text for sample in guided] != [sample.text for sample in samples]
    plain = model.sample(4, guidance=1, **options)
    assert [sample.text for sample in plain] == [sample.text for sample in samples]


def test_the_size_of_a_batch_changes_no_crystal(model: FlowLLM) -> None:
    """The draws are functions of seed and index: equal texts, coordinates up to rounding."""
    options: dict[str, Any] = {"num_atoms": 2, "max_attempts": 2, "seed": 5, **QUICK}
    whole = model.sample(5, batch_size=128, **options)
    for size in (1, 2, 3):
        parts = model.sample(5, batch_size=size, **options)
        assert [sample.id for sample in parts] == [f"sample-{i:05d}" for i in range(5)]
        assert [sample.text for sample in parts] == [sample.text for sample in whole]
        for one, other in zip(parts, whole, strict=True):
            assert (one.failure, one.rejects) == (other.failure, other.rejects)
            assert same_bits(one.prior_structure, other.prior_structure)
            if one.structure is not None and other.structure is not None:
                assert one.structure.lattice.abc == pytest.approx(
                    other.structure.lattice.abc, abs=1e-3
                )
    assert len({sample.text for sample in whole}) > 1


def test_more_crystals_begin_with_the_same_ones(model: FlowLLM) -> None:
    options: dict[str, Any] = {"num_atoms": 2, "refine": False, "batch_size": 2}
    three, five = (model.sample(n, **options) for n in (3, 5))
    assert same_samples(three, five[:3])


def test_the_candidates_do_not_depend_on_the_size_of_a_batch(model: FlowLLM) -> None:
    options: dict[str, Any] = {"formula": "NaCl", "best_of": 2, "refine": False, "seed": 1}
    whole, parts = (model.sample(4, batch_size=size, **options) for size in (128, 3))
    assert same_samples(whole, parts)
    assert [s.rank_score for s in whole] == pytest.approx([s.rank_score for s in parts])


def test_a_request_for_none_makes_none(model: FlowLLM) -> None:
    assert model.sample(0) == []


# Conditions


@pytest.mark.parametrize("constrain", [False, True])
def test_excluded_elements_are_in_no_crystal(model: FlowLLM, constrain: bool) -> None:
    settings = {"refine": False, "num_atoms": 2, "temperature": 1.0, "seed": 1}
    usual = model.sample(12, **settings)
    often = Counter(s.specie.symbol for x in usual for s in x.structure).most_common(3)
    symbols = [symbol for symbol, _ in often]
    made = model.sample(
        12, constrain=constrain, exclude_elements=",".join(symbols), max_attempts=30, **settings
    )
    for sample in made:
        assert sample.structure is not None
        assert not set(symbols) & {site.specie.symbol for site in sample.structure}
    assert any("excluded_element" in sample.rejects for sample in made) == (not constrain)
    with pytest.raises(PriorError, match="take Cl out of exclude_elements"):
        model.sample(1, formula="NaCl", refine=False, exclude_elements=["Cl"])


def test_a_composition_is_met_atom_by_atom(model: FlowLLM) -> None:
    made = model.sample(3, composition="Na2Cl2", refine=False)
    atoms = [Counter(map(str, s.structure.species)) for s in made if s.structure is not None]
    assert atoms and all(count == {"Na": 2, "Cl": 2} for count in atoms)


@pytest.mark.parametrize("constrain", [False, True])
def test_a_range_of_atoms_is_met(model: FlowLLM, constrain: bool) -> None:
    settings = {"refine": False, "constrain": constrain, "max_attempts": 30, "seed": 2}
    made = model.sample(12, num_atoms="3-5", **settings)
    sizes = [len(s.structure) for s in made if s.structure is not None]
    assert len(sizes) >= 10 and set(sizes) <= {3, 4, 5} and len(set(sizes)) > 1
    assert all("number of atoms" not in s.prompt for s in made)
    assert same_samples(made, model.sample(12, num_atoms=(3, 5), **settings))


def test_a_range_of_atoms_goes_with_a_formula(model: FlowLLM) -> None:
    made = model.sample(6, formula="NaCl", num_atoms="3-6", refine=False)
    assert {len(s.structure) for s in made if s.structure is not None} <= {4, 6}
    with pytest.raises(PriorError, match="5 atoms are no whole number of formula units of NaCl"):
        model.sample(1, formula="NaCl", num_atoms=5, refine=False)


def test_a_symbol_of_a_space_group_is_its_number(model: FlowLLM) -> None:
    settings = {"formula": "NaCl", "refine": False, "seed": 3}
    symbol, number = (model.sample(2, spacegroup=g, **settings) for g in ("Fm-3m", 225))
    assert "The spacegroup number is 225. " in symbol[0].prompt
    assert same_samples(symbol, number)


def test_the_prior_writes_no_element_that_the_refiner_does_not_know(
    model: FlowLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def propose(_: object, requests: list[Any], **options: Any) -> list[Proposal]:
        seen.update(options)
        return [Proposal(prompt="", attempts=10, rejects=Counter(none=10)) for _ in requests]

    monkeypatch.setattr(pipeline, "propose", propose)
    known = KnownFormulas()
    model.sample_batch(SamplingConfig(exclude_elements=("Pb",)), known, range(1))
    assert {"Pb", "Md", "Og"} <= set(seen["exclude_elements"])
    assert "Fm" not in seen["exclude_elements"]
    model.sample_batch(SamplingConfig(refine=False), known, range(1))
    assert seen["exclude_elements"] == []
    with pytest.raises(UserError, match="the refiner does not know Md, only elements up to Fm"):
        model.sample(1, formula="MdO")


# Refusals


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"n": -1}, "n is -1; give a whole number at least 0"),
        ({"n": 2.5}, "n is 2.5; give a whole number at least 0"),
        ({"temperature": math.nan}, "temperature is nan; give a number at least 0"),
        ({"refine": False, "steps": 3}, "steps is an option of refining; leave it out, or refine"),
        ({"composition": "Na400Cl4"}, "composition Na400Cl4 has 404 atoms, this model writes at"),
        ({"num_atoms": "5-100"}, "num_atoms 5-100 ends at 100 atoms, this model writes at most 20"),
        ({"colour": "red"}, "unknown condition or option 'colour'"),
        ({"formula": "NaQ"}, "unknown element Q in formula 'NaQ'"),
    ],
)
def test_impossible_requests_are_refused(
    model: FlowLLM, request_: dict[str, Any], message: str
) -> None:
    with pytest.raises((UserError, PriorError, RefinerError), match=message):
        model.sample(**({"n": 1} | request_))


def test_a_model_that_is_needed_must_be_loaded(model: FlowLLM) -> None:
    with pytest.raises(UserError, match="sampling needs a prior"):
        FlowLLM(None, model.refiner).sample(1)
    with pytest.raises(UserError, match="refine needs a refiner; .* or sample with refine=False"):
        FlowLLM(model.prior, None).sample(1)
    with pytest.raises(UserError, match="refine needs a refiner"):
        FlowLLM(model.prior, None).refine([SALT])


def test_prior_and_refiner_are_not_taken_for_each_other() -> None:
    with pytest.raises(PriorError, match="it is not a prior"):
        FlowLLM.from_pretrained(prior=BUNDLED_REFINER)
    with pytest.raises(RefinerError, match="not a refiner"):
        FlowLLM.from_pretrained(refiner=BUNDLED_PRIOR)


def test_a_hub_that_cannot_be_reached_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What HF_HUB_OFFLINE=1 and HF_HOME set when the package is imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="nobody/nothing is neither a folder here nor a model on"):
        FlowLLM.from_pretrained(prior="nobody/nothing")


def test_loading_is_silent_and_leaves_the_users_settings(capfd: pytest.CaptureFixture[str]) -> None:
    seen = []

    def hook(make: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        seen.append(options)
        return make(*args, **options)

    before = set_tqdm_hook(hook)
    try:
        prior = FlowLLM.from_pretrained(device="cpu").prior
        assert prior is not None and prior.model is not None  # loaded by transformers only now
        assert set_tqdm_hook(hook) is hook
    finally:
        set_tqdm_hook(before)
    assert seen
    assert capfd.readouterr() == ("", "")


# Failures


def test_a_failure_says_why_and_leaves_the_others_alone(
    model: FlowLLM, answers: Callable[..., None]
) -> None:
    answers("no crystal", NACL, NACL)
    bad, good, twin = model.sample(3, max_attempts=3, **QUICK)
    assert (bad.structure, bad.prior_structure, bad.failure) == (None, None, "prior: line_count")
    assert (bad.attempts, bad.rejects, bad.text) == (3, {"line_count": 3}, "no crystal")
    assert (good.attempts, good.rejects, good.failure) == (1, {}, None)
    assert good.structure.species == twin.structure.species == good.prior_structure.species
    assert not same_bits(good.structure, twin.structure)  # each with noise of its own
    (alone,) = model.sample(1, max_attempts=1, refine=False)
    assert alone.failure == "prior: line_count"
    answers(GAS)
    (flat,) = model.sample(1, max_attempts=1, refine=False)
    assert (flat.structure, flat.prior_structure, flat.failure) == (None, None, "prior: bad_cell")
    (flat,) = model.sample(1, max_attempts=3, refine=False)
    assert (flat.failure, flat.attempts, flat.rejects) == ("prior: bad_cell", 3, {"bad_cell": 2})


def test_the_reason_is_the_most_frequent_one(
    model: FlowLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate_texts(
        prior: object, queue: deque[Question], **_: Any
    ) -> Iterator[tuple[int, str, bool]]:
        for text in ("x", NACL, NACL):
            yield queue.popleft().place, text, True

    monkeypatch.setattr(proposals, "generate_texts", generate_texts)
    (sample,) = model.sample(1, formula="KCl", max_attempts=3)
    assert sample.failure == "prior: other_formula"
    assert sample.rejects == {"line_count": 1, "other_formula": 2}


def test_a_failed_refinement_keeps_the_crystal_of_the_prior(
    model: FlowLLM, answers: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(NACL, NACL, NACL)
    results = [
        Refinement(failure=Failure.NOT_FINITE),
        Refinement(failure=Failure.CLOSE_ATOMS),
        Refinement(structure=SALT),
    ]
    monkeypatch.setattr(pipeline, "refine_structures", lambda *_, **__: results)
    lost, squeezed, good = model.sample(3, max_attempts=1)
    assert (lost.structure, lost.failure) == (None, "refiner: not_finite")
    assert (squeezed.structure, squeezed.failure) == (None, "refiner: close_atoms")
    assert good.structure is results[2].structure and good.failure is None
    assert all(sample.prior_structure is not None for sample in (lost, squeezed, good))


# Crystals that refining destroys


@pytest.fixture
def destroy(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Let refining destroy crystals: number in the run -> how often.

    Returns the seeds of the noise, one for each call.
    """
    whole = pipeline.refine_structures

    def script(times: dict[int, int]) -> list[int]:
        seen: Counter[int] = Counter()
        seeds: list[int] = []

        def refine(*given: Any, indices: list[int], **options: Any) -> list[Refinement]:
            seeds.append(options["seed"])
            seen.update(indices)
            return [
                Refinement(failure=Failure.CLOSE_ATOMS)
                if seen[index] <= times.get(index, 0)
                else refined
                for index, refined in zip(
                    indices, whole(*given, indices=indices, **options), strict=True
                )
            ]

        monkeypatch.setattr(pipeline, "refine_structures", refine)
        return seeds

    return script


REDRAWN: dict[str, Any] = {"num_atoms": 2, "temperature": 1.0, "seed": 5, **QUICK}


def test_a_crystal_that_refining_destroys_is_drawn_again(
    model: FlowLLM, destroy: Callable[..., list[int]]
) -> None:
    before = model.sample(4, **REDRAWN)
    seeds = destroy({1: 1, 3: 2})
    samples = model.sample(4, **REDRAWN)
    assert all(sample.structure is not None for sample in samples)
    assert same_samples(samples[0::2], before[0::2])
    for place, times in ((1, 1), (3, 2)):
        sample = samples[place]
        assert sample.id == before[place].id and sample.failure is None
        assert sample.attempts == 1 + times
        assert sample.rejects == {"refiner: close_atoms": times}
        assert sample.text != before[place].text
        # It is what the prior draws at that attempt.
        (proposal,) = proposals.propose(
            model.prior,
            [{"num_atoms": 2}],
            seed=5,
            temperature=1.0,
            indices=[place],
            first_attempts=[times],
            exclude_elements=unknown_elements(model.refiner, {}),
        )
        assert sample.text == proposal.text
    assert len(set(seeds)) == len(seeds) == 3  # noise of its own for each turn
    assert seeds[0] == 5


@pytest.mark.parametrize("size", [1, 3])
def test_crystals_drawn_again_do_not_depend_on_the_size_of_a_batch(
    model: FlowLLM, destroy: Callable[..., list[int]], size: int
) -> None:
    found = []
    for batch_size in (128, size):
        destroy({0: 1, 1: 3, 3: 2})
        found.append(model.sample(4, batch_size=batch_size, **REDRAWN))
    for one, other in zip(*found, strict=True):
        assert (one.text, one.attempts, one.rejects) == (other.text, other.attempts, other.rejects)
        assert same_bits(one.prior_structure, other.prior_structure)
        assert one.structure.frac_coords == pytest.approx(other.structure.frac_coords, abs=1e-3)


def test_texts_drawn_again_are_bounded(model: FlowLLM, destroy: Callable[..., list[int]]) -> None:
    seeds = destroy({1: 99})
    good, lost = model.sample(2, max_attempts=4, **REDRAWN)
    assert good.structure is not None and good.attempts == 1
    assert (lost.structure, lost.failure) == (None, "refiner: close_atoms")
    assert (lost.attempts, lost.rejects) == (4, {"refiner: close_atoms": 3})
    assert len(seeds) == 4
    # At temperature 0 the text would be the same.
    seeds = destroy({0: 99})
    (lost,) = model.sample(1, **{**REDRAWN, "temperature": 0})
    assert (lost.failure, lost.attempts, len(seeds)) == ("refiner: close_atoms", 1, 1)


def test_candidates_are_drawn_again_if_none_is_left(
    model: FlowLLM, destroy: Callable[..., list[int]]
) -> None:
    options = {"best_of": 2, **REDRAWN}
    seeds = destroy({0: 1, 2: 1, 3: 1})  # one of the first crystal, both of the second
    one, two = model.sample(2, **options)
    assert one.structure is not None and (one.attempts, one.rejects) == (2, {})
    assert two.structure is not None
    assert (two.attempts, two.rejects) == (4, {"refiner: close_atoms": 2})
    assert len(seeds) == 2


# Progress


@pytest.mark.parametrize(
    "options", [{"refine": False}, {}, {"best_of": 2}, {"best_of": 2, "refine": False}]
)
def test_progress_adds_up_to_the_number_of_crystals(
    model: FlowLLM, answers: Callable[..., None], options: dict[str, Any]
) -> None:
    answers("no crystal", NACL, NACL, GAS, NACL)
    counts: list[int] = []
    config = SamplingConfig.of(
        max_attempts=2, **options, **(QUICK if options.get("refine", True) else {})
    )
    samples = model.sample_batch(config, KnownFormulas(), range(5), counts.append)
    assert sum(s.structure is None for s in samples) >= 2
    assert sum(counts) == 5 and min(counts) >= 0


def test_the_language_model_reports_every_crystal_when_it_is_finished(
    model: FlowLLM, answers: Callable[..., None]
) -> None:
    answers(*[NACL] * 3)
    counts: list[int] = []
    model.sample_batch(SamplingConfig(refine=False), KnownFormulas(), range(3), counts.append)
    assert counts == [1, 1, 1]
