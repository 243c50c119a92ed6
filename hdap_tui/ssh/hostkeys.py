"""Host keys: an index of known_hosts files, and how a key is shown to people.

paramiko's own reader takes seconds for a few thousand entries and stops at the first line it does
not know, so the format (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT) is read here.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine import files
from hdap_tui import locking
from hdap_tui.ssh.errors import DeviceError, ErrorKind

USUAL_FILES = (
    Path("~/.ssh/known_hosts"),
    Path("~/.ssh/known_hosts2"),
    Path("/etc/ssh/ssh_known_hosts"),
    Path("/etc/ssh/ssh_known_hosts2"),
)
"""Where ssh looks by itself."""
ACCEPT = "hdap devices trust"
"""The command that accepts a host key."""


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
    """Return the host as a known_hosts file names it; an alias has no port, so 0."""
    return host.lower() if port in (0, 22) else f"[{host.lower()}]:{port}"


class _Index:
    """One file. What a line holds is looked into when somebody asks for it."""

    def __init__(self) -> None:
        self.plain: dict[str, list[tuple[str, str]]] = {}
        self.hashed: dict[str, list[tuple[str, str]]] = {}
        """By key, since each has a salt of its own: then one hash proves what a server shows."""
        self.patterns: list[tuple[list[tuple[bool, re.Pattern[str]]], HostKey]] = []
        self.revoked: set[str] = set()
        self._scanned: dict[str, set[HostKey]] = {}

    def add(self, text: str) -> None:
        """Take in the lines of a file; those that make no sense are skipped, as ssh does."""
        for line in text.splitlines():
            parts = line.split(None, 3)
            if len(parts) < 3 or line.lstrip().startswith("#"):
                continue
            names, kind, blob = parts[:3]
            if names[0] == "@":
                marked = line.split(None, 4)
                if names == "@revoked" and len(marked) > 3 and _is_key(marked[3]):
                    self.revoked.add(marked[3])
            elif names.startswith("|1|"):
                self.hashed.setdefault(blob, []).append((names, kind))
            elif "*" in names or "?" in names or "!" in names:
                if _is_key(blob):
                    patterns = [_pattern(name) for name in names.split(",") if name]
                    self.patterns.append((patterns, HostKey(kind, blob)))
            else:
                for name in names.lower().split(","):
                    self.plain.setdefault(name, []).append((kind, blob))

    def has(self, name: str, key: HostKey) -> bool:
        """Whether a line gives this key to the host."""
        if key in self.clear(name):
            return True
        return any(
            kind == key.type and _stands_for(names, name)
            for names, kind in self.hashed.get(key.base64, ())
        )

    def clear(self, name: str) -> set[HostKey]:
        """Return the host's keys in lines that are not hashed."""
        found = {HostKey(kind, blob) for kind, blob in self.plain.get(name, ()) if _is_key(blob)}
        for patterns, key in self.patterns:
            hits = [negated for negated, pattern in patterns if pattern.fullmatch(name)]
            if hits and not any(hits):
                found.add(key)
        return found

    def lookup(self, name: str) -> set[HostKey]:
        """Return all of the host's keys; takes a hash for every hashed line, the first time."""
        if name not in self._scanned:
            self._scanned[name] = {
                HostKey(kind, blob)
                for blob, lines in self.hashed.items()
                for names, kind in lines
                if _stands_for(names, name) and _is_key(blob)
            }
        return self.clear(name) | self._scanned[name]


def _stands_for(hashed: str, name: str) -> bool:
    """Whether a hashed name, |1|salt|digest, is that of the host."""
    try:
        salt, digest = (binascii.a2b_base64(part) for part in hashed[3:].split("|"))
    except (ValueError, binascii.Error):
        return False
    return hmac.compare_digest(hmac.digest(salt, name.encode(), "sha1"), digest)


def _is_key(blob: str) -> bool:
    try:
        return bool(binascii.a2b_base64(blob, strict_mode=True))
    except (ValueError, binascii.Error):
        return False


def _pattern(name: str) -> tuple[bool, re.Pattern[str]]:
    negated = name.startswith("!")
    text = re.escape(name.lstrip("!").lower()).replace(r"\*", ".*").replace(r"\?", ".")
    return negated, re.compile(text)


_indices: dict[Path, tuple[object, _Index]] = {}  # each file is read once for all
_reading = threading.Lock()


class KnownHosts:
    """The keys that the fleet's file knows; for a host it does not know, the other files'.

    Only the fleet's file is ever written. Safe to use from several threads; a file that was
    changed meanwhile, by another process too, is read again.
    """

    def __init__(self, fleet: Path, others: Sequence[Path] | None = None) -> None:
        """Without `others`, the files that ssh reads by itself."""
        self.fleet = fleet
        self.others = tuple(USUAL_FILES if others is None else others)
        self._files = [fleet, *(path.expanduser() for path in self.others)]

    def _read(self) -> list[_Index]:
        return [_index_of(path) for path in self._files]

    def lookup(self, host: str, port: int) -> set[HostKey]:
        """Return the known keys of a host; none where it is unknown."""
        name = host_name(host, port)
        for index in self._read():
            if found := index.lookup(name):
                return found
        return set()

    def types(self, host: str, port: int) -> list[str]:
        """Return the types of the host's known keys, as far as no line is hashed."""
        name = host_name(host, port)
        for index in self._read():
            if index.hashed and index is not _index_of(self.fleet):
                return []  # it might stand there, and that is not worth a hash for every line
            if found := index.lookup(name):
                return sorted({key.type for key in found})
        return []

    def other_types(self, host: str, port: int, key: HostKey) -> list[str]:
        """Return the types of known keys that a host could show in place of an unknown one."""
        name = host_name(host, port)
        for index in self._read():
            if index.has(name, key):
                return []
            if found := index.lookup(name):
                return sorted({known.type for known in found} - {key.type})
        return []

    def check(self, host: str, port: int, key: HostKey, where: str, accept: str = ACCEPT) -> None:
        """Let a known key pass; `accept` is the command that accepts another.

        Raises:
            DeviceError: the key is unknown, is another than the known one, or was revoked.
        """
        files = self._read()
        if self.is_revoked(key):
            raise DeviceError(
                ErrorKind.HOST_KEY_CHANGED,
                f"{where}: its host key {key} was revoked; do not log in before you know why",
            )
        name = host_name(host, port)
        for index in files:
            if index.has(name, key):
                return
            if known := index.lookup(name):
                expected = ", ".join(sorted(map(str, known)))
                raise DeviceError(
                    ErrorKind.HOST_KEY_CHANGED,
                    f"{where}: its host key is now {key}, expected {expected}; if the device was"
                    f" set up anew, check the fingerprint and accept it with: {accept}",
                )
        # ssh, too, takes a key that stands there without the port.
        if port not in (0, 22) and any(i.has(host_name(host, 22), key) for i in files[1:]):
            return
        raise DeviceError(
            ErrorKind.HOST_KEY_UNKNOWN,
            f"{where}: its host key {key} is not known; check the fingerprint and accept it with:"
            f" {accept}",
        )

    def is_revoked(self, key: HostKey) -> bool:
        """Whether a file says that the key must not be believed any more."""
        return any(key.base64 in index.revoked for index in self._read())

    def trust(self, host: str, port: int, key: HostKey) -> None:
        """Take the key as the only one of that host; see `trust_all`.

        Raises:
            DeviceError: the key was revoked.
        """
        self.trust_all([((host, port), key)])

    def trust_all(self, keys: Sequence[tuple[tuple[str, int], HostKey]]) -> None:
        """Take each key as the only one of its host and port, in the fleet's file.

        Another process that does the same waits; a reader sees the old file or the new one.

        Raises:
            DeviceError: a key was revoked; then none is taken.
        """
        for (host, port), key in keys:
            if self.is_revoked(key):
                raise DeviceError(
                    ErrorKind.HOST_KEY_CHANGED,
                    f"{host}:{port}: the key {key.fingerprint} was revoked and is never accepted;"
                    " give the device a new one",
                )
        new = {host_name(*place): key for place, key in keys}
        self.fleet.parent.mkdir(parents=True, exist_ok=True)
        with locking.writing(self.fleet):
            lines = _text(self.fleet).splitlines()
            kept = [left for line in lines if (left := _without(line, set(new))) is not None]
            kept += [f"{name} {key.type} {key.base64}" for name, key in new.items()]
            files.write(self.fleet, "\n".join(kept) + "\n", 0o600)


def _index_of(path: Path) -> _Index:
    """Return what a file holds; it is read again where it has changed."""
    try:
        stat = path.stat()
        stamp: object = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
    except OSError:
        stamp = None
    with _reading:
        if path not in _indices or _indices[path][0] != stamp:
            index = _Index()
            with contextlib.suppress(OSError):
                index.add(_text(path) if stamp else "")
            _indices[path] = (stamp, index)
        return _indices[path][1]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _without(line: str, gone: set[str]) -> str | None:
    """Return the line without some hosts; None where nothing is left of it."""
    names, _, rest = line.strip().partition(" ")
    if names.startswith(("#", "@")) or not rest:
        return line
    if names.startswith("|1|"):
        return None if any(_stands_for(names, name) for name in gone) else line
    left = [n for n in names.split(",") if n.lower() not in gone]
    return f"{','.join(left)} {rest}" if left else None
