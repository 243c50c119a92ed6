"""The way to a device through its jump host, and a sign of life from its other end."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

from hdap_tui.ssh.errors import DeviceError, ErrorKind
from hdap_tui.ssh.sockets import Deadline
from hdap_tui.ssh.target import Target
from hdap_tui.ssh.transport import ChannelRefused, FleetTransport, close_channel, hang_up

_PROHIBITED = 1  # RFC 4254, section 5.1


class Tunnel:
    """A channel to a device through its jump host, as paramiko wants a socket to be."""

    def __init__(self, channel: Any, peer: tuple[str, int]) -> None:
        self._channel, self._peer = channel, peer
        self.heard = time.monotonic()
        """When something last came out of it."""

    def recv(self, size: int) -> bytes:
        """Read as from a socket."""
        data: bytes = self._channel.recv(size)
        self.heard = time.monotonic()
        return data

    def send(self, data: bytes) -> int:
        """Write as to a socket."""
        return int(self._channel.send(data))

    def settimeout(self, seconds: float | None) -> None:
        """Set how long one read or write may take."""
        self._channel.settimeout(seconds)

    def getpeername(self) -> tuple[str, int]:
        """Return whom it leads to."""
        return self._peer

    def shutdown(self, how: int) -> None:
        """End both directions, and wake up whoever reads."""
        with contextlib.suppress(OSError, EOFError):
            self._channel.shutdown(how)
        self.close()

    def close(self) -> None:
        """Close it; whoever is at its other end may have gone before."""
        close_channel(self._channel)

    @property
    def _closed(self) -> bool:
        return bool(self._channel.closed)


def dig(bastion: FleetTransport, host: str, port: int, deadline: Deadline) -> Tunnel:
    """Open the way through a jump host to a server behind it.

    Raises:
        ChannelRefused, OSError, EOFError, paramiko.SSHException: it could not be opened.
        Cancelled, TimeoutError: see `Deadline`.
    """
    opened: list[Any] = []
    done = threading.Event()
    unwanted = threading.Event()

    def ask() -> None:
        try:
            opened.append(bastion.ask("direct-tcpip", deadline.left(), (host, port)))
        except Exception as error:
            opened.append(error)
        done.set()
        if unwanted.is_set():
            discard()

    def discard() -> None:
        if not isinstance(opened[0], Exception):
            close_channel(opened[0])

    threading.Thread(target=ask, name=f"tunnel to {host}", daemon=True).start()
    try:
        deadline.wait(done)  # paramiko's own wait does not look whether it is still wanted
    except BaseException:
        unwanted.set()
        if done.is_set():
            discard()
        raise
    if isinstance(opened[0], Exception):
        raise opened[0]
    return Tunnel(opened[0], (host, port))


def way_refused(error: ChannelRefused, place: str, jump: Target) -> DeviceError:
    """Return what it means that a jump host does not open the way to a device."""
    if error.code == _PROHIBITED:
        return DeviceError(
            ErrorKind.UNREACHABLE,
            f"{place}: the jump host {jump.place} forwards no connections to it; its sshd_config"
            " needs AllowTcpForwarding yes, and PermitOpen for the device",
            behind=jump.name,
        )
    said = error.said.lower()
    if "refused" in said:
        return DeviceError(ErrorKind.REFUSED, f"{place}: nothing listens on that port")
    if "resolv" in said or "not known" in said or "lookup" in said:
        why = f"the jump host {jump.name} does not know that name"
    else:
        why = f"the jump host {jump.name} cannot reach it ({error.said})"
    return DeviceError(ErrorKind.UNREACHABLE, f"{place}: {why}")


class Pulse:
    """Notices devices behind a jump host that fall silent while somebody waits for them.

    The system's own keep-alive reaches no further than the jump host, so these devices are asked
    for a sign of life; never while they only stand by, which could disturb a measurement.
    """

    every_s = 1.0

    def __init__(self) -> None:
        self._watched: dict[FleetTransport, tuple[int, Callable[[], bool]]] = {}
        self._asked: dict[FleetTransport, float] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def watch(self, transport: FleetTransport, dead_after: int, busy: Callable[[], bool]) -> None:
        """Look after a transport until it ends."""
        with self._lock:
            self._watched[transport] = (dead_after, busy)
            if not self._threads and not self._stop.is_set():
                # Two threads: asking may get stuck on a device that judging then gives up.
                for work in (self._ask_all, self._judge_all):
                    thread = threading.Thread(target=self._often, args=(work,), daemon=True)
                    thread.name = "pulse"
                    self._threads.append(thread)
                    thread.start()

    def stop(self) -> None:
        """Look after nobody any more."""
        self._stop.set()
        with self._lock:
            threads, self._threads = self._threads, []
        for thread in threads:
            thread.join()

    def _often(self, work: Callable[[], None]) -> None:
        while not self._stop.wait(self.every_s):
            work()

    def _alive(self) -> list[tuple[FleetTransport, int, Callable[[], bool]]]:
        with self._lock:
            for transport in [t for t in self._watched if not t.is_active()]:
                del self._watched[transport]
                self._asked.pop(transport, None)
            return [(transport, *more) for transport, more in self._watched.items()]

    def _ask_all(self) -> None:
        for transport, dead_after, busy in self._alive():
            heard, asked = transport.sock.heard, self._asked.get(transport, 0.0)
            due = time.monotonic() - max(heard, asked) > dead_after / 3
            if not due or not busy() or asked > heard:
                continue
            self._asked[transport] = time.monotonic()
            with contextlib.suppress(Exception):  # it ends, and whoever uses it is told so
                transport.keep_alive()

    def _judge_all(self) -> None:
        for transport, dead_after, _ in self._alive():
            asked = self._asked.get(transport, 0.0)
            silent = asked > transport.sock.heard
            if silent and time.monotonic() - asked > 2 * dead_after / 3:
                hang_up(transport)
