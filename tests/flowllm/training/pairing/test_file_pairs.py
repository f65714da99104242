"""`flowllm pair --samples`, and refiners of such pairs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from flowllm.crystals.io import Crystal, write
from flowllm.errors import UserError
from flowllm.generation.sampling_run import run_refinement, run_sampling
from flowllm.training.pairing.run import pair
from flowllm.training.pairing.table import read_pairs, write_pairs
from flowllm.training.refiner import train_refiner
from rfm import Refiner

SMALL = ("network.width=8", "network.layers=1", "network.num_frequencies=2")
STEPS = ("training.max_steps=2", "training.match_crystals=4", "integration.steps=2")


def crystal(name: str, species: list[str], a: float, **properties: str) -> Crystal:
    coords = np.linspace(0, 1, len(species), endpoint=False)[:, None] * [1, 1, 0.9]
    structure = Structure(Lattice.orthorhombic(a, a + 0.5, a + 1), species, coords)
    return Crystal(id=name, structure=structure, properties=dict(properties))


TARGETS = [
    crystal("one", ["Na", "Cl"], 4.0),
    crystal("two", ["Cl", "Na"], 5.0),
    crystal("three", ["Mg", "O", "O"], 4.0),
]
SAMPLES = [
    crystal("one", ["Na", "Cl"], 4.2),  # by its id
    crystal("a", ["Na", "Cl"], 4.3, target="two"),  # by name
    crystal("b", ["Cl", "Na"], 4.4),  # of the atoms of two targets
    crystal("three", ["Mg", "O"], 4.0),
    crystal("d", ["Na", "Cl"], 4.5, target="elsewhere"),  # of a target that is not here
    crystal("c", ["Na", "Na", "Cl", "Cl"], 5.0),
]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    data = write(TARGETS, tmp_path / "targets.jsonl")
    return data, write(SAMPLES, tmp_path / "samples.jsonl")


def test_samples_go_to_the_target_they_name_or_to_all_of_their_atoms(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    data, samples = files
    outcome = pair(data, samples=samples, out=tmp_path / "run", batch_size=2)
    found = read_pairs(outcome.file, base="file")
    lengths = sorted((p.id, round(np.linalg.norm(p.base_lattice, axis=1).min(), 3)) for p in found)
    assert lengths == [("one", 4.2), ("one", 4.4), ("two", 4.3), ("two", 4.4)]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary == {
        "requested": 7,
        "kept": 4,
        "first_try": 4,
        "rejects": {"no_target": 2, "other_composition": 1},
    }
    before = outcome.file.read_bytes()
    (tmp_path / "run" / "shards" / "00001.jsonl").unlink()  # as after a kill
    outcome.file.unlink()
    assert pair(data, samples=samples, out=tmp_path / "run", batch_size=2) == outcome
    assert outcome.file.read_bytes() == before


def test_a_target_named_by_a_number_is_found_in_a_column_with_gaps(tmp_path: Path) -> None:
    data = write(
        [crystal("5", ["Na", "Cl"], 4.0), crystal("6", ["Na", "Cl"], 5.0)], tmp_path / "t.csv"
    )
    samples = [crystal("a", ["Na", "Cl"], 4.1, target="5"), crystal("b", ["Na", "Cl"], 4.2)]
    outcome = pair(data, samples=write(samples, tmp_path / "s.csv"), out=tmp_path / "run")
    assert sorted(found.id for found in read_pairs(outcome.file)) == ["5", "5", "6"]


def test_what_cannot_be_paired_is_one_line(files: tuple[Path, Path], tmp_path: Path) -> None:
    data, samples = files
    with pytest.raises(UserError, match="samples take the place of a prior; leave out temper"):
        pair(data, samples=samples, out=tmp_path / "run", temperature=0.3)
    with pytest.raises(UserError, match="there is no|no such file"):
        pair(data, samples="nothing.cif", out=tmp_path / "run")
    other = write(SAMPLES[-1:], tmp_path / "other.jsonl")
    with pytest.raises(UserError, match=r"none of 1 samples .*no_target 1\); give samples of the"):
        pair(data, samples=other, out=tmp_path / "run")


def test_a_refiner_of_a_file_refines_files_and_not_a_priors_samples(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    data, samples = files
    made = pair(data, samples=samples, out=tmp_path / "run").file
    with pytest.raises(UserError, match="pairs of base.kind file, not llm; set base.kind=file"):
        train_refiner(pairs=made, out=tmp_path / "refiner", device="cpu")
    more = tmp_path / "more.parquet"
    write_pairs(read_pairs(made), more, base="file")
    overrides = [*SMALL, *STEPS, "base.kind=file", "training.batch_size=2"]
    model = train_refiner(pairs=[made, more], out=tmp_path / "refiner", overrides=overrides)
    run = json.loads((tmp_path / "refiner" / "run.json").read_text())["run"]
    assert [source["name"] for source in run["data"]] == ["pairs.parquet", "more.parquet"]
    assert Refiner.from_pretrained(model).config.base.kind == "file"

    out = tmp_path / "out"
    with pytest.raises(UserError, match="crystals of a file, .*use `flowllm refine FILE`"):
        run_sampling(1, refine=True, refiner=model, out=out, device="cpu")
    assert not out.exists()
    outcome = run_refinement(samples, refiner=model, out=out, device="cpu", skip_invalid=True)
    # All but the one of four atoms: the refiner was trained on two.
    assert len(outcome.crystals) + outcome.failures.total() == len(SAMPLES) - 1
