"""`Sample` and its record."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from flowllm import FlowLLM, Sample
from flowllm.generation.sample import SCORE_COLUMNS
from flowllm.runs.records import CrystalRecord
from llm_prior import Proposal
from rfm import Failure, LogLikelihood, Refinement, Trajectory
from support import SALT, same_bits

SKEWED = SALT.get_primitive_structure().copy().make_supercell([[1, 0, 0], [3, 1, 0], [0, 2, 1]])


def plain(**values: object) -> Sample:
    return Sample(**{"id": "x", "prompt": "p", "text": "t", **values})


@pytest.fixture(scope="module")
def samples(model: FlowLLM) -> list[Sample]:
    return model.sample(4, formula="NaCl", seed=3, steps=3)


def test_a_record_keeps_every_bit(samples: list[Sample]) -> None:
    failed = plain(text="é\n", attempts=2, rejects={"line_count": 2}, failure="prior: x")
    half = plain(prior_structure=Structure(Lattice.cubic(0.1 + 0.2 + 5), ["Na"], [[1 / 3, 0, 0]]))
    for sample in (*samples, failed, half):
        record = sample.to_record()
        text = json.dumps(record.to_json(), allow_nan=False)
        back = CrystalRecord.from_json(json.loads(text))
        assert same_bits(back.structure, sample.structure)
        assert same_bits(back.initial_structure, sample.prior_structure)
        assert (back.id, back.failure, back.rejects) == (sample.id, sample.failure, sample.rejects)
        assert back.properties == {
            "prompt": sample.prompt,
            "text": sample.text,
            "attempts": sample.attempts,
        }
        assert back.trajectory is None
        assert json.dumps(back.to_json()) == text


def test_a_score_is_a_property_where_there_is_one() -> None:
    assert plain(rank_score=-1.5).to_record().properties["rank_score"] == -1.5
    assert "rank_score" not in plain().to_record().properties


def test_the_likelihood_of_a_refined_crystal_is_in_three_columns() -> None:
    sample = plain(prior_structure=SALT)
    score = LogLikelihood(base=1.0, change=2.0, standard_error=0.5, degrees_of_freedom=6)
    sample.add_refinement(Refinement(structure=SALT, log_likelihood=score))
    found = sample.to_record().properties
    assert [found[name] for name in SCORE_COLUMNS] == [3.0, 0.5, 0.5]


def test_a_likelihood_that_is_no_number_is_absent() -> None:
    sample = plain(prior_structure=SALT)
    score = LogLikelihood(base=0, change=math.nan, standard_error=0.5, degrees_of_freedom=6)
    sample.add_refinement(Refinement(structure=SALT, log_likelihood=score))
    found = sample.to_record().properties
    assert set(SCORE_COLUMNS) & found.keys() == {"log_likelihood_error"}


def test_the_states_of_a_refinement_have_their_times() -> None:
    sample = plain(prior_structure=SALT)
    coords = np.stack([SALT.frac_coords, SALT.frac_coords / 2])
    lattices = np.stack([SALT.lattice.matrix, SALT.lattice.matrix * 2])
    path = Trajectory(t=np.array([0.0, 1.0]), frac_coords=coords, lattice=lattices)
    sample.add_refinement(Refinement(structure=SALT, trajectory=path))
    record = sample.to_record()
    assert record.trajectory is not None
    assert [frame.info for frame in record.trajectory] == [{"t": 0.0}, {"t": 1.0}]
    assert np.array_equal(record.trajectory[1].frac_coords, coords[1])
    assert np.array_equal(record.trajectory[1].lattice, lattices[1])
    json.dumps(record.to_json(), allow_nan=False)


def test_a_refinement_that_failed_keeps_the_crystal_of_the_prior() -> None:
    sample = plain(prior_structure=SALT, structure=SALT)
    sample.add_refinement(Refinement(failure=Failure.NO_CELL))
    assert (sample.structure, sample.failure) == (None, "refiner: no_cell")
    assert sample.prior_structure is SALT


def test_a_proposal_becomes_a_sample_in_the_niggli_cell() -> None:
    proposal = Proposal(prompt="p", text="t", structure=SKEWED, attempts=2, rejects=Counter(x=1))
    sample = Sample.of("name", proposal)
    assert (sample.id, sample.prompt, sample.text, sample.attempts) == ("name", "p", "t", 2)
    assert (sample.rejects, sample.failure) == ({"x": 1}, None)
    assert sample.structure is sample.prior_structure is not None
    niggli = SKEWED.lattice.get_niggli_reduced_lattice()
    assert np.allclose(sample.structure.lattice.abc, niggli.abc)


def test_the_failure_of_a_proposal_is_its_most_frequent_reject() -> None:
    sample = Sample.of("x", Proposal(prompt="p", rejects=Counter(rare=1, often=2)))
    assert (sample.structure, sample.prior_structure) == (None, None)
    assert sample.failure == "prior: often"
