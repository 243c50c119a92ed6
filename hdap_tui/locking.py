"""Locks between processes, on files: the kernel lets go of what a dead process held."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol


class Opened(Protocol):
    """An open file; closing it gives the lock back."""

    def fileno(self) -> int:
        """Return its descriptor."""
        ...


def take(file: Opened | int, *, shared: bool = False) -> bool:
    """Lock an open file, for oneself or shared; False where another process is in the way.

    Whoever holds it already changes how, and holds nothing for a moment meanwhile.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait(file: Opened | int, *, shared: bool = False) -> None:
    """Lock an open file as `take` does, but wait for it as long as it takes."""
    fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)


def is_held(path: Path) -> bool:
    """Whether a process has a file locked for itself, this one included; False without a file."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not take(descriptor, shared=True)
    finally:
        os.close(descriptor)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Wait until nobody else writes a file; everybody who does asks for this, on a file beside it.

    Raises:
        OSError: its folder is missing or cannot be written to.
    """
    with open(path.with_name(path.name + ".lock"), "w") as lock:
        wait(lock)
        yield
