"""Foreign files run no code: a test for each statement of `docs/security.md`."""

from __future__ import annotations

import gzip
import io
import json
import re
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flowllm.crystals.io import Crystal, read, write
from flowllm.energy.formation import read_references
from flowllm.energy.hull import read_hull
from flowllm.energy.vasp import export_vasp
from flowllm.errors import FlowLLMError, UserError
from flowllm.hub.card import check_weights
from flowllm.hub.locate import resolve
from flowllm.runs.outputs import publish_crystals
from flowllm.runs.records import CrystalRecord
from flowllm.runs.sharded import RunFolder, run_job
from flowllm.training.recipes import PriorRecipe, load_recipe
from support import BUNDLED_REFINER, ROOT, SALT, Runs, cif, run_command

SECRET = "sk-a-secret-that-nobody-may-see"
MODULE = "a_module_that_must_not_be_imported"
CLASS = {"@module": MODULE, "@class": "Anything", "@version": "1"}


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that leaves a file when it is imported, and the path of that file."""
    mark = tmp_path / "it-ran"
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / f"{MODULE}.py").write_text(
        f"open({str(mark)!r}, 'w')\nclass Anything:\n    from_dict = staticmethod(dict)\n"
    )
    monkeypatch.syspath_prepend(folder)
    return mark


# Crystal files, hulls and references


def structure_with_classes() -> dict[str, Any]:
    content = SALT.as_dict()
    content |= CLASS
    content["lattice"] |= CLASS
    content["properties"] = {"odd": {**CLASS, "data": {}}}
    for site in content["sites"]:
        site["properties"] = {"odd": CLASS}
        site["species"][0] |= CLASS
    return content


def entry(formula: dict[str, float], energy: float) -> dict[str, Any]:
    return {
        "@module": "pymatgen.entries.computed_entries",
        "@class": "ComputedEntry",
        "composition": formula,
        "energy": energy,
        "correction": -0.1,
        "energy_adjustments": [{**CLASS, "value": -0.1}],
        "parameters": {"odd": CLASS, "call": {"@module": MODULE, "@callable": "Anything"}},
        "data": {"odd": CLASS},
    }


def test_a_crystal_in_json_imports_nothing(importable: Path, tmp_path: Path) -> None:
    content = structure_with_classes()
    for number, document in enumerate(
        (
            content,
            [content],
            {"structure": content},
            {"a": content},
            {"entry": {"structure": content}},
        )
    ):
        file = tmp_path / f"{number}.json"
        file.write_text(json.dumps(document))
        try:
            (crystal,) = read(file, reduce=False)
        except FlowLLMError:
            continue
        assert crystal.structure.composition == SALT.composition
    assert not importable.exists() and MODULE not in sys.modules


def test_a_hull_and_references_in_json_import_nothing(importable: Path, tmp_path: Path) -> None:
    entries = [entry({"Na": 1}, -1.3), entry({"Cl": 1}, -1.8), entry({"Na": 1, "Cl": 1}, -7.0)]
    file = tmp_path / "hull.json"
    file.write_text(json.dumps(entries))
    assert read_hull(file).num_entries == 1
    assert read_references(file).energies["Na"] == pytest.approx(-1.4)
    file.write_text(json.dumps([{**entries[0], **CLASS}]))
    with pytest.raises(UserError, match="hull.json"):
        read_hull(file)
    assert not importable.exists() and MODULE not in sys.modules


def test_pickled_crystals_are_not_read(tmp_path: Path) -> None:
    mark = tmp_path / "it-ran"
    for name in ("a.pkl", "a.pickle", "a.pt", "a.npy", "a.joblib", "a.py"):
        torch.save(Runs(mark), tmp_path / name)
        with pytest.raises(UserError, match=f"{name}: cannot read"):
            read(tmp_path / name)
    for name in ("a.json", "a.csv", "a.parquet", "a.cif", "a.extxyz", "a.zip", "a.db", "POSCAR"):
        torch.save(Runs(mark), tmp_path / name)
        with pytest.raises(UserError, match=name):
            read(tmp_path / name)
    assert not mark.exists()


def test_an_archive_writes_nothing_and_leaves_its_folder_alone(tmp_path: Path) -> None:
    outside = tmp_path / "outside.cif"
    outside.write_text(cif(SALT))
    folder = tmp_path / "in"
    folder.mkdir()
    with tarfile.open(folder / "a.tar", "w") as archive:
        info = tarfile.TarInfo("../../etc/evil.cif")
        info.size = len(cif(SALT).encode())
        archive.addfile(info, io.BytesIO(cif(SALT).encode()))
        for kind, name in ((tarfile.SYMTYPE, "link.cif"), (tarfile.LNKTYPE, "hard.cif")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(outside)
            archive.addfile(info)
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("../../etc/evil.cif", cif(SALT))
    before = sorted(tmp_path.rglob("*"))
    for name in ("a.tar", "a.zip"):
        crystals = read(folder / name, skip_invalid=True)
        assert [crystal.id for crystal in crystals] == ["evil"]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_bomb_is_refused(tmp_path: Path) -> None:
    zeros = bytes(1 << 20)
    with gzip.open(tmp_path / "bomb.cif.gz", "wb") as file:
        for _ in range(300):
            file.write(zeros)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(4):
            archive.writestr(f"{number}.cif", zeros * 90)
    for name in ("bomb.cif.gz", "bomb.zip"):
        with pytest.raises(UserError, match=f"{name}.* bytes"):
            read(tmp_path / name)


# Recipes and model cards

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
YAMLS = [
    (BOMB, "reference"),
    ("training: &a [*a]", "reference"),
    (f"training: !!python/object/apply:{MODULE}.Anything []", "could not determine a constructor"),
    (f"training: !!python/module:{MODULE}", "could not determine a constructor"),
    ("[" * 20_000, "nested too deeply"),
    ("# " + "x" * 1_000_001, "characters"),
]


@pytest.mark.parametrize(("text", "problem"), YAMLS)
def test_a_recipe_is_plain_data(text: str, problem: str, importable: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=f"recipe.yaml is not valid YAML: .*{problem}"):
        load_recipe(PriorRecipe, file)
    if len(text) < 1000:
        with pytest.raises(UserError, match="override"):
            load_recipe(PriorRecipe, "llm/small", [f"text={text}"])
    assert not importable.exists() and MODULE not in sys.modules


@pytest.mark.parametrize("text", [text for text, _ in YAMLS])
def test_the_head_of_a_model_card_is_plain_data(
    text: str, importable: Path, tmp_path: Path
) -> None:
    (tmp_path / "README.md").write_text(f"---\n{text}\n---\n")
    with pytest.raises(UserError, match="its head is no YAML"):
        check_weights(tmp_path)
    assert not importable.exists()


# Models; tests/llm_prior/test_foreign_models.py has those of the prior


def test_a_refiner_in_pickled_form_is_not_loaded(tmp_path: Path) -> None:
    from rfm import Refiner

    mark = tmp_path / "it-ran"
    folder = tmp_path / "refiner"
    folder.mkdir()
    (folder / "config.json").write_bytes((BUNDLED_REFINER / "config.json").read_bytes())
    torch.save({"a": Runs(mark)}, folder / "model.safetensors")
    torch.save({"a": Runs(mark)}, folder / "pytorch_model.bin")
    with pytest.raises(FlowLLMError, match="model.safetensors is damaged"):
        Refiner.from_pretrained(resolve(folder, BUNDLED_REFINER))
    assert not mark.exists()


# Run folders


def records(folder: Path, change: Callable[[dict[str, Any]], None]) -> RunFolder:
    """Make a run of one crystal whose record is changed before it is written."""

    def work(context: object, batch: object, progress: object) -> list[dict[str, Any]]:
        content = CrystalRecord(id="salt", structure=SALT, initial_structure=SALT).to_json()
        change(content)
        return [content]

    return run_job(folder, manifest={}, total=1, batch_size=1, work=work, progress=False)


def test_a_record_of_a_run_imports_nothing(importable: Path, tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["structure"] = structure_with_classes()
        content["initial_structure"] = structure_with_classes()

    outcome = publish_crystals(records(tmp_path / "run", change), {}, cif="p1")
    assert outcome.crystals[0].structure.composition == SALT.composition
    assert not importable.exists() and MODULE not in sys.modules


@pytest.mark.parametrize("key", ["id", "structure", "initial_structure", "properties", "rejects"])
def test_a_record_without_a_key_is_damage(key: str, tmp_path: Path) -> None:
    folder = records(tmp_path / "run", lambda content: content.pop(key))
    with pytest.raises(UserError, match=f"00000.jsonl is damaged: line 1: has no '{key}'; delete"):
        publish_crystals(folder, {}, cif="p1")


@pytest.mark.parametrize(
    "name", ["../../evil", "/tmp/evil", "a/b", "..", "", "\0", "con", "a" * 500]
)
def test_an_id_never_leaves_the_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = records(tmp_path / "in" / "run", lambda content: content.update(id=name))
    publish_crystals(run, {}, cif="p1")
    (file,) = (run.path / "cif").iterdir()
    assert file.parent == run.path / "cif"
    crystals = write([Crystal(id=name, structure=SALT)], tmp_path / "in" / "crystals.json")
    monkeypatch.setenv("PMG_VASP_PSP_DIR", "")
    export_vasp(crystals, out=tmp_path / "in" / "vasp")
    write(read(crystals), tmp_path / "in" / "cifs")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert {path.name for path in (tmp_path / "in").iterdir()} == {
        *("run", "crystals.json", "vasp", "cifs")
    }


def test_a_potential_that_a_run_names_is_not_loaded(importable: Path, tmp_path: Path) -> None:
    run = records(tmp_path / "run", lambda content: None)
    manifest = json.loads((run.path / "manifest.json").read_text())
    manifest["run"] |= {"command": "relax", "potential": {"name": f"{MODULE}:Anything"}}
    (run.path / "manifest.json").write_text(json.dumps(manifest))
    publish_crystals(run, {}, cif="p1")
    assert len(read(run.path)) == 1
    assert not importable.exists() and MODULE not in sys.modules


# Secrets


def test_no_secret_of_the_environment_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MP_API_KEY", "HF_TOKEN", "PMG_MAPI_KEY", "WANDB_API_KEY", "AWS_SECRET_KEY"):
        monkeypatch.setenv(name, SECRET)
    salt = write(SALT, tmp_path / "salt.json")
    for command in (
        ("refine", salt, "--out", tmp_path / "refined"),
        ("relax", salt, "--potential", "ase.calculators.emt:EMT", "--out", tmp_path / "relaxed"),
        ("evaluate", salt, "--out", tmp_path / "evaluated"),
    ):
        assert run_command(*command).exit_code in (0, 1)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 12
    assert [path for path in written if SECRET.encode() in path.read_bytes()] == []


# The code


def test_the_code_has_no_door_of_its_own() -> None:
    doors = re.compile(
        r"\bpickle\.loads?\(|\byaml\.(unsafe_|full_)?load\(|\beval\((?!\))|\bexec\("
        r"|allow_pickle=True|trust_remote_code=True|weights_only=False|MontyDecoder|shell=True"
    )
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for package in ("flowllm", "llm_prior", "rfm")
        for path in sorted((ROOT / package).rglob("*.py"))
        for line in path.read_text("utf-8").splitlines()
        if doors.search(line)
    ]
    assert found == [
        "flowllm/system/documents.py: return yaml.load(text, Loader=_PlainLoader)",
        # What this program itself sends to its workers, never from a file.
        "flowllm/system/executors.py: _calls[key] = _Call(*pickle.loads(job))",
    ]
