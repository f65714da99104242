"""`flowllm evaluate` with a potential and a hull, and the remarks on the energies."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from pymatgen.core import Lattice, Structure

from flowllm.cli import cli
from flowllm.crystals.cif import cif_text
from flowllm.crystals.crystal import Crystal
from flowllm.crystals.io import read, write
from flowllm.energy.calculators import known_elements
from flowllm.energy.hull import HullDistance
from flowllm.energy.relaxation import relax_crystals
from flowllm.errors import UserError
from flowllm.evaluation.energies import EnergyModel, RelaxedSet
from flowllm.evaluation.evaluate import evaluate
from flowllm.evaluation.remarks import remarks
from flowllm.evaluation.results import SetResult
from flowllm.evaluation.sets import GeneratedCrystal, GeneratedSet
from flowllm.metrics.intervals import rate
from flowllm.metrics.relaxation import RelaxationChange
from support import SHARED

EMT = "ase.calculators.emt:EMT"
FACE = [[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]


def fcc(symbol: str, a: float) -> Structure:
    side = a / 2**0.5
    return Structure(Lattice.from_parameters(side, side, side, 60, 60, 60), [symbol], [[0, 0, 0]])


def ordered(symbol: str, a: float = 3.7) -> Structure:
    return Structure(Lattice.cubic(a), [symbol, "Cu", "Cu", "Cu"], [[0, 0, 0], *FACE])


def run_folder(path: Path, *structures: Structure | None) -> Path:
    """Write a run folder of the sampler with a condition on the energy."""
    path.mkdir()
    pd.DataFrame(
        {
            "id": [f"c{i}" for i in range(len(structures))],
            "cif": [None if s is None else cif_text(s) for s in structures],
            "failure": ["no answer" if s is None else None for s in structures],
        }
    ).to_parquet(path / "samples.parquet")
    manifest = {"run": {"conditions": {"e_above_hull": "0.00"}}, "info": {}}
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return arguments of an evaluation with energies of effective medium theory."""
    pytest.importorskip("smact", reason="smact is not installed")
    folder = tmp_path_factory.mktemp("given")
    overlap = Structure(Lattice.cubic(4), ["Cu", "Cu"], [[0, 0, 0], [0.05, 0, 0]])
    samples = run_folder(
        folder / "samples",
        *(ordered("Pt", 3.75), ordered("Pt"), ordered("Au"), ordered("Ag"), None),
        *(fcc("Na", 5.3), overlap),
    )
    # Formation energies by this potential: Cu3Pt -0.095, Cu3Au -0.010, Cu3Ag 0.021 eV/atom.
    (folder / "hull.csv").write_text("composition,formation_energy_per_atom\nCu3Au,-0.05\n")
    write([Crystal(id="known", structure=ordered("Au"))], folder / "train.json")
    elements = [
        Crystal(id=symbol, structure=fcc(symbol, a))
        for symbol, a in (("Cu", 3.6), ("Pt", 3.92), ("Au", 4.06), ("Ag", 4.06))
    ]
    relax_crystals(elements, potential=EMT, out=folder / "elements", progress=False)
    named = {"train": "train.json", "hull": "hull.csv", "references": "elements"}
    options = [word for key, name in named.items() for word in (f"--{key}", str(folder / name))]
    return [str(samples), "--potential", EMT, *options]


def test_stability_and_sun_of_the_relaxed_crystals(given: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = CliRunner().invoke(cli, ["evaluate", *given, "--out", str(out)])
    assert ran.exit_code == 0, ran.stderr
    (content,) = json.loads((out / "metrics.json").read_text())["sets"]
    metrics = content["metrics"]
    expected = {
        **{"stable_0": 2, "stable_0.03": 3, "stable_0.1": 4, "sun": 1, "metastable_sun": 2},
        **{"relaxed_match_rate": 4, "meets_e_above_hull": 4},
    }
    assert {name: metrics[name]["successes"] for name in expected} == expected
    assert {metrics[name]["count"] for name in expected} == {7}
    assert metrics["energy_drop"]["value"] > 0 and metrics["relaxation_steps"]["count"] == 4
    assert metrics["median_e_above_hull"]["value"] == pytest.approx((-0.095 + 0.021) / 2, abs=0.04)
    assert any("1 of 5 relaxations failed" in note for note in content["notes"])
    table = pd.read_parquet(out / "structures.parquet").set_index("id")
    assert table.loc["c2", "e_above_hull"] == pytest.approx(0.04, abs=2e-3)
    assert table["sun"].tolist() in ([True, *[False] * 6], [False, True, *[False] * 5])
    assert "No EMT-potential" in table.loc["c5", "relaxation_failure"]
    assert "not relaxed" in table.loc["c6", "relaxation_failure"]
    relaxed = read(out / "relaxed.parquet", skip_invalid=True)
    assert [c.id for c in relaxed] == ["c0", "c1", "c2", "c3"]
    assert relaxed[0].structure.volume == pytest.approx(relaxed[1].structure.volume, rel=1e-2)
    assert relaxed[3].properties["e_above_hull"] == pytest.approx(0.021, abs=2e-3)
    # Nothing is relaxed again.
    shards = {file: file.stat().st_mtime_ns for file in out.glob("relaxed/samples/shards/*")}
    assert len(shards) == 5
    again = CliRunner().invoke(cli, ["evaluate", *given, "--out", str(out)])
    assert again.stdout == ran.stdout
    assert {file: file.stat().st_mtime_ns for file in shards} == shards


def test_a_finished_evaluation_is_extended_by_a_potential_and_then_by_a_hull(
    given: list[str], tmp_path: Path
) -> None:
    samples, _, _, *options = given
    named = dict(zip((word[2:] for word in options[::2]), options[1::2], strict=True))
    out = tmp_path / "out"
    (before,) = evaluate(samples, out=out, train=named["train"], progress=False).sets
    assert "relaxed_match_rate" not in before.metrics
    page = (out / "report.html").read_text("utf-8")

    (middle,) = evaluate(samples, out=out, train=named["train"], potential=EMT, progress=False).sets
    assert middle.metrics["relaxed_match_rate"].successes == 4 and "sun" not in middle.metrics
    shards = {file: file.stat().st_mtime_ns for file in out.glob("relaxed/samples/shards/*")}
    assert len(shards) == 5

    (after,) = evaluate(samples, out=out, potential=EMT, progress=False, **named).sets
    assert after.metrics["sun"].successes == 1
    assert {file: file.stat().st_mtime_ns for file in shards} == shards  # nothing relaxed again
    assert {name: after.metrics[name] for name in middle.metrics if name[:5] != "meets"} == {
        name: value for name, value in middle.metrics.items() if name[:5] != "meets"
    }
    content = json.loads((out / "metrics.json").read_text())
    assert content["settings"]["hull"]["name"] == "hull.csv"
    assert content["sets"][0]["metrics"]["sun"]["successes"] == 1
    assert "sun" in pd.read_parquet(out / "relaxed.parquet")
    assert {"sun", "relaxed_unique", "relaxed_novel"} <= set(
        pd.read_parquet(out / "structures.parquet")
    )
    assert (out / "report.html").read_text("utf-8") != page
    with pytest.raises(UserError, match="another run .*potential"):  # what is there is not replaced
        evaluate(samples, out=out, train=named["train"], progress=False)


def test_a_corrected_hull_and_corrected_references_keep_the_relaxed_crystals(
    given: list[str], tmp_path: Path
) -> None:
    samples, _, _, *options = given
    named = dict(zip((word[2:] for word in options[::2]), options[1::2], strict=True))
    out = tmp_path / "out"
    evaluate(samples, out=out, potential=EMT, progress=False, **named)
    shards = {file: file.stat().st_mtime_ns for file in out.glob("relaxed/samples/shards/*")}
    assert len(shards) == 5
    hull = tmp_path / "corrected.csv"
    hull.write_text("composition,formation_energy_per_atom\nCu3Au,-0.05\nCu3Pt,-0.5\n")
    references = Path(shutil.copytree(named["references"], tmp_path / "others"))
    corrected = {**named, "hull": hull, "references": references}
    (after,) = evaluate(samples, out=out, potential=EMT, progress=False, **corrected).sets
    assert after.metrics["sun"].successes == 0  # Cu3Pt was below the hull before
    assert {file: file.stat().st_mtime_ns for file in shards} == shards
    settings = json.loads((out / "metrics.json").read_text())["settings"]
    assert settings["hull"]["name"] == "corrected.csv"
    assert settings["references"]["name"] == "others"
    with pytest.raises(UserError, match="another run .*hull.*not given here"):
        evaluate(samples, out=out, potential=EMT, train=named["train"], progress=False)


@pytest.mark.parametrize("formula", ["{'Na': 1.0}", "\u2081", "Xx2", "Na1Cl"])
def test_a_damaged_hull_is_refused_before_anything_is_relaxed(
    given: list[str], tmp_path: Path, formula: str
) -> None:
    hull = tmp_path / "hull.csv"
    hull.write_text(
        f'composition,formation_energy_per_atom\n"{formula}",{"x" if formula == "Na1Cl" else -1}\n'
    )
    samples, *options = given
    options[options.index("--hull") + 1] = str(hull)
    ran = CliRunner().invoke(cli, ["evaluate", samples, *options, "--out", str(tmp_path / "out")])
    assert ran.exit_code == 2 and str(hull) in ran.stderr, ran.stderr
    assert not (tmp_path / "out").exists()


def test_elements_without_references_are_named_before_anything_is_relaxed(
    given: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples, *options = given
    with caplog.at_level("WARNING"):
        CliRunner().invoke(cli, ["evaluate", samples, *options, "--out", str(tmp_path / "out")])
    messages = [record.getMessage() for record in caplog.records]
    (place,) = [i for i, m in enumerate(messages) if "without a reference in" in m]
    assert "1 crystals hold elements" in messages[place] and "(Na)" in messages[place]
    assert not any("relaxations failed" in message for message in messages[:place])


def test_a_potential_without_references_is_refused_before_anything_is_written(
    given: list[str], tmp_path: Path
) -> None:
    ran = CliRunner().invoke(cli, ["evaluate", *given[:-2], "--out", str(tmp_path / "out")])
    assert ran.exit_code == 2 and "give energies of the elements" in ran.stderr
    assert not (tmp_path / "out").exists()


def test_a_potential_alone_gives_the_refinement_figures(tmp_path: Path) -> None:
    pytest.importorskip("smact", reason="smact is not installed")
    samples = write([Crystal(id="a", structure=ordered("Pt"))], tmp_path / "one.json")
    result = evaluate(samples, out=tmp_path / "out", potential=EMT, progress=False)
    (measured,) = result.sets
    assert measured.metrics["relaxed_match_rate"].value == 1
    assert "stable_0" not in measured.metrics and "stable" not in measured.rows[0]


def test_a_set_without_any_relaxed_crystal_is_reported(tmp_path: Path) -> None:
    pytest.importorskip("smact", reason="smact is not installed")
    salt = Structure(Lattice.cubic(3.5), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    samples = write([Crystal(id="a", structure=salt)], tmp_path / "one.json")
    result = evaluate(samples, out=tmp_path / "out", potential=EMT, progress=False)
    (measured,) = result.sets
    assert measured.metrics["relaxed_match_rate"].value == 0
    assert any("1 of 1 relaxations failed" in note for note in measured.notes)
    assert (tmp_path / "out" / "report.html").is_file()


def remarks_on(above: list[float | None], symbol: str = "Cu") -> list[str]:
    """Return the remarks on crystals with these energies above the hull."""
    structures = [fcc(symbol, 3.6)] * len(above)
    crystals = [GeneratedCrystal(id=str(i), structure=s) for i, s in enumerate(structures)]
    energies = RelaxedSet(
        model=EnergyModel(
            potential="chgnet",
            identity={},
            scheme="mp2020",
            elements=known_elements("chgnet"),
        ),
        relaxed=structures,
        failures=[None] * len(above),
        energies_per_atom=above,
        changes=[RelaxationChange()] * len(above),
        distances=[HullDistance(e_above_hull=e) for e in above],
        num_tried=len(above),
    )
    result = SetResult(name="set", num_generated=len(above), failures=Counter())
    result.metrics["uniqueness"] = rate(2, len(above))
    generated = GeneratedSet(name="set", crystals=crystals)
    return remarks(result, generated, reference=None, train=[], energies=energies)


def test_suspicious_energies_are_remarked_on() -> None:
    assert remarks_on([-0.1, 0.2]) == []
    assert "every crystal with an energy is stable" in remarks_on([-0.1, -0.2])[0]
    assert "1 relaxed crystals have no energy" in remarks_on([-0.1, 0.2, None])[0]
    assert (
        "2 crystals hold elements that chgnet has not learnt (Po)"
        in remarks_on([0.1, 0.2], "Po")[0]
    )


def test_a_saved_potential_lists_its_elements(tmp_path: Path) -> None:
    folder = SHARED / "potentials" / "TensorNet-MatPES-PBE-v2025.1-PES"
    if not folder.is_dir():
        pytest.skip("the potential is not at ../shared/potentials")
    known = known_elements(f"matgl:{folder}")
    assert known is not None and len(known) == 89 and "Po" not in known
    assert known_elements(EMT) is None
