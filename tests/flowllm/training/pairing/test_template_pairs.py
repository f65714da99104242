"""`flowllm pair --templates`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Composition, Lattice, Structure

from flowllm.crystals.io import Crystal, read, write
from flowllm.crystals.symmetry import symmetry_of
from flowllm.errors import UserError
from flowllm.templates.library import build_library
from flowllm.templates.proposals import propose_templates
from flowllm.training.pairing.run import pair
from flowllm.training.pairing.table import read_pairs, write_pairs
from flowllm.training.refiner import train_refiner
from rfm import PairDataset, Refiner
from rfm.config import BaseConfig
from support import MP20_SAMPLE

SMALL = ("network.width=8", "network.layers=1", "network.num_frequencies=2")


def rocksalt(name: str, cation: str, anion: str, a: float) -> Crystal:
    lattice = Lattice.cubic(a)
    salt = Structure.from_spacegroup("Fm-3m", lattice, [cation, anion], [[0] * 3, [0.5] * 3])
    return Crystal(id=name, structure=salt.get_primitive_structure(), properties={})


def test_a_target_is_paired_with_other_compounds_alone(tmp_path: Path) -> None:
    known = [rocksalt("a", "Na", "Cl", 5.7), rocksalt("a2", "Na", "Cl", 5.9)]
    known += [rocksalt("b", "K", "Cl", 6.3), rocksalt("c", "Mg", "O", 4.2)]
    data = write(known, tmp_path / "known.jsonl")
    build_library(data, tmp_path / "library.parquet")
    outcome = pair(data, templates=tmp_path / "library.parquet", out=tmp_path / "run")
    assert (outcome.requested, outcome.kept, outcome.rejects) == (4, 4, {})
    found = {p.id: p for p in read_pairs(outcome.file)}
    # Neither of the two entries of NaCl is the base of the other: that one is exact.
    assert found["a"].base == found["a2"].base
    for name in ("a", "a2"):
        assert 0.001 < abs(found[name].base.volume / found[name].target.volume - 1) < 0.2
    assert found["c"].base.volume > 1.05 * found["c"].target.volume  # made from a chloride


def test_bases_are_the_first_proposals_and_share_groups_with_their_targets(tmp_path: Path) -> None:
    data = write(read(MP20_SAMPLE, limit=16), tmp_path / "data.jsonl")
    outcome = pair(
        data, templates="bundled", samples_per_target=2, out=tmp_path / "run", batch_size=7
    )
    assert outcome.requested == 32
    assert outcome.kept == 32 - outcome.rejects.get("no_template", 0) > 16
    pairs = read_pairs(outcome.file)
    assert max(Counter(p.id for p in pairs).values()) == 2
    for first in {p.id: p for p in reversed(pairs)}.values():
        formula = Composition(first.target.formula)
        units = round(formula.get_integer_formula_and_factor()[1])
        best = propose_templates(
            first.target.formula, n=1, formula_units=[units], exclude_formula=True
        )
        found = symmetry_of(first.base)
        assert found is not None and found.gene == best[0].gene
        assert first.base.volume == pytest.approx(best[0].structure.volume, rel=1e-6)
    kept = PairDataset(pairs, base=BaseConfig(symmetry="keep"))
    assert 0 < len(kept) < len(pairs)

    # A killed run goes on, and another number of processes gives the same file.
    before = outcome.file.read_bytes()
    (tmp_path / "run" / "shards" / "00001.jsonl").unlink()
    outcome.file.unlink()
    pair(data, templates="bundled", samples_per_target=2, out=tmp_path / "run", batch_size=7)
    assert outcome.file.read_bytes() == before


def test_a_refiner_is_trained_on_templates_and_samples_together(tmp_path: Path) -> None:
    data = write(read(MP20_SAMPLE, limit=6), tmp_path / "data.jsonl")
    made = pair(data, templates="bundled", out=tmp_path / "run").file
    samples = tmp_path / "samples.parquet"
    write_pairs(read_pairs(made)[:2], samples, base="llm")
    model = train_refiner(
        "rfm/wyckoff",
        pairs=[samples, made],
        out=tmp_path / "refiner",
        overrides=[*SMALL, "training.max_steps=2", "training.batch_size=2"],
        device="cpu",
    )
    assert Refiner.from_pretrained(model).config.base.kind == "llm"
    assert np.isfinite(Refiner.from_pretrained(model).config.statistics.mean).all()
    assert read_pairs(made, base="file")  # templates alone go with either kind


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    data, out = MP20_SAMPLE, tmp_path / "run"
    with pytest.raises(UserError, match="nothing: no such template library; make it with"):
        pair(data, templates="nothing", out=out)
    with pytest.raises(UserError, match="samples and templates exclude each other"):
        pair(data, templates="bundled", samples=data, out=out)
    for options in ({"prior": "bundled"}, {"temperature": 0.3}, {"guidance": 2}):
        (name,) = options
        with pytest.raises(UserError, match=f"templates take the place of .*; leave out {name}"):
            pair(data, templates="bundled", out=out, **options)
    lonely = write([rocksalt("a", "Na", "Cl", 5.7)], tmp_path / "one.jsonl")
    build_library(lonely, tmp_path / "library.parquet")
    with pytest.raises(UserError, match=r"none of 1 samples .*no_template 1\); give a library"):
        pair(lonely, templates=tmp_path / "library.parquet", out=out)
