"""Compressed files, archives, folders, standard input, encodings and their limits."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import os
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

from flowllm.cli import cli
from flowllm.crystals import containers, contents
from flowllm.crystals.formats import Format, format_of, format_of_content, stem
from flowllm.crystals.io import Crystal, check_input, input_hash, read, write
from flowllm.errors import InvalidCrystal, UserError
from support import CSCL, SALT, SHARED, cif, perovskite, table

CASES = SHARED / "cases"
PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
POSCAR = "CsCl\n4.12\n1 0 0\n0 1 0\n0 0 1\nCs Cl\n1 1\nDirect\n0 0 0\n.5 .5 .5\n"
NAMES = ["t.cif", "t.csv", "t.parquet", "t.extxyz", "t.json", "t.jsonl", "t.vasp", "POSCAR"]


@pytest.fixture
def salt(tmp_path) -> Path:
    """A folder with one crystal in every format."""
    folder = tmp_path / "formats"
    folder.mkdir()
    for name in NAMES:
        write(Crystal(id="t", structure=CSCL), folder / name)
    for name, source in (("t.poscar", "t.vasp"), ("CONTCAR", "t.vasp"), ("t.mcif", "t.cif")):
        (folder / name).write_bytes((folder / source).read_bytes())
    return folder


def zipped(path: Path, files: dict[str, str | bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, files: dict[str, str | bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


# --- compression, encodings and standard input ---------------------------------------------------


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("name", [*NAMES, "t.poscar", "CONTCAR", "t.mcif"])
def test_every_format_is_read_compressed(tmp_path, salt, name, suffix):
    path = tmp_path / f"{name}{suffix}"
    path.write_bytes(PACKERS[suffix]((salt / name).read_bytes()))
    check_input(path)
    (plain,) = read(salt / name)
    (packed,) = read(path)
    assert packed.structure == plain.structure
    assert packed.id == plain.id


@pytest.mark.parametrize("mark", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", [n for n in NAMES if n != "t.parquet"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_every_text_is_read_in_every_encoding(tmp_path, salt, name, mark, ends):
    text = (salt / name).read_text().replace("\n", ends)
    (tmp_path / name).write_bytes(text.encode(mark))
    (crystal,) = read(tmp_path / name)
    assert crystal.structure == read(salt / name)[0].structure
    if mark.startswith("utf-16-"):
        marked = codecs.BOM_UTF16_LE if mark.endswith("le") else codecs.BOM_UTF16_BE
        (tmp_path / name).write_bytes(marked + text.encode(mark))
        assert len(read(tmp_path / name)) == 1


@pytest.mark.parametrize("name", [*NAMES, "t.zip", "t.tar.gz", "t.cif.xz"])
def test_standard_input_is_recognised_by_its_content(tmp_path, salt, name, monkeypatch):
    if name == "t.zip":
        zipped(salt / name, {"x/t.cif": (salt / "t.cif").read_bytes()})
    elif name == "t.tar.gz":
        tarred(salt / name, {"t.cif": (salt / "t.cif").read_bytes()}, "w:gz")
    elif name == "t.cif.xz":
        (salt / name).write_bytes(lzma.compress((salt / "t.cif").read_bytes()))
    contents.standard_input.cache_clear()
    data = (salt / name).read_bytes()
    out = tmp_path / "out.json"
    result = CliRunner().invoke(cli, ["data", "-", str(out)], input=data)
    contents.standard_input.cache_clear()
    assert result.exit_code == 0, result.output
    (crystal,) = read(out)
    assert crystal.structure.composition == CSCL.composition


def test_standard_input_that_is_nothing_is_one_line():
    contents.standard_input.cache_clear()
    for data in (b"", b"hello\n", b"\xff\xfe\x00\xff\x00\x01"):
        result = CliRunner().invoke(cli, ["data", "-", "out.json"], input=data)
        contents.standard_input.cache_clear()
        assert result.exit_code == 2
        assert "-: standard input is none of CIF, POSCAR" in result.stderr


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[]", Format.JSON),
        ('{"a": 1}\n', Format.JSON),
        ('{"a": 1}\n{"a": 2}\n', Format.JSONL),
        ('{\n"a": 1}\n', Format.JSON),
        ("# a comment\ndata_x\n_cell_length_a 1\n", Format.CIF),
        ('id,cif\na,"data_x\n"\n', Format.CSV),
        ("2\nLattice\nH 0 0 0\nH 0 0 1\n", Format.EXTXYZ),
        (POSCAR, Format.POSCAR),
        (POSCAR.replace("CsCl\n", "\n", 1), Format.POSCAR),
        ("hello", None),
        ("", None),
    ],
)
def test_the_format_of_text(text, found):
    assert format_of_content(text.encode(), text) == found


@pytest.mark.parametrize(
    ("name", "found", "base"),
    [
        ("POSCAR", Format.POSCAR, "POSCAR"),
        ("POSCAR.gz", Format.POSCAR, "POSCAR"),
        ("CONTCAR.17", Format.POSCAR, "CONTCAR.17"),
        ("poscar_NaCl.vasp", Format.POSCAR, "poscar_NaCl"),
        ("POSCAR.cif", Format.CIF, "POSCAR"),
        ("a.b.CIF.GZ", Format.CIF, "a.b"),
        ("x.tgz", Format.TAR, "x"),
        ("x.tar.bz2", Format.TAR, "x"),
        ("x.txz", Format.TAR, "x"),
        ("x.db", Format.DATABASE, "x"),
        ("x.pkl", None, "x.pkl"),
        ("x.gz", None, "x"),
        ("x", None, "x"),
    ],
)
def test_the_format_of_a_name(name, found, base):
    assert format_of(name) == found
    assert stem(name) == base


def test_damaged_compression_is_one_line(tmp_path, salt):
    for suffix, pack in PACKERS.items():
        path = tmp_path / f"t.cif{suffix}"
        data = pack((salt / "t.cif").read_bytes())
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(UserError, match="the compressed file is damaged"):
            read(path)


def test_what_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "_SMALL", 1000)
    text = cif(perovskite()) + "#" * 1_000_000
    for suffix, pack in PACKERS.items():
        path = tmp_path / f"t.cif{suffix}"
        path.write_bytes(pack(text.encode()))
        with pytest.raises(UserError, match="unpacks from .* to more than .* bytes"):
            read(path)
    path = zipped(tmp_path / "t.zip", {"a.cif": cif(perovskite()), "b.cif": text})
    with pytest.raises(UserError, match="t.zip: holds more than"):
        read(path, skip_invalid=True)
    path = tarred(tmp_path / "t.tar.gz", {"a.cif": text}, "w:gz")
    with pytest.raises(UserError, match="unpacks from"):
        read(path)


# --- folders and archives ------------------------------------------------------------------------

FILES = {"a.cif": cif(CSCL), "sub/b.vasp": POSCAR, "sub/deep/POSCAR": POSCAR, "c.cif.gz": None}


def tree(path: Path) -> Path:
    for name, content in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        data = gzip.compress(cif(CSCL).encode()) if content is None else content.encode()
        (path / name).write_bytes(data)
    (path / "README.txt").write_text("notes")
    (path / "sub" / "._b.vasp").write_text("macOS")
    (path / ".hidden").mkdir()
    (path / ".hidden" / "x.cif").write_text("x")
    return path


@pytest.mark.parametrize(
    "kind", ["folder", ".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"]
)
def test_files_in_subfolders_are_read_with_their_names(tmp_path, kind):
    folder = tree(tmp_path / "in")
    path = folder
    if kind != "folder":
        files = {
            p.relative_to(folder).as_posix(): p.read_bytes()
            for p in folder.rglob("*.*")
            if p.is_file() and ".hidden" not in p.parts
        }
        files["sub/deep/POSCAR"] = POSCAR.encode()
        path = tmp_path / f"in{kind}"
        if kind == ".zip":
            zipped(path, files)
        else:
            mode = {".tar": "w", ".tgz": "w:gz", ".txz": "w:xz"}.get(kind, f"w:{kind[5:]}")
            tarred(path, files, mode)
    check_input(path)
    back = read(path)
    assert [crystal.id for crystal in back] == ["a", "c", "b", "POSCAR"]
    assert {c.structure.composition.reduced_formula for c in back} == {"CsCl"}
    assert [crystal.id for crystal in read(path, limit=2)] == ["a", "c"]
    assert len(input_hash(path)) == 64


def test_equal_names_get_their_folders(tmp_path):
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "POSCAR").write_text(POSCAR)
    assert [crystal.id for crystal in read(tmp_path)] == ["x/POSCAR", "y/POSCAR"]
    out = write(read(tmp_path), tmp_path / "out")
    assert sorted(p.name for p in out.iterdir()) == ["x_POSCAR.cif", "y_POSCAR.cif"]


def test_files_of_several_crystals_in_a_folder(tmp_path, caplog):
    write([Crystal(id=n, structure=CSCL) for n in "ab"], tmp_path / "two.extxyz")
    (tmp_path / "one.xyz").write_text("1\nLattice='3 0 0 0 3 0 0 0 3'\nPo 0 0 0\n" * 2)
    (tmp_path / "s.json").write_text(json.dumps(CSCL.as_dict()))
    (tmp_path / "notes.json").write_text("{}")
    (tmp_path / "train.csv").write_text("cif\n")
    back = read(tmp_path)
    assert [crystal.id for crystal in back] == ["one-1", "one-2", "s", "a", "b"]
    assert "1 files are not read: train.csv" in caplog.text
    assert "1 files hold no crystals: notes.json" in caplog.text


def test_a_bad_file_beside_good_ones_is_an_error_or_counted(tmp_path):
    (tmp_path / "a.cif").write_text(cif(CSCL))
    (tmp_path / "b.json").write_text("{")
    (tmp_path / "c.vasp").write_text("")
    with pytest.raises(InvalidCrystal, match=r"file b.json \(id b\): b.json: not a readable JSON"):
        read(tmp_path)
    assert read(tmp_path, skip_invalid=True).skipped == Counter(unreadable=2)


def test_a_single_table_in_an_archive_is_read_and_several_are_not(tmp_path):
    rows = table(tmp_path / "t.csv", [{"id": "x", "cif": cif(CSCL)}]).read_text()
    assert read(zipped(tmp_path / "t.csv.zip", {"t.csv": rows}))[0].id == "x"
    path = zipped(tmp_path / "t.zip", {"train.csv": rows, "test.csv": rows, "README": "x"})
    with pytest.raises(UserError, match="holds train.csv, test.csv, README; name one of them"):
        read(path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.txt": "x"}, "the archive holds no files of crystals; it holds a.txt"),
        ({}, "it holds no files"),
        ({f"{n}.png": "x" for n in range(5)}, "it holds 5 other files: 5 of .png"),
        ({"x.zip": "x"}, "it holds x.zip; name one of them"),
        ({"x.json": "{}"}, "no crystals in x.json"),
    ],
)
def test_a_container_without_crystals_says_what_it_holds(tmp_path, files, message):
    for path in (zipped(tmp_path / "t.zip", files), tarred(tmp_path / "t.tar", files)):
        with pytest.raises(UserError, match=message):
            read(path)


def test_links(tmp_path, caplog):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "simple cubic.cif").write_text(cif(CSCL))
    (folder / "b.cif").symlink_to("nowhere.cif")
    (folder / "circle").symlink_to(folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "c.cif").write_text(cif(CSCL))
    (folder / "linked").symlink_to(tmp_path / "other")
    back = read(folder)
    assert [crystal.id for crystal in back] == ["c", "simple cubic"]
    assert back.skipped == Counter(dead_link=1)
    assert "file b.cif: the link points to nowhere.cif, not there" in caplog.text
    out = write(back, tmp_path / "out")
    assert sorted(p.name for p in out.iterdir()) == ["c.cif", "simple cubic.cif"]
    assert [crystal.id for crystal in read(out)] == ["c", "simple cubic"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_named(tmp_path):
    (tmp_path / "a.cif").write_text(cif(CSCL))
    (tmp_path / "a.cif").chmod(0)
    for path in (tmp_path, tmp_path / "a.cif"):
        with pytest.raises(UserError, match="cannot be read: .*ermission"):
            read(path)


def test_members_lead_nowhere(tmp_path, caplog):
    files = {"../../a.cif": cif(CSCL), "/etc/b.cif": cif(CSCL), "c\\..\\d.cif": cif(CSCL)}
    for path in (zipped(tmp_path / "t.zip", files), tarred(tmp_path / "t.tar", files)):
        assert {crystal.id for crystal in read(path)} == {"a", "b", "d"}
    twice = {"../x/a.cif": cif(CSCL), "../y/a.cif": cif(SALT)}
    assert [c.id for c in read(zipped(tmp_path / "u.zip", twice))] == ["x/a", "y/a"]
    path = tmp_path / "links.tar"
    with tarfile.open(path, "w") as archive:
        data = cif(CSCL).encode()
        info = tarfile.TarInfo("a.cif")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
        for kind, name in (
            (tarfile.SYMTYPE, "b.cif"),
            (tarfile.LNKTYPE, "c.cif"),
            (tarfile.FIFOTYPE, "d.cif"),
        ):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "/etc/passwd"
            archive.addfile(link)
    assert [crystal.id for crystal in read(path)] == ["a"]
    assert "3 links are not read: b.cif, c.cif, d.cif" in caplog.text


def test_archives_are_bounded_in_number(tmp_path, monkeypatch):
    monkeypatch.setattr(containers, "MOST_FILES", 2)
    files = {f"{n}.cif": cif(CSCL) for n in range(4)}
    for path in (zipped(tmp_path / "t.zip", files), tarred(tmp_path / "t.tar", files), tmp_path):
        for n in range(4):
            (tmp_path / f"{n}.cif").write_text(cif(CSCL))
        with pytest.raises(UserError, match="more than 2 files"):
            read(path)


def test_damaged_archives_are_one_line(tmp_path):
    good = zipped(tmp_path / "t.zip", {"a.cif": cif(CSCL)}).read_bytes()
    (tmp_path / "t.zip").write_bytes(good[:-30])
    with pytest.raises(UserError, match="not a readable .zip file"):
        read(tmp_path / "t.zip")
    wrong = bytearray(good)
    wrong[60:90] = b"x" * 30
    (tmp_path / "t.zip").write_bytes(wrong)
    with pytest.raises(InvalidCrystal, match=r"file a.cif \(id a\): damaged"):
        read(tmp_path / "t.zip")
    (tmp_path / "t.tar").write_text("no archive " * 100)
    with pytest.raises(UserError, match="not a readable tar archive"):
        read(tmp_path / "t.tar")


@pytest.mark.skipif(not CASES.is_dir(), reason="needs the cases at ../shared/cases")
def test_the_cases_of_encodings_and_names():
    for name in ("salt.cif", "salt.extxyz", "salt.json", "salt16.cif"):
        assert len(read(CASES / "13-byte-order-mark" / name)) == 1
    (crystal,) = read(CASES / "24-containers-and-names" / "nacl.poscar")
    assert (crystal.id, crystal.structure.composition.reduced_formula) == ("nacl", "NaCl")
    for name in ("layer.extxyz", "layer.json"):
        with pytest.raises(InvalidCrystal) as error:
            read(CASES / "19-layer-read-as-bulk" / name)
        assert error.value.reason == "not_periodic"
