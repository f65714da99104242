"""`flowllm pair`: proposals for targets, aligned, counted, and read back."""

from __future__ import annotations

import json
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.core.structure_matcher import StructureMatcher

from flowllm.crystals.cells import reduce_basis, reduce_cell
from flowllm.crystals.io import Crystal, read, write
from flowllm.errors import UserError
from flowllm.runs.sharded import RunFolder
from flowllm.templates.volumes import template_volume
from flowllm.training.pairing.records import PairingOutcome
from flowllm.training.pairing.run import pair
from flowllm.training.pairing.table import read_pairs
from llm_prior import Prior, PriorError, composition_conditions, generation_prompt, proposals
from llm_prior.proposals import Question
from llm_prior.text import TextFormat, decode, encode
from rfm import PairedCrystal
from support import MP20_SAMPLE


def crystal(name: str, group: str, a: float, species: list[str], coords: list[Any]) -> Crystal:
    structure = Structure.from_spacegroup(group, Lattice.cubic(a), species, coords)
    return Crystal(id=name, structure=structure.get_primitive_structure())


HALF = [0.5] * 3
CRYSTALS = [
    crystal("fluorite", "Fm-3m", 5.46, ["Ca", "F"], [[0, 0, 0], [0.25] * 3]),
    crystal("rock-salt", "Fm-3m", 5.69, ["Na", "Cl"], [[0, 0, 0], HALF]),
    crystal("cubic-perovskite", "Pm-3m", 3.9, ["Sr", "Ti", "O"], [[0] * 3, HALF, [0.5, 0.5, 0]]),
    crystal("iron", "Im-3m", 2.87, ["Fe"], [[0, 0, 0]]),
]
STRUCTURES = {c.id: c.structure for c in CRYSTALS}
PROMPT_OF = {
    name: generation_prompt(composition_conditions(s.formula)) for name, s in STRUCTURES.items()
}
ID_OF = {prompt: name for name, prompt in PROMPT_OF.items()}
EXACT = StructureMatcher(primitive_cell=False, scale=False, ltol=1e-4, stol=1e-3, angle_tol=0.01)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(CRYSTALS, tmp_path_factory.mktemp("data") / "targets.jsonl")


@pytest.fixture(scope="module")
def run(
    data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PairingOutcome, Callable[..., PairingOutcome]]:
    """A finished pairing by the bundled prior, and how to ask for it again."""
    out = tmp_path_factory.mktemp("pair") / "run"
    again = partial(
        pair, data, out=out, samples_per_target=3, batch_size=5, max_attempts=6, device="cpu"
    )
    return again(), again


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def side(paired: PairedCrystal, which: str) -> Structure:
    lattice, coords = (getattr(paired, f"{which}_{name}") for name in ("lattice", "frac_coords"))
    return Structure(Lattice(lattice), paired.atomic_numbers, coords)


def check_pairs(pairs: list[PairedCrystal], targets: dict[str, Structure]) -> None:
    for paired in pairs:
        known = targets[paired.id]
        assert Counter(paired.atomic_numbers.tolist()) == Counter(known.atomic_numbers)
        assert EXACT.fit(side(paired, "target"), known), paired.id
        # The base stands in the cell in which it will stand when samples are refined.
        reduced, _ = reduce_basis(paired.base_lattice, paired.base_frac_coords)
        assert np.allclose(reduced, paired.base_lattice, atol=1e-8)


def answer(monkeypatch: pytest.MonkeyPatch, *rounds: Callable[[str], str]) -> None:
    """Answer a prompt with what the function of its attempt makes of it; the last one stays."""

    def generate_texts(
        prior: Prior, queue: deque[Question], **_: Any
    ) -> Iterator[tuple[int, str, bool]]:
        attempts: Counter[int] = Counter()
        while queue:
            question = queue.popleft()
            make = rounds[min(attempts[question.place], len(rounds) - 1)]
            attempts[question.place] += 1
            prompt = prior.tokenizer.decode(question.prompt, skip_special_tokens=True)
            yield question.place, make(prompt), True

    monkeypatch.setattr(proposals, "generate_texts", generate_texts)


def right(prompt: str) -> str:
    """The target itself, larger, moved, and in another order of its atoms."""
    structure = STRUCTURES[ID_OF[prompt]].copy()
    structure.scale_lattice(structure.volume * 1.2)
    return encode(
        Structure.from_sites(sorted(structure, key=lambda s: s.specie.symbol)),
        TextFormat(),
        translation=(0.31, 0.12, 0.77),
    )


# --- by the bundled prior ------------------------------------------------------------------------


def test_the_counts_add_up(run: tuple[PairingOutcome, Any]) -> None:
    outcome, _ = run
    records = list(RunFolder.open(outcome.file.parent).records())
    assert outcome.requested == len(records) == 12
    assert Counter(r["id"] for r in records) == dict.fromkeys((c.id for c in CRYSTALS), 3)
    kept = [r for r in records if r["pair"] is not None]
    assert outcome.kept == len(kept) == len(read_pairs(outcome.file))
    assert outcome.first_try == sum(r["attempts"] == 1 for r in kept)
    attempts = sum(r["attempts"] for r in records)
    assert sum(outcome.rejects.values()) == attempts - outcome.kept
    summary = json.loads((outcome.file.parent / "summary.json").read_text())
    assert summary == {k: v for k, v in vars(outcome).items() if k != "file"}


def test_pairs_are_of_the_same_atoms_and_the_target_stays_itself(
    run: tuple[PairingOutcome, Any],
) -> None:
    outcome, _ = run
    pairs = read_pairs(outcome.file)
    assert "rock-salt" in {paired.id for paired in pairs}
    check_pairs(pairs, STRUCTURES)
    # Samples of one target are drawn one by one; a simple crystal may come out alike twice.
    drawn = {(p.id, p.base_frac_coords.tobytes(), p.base_lattice.tobytes()) for p in pairs}
    assert len(drawn) > len({p.id for p in pairs}) + 1


def test_samples_have_the_volume_from_which_they_will_be_refined(
    data: Path, tmp_path: Path
) -> None:
    options = {"seed": 3, "device": "cpu", "max_attempts": 6}
    scaled = read_pairs(pair(data, out=tmp_path / "scaled", **options).file)
    written = read_pairs(pair(data, out=tmp_path / "written", volume="prior", **options).file)
    assert [p.id for p in scaled] == [p.id for p in written]
    changes = []
    for one, other in zip(scaled, written, strict=True):
        base, same = side(one, "base"), side(other, "base")
        expected = template_volume(same, exclude_formula=True)
        assert expected is not None and base.volume == pytest.approx(expected, rel=1e-6)
        assert np.allclose(one.base_frac_coords, other.base_frac_coords, atol=1e-8)
        changes.append(abs(base.volume / same.volume - 1))
    assert max(changes) > 0.01


def test_the_file_holds_what_the_shards_hold(run: tuple[PairingOutcome, Any]) -> None:
    outcome, _ = run
    records = [r for r in RunFolder.open(outcome.file.parent).records() if r["pair"]]
    for paired, record in zip(read_pairs(outcome.file), records, strict=True):
        assert paired.id == record["id"]
        for name, values in record["pair"].items():
            assert np.array_equal(getattr(paired, name), values)


def test_targets_of_like_size_are_sampled_together(run: tuple[PairingOutcome, Any]) -> None:
    outcome, _ = run
    sizes = {name: len(structure) for name, structure in STRUCTURES.items()}
    done = [sizes[r["id"]] for r in RunFolder.open(outcome.file.parent).records()]
    assert done == sorted(done)


def test_a_finished_pairing_is_left_alone_and_no_other_is_written_over_it(
    run: tuple[PairingOutcome, Any], data: Path, tmp_path: Path
) -> None:
    outcome, again = run
    before = contents(outcome.file.parent)
    assert again() == outcome
    other = write(CRYSTALS[:2], tmp_path / "other.jsonl")
    for change, message in (
        ({"seed": 1}, "seed is 0 there, 1 here"),
        ({"samples_per_target": 2}, "samples_per_target is 3 there, 2 here; total is 12 there, 8"),
        ({"limit": 2}, "limit is not given there, 2 here"),
        ({"batch_size": 6}, "batch_size is 5 there, 6 here"),
        ({"data": other}, "data is .* there, .* here"),
    ):
        with pytest.raises(UserError, match=message):
            pair(**({"data": data} | again.keywords | change))
    assert contents(outcome.file.parent) == before


def test_real_crystals_are_paired(tmp_path: Path) -> None:
    outcome = pair(
        MP20_SAMPLE,
        prior="bundled:sites",
        out=tmp_path / "run",
        limit=12,
        max_attempts=2,
        device="cpu",
    )
    assert outcome.requested == 12 and outcome.kept >= 1
    targets = {c.id: c.structure for c in read(MP20_SAMPLE, limit=12)}
    check_pairs(read_pairs(outcome.file), targets)


# --- by a prior that says what we tell it --------------------------------------------------------


def test_a_perfect_prior_keeps_every_pair(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, right)
    outcome = pair(data, prior="bundled:sites", out=tmp_path / "run", volume="prior", device="cpu")
    assert (outcome.requested, outcome.kept, outcome.first_try, outcome.rejects) == (4, 4, 4, {})
    pairs = read_pairs(outcome.file)
    check_pairs(pairs, STRUCTURES)
    for paired in pairs:
        # Same crystal on both sides but for size, a translation and rounding to two decimals:
        # nothing has to move far.
        away = paired.target_frac_coords - paired.base_frac_coords
        assert np.abs(away - np.round(away)).max() < 0.02
        known = decode(right(PROMPT_OF[paired.id]), TextFormat())
        assert np.allclose(paired.base_lattice, reduce_cell(known).lattice.matrix, atol=1e-9)


def test_refused_answers_are_counted_by_reason(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flat(prompt: str) -> str:
        return right(prompt).replace(right(prompt).split("\n")[0], "0.1 0.1 0.1")

    def not_salt(prompt: str) -> str:
        return "no crystal" if "NaCl" in prompt else right(prompt)

    answer(monkeypatch, not_salt, not_salt, right)
    outcome = pair(data, prior="bundled:sites", out=tmp_path / "a", max_attempts=3, device="cpu")
    assert (outcome.kept, outcome.first_try, outcome.rejects) == (4, 3, {"line_count": 2})
    answer(monkeypatch, not_salt)
    outcome = pair(data, prior="bundled:sites", out=tmp_path / "b", max_attempts=2, device="cpu")
    assert (outcome.kept, outcome.first_try, outcome.rejects) == (3, 3, {"line_count": 2})
    assert [p.id for p in read_pairs(outcome.file)] == ["iron", "fluorite", "cubic-perovskite"]

    answer(monkeypatch, flat)
    for _ in range(2):  # the shards are there the second time
        with pytest.raises(UserError, match=r"none of 4 samples could be paired.*: bad_cell 4\)"):
            pair(data, prior="bundled:sites", out=tmp_path / "c", device="cpu")
    counts = json.loads((tmp_path / "c" / "summary.json").read_text())
    assert (counts["kept"], counts["rejects"]) == (0, {"bad_cell": 4})
    assert not (tmp_path / "c" / "pairs.parquet").exists()


# --- what is refused -----------------------------------------------------------------------------


def test_targets_larger_than_the_prior_writes_stop_or_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = CRYSTALS[1].structure * (3, 2, 2)
    file = write([Crystal(id="large", structure=large), CRYSTALS[3]], tmp_path / "in.json")
    with pytest.raises(UserError, match="id large.: 24 atoms, over max_atoms=20"):
        pair(file, prior="bundled:sites", out=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
    answer(monkeypatch, right)
    outcome = pair(
        file, prior="bundled:sites", out=tmp_path / "run", skip_invalid=True, device="cpu"
    )
    assert [paired.id for paired in read_pairs(outcome.file)] == ["iron"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "nowhere.csv"}, "nowhere.csv: no such file"),
        ({"temperature": math.nan}, "temperature is nan; give a number at least 0"),
        ({"guidance": -1}, "guidance is -1; give a number at least 0 and at most 100"),
        ({"max_attempts": 0}, "max_attempts is 0; give a whole number at least 1"),
        ({"samples_per_target": 0}, "samples_per_target is 0; give a whole number at least 1"),
        ({"seed": -1}, "seed is -1; give a whole number at least 0"),
        ({"batch_size": 0}, "batch_size is 0; give a whole number at least 1"),
        ({"temprature": 0.5}, "unknown option 'temprature'; known are .*temperature"),
        ({"limit": 0}, "limit is 0; give a whole number at least 1"),
    ],
)
def test_an_impossible_request_leaves_the_folder_free(
    data: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises((UserError, PriorError), match=message):
        pair(**({"data": data, "out": tmp_path / "run", "device": "cpu"} | change))
    assert {path.name for path in (tmp_path / "run").rglob("*")} <= {".lock"}
