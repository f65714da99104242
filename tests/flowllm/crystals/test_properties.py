"""Side values never decide whether a crystal is read: mapped, or left out and counted."""

from __future__ import annotations

import ase.io
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.spacegroup import crystal as ase_crystal

from flowllm.crystals.columns import describe
from flowllm.crystals.formulas import KnownFormulas
from flowllm.crystals.io import read
from flowllm.evaluation.evaluate import evaluate
from support import SHARED, cif, perovskite, run_command, skewed, table

CASES = SHARED / "cases"


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("spacegroup", "Fm-3q", "column 'spacegroup': 'Fm-3q' is no space group"),
        ("spacegroup.number", 231, "is no space group"),
        ("spacegroup.number", 2.5, "is no space group"),
        ("space_group", 0, "is no space group"),
        ("band_gap", "wide", "column 'band_gap': 'wide' is not a number"),
        ("band_gap", "1" + 400 * "0", "is not a number"),
        ("band_gap", -0.5, "column 'band_gap': -0.5 is below 0"),
        ("dft_band_gap", -0.0001, "column 'dft_band_gap': -0.0001 is below 0"),
        ("energy_above_hull", "low", "'low' is not a number"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_value_without_meaning_is_left_out_and_counted(
    tmp_path, column, value, message, suffix, caplog
):
    rows = [{"cif": cif(perovskite()), column: value}, {"cif": cif(skewed())}]
    back = read(table(tmp_path / f"t{suffix}", rows))
    assert len(back) == 2 and not back.skipped
    assert back[0].properties == {}
    (problem,) = back[0].ignored.values()
    assert message in problem
    assert "is not used in 1 of 2 rows: row 1: column" in caplog.text


def test_columns_that_contradict_each_other_are_left_out(tmp_path, caplog):
    row = {"cif": cif(perovskite()), "e_above_hull": 0.1, "energy_above_hull": 0.2}
    (crystal,) = read(table(tmp_path / "t.csv", [row]))
    assert crystal.properties == {}
    assert "'e_above_hull' and 'energy_above_hull' contradict" in caplog.text
    row["energy_above_hull"] = 0.1
    assert read(table(tmp_path / "t.csv", [row]))[0].properties == {"e_above_hull": 0.1}


@pytest.mark.parametrize(
    "value",
    ["Fm-3m", "F m -3 m", "F4/m-32/m", "fm-3m", "Fm3m", "225", 225, 225.0, "225.0", "F m -3 m:1"],
)
@pytest.mark.parametrize("column", ["spacegroup", "space_group", "spacegroup.number", "spg_number"])
def test_a_space_group_is_its_number_however_it_is_written(column, value):
    found = describe({column: value})
    assert found.properties == {"spacegroup": 225} and not found.ignored
    assert isinstance(found.properties["spacegroup"], int)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (  # MP-20
            {"formation_energy_per_atom": -1.0, "band_gap": 0.5, "spacegroup.number": 221},
            {"formation_energy_per_atom": -1.0, "band_gap": 0.5, "spacegroup": 221},
        ),
        (  # Alex-MP-20 and MatterGen
            {"dft_band_gap": 5.0, "energy_above_hull": 0.0, "space_group": "Fm-3m"},
            {"band_gap": 5.0, "e_above_hull": 0.0, "spacegroup": 225},
        ),
        (  # JARVIS-DFT; its words for a missing value
            {"optb88vdw_bandgap": 1.0, "ehull": "na", "spg_number": "194"},
            {"band_gap": 1.0, "spacegroup": 194},
        ),
        (  # Materials Project
            {"symmetry": {"number": 62, "symbol": "Pnma"}, "energy_above_hull": None},
            {"spacegroup": 62},
        ),
        ({"spacegroup": {"symbol": "Pnma"}}, {"spacegroup": 62}),
        (
            {"symmetry": "cubic", "stress": [0] * 6, "is_stable": True},
            {"symmetry": "cubic", "is_stable": True},
        ),
    ],
)
def test_names_of_public_data_sets_are_known(values, expected):
    found = describe(values)
    assert found.properties == expected and not found.ignored


def test_a_file_that_ase_wrote_from_a_cif_is_read(tmp_path):
    salt = ase_crystal(
        ["Na", "Cl"], [(0, 0, 0), (0.5,) * 3], spacegroup=225, cellpar=[5.64] * 3 + [90] * 3
    )
    salt.calc = SinglePointCalculator(salt, energy=-3.0, stress=[0.1] * 6)
    ase.io.write(tmp_path / "salt.extxyz", salt)
    text = (tmp_path / "salt.extxyz").read_text()
    six = text.replace('pbc="T T T"', 'pbc="T T T" virial="1 2 3 4 5 6" quadrupole="1 2"')
    assert six != text
    for content in (text, six):
        (tmp_path / "salt.extxyz").write_text(content)
        (crystal,) = read(tmp_path / "salt.extxyz")
        assert crystal.properties == {
            "spacegroup": 225,
            "unit_cell": "conventional",
            "energy": -3.0,
        }


def test_the_reason_of_a_missing_condition_is_named(tmp_path):
    path = table(tmp_path / "t.csv", [{"id": "a", "cif": cif(perovskite()), "band_gap": -0.5}])
    result = run_command("score", path, "--conditions", "band_gap")
    assert result.exit_code == 2
    assert "crystal a has no band_gap (column 'band_gap': -0.5 is below 0); add it" in result.stderr


@pytest.fixture
def sets(tmp_path):
    """Generated crystals, and a training set with both of them, one with a bad band gap."""
    names = {"a": cif(perovskite()), "b": cif(skewed())}
    table(tmp_path / "generated.csv", [{"id": k, "cif": v} for k, v in names.items()])
    rows = [{"id": k, "cif": v, "band_gap": -0.0001} for k, v in names.items()]
    return tmp_path / "generated.csv", rows


def test_novelty_is_counted_against_every_row(tmp_path, sets, caplog):
    generated, rows = sets
    train = table(tmp_path / "train.csv", rows)
    (result,) = evaluate([generated], train=[train], out=tmp_path / "e").sets
    assert result.metrics["novelty"].value == 0
    assert "train.csv: band_gap is not used in 2 of 2 rows" in caplog.text


def test_bad_rows_of_a_training_set_are_counted(tmp_path, sets, caplog):
    generated, rows = sets
    rows[1]["cif"] = "nonsense"
    train = table(tmp_path / "train.csv", rows)
    result = run_command("evaluate", generated, "--train", train, "--out", tmp_path / "e")
    assert result.exit_code == 0
    assert "train.csv: read 1 crystals, left out: unreadable 1" in caplog.text
    caplog.clear()
    assert len(KnownFormulas(train)) == 1
    assert "train.csv: read 1 crystals, left out: unreadable 1" in caplog.text


@pytest.mark.skipif(not CASES.is_dir(), reason="needs the cases at ../shared/cases")
def test_the_cases_of_side_values(tmp_path):
    train = read(CASES / "05-novelty-drops-known-crystals" / "train.csv")
    assert [crystal.id for crystal in train] == ["t1", "t2"]
    (symbol,) = read(CASES / "06-ase-extxyz-space-group-symbol" / "symbol.csv")
    assert symbol.properties == {"spacegroup": 225}
    (alex,) = read(CASES / "23-columns-of-alex-mp-20" / "alex.csv")
    assert alex.properties == {
        **{"spacegroup": 225, "band_gap": 5.0, "e_above_hull": 0.0, "chemical_system": "Cl-Na"}
    }
