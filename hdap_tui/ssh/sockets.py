"""The socket under a connection.

paramiko sets no socket options. Without TCP_NODELAY and quick acknowledgements the small packets
of SSH wait for each other's delayed acknowledgements (40 ms a time), and without keep-alive and a
user timeout a peer that vanished is never noticed.
"""

from __future__ import annotations

import contextlib
import ipaddress
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from hdap_tui.ssh.errors import Cancelled

_SLICE_S = 0.25  # how often a wait looks whether it is still wanted


def never() -> bool:
    """Nobody cancels."""
    return False


class QuickAckSocket(socket.socket):
    """Acknowledges at once. Linux forgets TCP_QUICKACK, so it is set again after each read."""

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """Read as usual, then ask for quick acknowledgements again."""
        data = super().recv(bufsize, flags)
        with contextlib.suppress(OSError):
            self.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return data


class Deadline:
    """A point in time that several stages share."""

    def __init__(
        self,
        seconds: float,
        cancelled: Callable[[], bool] = never,
        parent: Deadline | None = None,
    ) -> None:
        self._end = time.monotonic() + seconds
        self._parent = parent
        self.cancelled = cancelled

    def left(self, most: float = float("inf")) -> float:
        """Return the seconds left, at most `most`, never below 0."""
        return max(0.0, min(most, self._end - time.monotonic()))

    def within(self, seconds: float) -> Deadline:
        """Return a deadline for one stage, no later than this one."""
        return Deadline(self.left(seconds), self.cancelled, self)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Let the time that a person takes to answer not count, here and for what it is part of."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.extend(time.monotonic() - began)

    def extend(self, seconds: float) -> None:
        """Move it, and what it is part of, to a later time."""
        self._end += seconds
        if self._parent is not None:
            self._parent.extend(seconds)

    def check(self) -> None:
        """Raise where it is no longer wanted, or too late.

        Raises:
            Cancelled: it is no longer wanted.
            TimeoutError: the time is up.
        """
        if self.cancelled():
            raise Cancelled
        if not self.left():
            raise TimeoutError

    def wait(self, event: threading.Event) -> None:
        """Wait for the event.

        Raises:
            Cancelled, TimeoutError: see `check`.
        """
        while not event.wait(self.left(_SLICE_S)):
            self.check()

    def rest(self) -> None:
        """Sleep until the deadline.

        Raises:
            Cancelled: it is no longer wanted.
        """
        with contextlib.suppress(TimeoutError):
            self.wait(threading.Event())


def open_socket(host: str, port: int, deadline: Deadline, dead_after: int = 15) -> socket.socket:
    """Open a TCP connection with the options that SSH needs, trying all addresses of the host.

    Raises:
        OSError: the last address's error; TimeoutError where the deadline passed.
        Cancelled: the deadline's owner gave up.
    """
    last: OSError = TimeoutError()
    for family, address in resolve(host, port, deadline):
        try:
            raw = _connect(family, address, deadline)
        except OSError as error:
            last = error
            continue
        tune(raw, dead_after)
        if hasattr(socket, "TCP_QUICKACK"):
            return QuickAckSocket(raw.family, raw.type, raw.proto, fileno=raw.detach())
        return raw
    raise last


def resolve(host: str, port: int, deadline: Deadline) -> list[tuple[int, Any]]:
    """Return (family, socket address) of each address of the host.

    The system's resolver knows no time limit, so a name is looked up in a thread of its own.

    Raises:
        OSError: the name is not known, or the deadline passed.
    """
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return _lookup(host, port)
    found: list[list[tuple[int, Any]] | OSError] = []
    done = threading.Event()

    def look_up() -> None:
        try:
            found.append(_lookup(host, port))
        except (OSError, UnicodeError) as error:
            known = error if isinstance(error, OSError) else socket.gaierror(str(error))
            found.append(known)
        done.set()

    threading.Thread(target=look_up, name=f"resolve {host}", daemon=True).start()
    deadline.wait(done)
    if isinstance(found[0], OSError):
        raise found[0]
    return found[0]


def _lookup(host: str, port: int) -> list[tuple[int, Any]]:
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in infos]


def _connect(family: int, address: Any, deadline: Deadline) -> socket.socket:
    raw = socket.socket(family, socket.SOCK_STREAM)
    try:
        raw.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            raw.connect(address)
        poll = select.poll()
        poll.register(raw, select.POLLOUT)
        while not poll.poll(1000 * deadline.left(_SLICE_S)):
            deadline.check()
        code = raw.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, "connect")
        raw.setblocking(True)
    except BaseException:
        raw.close()
        raise
    return raw


def tune(raw: socket.socket, dead_after: int) -> None:
    """Set the options: no delay, and a silent peer is lost after about `dead_after` seconds."""
    wanted: list[tuple[int, str, int]] = [
        (socket.IPPROTO_TCP, "TCP_NODELAY", 1),
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", max(1, dead_after // 3)),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", max(1, dead_after // 6)),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", 4),
        (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", 1000 * dead_after),
    ]
    for level, option, value in wanted:
        if hasattr(socket, option):  # not every system has them all
            raw.setsockopt(level, getattr(socket, option), value)
