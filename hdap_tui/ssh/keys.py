"""The keys to log in with: a file, or the SSH agent's."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paramiko

from hdap_tui.ssh.errors import DeviceError, ErrorKind
from hdap_tui.ssh.target import Target

Passphrase = Callable[[Path], str | None]
"""Asks for the passphrase of a key file; None where nobody knows it."""

OFFERED = 3
"""Keys offered to one device at most: servers lock out whoever tries more."""
_USUAL = ("id_ed25519", "id_ecdsa", "id_rsa")

_loaded: dict[tuple[Path, int], Any] = {}
_lock = threading.Lock()


@contextlib.contextmanager
def offered(target: Target, passphrase: Passphrase | None = None) -> Iterator[list[Any]]:
    """Give the keys to try on a device, the likeliest first; the agent stays open meanwhile.

    Raises:
        DeviceError: there is no key, or it cannot be read.
    """
    agent = paramiko.Agent()
    try:
        if target.identity is not None:
            yield [_named(target.identity, agent, target.name, passphrase)]
        else:
            found = [*agent.get_keys(), *_usual()][:OFFERED]
            if not found:
                raise _refusal(
                    target.name,
                    "there is no key to log in with; name one as identity in fleet.toml,"
                    " or add one to the SSH agent",
                )
            yield found
    finally:
        agent.close()


def _usual() -> Iterator[Any]:
    for name in _USUAL:
        path = Path("~/.ssh").expanduser() / name
        with contextlib.suppress(OSError, ValueError, TypeError, paramiko.SSHException):
            yield _load(path, None)


def _named(path: Path, agent: Any, where: str, passphrase: Passphrase | None) -> Any:
    try:
        return _load(path, None)
    except FileNotFoundError:
        raise _refusal(where, f"the private key {path} does not exist") from None
    except OSError as error:
        raise _refusal(where, f"the private key {path} cannot be read: {error.strerror}") from None
    except (TypeError, paramiko.PasswordRequiredException):
        pass  # it is encrypted
    except (ValueError, paramiko.SSHException):
        raise _refusal(where, f"{path} is no private key of a kind known here") from None
    if (key := _from_agent(path, agent)) is not None:
        return key
    secret = passphrase(path) if passphrase else None
    if secret is None:
        raise _refusal(
            where, f"the private key {path} is encrypted; add it to the SSH agent: ssh-add {path}"
        )
    try:
        return _load(path, secret)
    except (ValueError, TypeError, paramiko.SSHException):
        raise _refusal(where, f"the passphrase of {path} is wrong") from None


def _from_agent(path: Path, agent: Any) -> Any | None:
    """Return the agent's key whose public half lies beside the file."""
    try:
        blob = Path(f"{path}.pub").read_text().split()[1]
    except (OSError, ValueError, IndexError):
        return None
    return next((key for key in agent.get_keys() if key.get_base64() == blob), None)


def _load(path: Path, secret: str | None) -> Any:
    """Load a key once for all devices: decrypting one takes a second on purpose."""
    with _lock:
        stamp = (path, path.stat().st_mtime_ns)
        if stamp not in _loaded:
            _loaded[stamp] = paramiko.PKey.from_path(path, secret and secret.encode())
        return _loaded[stamp]


def _refusal(where: str, text: str) -> DeviceError:
    return DeviceError(ErrorKind.AUTHENTICATION, f"{where}: {text}")
