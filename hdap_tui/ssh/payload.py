"""A local file that devices are to have, and what it is called there."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

_SUFFIX = {"models": ".onnx", "runner": ".py", "images": ".u8"}
_FOLDER = re.compile(r"[a-z][a-z0-9-]{0,31}")
_CACHED = 4096

Stamp = tuple[int, int, int]
"""When a file was changed (nanoseconds), its length, its number in the file system."""

_known: dict[tuple[Path, Stamp], str] = {}
_lock = threading.Lock()


@dataclass(frozen=True)
class Payload:
    """A local file and what it is called on a device."""

    path: Path
    digest: str
    """SHA-256 of its content, lower-case hex."""
    size: int
    name: str
    """Below the product's folder on the device, its content's hash in it."""

    @classmethod
    def of(cls, path: Path, folder: str = "models") -> Payload:
        """Read a file's size and hash; a file that did not change is not read again.

        It is called models/<digest>.onnx, runner/<digest>.py, images/<digest>.u8, or, in any other
        folder, by its own file name: wheels/<digest>/<file name>.

        Raises:
            OSError: it cannot be read.
            ValueError: the folder is none, or the file's name is not fit for a device.
        """
        if not _FOLDER.fullmatch(folder) or not path.name.isprintable():
            raise ValueError(f"{folder}/{path.name!r} cannot be a name on a device")
        digest, size = _hashed(path)
        suffix = _SUFFIX.get(folder, f"/{path.name}")
        return cls(path, digest, size, f"{folder}/{digest}{suffix}")

    @classmethod
    def all_of(cls, paths: Sequence[Path], folder: str = "models") -> list[Payload]:
        """Do the same for several files at once.

        Raises:
            OSError, ValueError: see `of`.
        """
        if len(paths) < 2:
            return [cls.of(path, folder) for path in paths]
        with ThreadPoolExecutor(4, "hash") as workers:
            return list(workers.map(lambda path: cls.of(path, folder), paths))

    @property
    def part(self) -> str:
        """What it is called on a device while it is on its way: the same for every sender."""
        return part_of(self.name)

    def prefix_digest(self, length: int) -> str:
        """Return the hash of its first bytes.

        Raises:
            OSError: it cannot be read.
        """
        digest = hashlib.sha256()
        with open(self.path, "rb") as file:
            while length and (piece := file.read(min(length, 1 << 20))):
                digest.update(piece)
                length -= len(piece)
        return digest.hexdigest()


def part_of(name: str) -> str:
    """Return what the file of that name is called while it is on its way."""
    digest = name.partition("/")[2][:64]
    return f"{digest}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _hashed(path: Path) -> tuple[str, int]:
    with open(path, "rb", buffering=0) as file:
        stamp = _stamp(path)
        with _lock:
            known = _known.get((path, stamp))
        if known is None:
            known = hashlib.file_digest(file, "sha256").hexdigest()
            with _lock:
                if len(_known) >= _CACHED:
                    _known.clear()
                if _stamp(path) == stamp:
                    _known[path, stamp] = known
    return known, stamp[1]


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino
