"""The keys to log in with: files, their certificates, and the SSH agent's."""

from __future__ import annotations

import base64
import contextlib
import copy
import io
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paramiko
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization as forms
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from paramiko.agent import AgentKey, AgentSSH
from paramiko.pkey import PublicBlob

from hdap_tui.ssh.config_file import stamp
from hdap_tui.ssh.secret import Refused, Secrets
from hdap_tui.ssh.sockets import Deadline
from hdap_tui.ssh.target import Target
from hdap_tui.text import clean

OFFERED = 3
"""Keys and passwords offered to one server at most: some lock out whoever tries more."""
_USUAL = ("id_ed25519", "id_ecdsa", "id_rsa")
_KINDS = {
    rsa.RSAPrivateKey: paramiko.RSAKey,
    ec.EllipticCurvePrivateKey: paramiko.ECDSAKey,
    ed25519.Ed25519PrivateKey: paramiko.Ed25519Key,
}
_CERTIFICATE = "-cert-v01@openssh.com"

_loaded: dict[tuple[Path, int], Any] = {}
_loading = threading.Lock()


@dataclass(frozen=True)
class Offer:
    """One key as it is offered."""

    key: Any
    said: str
    """What it is, for sentences."""


class _Encrypted(Exception):
    """The file needs a passphrase."""


class Offers:
    """The keys for one server, the likeliest first, each made ready when it is its turn.

    To be closed: the agent stays open meanwhile.
    """

    def __init__(self, login: Target, secrets: Secrets, deadline: Deadline) -> None:
        self.problems: list[str] = []
        """Sentences about keys that should be there and cannot be used."""
        self._login, self._secrets, self._deadline = login, secrets, deadline
        self._agent: list[AgentKey] | None = None
        self._opened: _Agent | None = None
        self._next: Offer | None = None
        self._left = OFFERED - bool(login.ask_password or login.password_command)
        self._all = self._each()

    def peek(self) -> Offer | None:
        """Return the next key, and keep it for `take`; None where there is no more."""
        while self._next is None and self._left > 0:
            self._next = next(self._all, None)
            if self._next is None:
                self._left = 0
        return self._next

    def take(self) -> None:
        """The next key was tried."""
        self._next = None
        self._left -= 1

    def close(self) -> None:
        """Close the agent."""
        if self._opened is not None:
            self._opened.close()

    # ---- in which order -------------------------------------------------------------------------

    def _each(self) -> Iterator[Offer]:
        login = self._login
        named = (login.identity,) if login.identity else login.identities
        seen: set[bytes] = set()
        for path in named:
            yield from self._new(seen, self._of_file(path, asking=True))
        if login.identity is None:
            usual = () if named else tuple(_home() / ".ssh" / name for name in _USUAL)
            for path in usual:
                if path.exists():
                    yield from self._new(seen, self._of_file(path, asking=False))
            if not login.identities_only:
                for key in self._agent_keys():
                    yield from self._new(seen, self._of_agent(key))
            for path in usual:
                if path.exists():
                    yield from self._new(seen, self._of_file(path, asking=True))

    def _new(self, seen: set[bytes], offers: Iterator[Offer]) -> Iterator[Offer]:
        for offer in offers:
            public = getattr(offer.key, "public_blob", None)
            blob = bytes(public.key_blob if public else offer.key.asbytes())
            if blob not in seen:
                seen.add(blob)
                yield offer

    def _of_file(self, path: Path, asking: bool) -> Iterator[Offer]:
        """Yield a file's key, behind its certificates; where it is of no use, say why."""
        try:
            key = self._ready(path, asking)
        except LookupError as error:
            self.problems.append(str(error))
            return
        if key is None:
            return
        beside = Path(f"{path.with_suffix('') if path.suffix == '.pub' else path}-cert.pub")
        yield from self._certified(key, [beside] if beside.exists() else [])
        yield Offer(key, f"the key {path}")

    def _certified(self, key: Any, beside: list[Path]) -> Iterator[Offer]:
        named = [path for path in (self._login.certificate, *self._login.certificates) if path]
        for path in dict.fromkeys([*named, *beside]):
            try:
                yield Offer(_certified(key, path), f"the certificate {path}")
            except LookupError as error:
                if path == self._login.certificate or path in beside:
                    self.problems.append(str(error))

    def _of_agent(self, key: AgentKey) -> Iterator[Offer]:
        said = f"the agent's key {clean(key.comment, 60) or key.fingerprint}"
        if key.get_name().endswith(_CERTIFICATE):
            key.public_blob = PublicBlob(key.get_name(), key.blob)
        else:
            yield from self._certified(key, [])
        yield Offer(key, said)

    def _ready(self, path: Path, asking: bool) -> Any | None:
        """Return a usable key of the file.

        Raises:
            LookupError: there is none; the text says why.
        """
        try:
            return _load(path, None)
        except _Encrypted:
            pass
        public = _public_half(path)
        for key in self._agent_keys():
            if public and key.blob == public:
                return key
        if _is_public(path):
            raise LookupError(f"the SSH agent does not hold the private half of {path}; add it")
        if _kind(public).startswith("sk-"):
            raise LookupError(
                f"{path} stands for a security key, which only the SSH agent can use:"
                f" ssh-add {path}"
            )
        if not asking:
            return None
        return self._secrets.unlock(
            f"the private key {path}",
            lambda answer: _load(path, answer),
            lambda: _known(path),
            f"add it to the SSH agent: ssh-add {path}",
            self._deadline,
        )

    def _agent_keys(self) -> list[AgentKey]:
        if self._agent is None:
            self._opened = _Agent(self._login.agent)
            self._agent = list(self._opened.get_keys())
        return self._agent


def at_hand(login: Target) -> object:
    """Return what changes when other keys could be offered: their files, and the agent's keys."""
    usual = tuple(_home() / ".ssh" / name for name in _USUAL)
    named = (login.identity,) if login.identity else login.identities or usual
    files = [*named, *(Path(f"{path}-cert.pub") for path in named), *login.certificates]
    files += [login.certificate] if login.certificate else []
    agent = _Agent(login.agent)
    try:
        held = tuple(key.blob for key in agent.get_keys())
    finally:
        agent.close()
    return tuple(map(stamp, files)), held


class _Agent(AgentSSH):  # type: ignore[misc]
    """The agent at a socket; it holds nothing where none answers there."""

    def __init__(self, named: str) -> None:
        super().__init__()
        address = os.environ.get("SSH_AUTH_SOCK", "")
        if named:
            address = os.environ.get(named[1:], "") if named.startswith("$") else named
        if address and address != "none":
            raw = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            raw.settimeout(30.0)  # somebody may have to touch a security key
            try:
                raw.connect(os.path.expanduser(address))
                self._connect(raw)
            except (OSError, paramiko.SSHException):
                raw.close()

    def close(self) -> None:
        """Hang up."""
        self._close()


# ---- files --------------------------------------------------------------------------------------


def _load(path: Path, secret: str | None) -> Any:
    """Load a key once for all servers: decrypting one takes a second on purpose.

    Raises:
        _Encrypted: it needs a passphrase, or is the public half of a key that the agent holds.
        Refused: the passphrase is wrong.
        LookupError: it is of no use; the text says why.
    """
    try:
        stat = path.stat()
    except OSError as error:
        why = "does not exist" if isinstance(error, FileNotFoundError) else error.strerror
        raise LookupError(f"the private key {path} {why}") from None
    stamp = (path, stat.st_mtime_ns)
    with _loading:
        if stamp in _loaded:
            return _loaded[stamp]
    if _is_public(path):
        raise _Encrypted
    key = _parse(path, secret, shared=stat.st_uid == os.getuid() and bool(stat.st_mode & 0o077))
    with _loading:
        return _loaded.setdefault(stamp, key)


def _known(path: Path) -> Any | None:
    """Return the key where it has been loaded already."""
    with _loading:
        return _loaded.get((path, path.stat().st_mtime_ns)) if path.exists() else None


def _parse(path: Path, secret: str | None, shared: bool) -> Any:
    password = secret.encode() if secret is not None else None
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LookupError(f"the private key {path} cannot be read: {error.strerror}") from None
    if shared and b"PRIVATE KEY-----" in data:
        raise LookupError(
            f"others may read the private key {path}, so it is not used: chmod 600 {path}"
        )
    if data.startswith(b"PuTTY-User-Key-File"):
        raise LookupError(
            f"{path} is a key of PuTTY; make one that OpenSSH reads:"
            f" puttygen {path} -O private-openssh -o {path.with_suffix('')}"
        )
    openssh = b"BEGIN OPENSSH PRIVATE KEY" in data
    kind = _kind(_public_half(path))
    if kind.startswith("sk-"):
        raise _Encrypted  # only the agent can talk to the security key
    if kind == "ssh-dss" or b"BEGIN DSA" in data:
        raise LookupError(
            f"{path} is a DSA key, which is no longer safe and which servers refuse; make another:"
            " ssh-keygen -t ed25519"
        )
    load = forms.load_ssh_private_key if openssh else forms.load_pem_private_key
    try:
        loaded = load(data, password)
    except TypeError:  # a passphrase is needed, or was given without need
        raise _Encrypted from None
    except ValueError:
        if password is not None:
            raise Refused from None
        raise LookupError(f"{path} is no private key of a kind known here") from None
    except UnsupportedAlgorithm as error:
        raise LookupError(f"{path} is no private key of a kind known here ({error})") from None
    for type_, made in _KINDS.items():
        if isinstance(loaded, type_):
            text = loaded.private_bytes(
                forms.Encoding.PEM, forms.PrivateFormat.OpenSSH, forms.NoEncryption()
            )
            return made.from_private_key(io.StringIO(text.decode()))
    raise LookupError(f"{path} is no private key of a kind known here")


def _public_half(path: Path) -> bytes:
    """Return the public key that stands in the file itself, or beside it; empty where none does."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        text = path.read_text(errors="replace")
        if "BEGIN OPENSSH PRIVATE KEY" in text:
            body = base64.b64decode("".join(text.split("-----")[2].split()))
            message = paramiko.Message(body[len(b"openssh-key-v1\0") :])
            for _ in ("cipher", "key derivation", "its options"):
                message.get_string()
            if message.get_int() == 1:
                return bytes(message.get_string())
        beside = path if path.suffix == ".pub" or _is_public(path) else Path(f"{path}.pub")
        return base64.b64decode(beside.read_text().split()[1])
    return b""


def _kind(public: bytes) -> str:
    return paramiko.Message(public).get_text() if public else ""


def _is_public(path: Path) -> bool:
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(4) in (b"ssh-", b"ecds", b"sk-s", b"sk-e")
    return False


def _certified(key: Any, path: Path) -> Any:
    """Return the key with a certificate.

    Raises:
        LookupError: that is none of this key, or it is out of date; the text says so.
    """
    try:
        certificate = forms.load_ssh_public_identity(path.read_bytes())
    except OSError as error:
        raise LookupError(f"the certificate {path} cannot be read: {error.strerror}") from None
    except (ValueError, UnsupportedAlgorithm):
        raise LookupError(f"{path} is no certificate of a kind known here") from None
    if not isinstance(certificate, forms.SSHCertificate):
        raise LookupError(f"{path} is a key and no certificate")
    public = certificate.public_key().public_bytes(
        forms.Encoding.OpenSSH, forms.PublicFormat.OpenSSH
    )
    if base64.b64decode(public.split()[1]) != key.asbytes():
        raise LookupError(f"the certificate {path} belongs to another key")
    if certificate.valid_before < time.time():
        ended = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(certificate.valid_before))
        raise LookupError(f"the certificate {path} ended on {ended}; have it signed anew")
    own = (
        AgentKey(key.agent, key.blob, key.comment) if isinstance(key, AgentKey) else copy.copy(key)
    )
    own.public_blob = PublicBlob.from_file(str(path))
    return own


def _home() -> Path:
    return Path.home()
