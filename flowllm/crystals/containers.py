"""Folders and archives of crystals: their files, found without writing anything to the disk.

Archives are bounded: see `flowllm.crystals.contents.unpacked_limit` for their size, and
`MOST_FILES` for the number of their files. The names of their members never become paths.
"""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from flowllm.crystals.contents import TooLarge, read_bytes, unpacked_limit
from flowllm.crystals.formats import Format, format_of
from flowllm.errors import InvalidCrystal, UserError, one_line
from flowllm.system.files import is_temporary

MOST_FILES = 1_000_000
_LARGEST_CRYSTAL = 100_000_000  # bytes of a member with one crystal: about a million atoms
_DAMAGED = (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError)
_ONE_CRYSTAL = (Format.CIF, Format.POSCAR)


@dataclass(frozen=True)
class Member:
    """A file in a folder or archive.

    Attributes:
        name: with its folders, separated by slashes.
        content: returns the bytes; raises `InvalidCrystal` if there are none.
    """

    name: str
    content: Callable[[], bytes]

    @property
    def format(self) -> Format | None:
        """The format by the name."""
        return format_of(self.name)


@dataclass
class Container:
    """The files of a folder or archive that are read, and a word on the others.

    Attributes:
        members: in the order of their names.
        notes: files that may hold crystals and are not read.
    """

    members: list[Member]
    notes: list[str] = field(default_factory=list)


def folder(path: Path) -> Container:
    """Return the files of a folder and its subfolders, hidden ones left out.

    A link that points to nothing is a member without content.

    Args:
        path: of the folder.

    Returns:
        Its files; see `chosen`.

    Raises:
        UserError: if it holds no crystals, or too many files.
    """
    members: list[Member] = []
    seen: set[tuple[int, int]] = set()  # folders, as links can make a circle
    for root, folders, files in os.walk(path, followlinks=True):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            file = Path(root, name)
            if not is_temporary(file):
                relative = file.relative_to(path).as_posix()
                members.append(Member(relative, _reader(file)))
        if len(members) > MOST_FILES:
            raise UserError(f"{path}: more than {MOST_FILES} files; give a part of them")
    return chosen(members, str(path), "folder")


def zip_archive(data: bytes, name: str) -> Container:
    """Return the members of a zip archive.

    Args:
        data: content of the archive.
        name: of the archive, for messages.

    Returns:
        Its files; see `chosen`.

    Raises:
        UserError: if it is damaged, encrypted or too large, or holds no crystals.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{name}: not a readable .zip file: {one_line(error)}") from error
    budget = _Budget(name, unpacked_limit(len(data)))
    infos = [info for info in archive.infolist() if not info.is_dir()]
    if any(info.flag_bits & 1 for info in infos):
        raise UserError(f"{name}: the archive has a password; unpack it yourself")

    def reader(info: zipfile.ZipInfo) -> Callable[[], bytes]:
        def content() -> bytes:
            try:
                with archive.open(info) as file:
                    return budget.read(file.read, info.filename)
            except _DAMAGED as error:
                raise InvalidCrystal("unreadable", f"damaged: {one_line(error)}") from error

        return content

    members = [Member(_inside(info.filename), reader(info)) for info in infos]
    return chosen(members, name, "archive")


def tar_archive(data: bytes, name: str) -> Container:
    """Return the members of a tar archive; see `zip_archive`.

    Args:
        data: content of the archive, not compressed.
        name: of the archive, for messages.

    Returns:
        Its files; see `chosen`. Links in it are noted and not read.

    Raises:
        UserError: if it is damaged or too large, or holds no crystals.
    """
    budget = _Budget(name, unpacked_limit(len(data)))
    members: list[Member] = []
    links: list[str] = []
    try:
        archive = tarfile.open(fileobj=io.BytesIO(data), mode="r:")  # noqa: SIM115 read later
        for info in archive:
            if len(members) > MOST_FILES:
                break  # `chosen` refuses it
            if info.isreg() and not info.issparse():
                members.append(Member(_inside(info.name), _tar_reader(archive, info, budget)))
            elif not info.isdir() and format_of(info.name) is not None:
                links.append(info.name)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise UserError(f"{name}: not a readable tar archive: {one_line(error)}") from error
    found = chosen(members, name, "archive")
    if links:
        found.notes.append(f"{len(links)} links are not read: {_some(links)}")
    return found


def chosen(members: list[Member], name: str, kind: str) -> Container:
    """Return those files of a folder or archive that are read.

    Files of crystals are read, and tables only if there is a single one and nothing else, because
    several tables are parts of a data set that do not belong together (training and test).

    Args:
        members: all files.
        name: of the folder or archive, for messages.
        kind: `folder` or `archive`, for messages.

    Returns:
        The files, with a note on tables and archives that are not read.

    Raises:
        UserError: if there are no crystals or too many files.
    """
    if len(members) > MOST_FILES:
        raise UserError(f"{name}: more than {MOST_FILES} files; give a part of them")
    members = [m for m in members if not _is_of_system(m.name)]
    known = sorted((m for m in members if m.format), key=lambda member: member.name)
    crystals = [m for m in known if m.format and not m.format.is_table and not m.format.is_archive]
    tables = [m for m in known if m.format and m.format.is_table]
    archives = [m for m in known if m.format and m.format.is_archive]
    if not crystals and len(tables) == 1:
        crystals, tables = tables, []
    if not crystals:
        no_run = " and is not a run folder" if kind == "folder" else ""
        raise UserError(
            f"{name}: the {kind} holds no files of crystals{no_run}; it holds {_content(members)}"
            + ("; name one of them" if tables or archives else "")
        )
    others = [member.name for member in (*tables, *archives)]
    notes = [f"{len(others)} files are not read: {_some(others)}"] if others else []
    return Container(crystals, notes)


def _content(members: list[Member]) -> str:
    """Return what a container holds, in a few words."""
    if not members:
        return "no files"
    if len(members) <= 3:
        return ", ".join(member.name for member in members)
    suffixes = Counter(PurePosixPath(m.name).suffix or "no suffix" for m in members)
    words = [f"{count} of {suffix}" for suffix, count in suffixes.most_common(5)]
    return f"{len(members)} other files: {', '.join(words)}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _is_of_system(name: str) -> bool:
    """Return whether macOS made the file, which adds a second one for every file."""
    *folders, last = name.split("/")
    return last.startswith("._") or last == ".DS_Store" or "__MACOSX" in folders


def _inside(name: str) -> str:
    """Return the name of a member without what would lead out of its archive."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return "/".join(part for part in parts if part not in ("/", "..", "."))


def _reader(file: Path) -> Callable[[], bytes]:
    def content() -> bytes:
        if file.is_symlink() and not file.exists():
            raise InvalidCrystal("dead_link", f"the link points to {os.readlink(file)}, not there")
        try:
            return read_bytes(file)
        except UserError as error:
            raise InvalidCrystal("unreadable", str(error)) from error

    return content


def _tar_reader(
    archive: tarfile.TarFile, info: tarfile.TarInfo, budget: _Budget
) -> Callable[[], bytes]:
    def content() -> bytes:
        file = archive.extractfile(info)
        if file is None:
            raise InvalidCrystal("unreadable", "not a file")
        return budget.read(file.read, info.name)

    return content


class _Budget:
    """The bytes that an archive may still unpack to."""

    def __init__(self, archive: str, limit: int) -> None:
        self.archive = archive
        self.limit = self.left = limit

    def read(self, read: Callable[[int], bytes], name: str) -> bytes:
        one = format_of(name) in _ONE_CRYSTAL
        most = min(self.left, _LARGEST_CRYSTAL) if one else self.left
        content = read(most + 1)
        if len(content) > self.left:
            raise TooLarge(
                f"{self.archive}: holds more than {self.limit} bytes; unpack it yourself if you "
                "trust it"
            )
        self.left -= len(content)
        if len(content) > most:
            raise InvalidCrystal("unreadable", f"more than {_LARGEST_CRYSTAL} bytes for a crystal")
        return content
