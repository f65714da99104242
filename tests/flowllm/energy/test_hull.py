"""Hulls against hand calculations, pymatgen and Materials Project; references and potentials."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition, Lattice, Structure
from pymatgen.entries.computed_entries import ComputedEntry, ConstantEnergyAdjustment

from flowllm.energy.formation import (
    NoFormationEnergy,
    References,
    check_fit,
    formation_energy_per_atom,
    mp2020_correction,
    read_references,
)
from flowllm.energy.hull import Hull, materials_project_hull, read_hull
from flowllm.errors import UserError
from support import SHARED

DATA = SHARED / "data"
CASES = SHARED / "cases"
MP = References(energies={"Na": -1.0, "Cl": -2.0}, potential=None, source="mp.json")


def salt(first: str = "Na", second: str = "Cl") -> Structure:
    return Structure(Lattice.cubic(3.5), [first, second], [[0, 0, 0], [0.5, 0.5, 0.5]])


def entry(formula: str, energy_per_atom: float, correction: float = 0.0) -> dict[str, Any]:
    """Return a pymatgen entry as JSON; `energy_per_atom` is corrected."""
    composition = Composition(formula)
    adjustments = [ConstantEnergyAdjustment(correction)] if correction else []
    raw = energy_per_atom * composition.num_atoms - correction
    made = ComputedEntry(composition, raw, energy_adjustments=adjustments, entry_id=formula)
    return made.as_dict()


ENTRIES = [entry("Na", -1.0), entry("Cl", -2.0), entry("Na4", -0.9), entry("NaCl", -3.5, -0.614)]


def test_energies_above_the_hull_equal_a_hand_calculation() -> None:
    hull = Hull(["NaCl", "NaCl", "Na3Cl"], [-1.0, -0.4, -0.2])
    assert hull.e_above_hull(Composition("Na2Cl2"), -1.0) == pytest.approx(0)
    # Na3Cl is worth half of NaCl and half of sodium: -0.5.
    assert hull.e_above_hull(Composition("Na3Cl"), -0.2) == pytest.approx(0.3)
    assert hull.e_above_hull(Composition("Na3Cl"), -0.6) == pytest.approx(-0.1)
    assert hull.e_above_hull(Composition("Na"), 0.02) == pytest.approx(0.02)
    # Nothing is known of potassium but itself.
    assert hull.e_above_hull(Composition("KNaCl"), 0.0) == pytest.approx(2 / 3)
    assert Composition("NaCl") in hull
    assert Composition("KNaCl") not in hull


def test_noble_gases_are_elements_of_the_hull() -> None:
    assert Hull([], []).e_above_hull(Composition("HeNe"), 0.1) == pytest.approx(0.1)


@settings(max_examples=40, deadline=None)
@given(
    compounds=st.lists(
        st.tuples(
            *[st.integers(0, 4)] * 3,
            st.floats(-3, 1).map(lambda energy: round(energy, 3)),
        ).filter(lambda c: sum(n > 0 for n in c[:3]) > 1),
        max_size=8,
    ),
    asked=st.tuples(*[st.integers(1, 5)] * 3),
)
def test_hull_energies_equal_pymatgen(
    compounds: list[tuple[int, int, int, float]], asked: tuple[int, int, int]
) -> None:
    formulas = [
        "".join(f"{el}{n}" for el, n in zip(("Li", "Fe", "O"), c[:3], strict=True) if n)
        for c in compounds
    ]
    hull = Hull(formulas, [c[3] for c in compounds])
    entries = [PDEntry(symbol, 0.0) for symbol in ("Li", "Fe", "O")]
    entries += [PDEntry(f, c[3] * sum(c[:3])) for f, c in zip(formulas, compounds, strict=True)]
    composition = Composition(dict(zip(("Li", "Fe", "O"), asked, strict=True)))
    theirs = PhaseDiagram(entries).get_hull_energy_per_atom(composition)
    assert hull.energy_per_atom(composition) == pytest.approx(theirs, abs=1e-6)


def test_a_hull_of_twenty_elements_is_solved() -> None:
    everything = Composition("LiNaKRbCsBeMgCaSrBaAlGaInTlTiVCrMnFeO")
    *metals, _ = everything.as_dict()
    oxides = [f"{metal}{n}O" for metal in metals for n in (1, 2, 3)]
    hull = Hull(oxides, [-1.0 - 0.01 * i for i in range(len(oxides))])
    # Oxygen is worth most in Fe3O, Mn3O and Cr3O, a third of it in each, as there is one atom of
    # each metal: 4/3 (1.56 + 1.53 + 1.50) eV for 20 atoms.
    assert hull.energy_per_atom(everything) == pytest.approx(-6.12 / 20)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize("column", ["composition", "formula", "pretty_formula"])
def test_a_table_is_read_as_a_hull(tmp_path: Path, suffix: str, column: str) -> None:
    table = pd.DataFrame({column: ["Na1 Cl1", "Na3 Cl1"], "formation_energy_per_atom": [-1, -0.2]})
    path = tmp_path / f"hull{suffix}"
    table.to_parquet(path) if suffix == ".parquet" else table.to_csv(path)
    hull = read_hull(path)
    assert hull.num_entries == 2
    assert hull.references is None
    assert hull.energy_per_atom(Composition("NaCl")) == pytest.approx(-1)


@pytest.mark.parametrize(
    "content",
    [
        ENTRIES,
        {e["entry_id"]: e for e in ENTRIES},
        {"material_id": {"0": "x"}, "entry": {str(i): e for i, e in enumerate(ENTRIES)}},
    ],
    ids=["list", "by name", "table"],
)
def test_corrected_entries_are_read_as_a_hull_with_references(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "entries.json.gz"
    path.write_bytes(gzip.compress(json.dumps(content).encode()))
    hull = read_hull(path)
    assert hull.references.energies == {"Na": -1.0, "Cl": -2.0}
    # -3.5 per atom less the mean of -1 and -2.
    assert hull.energy_per_atom(Composition("NaCl")) == pytest.approx(-2.0)
    assert read_references(path).energies == hull.references.energies


PD_ENTRIES = [
    {"@class": "PDEntry", "composition": {"Na": 1.0}, "energy": -1.0, "name": "Na"},
    {"@class": "PDEntry", "composition": {"Cl": 1.0}, "energy": -2.0, "name": "Cl"},
    {"@class": "PDEntry", "composition": {"Na": 1.0, "Cl": 1.0}, "energy": -7.0, "name": "NaCl"},
]


@pytest.mark.parametrize("name", ["h.json", "h.jsonl", "h.json.gz", "h.json.bz2", "h.jsonl.xz"])
@pytest.mark.parametrize("content", ["list", "diagram", "marked"])
def test_pd_entries_are_read_as_final_energies(
    tmp_path: Path, name: str, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    if content == "diagram" and "jsonl" not in name:
        text = json.dumps({"@class": "PhaseDiagram", "all_entries": PD_ENTRIES, "elements": []})
    elif "jsonl" in name:
        text = "\n".join(map(json.dumps, PD_ENTRIES))
    else:
        text = json.dumps(PD_ENTRIES)
    data = text.encode("utf-16" if content == "marked" else "utf-8")
    packers = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    path = tmp_path / name
    path.write_bytes(packers.get(path.suffix, bytes)(data))
    hull = read_hull(path)
    assert hull.energy_per_atom(Composition("NaCl")) == pytest.approx(-3.5 + 1.5)
    assert "the energies of 3 entries are taken as corrected" in caplog.text


def test_the_formulas_of_a_hull_are_read_exactly(tmp_path: Path) -> None:
    path = tmp_path / "hull.csv"
    rows = ["CaSO4.2H2O,-1.9", "NaN,-0.5", "LiFePO₄,-2", "Li0.5CoO2,-1.5", "D2O,-1"]
    path.write_text("composition,formation_energy_per_atom\n" + "\n".join(rows) + "\n")
    hull = read_hull(path)
    assert hull.energy_per_atom(Composition("CaSH4O6")) == pytest.approx(-1.9)
    assert hull.energy_per_atom(Composition("NaN")) == pytest.approx(-0.5)
    assert hull.energy_per_atom(Composition("LiCo2O4")) == pytest.approx(-1.5)
    assert hull.energy_per_atom(Composition("H2O")) == pytest.approx(-1)
    # Nothing in the file has the composition that a decimal point would give.
    assert hull.energy_per_atom(Composition({"Ca": 1, "S": 1, "H": 2, "O": 5.2})) > -1.9


@pytest.mark.parametrize("formula", ["(Fe,Mn)O", "Fe3+", "Li1-xCoO2", "CaCl2.6NH3"])
def test_a_formula_that_leaves_something_open_is_refused_by_name(
    tmp_path: Path, formula: str
) -> None:
    path = tmp_path / "hull.csv"
    path.write_text(f'composition,formation_energy_per_atom\n"{formula}",-1\n')
    with pytest.raises(UserError, match=re.escape(repr(formula))):
        read_hull(path)


@pytest.mark.skipif(not CASES.is_dir(), reason="needs the cases at ../shared/cases")
def test_the_cases_of_hulls() -> None:
    hydrate = read_hull(CASES / "21-hydrate" / "hull.csv")
    assert hydrate.energy_per_atom(Composition("CaSH4O6")) == pytest.approx(-1.9)
    with pytest.raises(UserError, match="has no entry of the element Cl"):
        read_hull(CASES / "25-hull-of-pdentries" / "hull.json")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "hull.json",
            '[{"@class": "GrandPotPDEntry"}]',
            "GrandPotPDEntry is none of Comp",
        ),
        ("hull.json", '[{"composition": {"Na": 1}}]', "is no pymatgen entry: it has no 'energy'"),
        ("hull.csv", "formula,formation_energy_per_atom\nNa,Cl,1", "row 1: 3 fields, but the head"),
        ("hull.parquet", "nonsense", "is damaged"),
        ("hull.csv", "formula,energy\nNaCl,1", "needs the columns composition and formation"),
        (
            "hull.csv",
            "formula,formation_energy_per_atom\nXxCl,1",
            "unknown element Xx",
        ),
        ("hull.csv", "formula,formation_energy_per_atom\nNaCl,", "the energy of NaCl is nan"),
        ("hull.csv", "formula,formation_energy_per_atom\nNaCl,low", "the energy of NaCl is nan"),
        ("hull.json", "[1, 2]", "item 1 is no pymatgen entry"),
        ("hull.json", "[]", "holds no pymatgen entries"),
        ("hull.json", "{", "is no JSON file"),
        ("hull.json.gz", "{", "is no JSON file"),
        ("hull.json", json.dumps([entry("Na2O", -3.5)]), "no oxide or fluoride has an energy corr"),
        ("hull.json", json.dumps(ENTRIES[1:2] + ENTRIES[3:]), "no entry of the element Na"),
        ("hull.pkl", "", "a hull is a .parquet"),
        ("absent.csv", None, "no such file"),
    ],
)
def test_a_file_without_a_hull_is_refused(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_hull(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"Xx": -1.0}', "Xx is no element"),
        (json.dumps(ENTRIES[3:]), "no entry is of an element"),
        ('{"Na": "low"}', "item 1 is no pymatgen entry"),
    ],
)
def test_a_file_without_references_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "references.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_references(tmp_path / "references.json")


def test_a_formation_energy_is_the_energy_less_the_elements() -> None:
    found = formation_energy_per_atom(salt(), -3.5, scheme="mp2020", references=MP)
    assert found == pytest.approx(-2.0)
    with pytest.raises(NoFormationEnergy, match="no elemental reference for K"):
        formation_energy_per_atom(salt("K"), -3.5, scheme="mp2020", references=MP)


@pytest.mark.parametrize(
    ("first", "second", "correction"),
    [
        # Wang et al. 2021, table 2: oxide -0.687, Cl -0.614, F -0.462, S -0.503 eV/anion; Fe -2.256
        # and Ni -2.541 eV/atom in oxides and fluorides.
        ("Mg", "O", -0.687 / 2),
        ("Na", "Cl", -0.614 / 2),
        ("Fe", "O", (-0.687 - 2.256) / 2),
        ("Ni", "F", (-0.462 - 2.541) / 2),
        ("Fe", "S", -0.503 / 2),
        ("Na", "Tl", 0.0),
        ("Ar", "Xe", 0.0),
    ],
)
def test_raw_energies_are_corrected_as_materials_project_does(
    first: str, second: str, correction: float
) -> None:
    structure = salt(first, second)
    assert mp2020_correction(structure) == pytest.approx(correction)
    zero = References(energies={first: 0.0, second: 0.0}, potential=None, source="")
    raw = formation_energy_per_atom(structure, -1.0, scheme="mp-raw", references=zero)
    assert raw == pytest.approx(-1.0 + correction)


def test_a_correction_of_too_many_elements_is_refused() -> None:
    many = "OMnFeCoCrVTiSNClBrIRu"
    with pytest.raises(NoFormationEnergy, match="more than 12 elements"):
        mp2020_correction(Structure(Lattice.cubic(9.0), list(Composition(many)), np.eye(13, 3)))


def test_energies_of_different_schemes_are_not_compared() -> None:
    mine, other = {"name": "matgl:A", "sha256": "1"}, {"name": "matgl:B", "sha256": "2"}
    own = References(energies={}, potential=mine, source="run")
    for scheme in ("mp2020", "mp-raw"):
        check_fit(MP, scheme=scheme, potential=other, name="B")
    check_fit(own, scheme="matpes-pbe", potential=mine, name="A")
    for scheme in ("matpes-pbe", "own"):
        with pytest.raises(UserError, match=rf"energies of B \(scheme {scheme}\) do not go with"):
            check_fit(MP, scheme=scheme, potential=other, name="B")
    with pytest.raises(UserError, match="are of another potential"):
        check_fit(own, scheme="mp2020", potential=other, name="B")


class Rester:
    """Stand-in for the client of mp-api."""

    asked: list[list[str]] = []

    def __init__(self, key: str | None) -> None:
        if key == "wrong":
            raise ValueError("Invalid API key")

    def __enter__(self) -> Rester:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def get_entries_in_chemsys(
        self, elements: list[str], additional_criteria: dict[str, list[str]]
    ) -> list[ComputedEntry]:
        assert additional_criteria == {"thermo_types": ["GGA_GGA+U"]}
        self.asked.append(elements)
        return [ComputedEntry.from_dict(e) for e in ENTRIES]


def test_materials_project_is_asked_once_for_each_largest_system(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client, core = ModuleType("mp_api.client"), ModuleType("mp_api.client.core")
    client.MPRester, core.MPRestError = Rester, type("MPRestError", (Exception,), {})
    monkeypatch.setitem(sys.modules, "mp_api", ModuleType("mp_api"))
    monkeypatch.setitem(sys.modules, "mp_api.client", client)
    monkeypatch.setitem(sys.modules, "mp_api.client.core", core)
    monkeypatch.setattr(Rester, "asked", [])
    hull = materials_project_hull([["Na", "Cl"], ["Na"], ["Cl", "Na"]], key="k")
    assert Rester.asked == [["Cl", "Na"]]
    assert hull.energy_per_atom(Composition("NaCl")) == pytest.approx(-2.0)
    with pytest.raises(UserError, match="Invalid API key; check MP_API_KEY"):
        materials_project_hull([["Na"]], key="wrong")


def test_without_mp_api_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mp_api.client", None)
    with pytest.raises(UserError, match="pip install mp-api"):
        materials_project_hull([["Na"]])


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the hull of MP-20 at ../shared/data")
def test_the_hull_of_mp20_gives_the_distances_of_materials_project() -> None:
    hull = read_hull(DATA / "mp20" / "hull_entries.parquet")
    columns = ["pretty_formula", "formation_energy_per_atom", "e_above_hull"]
    table = pd.read_parquet(DATA / "mp20" / "val.parquet", columns=columns)
    table = table.sample(150, random_state=0)
    found = [
        hull.e_above_hull(Composition(formula), energy)
        for formula, energy in zip(table[columns[0]], table[columns[1]], strict=True)
    ]
    assert np.abs(np.array(found) - table[columns[2]]).mean() < 0.005
