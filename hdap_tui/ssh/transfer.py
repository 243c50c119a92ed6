"""Files to and from a device.

A file is named by its content's hash, so one that is there already is not sent again. It is
written aside, its hash is checked on the device, and only then it gets its name: a name is there
with the right content, or not at all.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import paramiko

from hdap_tui.ssh.connection import Connection
from hdap_tui.ssh.errors import Cancelled, DeviceError, ErrorKind
from hdap_tui.ssh.scripts import ROOT, ask, lines_of
from hdap_tui.ssh.sockets import Deadline, never

Progress = Callable[[int, int], None]
"""Told how many bytes of how many have been sent, all files together."""

_SUFFIX = {"models": ".onnx", "runner": ".py"}
_FOLDER = re.compile(r"[a-z][a-z0-9-]{0,31}")
_PIECE = 32768  # the most that every server takes in one request
_HASH_RATE = 5e6  # bytes a second that the slowest device is trusted to hash
_SEND_RATE = 1e5  # and the slowest link to carry

_LIST = f"""
umask 077
mkdir -p {ROOT}/models {ROOT}/runner {ROOT}/jobs && cd {ROOT} || exit 1
find . -name '*.part' -mmin +60 -exec rm -f {{}} \\; 2>/dev/null
for file; do
  case $file in */*) mkdir -p "${{file%/*}}" || exit 1 ;; esac
  [ -f "$file" ] && sha256sum "$file"
done
true
"""

_SETTLE = f"""
cd {ROOT} || exit 1
while [ $# -ge 3 ]; do
  found=$(sha256sum <"$1") || found=
  if [ "${{found%% *}}" = "$3" ] && mv -f "$1" "$2"; then echo "$2"; else rm -f "$1"; fi
  shift 3
done
"""

_SPACE = f"df -Pk {ROOT} | tail -n 1"
_REMOVE = f'cd {ROOT} 2>/dev/null && rm -f -- "$@"; true'


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
        """Read a file's size and hash.

        It is called models/<digest>.onnx, runner/<digest>.py, or, in any other folder, by its own
        file name: wheels/<digest>/<file name>.

        Raises:
            OSError: it cannot be read.
            ValueError: the folder is none, or the file's name is not fit for a device.
        """
        if not _FOLDER.fullmatch(folder) or not path.name.isprintable():
            raise ValueError(f"{folder}/{path.name!r} cannot be a name on a device")
        digest = hashlib.sha256()
        size = 0
        with open(path, "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
                size += len(piece)
        whole = digest.hexdigest()
        suffix = _SUFFIX.get(folder, f"/{path.name}")
        name = f"{folder}/{whole}{suffix}"
        return cls(path, whole, size, name)


def upload(
    connection: Connection,
    payloads: Sequence[Payload],
    progress: Progress = lambda _sent, _total: None,
    cancelled: Callable[[], bool] = never,
) -> tuple[Payload, ...]:
    """Bring the files onto the device; return those that were not there yet.

    Raises:
        DeviceError: disk full, timeout (nothing moved for the stall limit), disconnected, …
        Cancelled: it is no longer wanted; nothing half-sent has a name.
    """
    seconds = connection.target.timeouts.command + sum(p.size for p in payloads) / _HASH_RATE
    there = _there(connection, payloads, seconds)
    missing = tuple(p for p in dict.fromkeys(payloads) if there.get(p.name) != p.digest)
    if not missing:
        return ()
    mark = secrets.token_hex(4)
    aside = {payload: f"{payload.name}.{mark}.part" for payload in missing}
    total, sent = sum(p.size for p in missing), 0
    try:
        for payload, part in aside.items():
            told = functools.partial(_add, progress, sent, total)
            _send(connection, payload, part, told, cancelled)
            sent += payload.size
        arguments = [word for p in missing for word in (aside[p], p.name, p.digest)]
        settled = set(lines_of(ask(connection, _SETTLE, *arguments, timeout=seconds)))
    except BaseException:
        if connection.alive:
            with contextlib.suppress(DeviceError, Cancelled):
                ask(connection, _REMOVE, *aside.values(), timeout=5)
        raise
    for payload in missing:
        if payload.name not in settled:
            raise _damaged(connection, payload)
    return missing


def _add(progress: Progress, before: int, total: int, sent: int) -> None:
    progress(before + sent, total)


def remove(connection: Connection, names: Sequence[str]) -> None:
    """Remove files below the product's folder, but none that `current` or `previous` names.

    Raises:
        DeviceError: the device cannot be asked.
    """
    if names:
        ask(connection, _REMOVE_UNUSED, *names)


_REMOVE_UNUSED = f"""
cd {ROOT} 2>/dev/null || exit 0
used="$(readlink current) $(readlink previous)"
for file; do
  case " $used " in *" $file "*) ;; *) rm -f -- "$file" ;; esac
done
"""


def download(connection: Connection, path: str, limit: int, timeout: float | None = None) -> bytes:
    """Return a file's content, at most `limit` bytes of it; the path is relative to the home.

    Raises:
        DeviceError: failed where there is no such file.
    """
    return ask(connection, f'head -c {limit} "$1"', path, limit=limit, timeout=timeout)


def _there(connection: Connection, payloads: Sequence[Payload], seconds: float) -> dict[str, str]:
    answer = ask(connection, _LIST, *dict.fromkeys(p.name for p in payloads), timeout=seconds)
    pairs = (line.split(None, 1) for line in lines_of(answer))
    return {pair[1].lstrip("*"): pair[0] for pair in pairs if len(pair) == 2}


def _damaged(connection: Connection, payload: Payload) -> DeviceError:
    """Say why a file that was sent is not there: servers seldom name a full disk."""
    with contextlib.suppress(DeviceError, ValueError, IndexError):
        left = int(lines_of(ask(connection, _SPACE))[-1].split()[3]) * 1024
        if left < payload.size + 65536:
            return DeviceError(
                ErrorKind.DISK_FULL, f"{connection.where}: no space is left on the device"
            )
    return DeviceError(
        ErrorKind.FAILED, f"{connection.where}: {payload.path.name} arrived damaged; try again"
    )


def _send(
    connection: Connection,
    payload: Payload,
    part: str,
    progress: Callable[[int], None],
    cancelled: Callable[[], bool],
) -> None:
    try:
        if not _send_by_sftp(connection, payload, part, progress, cancelled):
            _send_by_command(connection, payload, part, cancelled)
    except DeviceError as error:
        if error.kind is ErrorKind.FAILED and connection.alive:
            damage = _damaged(connection, payload)
            raise damage if damage.kind is ErrorKind.DISK_FULL else error from error
        raise


def _send_by_sftp(
    connection: Connection,
    payload: Payload,
    part: str,
    progress: Callable[[int], None],
    cancelled: Callable[[], bool],
) -> bool:
    """Return False where the server has no SFTP."""
    stall = Deadline(connection.target.timeouts.stall)
    with _guarded(connection, cancelled) as alive, connection.channel(stall) as channel:
        try:
            connection.accepted(channel, lambda: channel.invoke_subsystem("sftp"), stall)
        except DeviceError:
            return False
        channel.settimeout(connection.target.timeouts.stall)
        sftp = paramiko.SFTPClient(channel)
        with open(payload.path, "rb") as source, sftp.open(f"{ROOT}/{part}", "wb") as file:
            file.set_pipelined(True)
            sent = 0
            while piece := source.read(_PIECE):
                sent += len(piece)
                if sent >= payload.size:
                    # A write that is not pipelined reads the answers of all before it as well.
                    file.set_pipelined(False)
                file.write(piece)
                alive()
                progress(sent)
    return True


def _send_by_command(
    connection: Connection, payload: Payload, part: str, cancelled: Callable[[], bool]
) -> None:
    """Send through a command's input, to the small SSH servers that have no SFTP."""
    ask(
        connection,
        f'cat >{ROOT}/"$1"',
        part,
        stdin=payload.path.read_bytes(),
        timeout=connection.target.timeouts.command + payload.size / _SEND_RATE,
        cancelled=cancelled,
    )


@contextlib.contextmanager
def _guarded(connection: Connection, cancelled: Callable[[], bool]) -> Iterator[Callable[[], None]]:
    """Give a function that says "something moved"; without it for too long, hang up.

    A write blocks for as long as the peer takes nothing, whatever timeouts are set, and only
    hanging up ends it.
    """
    stall = connection.target.timeouts.stall
    moved = [time.monotonic()]
    done = threading.Event()
    why: list[BaseException] = []

    def watch() -> None:
        while not done.wait(0.2):
            if cancelled():
                why.append(Cancelled())
            elif time.monotonic() - moved[0] > stall:
                why.append(
                    DeviceError(
                        ErrorKind.TIMEOUT,
                        f"{connection.where}: the transfer stood still for {stall:.0f} s",
                    )
                )
            if why:
                connection.close()
                return

    def alive() -> None:
        moved[0] = time.monotonic()

    watcher = threading.Thread(target=watch, name=f"transfer {connection.where}", daemon=True)
    watcher.start()
    try:
        yield alive
    except Exception as error:
        if why:
            raise why[0] from error
        raise
    finally:
        done.set()
        watcher.join()
