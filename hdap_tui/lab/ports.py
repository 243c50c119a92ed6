"""The ports of a lab's devices, on this machine only."""

from __future__ import annotations

import errno
import socket
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from hdap_tui.errors import SettingsError, UserError
from hdap_tui.lab.layout import HOST, Layout

_FREE = range(20000, 32000)
"""Below the range that the system gives to clients: those may sit on a port when it is wanted."""


def open_ports(
    layout: Layout, names: Sequence[str], base_port: int | None
) -> dict[str, socket.socket]:
    """Listen for every device: on ports in a row, or else on those it had before, or on free ones.

    Raises UserError that names a port which is taken, where ports in a row were asked for.
    """
    if base_port is not None and not 1 <= base_port <= 65536 - len(names):
        raise SettingsError(
            f"{len(names)} devices from port {base_port} on do not fit: "
            f"the first port is 1024 to {65536 - len(names)}."
        )
    start = zlib.crc32(str(layout.state).encode()) % len(_FREE)
    free = iter((*_FREE[start:], *_FREE[:start]))
    opened: dict[str, socket.socket] = {}
    try:
        for number, name in enumerate(names):
            remembered = layout.device(name) / "port"
            if base_port is not None:
                opened[name] = _listen_on(base_port + number, name)
            else:
                opened[name] = _listen_again(remembered) or _listen_somewhere(free)
            remembered.write_text(f"{opened[name].getsockname()[1]}\n")
    except BaseException:
        for listener in opened.values():
            listener.close()
        raise
    return opened


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        # Two sockets may be bound alike as long as neither listens: this is what decides.
        listener.listen(128)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def _listen_on(port: int, name: str) -> socket.socket:
    try:
        return _listen(port)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        why = "is already taken" if taken else f"cannot be used ({error.strerror})"
        raise UserError(
            f"Port {port} on {HOST}, meant for {name}, {why}: stop what listens there, "
            "or choose another base port."
        ) from error


def _listen_again(remembered: Path) -> socket.socket | None:
    try:
        return _listen(int(remembered.read_text()))
    except (OSError, ValueError, OverflowError):
        return None


def _listen_somewhere(ports: Iterable[int]) -> socket.socket:
    for port in ports:
        try:
            return _listen(port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise UserError(f"No port from {_FREE.start} to {_FREE.stop - 1} is free on {HOST}.")
