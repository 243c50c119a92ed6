"""Host keys: an index of known_hosts files, and how a key is shown to people.

paramiko's own reader takes seconds for a few thousand entries and stops at the first line it does
not know, so the format (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT) is read here.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import fcntl
import hashlib
import hmac
import os
import re
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hdap_tui.ssh.errors import DeviceError, ErrorKind

USER_FILE = Path("~/.ssh/known_hosts")


@dataclass(frozen=True)
class HostKey:
    """A public host key."""

    type: str
    """The algorithm: ssh-ed25519, …"""
    base64: str
    """The key's blob, as it stands in a known_hosts file."""

    @property
    def fingerprint(self) -> str:
        """As OpenSSH prints it: SHA256:…"""
        digest = hashlib.sha256(base64.b64decode(self.base64)).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")

    def __str__(self) -> str:
        return f"{self.type} {self.fingerprint}"


def host_name(host: str, port: int) -> str:
    """Return the host as a known_hosts file names it."""
    return host.lower() if port == 22 else f"[{host.lower()}]:{port}"


@dataclass
class _Index:
    """One file."""

    plain: dict[str, set[HostKey]] = field(default_factory=dict)
    hashed: list[tuple[bytes, bytes, HostKey]] = field(default_factory=list)
    patterns: list[tuple[list[tuple[bool, re.Pattern[str]]], HostKey]] = field(default_factory=list)
    revoked: set[str] = field(default_factory=set)
    skipped: int = 0

    def add_line(self, line: str) -> None:
        parts = line.split()
        if not parts or parts[0].startswith("#"):
            return
        mark = parts.pop(0) if parts[0].startswith("@") else ""
        if len(parts) < 3 or mark == "@cert-authority" or not _is_key(parts[2]):
            self.skipped += 1
            return
        names, key = parts[0], HostKey(parts[1], parts[2])
        if mark == "@revoked":
            self.revoked.add(key.base64)
        elif mark:
            self.skipped += 1
        elif names.startswith("|1|"):
            self._add_hashed(names, key)
        elif any(c in names for c in "*?!"):
            self.patterns.append(([_pattern(n) for n in names.split(",") if n], key))
        else:
            for name in names.split(","):
                self.plain.setdefault(name.lower(), set()).add(key)

    def _add_hashed(self, names: str, key: HostKey) -> None:
        try:
            salt, digest = (base64.b64decode(part) for part in names[3:].split("|"))
        except (ValueError, binascii.Error):
            self.skipped += 1
            return
        self.hashed.append((salt, digest, key))

    def lookup(self, name: str) -> set[HostKey]:
        found = set(self.plain.get(name, ()))
        for salt, digest, key in self.hashed:
            if hmac.compare_digest(hmac.digest(salt, name.encode(), "sha1"), digest):
                found.add(key)
        for patterns, key in self.patterns:
            hits = [negated for negated, pattern in patterns if pattern.fullmatch(name)]
            if hits and not any(hits):
                found.add(key)
        return found


def _is_key(blob: str) -> bool:
    try:
        base64.b64decode(blob, validate=True)
    except (ValueError, binascii.Error):
        return False
    return True


def _pattern(name: str) -> tuple[bool, re.Pattern[str]]:
    negated = name.startswith("!")
    text = re.escape(name.lstrip("!").lower()).replace(r"\*", ".*").replace(r"\?", ".")
    return negated, re.compile(text)


class KnownHosts:
    """The keys that the fleet's file knows; for a host it does not know, the other files'.

    Only the fleet's file is ever written. Safe to use from several threads; a file that was
    changed meanwhile, by another process too, is read again.
    """

    def __init__(self, fleet: Path, others: Sequence[Path] = (USER_FILE,)) -> None:
        self.fleet = fleet
        self._files = [fleet, *(path.expanduser() for path in others)]
        self._read: dict[Path, tuple[object, _Index]] = {}
        self._lock = threading.Lock()

    def _indices(self) -> Iterator[_Index]:
        with self._lock:
            for path in self._files:
                try:
                    stat = path.stat()
                    stamp: object = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
                except OSError:
                    stamp = None
                if path not in self._read or self._read[path][0] != stamp:
                    self._read[path] = (stamp, _read(path) if stamp else _Index())
            indices = [self._read[path][1] for path in self._files]
        yield from indices

    def lookup(self, host: str, port: int) -> set[HostKey]:
        """Return the known keys of a host; none where it is unknown."""
        name = host_name(host, port)
        for index in self._indices():
            if found := index.lookup(name):
                return found
        return set()

    def check(self, host: str, port: int, key: HostKey, where: str) -> None:
        """Let a known key pass.

        Raises:
            DeviceError: the key is unknown, is another than the known one, or was revoked.
        """
        if any(key.base64 in index.revoked for index in self._indices()):
            raise DeviceError(
                ErrorKind.HOST_KEY_CHANGED,
                f"{where}: its host key {key} was revoked; do not log in before you know why",
            )
        known = self.lookup(host, port)
        if key in known:
            return
        if known:
            expected = ", ".join(sorted(map(str, known)))
            raise DeviceError(
                ErrorKind.HOST_KEY_CHANGED,
                f"{where}: its host key is now {key}, expected {expected}; if the device was set"
                " up anew, check the fingerprint and accept it with hdap devices trust",
            )
        raise DeviceError(
            ErrorKind.HOST_KEY_UNKNOWN,
            f"{where}: its host key {key} is not known; check the fingerprint and accept it with"
            " hdap devices trust",
        )

    def trust(self, host: str, port: int, key: HostKey) -> None:
        """Take the key as the only one of that host, in the fleet's file.

        Another process that does the same waits; a reader sees the old file or the new one.

        Raises:
            DeviceError: the key was revoked.
        """
        if any(key.base64 in index.revoked for index in self._indices()):
            raise DeviceError(
                ErrorKind.HOST_KEY_CHANGED,
                f"{host}:{port}: the key {key.fingerprint} was revoked and is never accepted;"
                " give the device a new one",
            )
        name = host_name(host, port)
        self.fleet.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.fleet):
            lines = _text(self.fleet).splitlines()
            kept = [left for line in lines if (left := _without(line, name)) is not None]
            kept.append(f"{name} {key.type} {key.base64}")
            _replace(self.fleet, "\n".join(kept) + "\n")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _read(path: Path) -> _Index:
    index = _Index()
    with contextlib.suppress(OSError):
        for line in _text(path).splitlines():
            index.add_line(line)
    return index


def _without(line: str, name: str) -> str | None:
    """Return the line without that host; None where nothing is left of it."""
    names, _, rest = line.strip().partition(" ")
    if names.startswith(("#", "@")) or not rest:
        return line
    if names.startswith("|1|"):
        single = _Index()
        single.add_line(line)
        return None if single.lookup(name) else line
    left = [n for n in names.split(",") if n.lower() != name]
    return f"{','.join(left)} {rest}" if left else None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path.with_name(path.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _replace(path: Path, text: str) -> None:
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=path.name)  # mode 0600
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)
        raise
