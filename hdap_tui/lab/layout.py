"""Where a lab keeps its files, its lock, and its lines in the fleet's known hosts.

Nothing here imports an SSH library: the command line asks these questions often.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from engine import files
from hdap_tui import locking

HOST = "127.0.0.1"
_COMMENT = "hdap-lab"
_FLOCK = "hhqqi4x"
"""struct flock of a 64-bit Linux: type, whence, start, length, process."""


@dataclass(frozen=True)
class Layout:
    """The files of one lab, below one state folder."""

    state: Path

    @classmethod
    def of(cls, state: Path) -> Layout:
        """Resolve the folder once: devices compare whole paths."""
        return cls(state.expanduser().resolve())

    @property
    def folder(self) -> Path:
        """Where everything lies but `known_hosts`."""
        return self.state / "lab"

    @property
    def known_hosts(self) -> Path:
        """The fleet's own file, which holds other hosts too."""
        return self.state / "known_hosts"

    @property
    def info(self) -> Path:
        """Says which devices a running lab has."""
        return self.folder / "lab.json"

    @property
    def lock(self) -> Path:
        """Locked for as long as the lab's process lives."""
        return self.folder / "lock"

    @property
    def control(self) -> Path:
        """Socket that faults and questions go through."""
        return self.folder / "control"

    @property
    def log(self) -> Path:
        """What the lab's process has to say."""
        return self.folder / "lab.log"

    @property
    def plan(self) -> Path:
        """The plan that the starter handed over."""
        return self.folder / "plan.json"

    @property
    def client_key(self) -> Path:
        """Private key that every device of the lab accepts."""
        return self.folder / "id_ed25519"

    @property
    def cache(self) -> Path:
        """What the devices' emulation keeps between processes."""
        return self.folder / "cache"

    @property
    def devices(self) -> Path:
        """One folder a device."""
        return self.folder / "devices"

    def device(self, name: str) -> Path:
        """Folder of one device."""
        return self.devices / name

    def profile(self, name: str) -> Path:
        """How slow one device is."""
        return self.device(name) / "profile.json"


@contextlib.contextmanager
def holding(path: Path) -> Iterator[bool]:
    """Hold the lab's lock; yields whether it was free.

    The kernel lets go of it when the process ends in whatever way, so it is never stale.
    """
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


def holder(path: Path) -> int | None:
    """Return the process that holds the lock, or None: the kernel knows, no file says it."""
    question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        with path.open("rb") as file:
            answer = fcntl.fcntl(file, fcntl.F_GETLK, question)
    except FileNotFoundError:
        return None
    kind, _, _, _, pid = struct.unpack(_FLOCK, answer)
    return None if kind == fcntl.F_UNLCK else int(pid)


@contextlib.contextmanager
def socket_address(path: Path) -> Iterator[str]:
    """Yield a short name for a socket: the system allows 107 bytes, folders may be deeper."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def update_known_hosts(path: Path, keys: Iterable[tuple[int, str]]) -> None:
    """Write the lab's host keys as (port, "type base64"); other hosts' lines stay as they are."""
    mine = {f"[{HOST}]:{port}": key for port, key in keys}
    with locking.writing(path):
        try:
            lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        except FileNotFoundError:
            lines = []
        kept = [line for line in lines if not _own_line(line, mine)]
        fresh = [f"{host} {key} {_COMMENT}" for host, key in mine.items()]
        files.write(path, "".join(f"{line}\n" for line in (*kept, *fresh)), 0o600)


def _own_line(line: str, mine: Iterable[str]) -> bool:
    words = line.split()
    return bool(words) and (words[0] in mine or words[3:] == [_COMMENT])
