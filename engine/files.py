"""Files that are there whole or not at all, and files of lines that grow."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to; at the end it takes that file's place.

    Whoever reads `path` finds the old file or the new one, and after a power cut as well: the
    content is on the disk before it gets the name. Where writing fails the old file stays.

    Raises:
        OSError: the folder is missing or full.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        yield aside
        with open(aside, "rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write(path: Path, data: bytes | str, mode: int = 0o644) -> None:
    """Write a whole file as `replacing` does; `mode` is cut by the process's umask.

    Raises:
        OSError: the folder is missing or full; what the path held before is still there.
    """
    content = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data
    with replacing(path) as aside:
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with open(descriptor, "wb") as file:
            file.write(content)


def append(path: Path, records: Iterable[Any]) -> None:
    """Add a line of JSON for each record; they are on the disk when this returns.

    Raises:
        OSError: the folder is missing or full.
    """
    with path.open("a", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def lines(path: Path) -> list[bytes]:
    """Return the lines of such a file; one that was cut off at the end is removed from it.

    Raises:
        OSError: it cannot be read.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    return whole.splitlines()
