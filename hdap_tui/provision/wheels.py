"""Wheels as files: what they are called, what they need, and whether they are what they say."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import zipfile
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.tags import Tag
from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import Version

import engine.files
from hdap_tui.errors import SettingsError, UserError
from hdap_tui.text import clean

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]{0,250}\.whl")
_METADATA_LIMIT = 4 << 20
_UNPACKED_LIMIT = 4 << 30
_LINK = 0o120000


class WheelError(UserError):
    """A wheel is not what it should be."""


@dataclass(frozen=True)
class Wheel:
    """One wheel on the operator's machine."""

    path: Path
    name: str
    """Of its project, normalised."""
    version: Version
    build: tuple[int, str] | tuple[()]
    tags: frozenset[Tag]


def in_folder(folder: Path) -> list[Wheel]:
    """Return the wheels that lie in a folder; files whose name is no wheel's are left out.

    Raises:
        SettingsError: there is no such folder, or no wheel in it.
    """
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        raise SettingsError(f"{folder}: {error.strerror}; --wheels names a folder.") from error
    found = [wheel for path in files if path.is_file() and (wheel := parsed(path))]
    if not found:
        raise SettingsError(f"{folder} holds no wheels (*.whl).")
    return found


def parsed(path: Path) -> Wheel | None:
    """Return the wheel that a file's name describes, None where it is no wheel's name."""
    if not _NAME.fullmatch(path.name):
        return None
    try:
        name, version, build, tags = parse_wheel_filename(path.name)
    except InvalidWheelFilename:
        return None
    return Wheel(path, name, version, build, tags)


@dataclass(frozen=True)
class Needs:
    """What a wheel asks of others."""

    requirements: tuple[Requirement, ...]
    python: SpecifierSet


def needs(wheel: Wheel) -> Needs:
    """Return what a wheel says that it needs.

    Raises:
        WheelError: it cannot be read, or says nothing that makes sense.
    """
    with _opened(wheel.path) as archive:
        text = _metadata(wheel, archive, "METADATA").decode("utf-8", "replace")
    headers = HeaderParser().parsestr(text)
    try:
        requirements = tuple(map(Requirement, headers.get_all("Requires-Dist", [])))
        python = SpecifierSet(headers.get("Requires-Python", ""))
    except (InvalidRequirement, InvalidSpecifier) as error:
        said = clean(str(error).splitlines()[0])
        raise WheelError(f"{wheel.path.name}: its metadata makes no sense ({said})") from error
    return Needs(requirements, python)


def unpacked_size(wheel: Wheel, digest: str, cache: Path) -> int:
    """Return how many bytes it unpacks to, once all its content is as its RECORD says.

    A wheel with this content that was found good before is not read again.

    Raises:
        WheelError: a file is missing, changed, too much, or would land outside its folder.
    """
    note = cache / "verified" / f"{digest}.json"
    try:
        known = json.loads(note.read_text())
        return int(known["unpacked"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    size = verify(wheel)
    note.parent.mkdir(parents=True, exist_ok=True)
    engine.files.write(note, json.dumps({"wheel": wheel.path.name, "unpacked": size}))
    return size


def verify(wheel: Wheel) -> int:
    """Hold every file of a wheel against its RECORD; return how many bytes they unpack to.

    Raises:
        WheelError: a file is missing, changed, too much, or would land outside its folder.
    """
    with _opened(wheel.path) as archive:
        record = _record(wheel, archive)
        total = 0
        for entry in archive.infolist():
            _check_place(wheel, entry)
            if entry.is_dir():
                continue
            total += entry.file_size
            if total > _UNPACKED_LIMIT:
                raise WheelError(f"{wheel.path.name} unpacks to more than 4 GB; it is refused")
            wanted = record.pop(entry.filename, None)
            if wanted is None:
                raise WheelError(
                    f"{wheel.path.name}: {_shown(entry.filename)} is not in its RECORD"
                )
            if wanted and _hash(wheel, archive, entry) != wanted:
                raise WheelError(
                    f"{wheel.path.name} is damaged: {_shown(entry.filename)} is not what its RECORD"
                    " says; get the wheel anew"
                )
    if record:
        missing = _shown(next(iter(record)))
        raise WheelError(f"{wheel.path.name} is damaged: {missing} is missing; get the wheel anew")
    return total


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise WheelError(f"{path.name} cannot be read as a wheel; get it anew") from error


def _metadata(wheel: Wheel, archive: zipfile.ZipFile, file: str) -> bytes:
    """Read a file of the wheel's own dist-info folder."""
    found = [
        entry
        for entry in archive.infolist()
        if re.fullmatch(rf"[^/]+\.dist-info/{file}", entry.filename)
    ]
    if len(found) != 1 or found[0].file_size > _METADATA_LIMIT:
        raise WheelError(f"{wheel.path.name} has no proper {file}; it is no wheel")
    try:
        return archive.read(found[0])
    except (OSError, zipfile.BadZipFile, RuntimeError, ValueError) as error:
        raise WheelError(f"{wheel.path.name} is damaged; get it anew") from error


def _record(wheel: Wheel, archive: zipfile.ZipFile) -> dict[str, bytes]:
    """Return the SHA-256 of every file; empty for the RECORD itself and its signatures."""
    text = _metadata(wheel, archive, "RECORD").decode("utf-8", "replace")
    found: dict[str, bytes] = {}
    for row in csv.reader(io.StringIO(text)):
        if len(row) < 2:
            continue
        name, (kind, _, value) = row[0], row[1].partition("=")
        own = PurePosixPath(name).name in ("RECORD", "RECORD.jws", "RECORD.p7s")
        if kind == "sha256":
            found[name] = base64.urlsafe_b64decode(value + "=" * (-len(value) % 4))
        elif own and PurePosixPath(name).parent.suffix == ".dist-info":
            found[name] = b""
        else:
            raise WheelError(f"{wheel.path.name}: {_shown(name)} has no SHA-256 in its RECORD")
    return found


def _check_place(wheel: Wheel, entry: zipfile.ZipInfo) -> None:
    """Refuse a name that would land outside the folder, or a link."""
    name = entry.filename
    parts = name.split("/")
    outside = name.startswith("/") or ".." in parts or "\\" in name or ":" in parts[0]
    if outside or not name.isprintable() or (entry.external_attr >> 16) & 0o170000 == _LINK:
        raise WheelError(
            f"{wheel.path.name} holds {_shown(name)}, which would leave its folder; it is refused"
        )


def _hash(wheel: Wheel, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    digest = hashlib.sha256()
    try:
        with archive.open(entry) as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except (OSError, zipfile.BadZipFile, RuntimeError, ValueError, EOFError) as error:
        raise WheelError(f"{wheel.path.name} is damaged; get it anew") from error
    return digest.digest()


def _shown(name: str) -> str:
    return f'"{clean(name, 80)}"'
