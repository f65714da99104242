"""Potentials: names, loading, refusal of wrong ones, and the scheme of their energies."""

from __future__ import annotations

import logging
import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import pytest
from ase.calculators.emt import EMT

from flowllm.energy.calculators import (
    available_potentials,
    check_installed,
    check_potential_name,
    energy_scheme,
    known_elements,
    load_calculator,
    pick_potential_device,
    potential_identity,
)
from flowllm.energy.potential_check import check_calculator
from flowllm.errors import UserError
from support import SHARED

POTENTIALS = SHARED / "potentials"
RIGHT = POTENTIALS / "TensorNet-MatPES-PBE-v2025.1-PES"
STALE = POTENTIALS / "stale" / "M3GNet-MP-2021.2.8-PES"


def test_a_potential_that_is_wrong_about_salt_is_refused() -> None:
    with pytest.raises(UserError, match="LennardJones is wrong: .*(NaCl|SrTiO3)"):
        load_calculator("ase.calculators.lj:LennardJones")


def test_a_potential_without_the_elements_cannot_be_tested(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "flowllm"):
        assert isinstance(load_calculator("ase.calculators.emt:EMT"), EMT)
    assert "could not be tested on NaCl and SrTiO3" in caplog.text


@pytest.mark.skipif(not STALE.is_dir(), reason="needs a potential at ../shared/potentials/stale")
def test_weights_of_an_older_matgl_are_refused() -> None:
    with pytest.raises(UserError, match="is wrong: its volume of NaCl is off"):
        load_calculator(f"matgl:{STALE}")


@pytest.mark.skipif(not RIGHT.is_dir(), reason="needs a potential at ../shared/potentials")
def test_a_right_potential_of_matgl_passes() -> None:
    load_calculator(f"matgl:{RIGHT}")


@pytest.mark.parametrize("name", ["chgnet", "chgnet:r2scan", "sevennet"])
def test_published_potentials_pass(
    name: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("sevenn" if name == "sevennet" else "chgnet")
    calculator = load_calculator(name, check=False)
    with caplog.at_level(logging.WARNING, "flowllm"):
        check_calculator(name, calculator)
    assert not caplog.text
    captured = capsys.readouterr()
    assert not captured.out and not captured.err  # stdout is for results


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr("flowllm.energy.calculators.version", missing)
    for use in (check_installed, load_calculator, potential_identity):
        with pytest.raises(
            UserError, match=r"sevenn is not installed; pip install '.*\[sevennet\]"
        ):
            use("sevennet")
        with pytest.raises(UserError, match=r"chgnet is not installed; pip install '.*\[eval\]"):
            use("chgnet:r2scan")
    assert check_installed("a:b") == "a:b"


def test_only_published_potentials_take_a_gpu() -> None:
    assert pick_potential_device("chgnet", "cpu") == "cpu"
    assert pick_potential_device("a:b", "auto") == "cpu"
    with pytest.raises(UserError, match="potential a:b computes on the CPU here"):
        pick_potential_device("a:b", "cuda")


@pytest.mark.parametrize(
    ("potential", "scheme"),
    [
        ("chgnet", "mp2020"),
        ("chgnet:r2scan", "mp-r2scan"),
        ("sevennet", "mp-raw"),
        ("matgl:models/TensorNet-MatPES-PBE-v2025.1-PES", "matpes-pbe"),
        ("matgl:materialyze/TensorNet-MatPES-r2SCAN-v2025.1-PES", "matpes-r2scan"),
        ("matgl:M3GNet-MP-2021.2.8-PES", "mp-raw"),
        ("matgl:mine", "own"),
        ("ase.calculators.emt:EMT", "own"),
    ],
)
def test_the_scheme_of_the_energies_follows_the_name(potential: str, scheme: str) -> None:
    assert energy_scheme(potential, EMT()) == scheme


def test_a_calculator_may_declare_its_scheme() -> None:
    calculator = EMT()
    calculator.energy_scheme = "mp-raw"
    assert energy_scheme("my:potential", calculator) == "mp-raw"
    calculator.energy_scheme = "dft"
    with pytest.raises(UserError, match="declares the energy scheme 'dft'; use one of mp2020"):
        energy_scheme("my:potential", calculator)


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("CHGNet", "chgnet"),
        (" chgnet ", "chgnet"),
        ("CHGNet:r2SCAN", "chgnet:r2scan"),
        ("SevenNet", "sevennet"),
        ("MatGL:TensorNet-MatPES-PBE-v2025.1-PES", "matgl:TensorNet-MatPES-PBE-v2025.1-PES"),
        ("matgl:account/name", "matgl:account/name"),
        ("ase.calculators.emt:EMT", "ase.calculators.emt:EMT"),
    ],
)
def test_a_name_has_one_canonical_form(name: str, canonical: str) -> None:
    assert check_potential_name(name) == canonical


@pytest.mark.parametrize(
    "name",
    [
        *("mace", "", "matgl:", "chgnet:", "chgnet:pbe", "SevenNet:9", ":EMT", "a b:c", "a..b:c"),
        3,
    ],
)
def test_an_unknown_name_is_refused_with_the_known_forms(name: object) -> None:
    forms = "write chgnet, chgnet:r2scan, sevennet, matgl:FOLDER or MODULE:FACTORY"
    with pytest.raises(UserError, match=f"unknown potential.*{forms}"):
        check_potential_name(name)


def test_a_path_without_a_folder_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(UserError, match="no potential folder ./nowhere"):
        check_potential_name("matgl:./nowhere")


def test_another_spelling_is_the_same_potential() -> None:
    assert energy_scheme("CHGNet", EMT()) == "mp2020"
    assert known_elements("CHGNet") == known_elements("chgnet") != known_elements("a:b")


def test_checking_a_name_loads_no_heavy_library() -> None:
    code = (
        "import sys; from flowllm.energy.calculators import check_potential_name, "
        "available_potentials; check_potential_name('CHGNet'); available_potentials(); "
        "print({'torch', 'ase', 'pymatgen', 'chgnet', 'matgl', 'numpy'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


def test_packages_of_potentials_are_listed_with_version_or_advice() -> None:
    found = dict(available_potentials())
    assert found.keys() == {"chgnet", "sevenn", "matgl"}
    assert found["matgl"][0].isdigit()
    assert found["chgnet"][0].isdigit() or "pip install 'flowllm-crystal[eval]'" in found["chgnet"]
