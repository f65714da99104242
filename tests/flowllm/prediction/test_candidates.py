"""Candidates for a formula: their sources, and equal ones among them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from flowllm.crystals.symmetry import symmetry_of
from flowllm.errors import UserError
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
    found, failures = propose_candidates(None, "SrTiO3", TEMPLATES, bundled(), fitted())
    assert len({one.gene for one in found}) == len(found) == TEMPLATES.num_templates
    logs = [one.log_probability for one in found]
    assert logs == sorted(logs, reverse=True)
    assert not failures
    assert found[0].gene == "221 Sr:a Ti:b O:c" and found[0].source.startswith("template mp-")


def test_the_request_is_kept() -> None:
    config = replace(TEMPLATES, z=(2, 4), spacegroup="195-230", max_atoms=16)
    found, _ = propose_candidates(None, "NaCl", config, bundled(), fitted())
    assert found
    assert {len(one.structure) for one in found} <= {4, 8}
    assert min(one.spacegroup for one in found) >= 195
    by_system = replace(TEMPLATES, crystal_system="tetragonal")
    found, _ = propose_candidates(None, "NaCl", by_system, bundled(), fitted())
    assert found and all(75 <= one.spacegroup <= 142 for one in found)


def test_templates_are_left_out_by_formula_and_by_id() -> None:
    first = propose_candidates(None, "SrTiO3", TEMPLATES, bundled(), fitted())[0][0]
    name = first.source.split()[1]
    without = replace(TEMPLATES, exclude_ids=(name,))
    found, _ = propose_candidates(None, "SrTiO3", without, bundled(), fitted())
    assert not any(name in one.source for one in found)
    without = replace(TEMPLATES, exclude_formula=True)
    found, _ = propose_candidates(None, "SrTiO3", without, bundled(), fitted())
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


def test_units_that_fit() -> None:
    assert check_units("NaCl", PredictionConfig()) == ()
    assert check_units("SrTiO3", PredictionConfig(z=(1, 4, 8))) == (1, 4)
    with pytest.raises(UserError, match="NaCl: 11 formula units have 22 atoms, more than 20; rai"):
        check_units("NaCl", PredictionConfig(z=(11,)))
    with pytest.raises(UserError, match="SrTiO3: a formula unit has 5 atoms, more than 4"):
        check_units("SrTiO3", PredictionConfig(max_atoms=4))


def test_the_draws_depend_on_the_formula_and_the_seed_alone() -> None:
    seeds = {
        formula_seed(seed, formula, place)
        for seed in (0, 1)
        for formula in ("NaCl", "KCl")
        for place in (0, 1)
    }
    assert len(seeds) == 8 and all(0 <= seed < 2**63 for seed in seeds)
    assert formula_seed(0, "Na2Cl2") == formula_seed(0, "NaCl")


def test_a_formula_without_candidates_is_refused() -> None:
    with pytest.raises(UserError, match="no template has its stoichiometry, and no samples"):
        propose_candidates(None, "Na7Cl11", TEMPLATES, bundled(), fitted())
