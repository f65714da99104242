"""Run folders as input: their ids and properties, failures, unfinished runs, hashes."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pymatgen.core import Lattice, Structure

from flowllm.crystals.formulas import KnownFormulas
from flowllm.crystals.io import Crystal, check_input, input_hash, read, read_all, run_table, write
from flowllm.errors import InvalidCrystal, UserError
from flowllm.evaluation.evaluate import evaluate
from support import cif, perovskite, run_command, skewed

COPPER = Structure(
    Lattice.cubic(3.6), ["Cu"] * 4, [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
)
SALT = Structure(
    Lattice.from_parameters(4.02, 4.02, 4.02, 60, 60, 60), ["Na", "Cl"], [[0, 0, 0], [0.5] * 3]
)


def table_of(*ids: str) -> pd.DataFrame:
    """A table of crystals of which the second one has failed."""
    rows: list[dict[str, Any]] = [
        {
            "id": name,
            "cif": cif(perovskite() if number else skewed()),
            "failure": None,
            "energy_per_atom": -1.5,
            "prompt": "Below is",
            "structure": "{}",
            "rejects": "{}",
        }
        for number, name in enumerate(ids)
    ]
    rows[1] |= {"cif": None, "failure": "no answer that decodes", "energy_per_atom": None}
    return pd.DataFrame(rows)


def run_folder(path: Path, **run: Any) -> Path:
    (path / "shards").mkdir(parents=True)
    (path / "manifest.json").write_text(json.dumps({"run": {"command": "sample", **run}}))
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = run_folder(tmp_path / "run")
    table_of("a", "b", "c").to_parquet(folder / "samples.parquet")
    return folder


def test_a_run_is_read_with_its_ids_and_scalars_without_its_failures(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "flowllm"):
        crystals = read(run)
    assert [crystal.id for crystal in crystals] == ["a", "c"]
    assert crystals[0].properties == {"energy_per_atom": -1.5}
    assert crystals.skipped == Counter(failed=1)
    assert "read 2 crystals, left out: failed 1" in caplog.text
    assert [crystal.id for crystal in read(run, limit=2)] == ["a"]  # of the rows


def test_the_failures_of_a_run_are_rows_with_their_reason(run: Path) -> None:
    _, failed, _ = read_all(run)
    assert isinstance(failed.source, InvalidCrystal)
    assert failed.source.reason == "failed"
    assert failed.properties == {"failure": "no answer that decodes"}


def test_a_bad_row_of_a_run_is_an_error_and_a_failed_one_is_not(run: Path) -> None:
    table = table_of("a", "b", "c")
    table.loc[2, "cif"] = "nonsense"
    table.to_parquet(run / "samples.parquet")
    with pytest.raises(InvalidCrystal, match=r"row 3 \(id c\): column 'cif': not a readable CIF"):
        read(run)
    assert read(run, skip_invalid=True).skipped == Counter(failed=1, unreadable=1)
    table.loc[:, "cif"] = None
    table.to_parquet(run / "samples.parquet")
    with pytest.raises(UserError, match=r"holds no valid crystal \(failed 3; row 1"):
        read(run)


def test_the_table_of_a_run_and_the_run_do_not_share_cached_rows(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowllm.crystals.io._WORTH_CACHING", 1)
    for _ in range(2):
        assert read(run).skipped == Counter(failed=1)
        table = read(run / "samples.parquet", skip_invalid=True)
        assert table.skipped == Counter(unreadable=1)
        assert table[0].properties["prompt"] == "Below is"


@pytest.mark.parametrize("name", ["manifest.json", "evaluation.json"])
def test_an_unfinished_run_is_one_clear_error(tmp_path: Path, name: str) -> None:
    folder = run_folder(tmp_path / "run")
    (folder / "manifest.json").rename(folder / name)
    for function in (read, read_all, check_input, run_table, input_hash):
        with pytest.raises(UserError, match="run: the run is not finished; repeat its command"):
            function(folder)
    (folder / name).write_text("{")
    with pytest.raises(UserError, match=f"{name} is damaged"):
        read(folder)


def test_pairs_are_no_crystals(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", command="pair")
    (folder / "pairs.parquet").touch()
    with pytest.raises(UserError, match="run: a run of flowllm pair holds pairs and no crystals"):
        read(folder)


def test_an_evaluation_is_read_with_its_relaxed_crystals_if_it_has_some(tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    folder.mkdir()
    identity = folder / "evaluation.json"
    table_of("a", "b").to_parquet(folder / "structures.parquet")
    identity.write_text(json.dumps({"run": {"potential": None}}))
    assert run_table(folder) == folder / "structures.parquet"
    identity.write_text(json.dumps({"run": {"potential": {"name": "chgnet"}}}))
    with pytest.raises(UserError, match="the run is not finished"):
        read(folder)
    table_of("a", "b", "c").to_parquet(folder / "relaxed.parquet")
    assert [crystal.id for crystal in read(folder)] == ["a", "c"]


def test_ids_of_several_sets_are_told_apart_by_the_set(tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    folder.mkdir()
    (folder / "evaluation.json").write_text(json.dumps({"run": {"potential": None}}))
    one, two = table_of("a", "b"), table_of("c", "b", "a")
    pd.concat([one.assign(set="one"), two.assign(set="two")]).to_parquet(
        folder / "structures.parquet"
    )
    assert [crystal.id for crystal in read(folder)] == ["one-a", "two-c", "two-a"]


def test_the_hash_of_a_run_is_that_of_its_table(run: Path, tmp_path: Path) -> None:
    before = input_hash(run)
    (run / ".lock").touch()
    (run / "shards" / "00000.jsonl").write_text("{}")
    assert input_hash(run) == before == input_hash(run / "samples.parquet")
    table_of("a", "b").to_parquet(run / "samples.parquet")
    assert input_hash(run) != before
    assert KnownFormulas(run).files == [{"name": "run", "sha256": input_hash(run)}]
    with pytest.raises(UserError, match="nowhere: no such file"):
        input_hash(tmp_path / "nowhere")


# --- real runs ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small run of each command; NaCl fails to relax, as the potential has no parameters."""
    folder = tmp_path_factory.mktemp("runs")
    file = write(
        [Crystal(id="metal", structure=COPPER), Crystal(id="salt", structure=SALT)],
        folder / "two.jsonl",
    )
    potential = ("--potential", "ase.calculators.emt:EMT")
    commands: dict[str, tuple[object, ...]] = {
        "sample": ("-n", 2, "--formula", "NaCl", "--no-refine"),
        "refine": (file,),
        "mutate": (file, "-n", 2, "--method", "uniform"),
        "relax": (file, *potential),
    }
    for name, arguments in commands.items():
        result = run_command(name, *arguments, "--out", folder / name)
        assert result.exit_code == (1 if name == "relax" else 0), result.output
    return {name: folder / name for name in commands}


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("sample", {"attempts"}),
        ("refine", set()),
        ("mutate", {"parent", "swap", "probability"}),
        ("relax", {"energy_per_atom", "initial_energy_per_atom", "steps"}),
    ],
)
def test_the_run_of_each_command_is_read(
    runs: dict[str, Path], command: str, names: set[str]
) -> None:
    crystals = read(runs[command])
    assert len(crystals) == (1 if command == "relax" else 2)
    assert crystals.skipped == Counter(failed=1 if command == "relax" else 0)
    long = {"structure", "initial_structure", "prompt", "text", "rejects", "cif"}
    for crystal in crystals:
        assert names <= crystal.properties.keys()
        assert not long & crystal.properties.keys()


@pytest.mark.parametrize(
    "arguments",
    [
        ("relax", "RELAXED", "--potential", "ase.calculators.emt:EMT"),
        ("score", "RUN"),
        ("ipt", "RUN", "--num-translations", 2),
        ("infill", "RUN", "--mask", "Na"),
        ("mutate", "RUN", "-n", 1, "--method", "uniform"),
        ("refine", "RUN"),
        ("data", "RUN", "OUT.extxyz"),
        ("export-vasp", "RUN", "--where", "attempts>0"),
        ("sample", "-n", 1, "--formula", "NaCl", "--novel-to", "RUN"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_each_command_takes_a_run(
    runs: dict[str, Path], tmp_path: Path, arguments: tuple[object, ...]
) -> None:
    command, *rest = arguments
    places = {
        "RUN": runs["sample"],
        "RELAXED": runs["relax"],
        "OUT.extxyz": tmp_path / "out.extxyz",
    }
    words = [places.get(str(word), word) for word in rest]
    if command != "data":
        words += ["--out", tmp_path / "out"]
    result = run_command(command, *words)
    if command == "sample":
        assert "NaCl is among the known crystals" in result.stderr
    else:
        assert result.exit_code == 0, result.output


def test_the_energies_of_a_relaxation_select_crystals(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    result = run_command(
        "export-vasp", runs["relax"], "--where", "energy_per_atom<1", "--out", tmp_path / "vasp"
    )
    assert result.exit_code == 0, result.output
    assert [path.name for path in (tmp_path / "vasp").iterdir()] == ["metal"]


def test_the_evaluation_of_a_run_is_read(runs: dict[str, Path], tmp_path: Path) -> None:
    for module in ("smact", "plotly", "jinja2"):
        pytest.importorskip(module)
    evaluate([runs["sample"], runs["relax"]], out=tmp_path / "evaluation")
    crystals = read(tmp_path / "evaluation")
    assert {crystal.id for crystal in crystals} >= {"metal"}
    assert {crystal.properties["set"] for crystal in crystals} == {"sample", "relax"}
    assert crystals.skipped == Counter(failed=1)
