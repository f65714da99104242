"""OPTIMADE structures, databases of ASE and computed entries, written and read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ase.db
import numpy as np
import pytest
from cli_support import check_mistake
from pymatgen.entries.computed_entries import ComputedStructureEntry

from flowllm import Crystal, InvalidCrystal, UserError, read, write
from support import CSCL, SALT, perovskite, run_command, same, skewed


def relaxed() -> list[Crystal]:
    return [
        Crystal(id="a", structure=SALT, properties={"energy_per_atom": -3.5, "band_gap": 5.0}),
        Crystal(id="b", structure=skewed(), properties={"energy_per_atom": -4.0, "steps": 7}),
    ]


# --- OPTIMADE ------------------------------------------------------------------------------------


def response(path: Path, *crystals: Crystal) -> dict[str, Any]:
    return json.loads(write(crystals, path / "x.optimade.json", overwrite=True).read_text())


def test_an_optimade_structure_has_what_the_standard_asks_for(tmp_path: Path) -> None:
    found = response(tmp_path, Crystal(id="mp-1", structure=perovskite(), properties={"gap": 3}))
    (item,) = found["data"]
    assert (item["id"], item["type"]) == ("mp-1", "structures")
    attributes = item["attributes"]
    assert attributes["elements"] == ["O", "Sr", "Ti"] and attributes["nelements"] == 3
    assert attributes["elements_ratios"] == [0.6, 0.2, 0.2]
    assert attributes["chemical_formula_reduced"] == "O3SrTi"
    assert attributes["chemical_formula_anonymous"] == "A3BC"
    assert attributes["chemical_formula_descriptive"] == "SrTiO3"
    assert attributes["dimension_types"] == [1, 1, 1]
    assert attributes["nperiodic_dimensions"] == 3 and attributes["nsites"] == 5
    assert attributes["species_at_sites"] == ["Sr", "Ti", "O", "O", "O"]
    assert {"name": "O", "chemical_symbols": ["O"], "concentration": [1.0]} in attributes["species"]
    assert np.allclose(attributes["lattice_vectors"], 3.905 * np.eye(3))
    assert np.allclose(attributes["cartesian_site_positions"][1], [3.905 / 2] * 3)
    assert attributes["_flowllm_gap"] == 3
    assert found["meta"]["data_returned"] == 1 and not found["meta"]["more_data_available"]


def test_formulas_of_optimade_are_reduced_and_sorted(tmp_path: Path) -> None:
    salt, odd = response(
        tmp_path, Crystal(id="1", structure=SALT), Crystal(id="2", structure=skewed())
    )["data"]
    assert salt["attributes"]["chemical_formula_reduced"] == "ClNa"
    assert salt["attributes"]["chemical_formula_anonymous"] == "AB"
    assert odd["attributes"]["chemical_formula_reduced"] == "FeLiO2P"
    assert odd["attributes"]["chemical_formula_anonymous"] == "A2BCD"


def test_structures_of_a_provider_are_read(tmp_path: Path) -> None:
    (item,) = response(tmp_path, Crystal(id="x", structure=CSCL))["data"]
    item["attributes"] |= {"_mp_band_gap": 5.0, "chemical_formula_hill": "ClCs"}
    item |= {"links": {"self": "http://x"}, "relationships": {}}
    for content in ({"data": item}, {"data": [item]}, [item], item):
        (tmp_path / "provider.json").write_text(json.dumps(content))
        (back,) = read(tmp_path / "provider.json", reduce=False)
        assert back.id == "x" and back.properties == {"_mp_band_gap": 5.0}
        assert same(back.structure, CSCL, 1e-12)


@pytest.mark.parametrize(
    ("change", "reason", "message"),
    [
        ({"dimension_types": [1, 1, 0]}, "not_periodic", "T T F"),
        ({"cartesian_site_positions": [[0, 0, 0]]}, "unreadable", "2 species for 1 positions"),
        ({"lattice_vectors": [[1, 2]]}, "unreadable", "not a structure of OPTIMADE"),
        ({"species": [{"name": "Cs"}]}, "unreadable", "not a structure of OPTIMADE"),
        ({"species_at_sites": ["Cs", "Q"]}, "unknown_element", "site 2"),
        (
            {"species": [{"name": "Cs", "chemical_symbols": ["Cs", "K"],
                          "concentration": [0.5, 0.5]}]},
            "disorder",
            "site 1 is disordered",
        ),
    ],
)  # fmt: skip
def test_a_bad_optimade_structure_has_its_reason(
    tmp_path: Path, change: dict[str, Any], reason: str, message: str
) -> None:
    content = response(tmp_path, Crystal(id="x", structure=CSCL))
    content["data"][0]["attributes"] |= change
    (tmp_path / "bad.json").write_text(json.dumps(content))
    with pytest.raises(InvalidCrystal, match=message) as error:
        read(tmp_path / "bad.json")
    assert error.value.reason == reason


# --- databases of ASE ----------------------------------------------------------------------------


def test_ase_reads_the_database(tmp_path: Path) -> None:
    file = write(relaxed(), tmp_path / "set.db")
    with ase.db.connect(file) as database:
        row = database.get(material_id="b")
        assert row.toatoms().get_chemical_formula() == "FeLiO2P" and row.steps == 7
        assert [row.material_id for row in database.select("band_gap>4")] == ["a"]


def test_a_database_holds_what_key_value_pairs_cannot(tmp_path: Path) -> None:
    about = {"id": 7, "a key": 1.5, "note": "1e5", "flag": True, "energy": "low", "plain": "word"}
    file = write(Crystal(id="007", structure=CSCL, properties=about), tmp_path / "set.db")
    (back,) = read(file, reduce=False)
    assert back.id == "007"
    assert back.properties == about and back.properties["flag"] is True


# --- computed entries ----------------------------------------------------------------------------


def test_entries_are_pymatgens(tmp_path: Path) -> None:
    file = write(relaxed(), tmp_path / "set.entries.json")
    one, two = (ComputedStructureEntry.from_dict(item) for item in json.loads(file.read_text()))
    assert one.entry_id == "a" and one.energy == pytest.approx(-3.5 * 8)
    assert one.energy_per_atom == pytest.approx(-3.5) and one.data["band_gap"] == 5.0
    assert same(two.structure, skewed(), 1e-12) and two.energy == pytest.approx(-20)


def test_entries_come_back(tmp_path: Path) -> None:
    back = read(write(relaxed(), tmp_path / "set.entries.json"), reduce=False)
    for before, after in zip(relaxed(), back, strict=True):
        assert before.id == after.id and same(before.structure, after.structure, 1e-12)
        energy = before.properties["energy_per_atom"] * len(before.structure)
        added = {"energy": pytest.approx(energy), "correction": 0.0}
        assert after.properties == before.properties | added
    again = write(back, tmp_path / "again.entries.json")  # the energies are read again
    assert [c.properties["energy"] for c in read(again)] == [c.properties["energy"] for c in back]


def test_crystals_without_energies_are_no_entries(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="crystal 1 has no energy, which an entry needs"):
        write(CSCL, tmp_path / "x.entries.json")
    assert list(tmp_path.iterdir()) == []


# --- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".optimade.json", ".db", ".entries.json"])
def test_data_converts_to_and_from_each_format(tmp_path: Path, suffix: str) -> None:
    file = write(relaxed(), tmp_path / "set.json")
    there, back = tmp_path / f"there{suffix}", tmp_path / "back.json"
    assert run_command("data", "--no-reduce", file, there).exit_code == 0
    check_mistake(run_command("data", file, there), "exists")
    assert run_command("data", "--no-reduce", there, back).exit_code == 0
    for before, after in zip(read(file), read(back), strict=True):
        assert (before.id, after.properties["energy_per_atom"]) == (
            after.id,
            before.properties["energy_per_atom"],
        )
        assert same(before.structure, after.structure, 1e-7)
