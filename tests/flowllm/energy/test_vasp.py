"""VASP inputs: rules that choose crystals, and the files of each."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner
from monty.json import MontyDecoder
from pymatgen.core import SETTINGS, Lattice, Structure
from pymatgen.io.vasp.inputs import Incar, Poscar

from flowllm.cli import cli
from flowllm.crystals.io import Crystal, write
from flowllm.energy.vasp import export_vasp
from flowllm.errors import UserError


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delitem(SETTINGS, "PMG_VASP_PSP_DIR", raising=False)
    known = {
        "iron oxide": ("Fe", "O", {"e_above_hull": 0.02, "novel": 1, "group": "oxide"}),
        "salt": ("Na", "Cl", {"e_above_hull": 0.0, "novel": 0, "group": "halide"}),
        "high": ("K", "Cl", {"e_above_hull": 0.3, "novel": 1}),
        "unknown": ("Li", "Cl", {}),
    }
    crystals = [
        Crystal(
            id=name,
            structure=Structure(Lattice.cubic(3.2), [a, b], [[0, 0, 0], [0.5, 0.5, 0.5]]),
            properties=properties,
        )
        for name, (a, b, properties) in known.items()
    ]
    return write(crystals, tmp_path / "four.jsonl")


@pytest.mark.parametrize(
    ("rules", "chosen"),
    [
        ((), ["iron oxide", "salt", "high", "unknown"]),
        (("e_above_hull<0.1",), ["iron oxide", "salt"]),
        (("e_above_hull <= 0.02", "novel=true"), ["iron oxide"]),
        (("novel != true",), ["salt"]),
        (("group=halide",), ["salt"]),
    ],
)
def test_the_rules_decide_who_is_written(
    file: Path, tmp_path: Path, rules: tuple[str, ...], chosen: list[str]
) -> None:
    written = export_vasp(file, out=tmp_path / "vasp", where=rules)
    assert [crystal.id for crystal in written] == chosen
    assert {p.name for p in (tmp_path / "vasp").iterdir()} == {c.replace(" ", "_") for c in chosen}


def test_the_inputs_are_materials_projects(file: Path, tmp_path: Path) -> None:
    export_vasp(file, out=tmp_path / "vasp", where=["e_above_hull<0.1"])
    folder = tmp_path / "vasp" / "iron_oxide"
    names = {path.name for path in folder.iterdir()} - {"flow.json"}
    assert names == {"INCAR", "KPOINTS", "POSCAR", "POTCAR.spec"}
    incar = Incar.from_file(folder / "INCAR")
    assert (incar["ENCUT"], incar["LDAUU"], incar["ISPIN"]) == (520, [5.3, 0], 2)
    assert Poscar.from_file(folder / "POSCAR").structure.composition.reduced_formula == "FeO"
    assert (folder / "POTCAR.spec").read_text().split() == ["Fe_pv", "O"]


def test_a_workflow_is_written_where_atomate2_is_installed(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Maker:
        """Stands for atomate2's, which makes another object that monty can write."""

        def __init__(self, name: str) -> None:
            assert name == "salt"

        def make(self, structure: Structure) -> Structure:
            return structure

    module = ModuleType("atomate2.vasp.flows.mp")
    module.MPGGADoubleRelaxStaticMaker = Maker
    for name in ("atomate2", "atomate2.vasp", "atomate2.vasp.flows"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "atomate2.vasp.flows.mp", module)
    (salt,) = export_vasp(file, out=tmp_path / "vasp", where=["group=halide"])
    written = (tmp_path / "vasp" / "salt" / "flow.json").read_text()
    assert MontyDecoder().decode(written) == salt.structure


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("e_above_hull", "is not a rule"),
        ("e_above_hull<low", "'low' is not a number"),
        ("colour=1", "no crystal has colour; it has e_above_hull, group, novel"),
        ("e_above_hull<-1", "no crystal meets e_above_hull<-1"),
    ],
)
def test_a_rule_that_is_none_is_refused(
    file: Path, tmp_path: Path, rule: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        export_vasp(file, out=tmp_path / "vasp", where=[rule])
    assert not (tmp_path / "vasp").exists()


def test_the_command_overwrites_nothing(file: Path, tmp_path: Path) -> None:
    values = cli.commands["export-vasp"].make_context("x", ["x", "--out", "y"]).params
    assert values.keys() == inspect.signature(export_vasp).parameters.keys()
    command = ["export-vasp", str(file), "--where", "novel=0", "--out", str(tmp_path / "vasp")]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"inputs of 1 crystals in {tmp_path / 'vasp'}\n"
    again = CliRunner().invoke(cli, command)
    assert again.exit_code == 2
    assert "exists; choose another folder" in again.stderr
