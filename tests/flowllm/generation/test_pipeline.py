"""`FlowLLM`: prior and refiner together, in memory."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from pymatgen.core import Lattice, Structure
from transformers.utils.logging import set_tqdm_hook

from flowllm import FlowLLM, Sample, UserError
from flowllm.generation import pipeline as sampler
from flowllm.generation.config import merge_conditions
from flowllm.generation.pipeline import pick_device
from flowllm.hub.locate import BUNDLED_PRIOR, BUNDLED_REFINER, identity, resolve
from llm_prior import PriorError, proposals
from llm_prior.proposals import Question
from rfm import BaseConfig, Failure, Refinement, RefinerError
from support import ROOT

QUICK = {"steps": 3}
NACL = "5.6 5.6 5.6\n90 90 90\nNa\n0.00 0.00 0.00\nCl\n0.50 0.50 0.50"


@pytest.fixture(scope="module")
def model() -> Iterator[FlowLLM]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = FlowLLM.from_pretrained(device="cpu")
    # A little noise, whatever the bundled refiner has: its seed must show.
    model.refiner.config.base = BaseConfig(position_sigma=0.05, cell_sigma=0.05)
    yield model
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def samples(model: FlowLLM) -> list[Sample]:
    return model.sample(4, formula="NaCl", seed=3, **QUICK)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have the prior answer these texts, by place in the batch, to every attempt."""

    def script(*texts: str) -> None:
        def generate_texts(
            prior: object, queue: deque[Question], **_: Any
        ) -> Iterator[tuple[int, str, bool]]:
            while queue:
                place = queue.popleft().place
                yield place, texts[place], True

        monkeypatch.setattr(proposals, "generate_texts", generate_texts)

    return script


def same_bits(one: Structure | None, two: Structure | None) -> bool:
    if one is None or two is None:
        return one is two
    return (
        one.species == two.species
        and one.lattice.matrix.tobytes() == two.lattice.matrix.tobytes()
        and one.frac_coords.tobytes() == two.frac_coords.tobytes()
    )


def same_samples(ones: list[Sample], twos: list[Sample]) -> bool:
    return len(ones) == len(twos) and all(
        (one.id, one.text, one.prompt) == (two.id, two.text, two.prompt)
        and same_bits(one.prior_structure, two.prior_structure)
        and same_bits(one.structure, two.structure)
        for one, two in zip(ones, twos, strict=True)
    )


def rock_salt(a: float = 5.69) -> Structure:
    return Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(a), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
    )


# --- sampling ------------------------------------------------------------------------------------


def test_the_seed_decides_the_structures(model: FlowLLM, samples: list[Sample]) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    again = model.sample(4, formula="NaCl", seed=3, **QUICK)
    assert same_samples(again, samples)
    assert torch.equal(torch.get_rng_state(), before)
    assert not same_samples(model.sample(4, formula="NaCl", seed=4, **QUICK), samples)


def test_every_request_gets_its_answer(samples: list[Sample]) -> None:
    assert [sample.id for sample in samples] == [f"sample-{i:05d}" for i in range(4)]
    assert sum(sample.structure is not None for sample in samples) >= 2
    for sample in samples:
        assert sample.prompt.startswith("Below is a description of a bulk material. The chemical")
        assert (sample.structure is None) == (sample.failure is not None)
        assert 1 <= sample.attempts <= 10


def test_refining_moves_atoms_and_keeps_which_is_which(samples: list[Sample]) -> None:
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


def test_batches_are_seeded_on_their_own(model: FlowLLM) -> None:
    options: dict[str, Any] = {"num_atoms": 2, "refine": False, "batch_size": 2, "max_attempts": 2}
    three, five = (model.sample(n, **options) for n in (3, 5))
    assert [sample.id for sample in five] == [f"sample-{i:05d}" for i in range(5)]
    assert same_samples(three[:2], five[:2])
    assert [s.text for s in five[:2]] != [s.text for s in five[2:4]]


def test_none_asked_for_none_made(model: FlowLLM) -> None:
    assert model.sample(0) == []


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"n": -1}, "n -1 must be at least 0"),
        ({"batch_size": 0}, "batch_size 0 at least 1"),
        ({"seed": -1}, "seed -1 is negative"),
        ({"temperature": math.nan}, "temperature nan is no number"),
        ({"top_p": 0}, "top_p 0 is not in"),
        ({"max_attempts": 0}, "max_attempts 0 must be"),
        (
            {"refine": False, "steps": 3},
            "steps is a setting of the refiner; ask for refine as well",
        ),
        ({"steps": 0}, "steps"),
        ({"formula": "NaCl", "composition": "Na4Cl4"}, "formula and composition exclude"),
        ({"composition": "Na4Cl4", "num_atoms": 8}, "composition fixes the number of atoms"),
        ({"composition": "Na400Cl4"}, "composition Na400Cl4 has 404 atoms, this model writes at"),
        ({"band_gap": -0.5}, "band_gap -0.5 is below 0 eV; give 0 or more"),
        ({"colour": "red"}, "unknown condition 'colour'"),
        ({"spacegroup": "cubic"}, "spacegroup 'cubic' is not a whole number from 1 to 230"),
        ({"formula": "NaQ"}, "unknown element Q in formula 'NaQ'"),
    ],
)
def test_impossible_requests_are_refused(
    model: FlowLLM, request_: dict[str, Any], message: str
) -> None:
    with pytest.raises((UserError, PriorError, RefinerError), match=message):
        model.sample(**({"n": 1} | request_))


def test_what_is_needed_must_be_loaded(model: FlowLLM) -> None:
    with pytest.raises(UserError, match="sampling needs a prior"):
        FlowLLM(None, model.refiner).sample(1)
    with pytest.raises(UserError, match="refine needs a refiner; .* or sample with refine=False"):
        FlowLLM(model.prior, None).sample(1)
    with pytest.raises(UserError, match="refine needs a refiner"):
        FlowLLM(model.prior, None).refine([rock_salt()])


def test_requests_that_mean_the_same_are_the_same() -> None:
    numbers = merge_conditions(
        "NaCl", None, {"spacegroup": np.int64(225), "band_gap": 5, "elements": None}
    )
    texts = merge_conditions("Cl2Na2", None, {"band_gap": "5.001", "spacegroup": "225"})
    assert list(numbers.items()) == list(texts.items())
    assert json.loads(json.dumps(numbers)) == numbers
    assert merge_conditions(None, None, {"elements": "Na,Na"}) == {"elements": "Na"}
    assert merge_conditions(None, "Na4Cl4", {}) == {"formula": "NaCl", "num_atoms": "8"}


# --- failures ------------------------------------------------------------------------------------


def test_a_failure_says_why_and_leaves_the_others_alone(
    model: FlowLLM, answers: Callable[..., None]
) -> None:
    answers("no crystal", NACL, "0.1 0.1 0.1\n90 90 90\nH\n0.00 0.00 0.00", NACL)
    bad, good, flat, twin = model.sample(4, max_attempts=3, **QUICK)
    assert (bad.structure, bad.prior_structure, bad.failure) == (None, None, "prior: line_count")
    assert (bad.attempts, bad.rejects, bad.text) == (3, {"line_count": 3}, "no crystal")
    assert (flat.structure, flat.prior_structure, flat.failure) == (None, None, "prior: bad_cell")
    assert (good.attempts, good.rejects, good.failure) == (1, {}, None)
    assert good.structure.species == twin.structure.species == good.prior_structure.species
    assert not same_bits(good.structure, twin.structure)  # each with noise of its own
    (alone,) = model.sample(1, max_attempts=1, refine=False)
    assert alone.failure == "prior: line_count"


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


def test_what_the_refiner_cannot_finish_keeps_the_priors_crystal(
    model: FlowLLM, answers: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(NACL, NACL, NACL)
    results = [
        Refinement(failure=Failure.NOT_FINITE),
        Refinement(failure=Failure.CLOSE_ATOMS),
        Refinement(structure=rock_salt()),
    ]
    monkeypatch.setattr(sampler, "refine_structures", lambda *_, **__: results)
    lost, squeezed, good = model.sample(3)
    assert (lost.structure, lost.failure) == (None, "refiner: not_finite")
    assert (squeezed.structure, squeezed.failure) == (None, "refiner: close_atoms")
    assert good.structure is results[2].structure and good.failure is None
    assert all(sample.prior_structure is not None for sample in (lost, squeezed, good))


# --- records -------------------------------------------------------------------------------------


def test_a_record_keeps_every_bit(samples: list[Sample]) -> None:
    failed = Sample(
        id="x", prompt="p", text="é\n", attempts=2, rejects={"line_count": 2}, failure="prior: x"
    )
    half = Sample(id="y", prompt="", text="", prior_structure=rock_salt(0.1 + 0.2 + 5))
    for sample in (*samples, failed, half):
        text = json.dumps(sample.to_record(), allow_nan=False)
        back = Sample.from_record(json.loads(text))
        for name, value in vars(sample).items():
            if isinstance(value, Structure):
                assert same_bits(getattr(back, name), value)
            elif name != "refinement":  # of which a record keeps what was asked for
                assert getattr(back, name) == value
        assert json.dumps(back.to_record()) == text


# --- refining ------------------------------------------------------------------------------------


def test_structures_and_atoms_are_refined_alike(model: FlowLLM) -> None:
    structure = rock_salt().get_primitive_structure()
    atoms = Atoms(
        numbers=structure.atomic_numbers,
        cell=structure.lattice.matrix,
        scaled_positions=structure.frac_coords,
        pbc=True,
    )
    one, two = model.refine([structure], **QUICK)[0], model.refine([atoms], **QUICK)[0]
    assert one.structure.species == two.structure.species == structure.species
    assert np.allclose(one.structure.lattice.matrix, two.structure.lattice.matrix, atol=1e-4)
    assert not same_bits(one.structure, model.refine([structure], seed=1, **QUICK)[0].structure)
    assert model.refine([]) == []


def test_any_cell_of_a_crystal_is_refined_alike(model: FlowLLM) -> None:
    structure = Structure(
        Lattice.from_parameters(3.1, 4.2, 5.3, 80, 95, 100), ["Ti", "O"], [[0, 0, 0], [0.4] * 3]
    )
    skewed = structure.copy()
    skewed.make_supercell([[1, 2, 0], [0, 1, 0], [1, 0, 1]], to_unit_cell=False)
    one, two = (model.refine([s], **QUICK)[0].structure for s in (structure, skewed))
    assert np.allclose(one.lattice.abc, two.lattice.abc, atol=1e-3)
    assert np.allclose(one.distance_matrix, two.distance_matrix, atol=1e-3)


def test_the_place_in_a_run_decides_the_noise(model: FlowLLM) -> None:
    first, second = rock_salt(), rock_salt(5).get_primitive_structure()
    both = model.refine([first, second], seed=5, **QUICK)
    (alone,) = model.refine([second], seed=5, first_index=1, **QUICK)
    assert np.allclose(both[1].structure.lattice.abc, alone.structure.lattice.abc, atol=1e-3)
    (other,) = model.refine([second], seed=5, first_index=2, **QUICK)
    assert not np.allclose(alone.structure.lattice.abc, other.structure.lattice.abc, atol=1e-2)


def test_a_structure_that_cannot_be_refined_is_named(model: FlowLLM) -> None:
    disordered = Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]])
    flat = Structure(Lattice.orthorhombic(3, 3, 1e-6), ["Na"], [[0, 0, 0]])
    for bad, reason in ((disordered, "is disordered"), (flat, "cell")):
        failed, good = model.refine([bad, rock_salt()], **QUICK)
        assert failed.structure is None and failed.failure == "bad_input"
        assert reason in failed.detail and good.structure is not None
    with pytest.raises(UserError, match="must be a pymatgen Structure or ASE Atoms, not str"):
        model.refine(["NaCl.cif"])
    with pytest.raises(RefinerError, match="seed -1 is negative"):
        model.refine([rock_salt()], seed=-1)
    for lone in (rock_salt(), Atoms("Na", cell=[4] * 3, pbc=True)):
        with pytest.raises(UserError, match=r"a list of crystals; put a single one into brackets"):
            model.refine(lone)


def test_a_crystal_larger_than_any_trained_on_is_reported_alone(model: FlowLLM) -> None:
    large, small = model.refine([rock_salt() * (2, 2, 1), rock_salt()], **QUICK)
    assert (large.structure, large.failure) == (None, Failure.TOO_MANY_ATOMS)
    assert small.structure is not None


# --- where models come from ----------------------------------------------------------------------


def test_a_model_is_bundled_or_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(None, BUNDLED_PRIOR) == BUNDLED_PRIOR
    assert resolve(str(tmp_path), BUNDLED_PRIOR) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert resolve(f"~/{tmp_path.name}", BUNDLED_PRIOR) == tmp_path
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file; give the folder of a model"):
        resolve(tmp_path / "file", BUNDLED_PRIOR)
    for name in ("nowhere", "./nowhere", "runs/prior/model", str(tmp_path / "x"), "~/x"):
        with pytest.raises(UserError, match=f"there is no model folder {name}; give a folder or"):
            resolve(name, BUNDLED_PRIOR)


def test_a_hub_that_cannot_be_reached_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What HF_HUB_OFFLINE=1 and HF_HOME set when the package is imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="nobody/nothing is neither a folder here nor a model on"):
        FlowLLM.from_pretrained(prior="nobody/nothing")


def test_the_identity_of_a_model_is_its_content(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"1")
    before = identity(tmp_path / "model")
    (tmp_path / "model" / "weights").write_bytes(b"2")
    assert before["name"] == "model" and identity(tmp_path / "model") != before


def test_the_identity_of_an_adapter_includes_its_base(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    settings = tmp_path / "adapter" / "adapter_config.json"
    base = tmp_path / "base"
    base.mkdir()
    gguf = tmp_path / "base.gguf"
    for place, weights in ((base, base / "model.safetensors"), (gguf, gguf)):
        settings.write_text(json.dumps({"base_model_name_or_path": str(place)}))
        weights.write_bytes(b"1")
        before = identity(tmp_path / "adapter")
        weights.write_bytes(b"2")
        after = identity(tmp_path / "adapter")
        assert before["sha256"] == after["sha256"] and before["base"] != after["base"]
        assert after["base"]["name"] == place.name
    settings.write_text(json.dumps({"base_model_name_or_path": "org/model"}))
    assert identity(tmp_path / "adapter")["base"] == {"name": "org/model"}
    settings.write_text("{}")
    with pytest.raises(UserError, match="adapter_config.json names no base model"):
        identity(tmp_path / "adapter")


def test_prior_and_refiner_are_not_taken_for_each_other() -> None:
    with pytest.raises(PriorError, match="it is not a prior"):
        FlowLLM.from_pretrained(prior=BUNDLED_REFINER)
    with pytest.raises(RefinerError, match="not a refiner"):
        FlowLLM.from_pretrained(refiner=BUNDLED_PRIOR)


def test_loading_is_silent_and_leaves_the_users_settings(capfd: pytest.CaptureFixture[str]) -> None:
    seen = []

    def hook(make: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        seen.append(options)
        return make(*args, **options)

    before = set_tqdm_hook(hook)
    try:
        FlowLLM.from_pretrained(device="cpu")
        assert set_tqdm_hook(hook) is hook
    finally:
        set_tqdm_hook(before)
    assert seen
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("tpu", "unknown device 'tpu'; use cpu, cuda"),
        ("mps", "unknown device 'mps'"),
        ("cuda:x", "unknown device 'cuda:x'"),
        ("cuda:99", "device cuda:99 is not there; use --device cpu"),
    ],
)
def test_a_device_that_is_not_there_is_refused(device: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pick_device(device)


def test_auto_takes_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_device("cpu") == "cpu"
    assert pick_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == "cuda:1"
    with pytest.raises(UserError, match="cuda:2 is not there"):
        pick_device("cuda:2")


def test_the_readmes_example_runs() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(re.sub(r"\.sample\(\d+,", ".sample(2,", block), names)
    assert [type(sample) for sample in names["samples"]] == [Sample, Sample]
    assert names["samples"][0].structure.composition.formula == "Na2 Cl2"


def test_with_refine_the_prior_writes_no_element_that_the_refiner_does_not_know(
    model: FlowLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def propose(*_: object, **options: Any) -> list:
        asked.update(options)
        return []

    monkeypatch.setattr(sampler, "propose", propose)
    model.sample_batch(sampler.Settings(exclude_elements=["Pb"]), sampler.KnownFormulas(), 0, 0, 1)
    assert {"Pb", "Md", "Og"} <= set(asked["exclude_elements"])
    assert "Fm" not in asked["exclude_elements"]
    model.sample_batch(sampler.Settings(refine=False), sampler.KnownFormulas(), 0, 0, 1)
    assert asked["exclude_elements"] == []
    with pytest.raises(UserError, match="the refiner does not know Md, only elements up to Fm"):
        model.sample(1, formula="MdO")
