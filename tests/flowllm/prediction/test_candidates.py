"""Candidates for a formula: their sources, and equal ones among them."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from flowllm.crystals.symmetry import symmetry_of
from flowllm.errors import PriorError, UserError
from flowllm.generation.config import SamplingConfig
from flowllm.generation.sample import Sample
from flowllm.prediction.candidates import (
    Candidate,
    check_units,
    formula_seed,
    merge,
    propose_candidates,
)
from flowllm.prediction.config import PredictionConfig
from flowllm.prediction.scores import fitted
from flowllm.templates.library import bundled
from llm_prior.wyckoff.crystal import WyckoffCrystal
from support import perovskite

TEMPLATES = PredictionConfig(num_samples=0)


def candidate(structure: Structure, chance: float, energy: float | None = None) -> Candidate:
    symmetry = symmetry_of(structure)
    assert symmetry is not None
    return Candidate(
        structure=structure,
        spacegroup=symmetry.spacegroup,
        gene=symmetry.gene,
        source="sample",
        log_probability=math.log(chance),
        energy_per_atom=energy,
    )


def tetragonal() -> Structure:
    """A perovskite with titanium off its centre."""
    lattice = Lattice.tetragonal(3.9, 4.1)
    coords = np.array(perovskite().frac_coords)
    coords[1, 2] += 0.06
    return Structure(lattice, perovskite().species, coords)


def test_candidates_from_templates_are_different_and_ordered() -> None:
    found, failures, _ = propose_candidates(None, "SrTiO3", TEMPLATES, bundled(), fitted())
    assert len({one.gene for one in found}) == len(found) == TEMPLATES.num_templates
    logs = [one.log_probability for one in found]
    assert logs == sorted(logs, reverse=True)
    assert not failures
    assert found[0].gene == "221 Sr:a Ti:b O:c" and found[0].source.startswith("template mp-")


def test_the_request_is_kept() -> None:
    config = replace(TEMPLATES, z=(2, 4), spacegroup="195-230", max_atoms=16)
    found, _, _ = propose_candidates(None, "NaCl", config, bundled(), fitted())
    assert found
    assert {len(one.structure) for one in found} <= {4, 8}
    assert min(one.spacegroup for one in found) >= 195
    by_system = replace(TEMPLATES, crystal_system="tetragonal")
    found, _, _ = propose_candidates(None, "NaCl", by_system, bundled(), fitted())
    assert found and all(75 <= one.spacegroup <= 142 for one in found)


def test_templates_are_left_out_by_formula_and_by_id() -> None:
    first = propose_candidates(None, "SrTiO3", TEMPLATES, bundled(), fitted())[0][0]
    name = first.source.split()[1]
    without = replace(TEMPLATES, exclude_ids=(name,))
    found, _, _ = propose_candidates(None, "SrTiO3", without, bundled(), fitted())
    assert not any(name in one.source for one in found)
    without = replace(TEMPLATES, exclude_formula=True)
    found, _, _ = propose_candidates(None, "SrTiO3", without, bundled(), fitted())
    assert not any("(SrTiO3)" in one.source for one in found)


def test_equal_structures_are_one_and_their_probabilities_add() -> None:
    first, second = candidate(perovskite(3.9), 0.5), candidate(perovskite(4.0), 0.2)
    (kept,) = merge([first, second])
    assert kept.structure is first.structure
    assert math.exp(kept.log_probability) == pytest.approx(0.7)


def test_a_distorted_structure_is_equal_only_if_its_energy_is() -> None:
    cubic, distorted = candidate(perovskite(), 0.5), candidate(tetragonal(), 0.5)
    assert cubic.spacegroup != distorted.spacegroup
    assert len(merge([cubic, distorted])) == 2
    far = [replace(cubic, energy_per_atom=-8.40), replace(distorted, energy_per_atom=-8.41)]
    near = [replace(cubic, energy_per_atom=-8.40), replace(distorted, energy_per_atom=-8.401)]
    assert [len(merge(far)), len(merge(near))] == [2, 1]
    assert merge(near)[0].spacegroup == 221  # the undistorted one


def test_one_group_with_two_energies_is_two_structures() -> None:
    one, other = candidate(perovskite(3.9), 0.5, -8.40), candidate(perovskite(3.9), 0.2, -8.50)
    assert [kept.energy_per_atom for kept in merge([one, other])] == [-8.40, -8.50]
    near = replace(other, energy_per_atom=-8.4015)
    (kept,) = merge([one, near])
    assert kept.energy_per_atom == -8.4015 and math.exp(kept.log_probability) == pytest.approx(0.7)


def test_units_that_fit() -> None:
    assert check_units("NaCl", PredictionConfig()) == ()
    assert check_units("SrTiO3", PredictionConfig(z=(1, 4, 8))) == (1, 4)
    with pytest.raises(UserError, match="NaCl: 11 formula units have 22 atoms, more than 20; rai"):
        check_units("NaCl", PredictionConfig(z=(11,)))
    with pytest.raises(UserError, match="SrTiO3: a formula unit has 5 atoms, more than 4"):
        check_units("SrTiO3", PredictionConfig(max_atoms=4))


def test_a_formula_unit_has_no_common_divisor() -> None:
    assert check_units("Na2O2", PredictionConfig(z=(6,))) == (6,)
    config = replace(TEMPLATES, z=(4,))
    found, _, _ = propose_candidates(None, "K2O2", config, bundled(), fitted())
    assert {len(one.structure) for one in found} == {8}


def test_the_draws_depend_on_the_formula_and_the_seed_alone() -> None:
    seeds = {
        formula_seed(seed, formula, *places)
        for seed in (0, 1)
        for formula in ("NaCl", "KCl")
        for places in ((0,), (1,), (0, 1))
    }
    assert len(seeds) == 12 and all(0 <= seed < 2**63 for seed in seeds)
    assert formula_seed(0, "Na2Cl2") == formula_seed(0, "NaCl")


def test_a_formula_without_candidates_is_refused() -> None:
    with pytest.raises(UserError, match="no template has its stoichiometry, and no samples"):
        propose_candidates(None, "Na7Cl11", TEMPLATES, bundled(), fitted())


class Sampler:
    """Stands for the pair: writes at most 10 atoms, and gives every sample one structure."""

    def __init__(self, structure: Structure | None = None) -> None:
        self.prior = SimpleNamespace(fmt=SimpleNamespace(max_atoms=10))
        self.structure = perovskite() if structure is None else structure
        self.counts: dict[str | None, int] = {}
        self.volumes: list[float] = []

    def prepare(self, config: SamplingConfig, known: Any) -> None:
        if int(config.conditions.get("num_atoms", 0)) > 10:
            raise UserError("this model writes at most 10 atoms")

    def sample_batch(
        self, config: SamplingConfig, known: Any, indices: range, *, rescale: Any
    ) -> list[Sample]:
        assert len(indices)
        self.counts[config.conditions.get("num_atoms")] = len(indices)
        self.volumes += [rescale(self.structure).volume]
        return [Sample(id="x", prompt="", text="", structure=self.structure) for _ in indices]


def sampled(config: PredictionConfig, sampler: Sampler) -> Any:
    return propose_candidates(sampler, "SrTiO3", config, bundled(), fitted())  # type: ignore[arg-type]


def test_a_size_that_the_prior_cannot_write_loses_no_other() -> None:
    sampler = Sampler()
    config = PredictionConfig(z=(1, 2, 6), max_atoms=40, num_templates=0)
    found, _, warning = sampled(config, sampler)
    assert sampler.counts == {"5": 5, "10": 5} and len(found) == 1
    assert warning == "some samples are missing: this model writes at most 10 atoms"
    sampler = Sampler()
    sampled(replace(config, z=(1, 2), num_samples=1), sampler)
    assert sampler.counts == {"5": 1}
    _, _, warning = sampled(PredictionConfig(z=(4,)), Sampler())
    assert warning == "candidates from templates alone: this model writes at most 10 atoms"


def test_a_missing_model_is_an_error() -> None:
    with pytest.raises(UserError, match="needs a prior"):
        propose_candidates(None, "SrTiO3", PredictionConfig(), bundled(), fitted())


def test_excluded_templates_do_not_scale_samples() -> None:
    kept, left_out, by_id = Sampler(), Sampler(), Sampler()
    sampled(PredictionConfig(), kept)
    sampled(PredictionConfig(exclude_formula=True), left_out)
    sampled(PredictionConfig(exclude_ids=tuple(bundled().ids)), by_id)
    assert abs(kept.volumes[0] - left_out.volumes[0]) > 0.5
    assert by_id.volumes == [perovskite().volume]


def test_a_sampled_gene_has_its_probability_by_the_templates_whatever_their_number() -> None:
    genes, _, _ = propose_candidates(
        None, "SrTiO3", replace(TEMPLATES, num_templates=30), bundled(), fitted()
    )
    last = next(one for one in reversed(genes) if len(one.structure) == 5)
    found, _, _ = sampled(PredictionConfig(num_templates=1), Sampler(last.structure))
    (same,) = [one for one in found if one.gene == last.gene]
    assert same.source == "sample" and same.of_templates == pytest.approx(last.of_templates)


def test_a_candidate_has_the_group_of_its_own_structure() -> None:
    for formula in ("SrTiO3", "TiO2", "FeS2"):
        found, _, _ = propose_candidates(
            None, formula, replace(TEMPLATES, num_templates=40), bundled(), fitted()
        )
        for one in found:
            symmetry = symmetry_of(one.structure)
            assert symmetry is not None
            assert (one.spacegroup, one.gene) == (symmetry.spacegroup, symmetry.gene)


def test_a_proposal_without_a_reduced_cell_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def primitive(crystal: WyckoffCrystal) -> Structure:
        if crystal.spacegroup == 221:
            raise PriorError("no Niggli cell")
        return whole(crystal)

    whole = WyckoffCrystal.primitive
    monkeypatch.setattr(WyckoffCrystal, "primitive", primitive)
    found, failures, _ = propose_candidates(None, "SrTiO3", TEMPLATES, bundled(), fitted())
    assert found and failures["template: no reduced cell, or no symmetry"] >= 1
