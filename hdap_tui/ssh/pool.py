"""Open connections to many devices, kept and shared."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

from hdap_tui.ssh.config import resolve
from hdap_tui.ssh.connection import Connection, connect, scan
from hdap_tui.ssh.errors import Cancelled, DeviceError, ErrorKind
from hdap_tui.ssh.hostkeys import HostKey, KnownHosts
from hdap_tui.ssh.keys import at_hand
from hdap_tui.ssh.places import Places
from hdap_tui.ssh.secret import Secrets
from hdap_tui.ssh.sockets import Deadline, never
from hdap_tui.ssh.target import Jump, Target
from hdap_tui.ssh.tunnel import Pulse

Got = TypeVar("Got")

ATTEMPTS = 4
BUSY_ATTEMPTS = 10
"""Where a server turned a login away before its banner, others were under way, and these end."""
_BASE_S, _MOST_S = 0.5, 8.0


def backoff(attempt: int) -> float:
    """Return the seconds to wait after that many failed attempts (from 1).

    Drawn evenly from zero to a limit that triples each time, so that many devices which fail
    together do not come back together.
    """
    return random.uniform(0.0, min(_MOST_S, _BASE_S * 3.0 ** (attempt - 1)))


class _Gate:
    """How many logins are under way at one server."""

    def __init__(self, allowed: int) -> None:
        self._allowed, self._inside = allowed, 0
        self._counting = threading.Lock()
        self._left: threading.Condition | None = None  # made when somebody has to wait

    @contextlib.contextmanager
    def held(self, deadline: Deadline) -> Iterator[None]:
        """Be one of them; waiting for that does not count. A busy server gets fewer at once."""
        with deadline.paused(), self._counting:
            while self._inside >= self._allowed:
                self._left = self._left or threading.Condition(self._counting)
                self._left.wait(0.25)
                if deadline.cancelled():
                    raise Cancelled
            self._inside += 1
        try:
            yield
        except DeviceError as error:
            if error.kind is ErrorKind.BUSY:
                self._allowed = max(1, self._allowed // 2)
            raise
        finally:
            with self._counting:
                self._inside -= 1
                if self._left is not None:
                    self._left.notify_all()


@dataclass
class _Bastion:
    """The one connection to a jump host, for all devices behind it."""

    turn: threading.Lock = field(default_factory=threading.Lock)
    connection: Connection | None = None
    error: DeviceError | None = None
    """Why it could not be opened."""
    until: float = 0.0
    """How long that is believed without another try."""
    refused: object = None
    """The keys that were at hand when it refused the login: with these it is not tried again."""

    def is_believed(self, last: Jump) -> bool:
        """Whether what went wrong would still go wrong."""
        if self.refused is not None:
            return self.refused == at_hand(last)
        return time.monotonic() < self.until


class Connections:
    """One connection a device, opened when it is first asked for and kept open.

    At most `bound` are being opened at once, not counting those that do not answer, and at most
    `handshakes` to one server. Devices behind one jump host share the connection to it. Safe to
    use from several threads; not from a forked child.
    """

    believed_s = 30.0
    """How long a jump host that failed is not tried again: each of the devices behind it asks."""

    def __init__(
        self, bound: int = 64, handshakes: int = 8, secrets: Secrets | None = None
    ) -> None:
        self.bound = bound
        self.secrets = secrets or Secrets()
        self._opening = Places(bound)
        self._servers: defaultdict[object, _Gate] = defaultdict(lambda: _Gate(handshakes))
        self._open: dict[Target, Connection] = {}
        self._turns: defaultdict[Target, threading.Lock] = defaultdict(threading.Lock)
        self._bastions: defaultdict[tuple[Jump, ...], _Bastion] = defaultdict(_Bastion)
        self._pulse = Pulse()
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> Connections:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def known(self, target: Target) -> KnownHosts:
        """Return the host keys that count for a target."""
        return KnownHosts(target.known_hosts, target.other_known_hosts)

    def open(
        self,
        target: Target,
        cancelled: Callable[[], bool] = never,
        limit_s: float | None = None,
    ) -> Connection:
        """Return the device's connection; where none stands, try once to open it.

        `limit_s` is at most the target's total limit; waiting for a turn does not count.

        Raises:
            DeviceError: with the class of what went wrong, also with a jump host.
            Cancelled: it is no longer wanted.
        """
        total = target.timeouts.total
        return self._get(target, Deadline(min(total, limit_s or total), cancelled))

    def _get(self, target: Target, deadline: Deadline) -> Connection:
        cancelled = deadline.cancelled
        with self._lock:
            turn = self._turns[target]
        with _held(turn, deadline):
            standing = self._open.get(target)
            if standing is not None:
                if standing.alive:
                    return standing
                self.drop(target)
            found = resolve(target)
            through = self._through(found, cancelled, deadline)
            with self._lock:
                server = self._servers[found.jumps, found.host, found.port]
            with server.held(deadline), _held(self._opening, deadline):
                connection = connect(
                    found,
                    self.known(found),
                    secrets=self.secrets,
                    through=through,
                    deadline=deadline,
                )
            if through is not None:
                self._pulse.watch(
                    connection.transport, found.timeouts.dead_after, lambda: connection.busy
                )
            with self._lock:
                if not self._closed:
                    self._open[target] = connection
                    return connection
        connection.close()
        raise Cancelled

    def scan(self, target: Target, cancelled: Callable[[], bool] = never) -> HostKey:
        """Return the host key that a device shows, without logging in at it; tries as `get` does.

        Raises:
            DeviceError, Cancelled: as `opening`.
        """
        deadline = Deadline(target.timeouts.total, cancelled)
        found = resolve(target)

        def look() -> HostKey:
            through = self._through(found, cancelled, deadline)
            with self._lock:
                server = self._servers[found.jumps, found.host, found.port]
            with server.held(deadline), _held(self._opening, deadline):
                return scan(found, deadline, known=self.known(found), through=through)

        return _rested(_tries(look, deadline), cancelled)

    # ---- jump hosts -----------------------------------------------------------------------------

    def _through(
        self, target: Target, cancelled: Callable[[], bool], deadline: Deadline
    ) -> Connection | None:
        """Return the connection to the last jump host; opening it has limits of its own."""
        if not target.jumps:
            return None
        try:
            with deadline.paused():
                return self._bastion(target.jumps, cancelled)
        except DeviceError as error:
            text = f"{target.name}: behind {error}"
            raise DeviceError(error.kind, text, error.behind or target.jumps[-1].name) from None

    def _bastion(self, jumps: tuple[Jump, ...], cancelled: Callable[[], bool]) -> Connection:
        with self._lock:
            bastion = self._bastions[jumps]
        with _held(bastion.turn, Deadline(0.0, cancelled)):
            if bastion.connection is not None and bastion.connection.alive:
                return bastion.connection
            if bastion.error is not None and bastion.is_believed(jumps[-1]):
                raise bastion.error
            bastion.connection = bastion.error = bastion.refused = None
            try:
                bastion.connection = self._open_bastion(jumps, cancelled)
            except DeviceError as error:
                bastion.error = error
                bastion.until = time.monotonic() + self.believed_s
                if error.kind is ErrorKind.AUTHENTICATION and not error.behind:
                    bastion.refused = at_hand(jumps[-1])
                    again = "it is asked again once there are other keys, or hdap is started anew"
                    bastion.error = DeviceError(error.kind, f"{error}; {again}")
                raise bastion.error from None
            if self._closed:  # meanwhile: whoever closed the others did not see this one
                bastion.connection.close()
                raise Cancelled
            return bastion.connection

    def _open_bastion(self, jumps: tuple[Jump, ...], cancelled: Callable[[], bool]) -> Connection:
        """Open the connection to the last of some jump hosts, through those before it."""
        last = replace(jumps[-1], jumps=jumps[:-1])
        deadline = Deadline(last.timeouts.total, cancelled)
        through = self._through(last, cancelled, deadline)

        def log_in() -> Connection:
            return connect(
                last, self.known(last), secrets=self.secrets, through=through, deadline=deadline
            )

        connection = _rested(_tries(log_in, deadline), cancelled)
        if through is not None:
            self._pulse.watch(connection.transport, last.timeouts.dead_after, lambda: True)
        return connection

    def opening(
        self, target: Target, cancelled: Callable[[], bool] = never
    ) -> Generator[float, None, Connection]:
        """Try until a connection stands; yields the seconds to wait before the next try.

        Raises:
            DeviceError, Cancelled: as `open`; only a transient error has been tried again, and
                all tries together took no longer than the target's total limit.
        """
        deadline = Deadline(target.timeouts.total, cancelled)
        return _tries(lambda: self._get(target, deadline), deadline)

    def get(self, target: Target, cancelled: Callable[[], bool] = never) -> Connection:
        """Return the device's connection; where none stands, open it, and try again as helps.

        Raises:
            DeviceError, Cancelled: as `opening`.
        """
        return _rested(self.opening(target, cancelled), cancelled)

    def drop(self, target: Target) -> None:
        """Close the device's connection, where there is one."""
        with self._lock:
            connection = self._open.pop(target, None)
        if connection is not None:
            connection.close()

    def close(self) -> None:
        """Close all; what is just being opened is closed when it is ready."""
        with self._lock:
            self._closed = True
            connections, self._open = list(self._open.values()), {}
            bastions, self._bastions = list(self._bastions.values()), defaultdict(_Bastion)
        connections += [b.connection for b in bastions if b.connection is not None]
        for connection in connections:
            connection.close()
        self._pulse.stop()
        end = time.monotonic() + 2.0
        for connection in connections:  # their threads end at once, now that all are woken
            connection.transport.join(max(0.0, end - time.monotonic()))


def _tries(attempt: Callable[[], Got], deadline: Deadline) -> Generator[float, None, Got]:
    """Try as long as that may help; yields the seconds to wait before the next time."""
    failed = 0
    while True:
        try:
            return attempt()
        except DeviceError as error:
            failed += 1
            pause = backoff(failed)
            hopeless = not error.transient or error.behind  # a jump host was tried for itself
            most = BUSY_ATTEMPTS if error.kind is ErrorKind.BUSY else ATTEMPTS
            if hopeless or failed >= most or deadline.left() <= pause:
                raise
        yield pause


def _rested(tries: Generator[float, None, Got], cancelled: Callable[[], bool]) -> Got:
    """Return what the tries end in, resting between them."""
    while True:
        try:
            pause = next(tries)
        except StopIteration as end:
            got: Got = end.value
            return got
        Deadline(pause, cancelled).rest()


@contextlib.contextmanager
def _held(
    lock: threading.Lock | threading.BoundedSemaphore | Places, deadline: Deadline
) -> Iterator[None]:
    """Hold a lock; waiting for it does not count."""
    with deadline.paused():
        while not lock.acquire(timeout=0.25):
            if deadline.cancelled():
                raise Cancelled
    try:
        yield
    finally:
        lock.release()
