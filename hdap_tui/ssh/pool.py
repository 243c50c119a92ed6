"""Open connections to many devices, kept and shared."""

from __future__ import annotations

import contextlib
import random
import threading
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from hdap_tui.ssh.connection import Connection, connect
from hdap_tui.ssh.errors import Cancelled, DeviceError
from hdap_tui.ssh.hostkeys import KnownHosts
from hdap_tui.ssh.keys import Passphrase
from hdap_tui.ssh.sockets import Deadline, never
from hdap_tui.ssh.target import Target

ATTEMPTS = 4
_BASE_S, _MOST_S = 0.5, 8.0


def backoff(attempt: int) -> float:
    """Return the seconds to wait after that many failed attempts (from 1).

    Drawn evenly from zero to a limit that triples each time, so that many devices which fail
    together do not come back together.
    """
    return random.uniform(0.0, min(_MOST_S, _BASE_S * 3.0 ** (attempt - 1)))


class Connections:
    """One connection a device, opened when it is first asked for and kept open.

    At most `bound` are being opened at once, at most `handshakes` to one server. Safe to use
    from several threads; not from a forked child.
    """

    def __init__(
        self, bound: int = 64, handshakes: int = 8, passphrase: Passphrase | None = None
    ) -> None:
        self.bound = bound
        self._passphrase = passphrase
        self._opening = threading.BoundedSemaphore(bound)
        self._servers: defaultdict[tuple[str, int], threading.BoundedSemaphore] = defaultdict(
            lambda: threading.BoundedSemaphore(handshakes)
        )
        self._open: dict[Target, Connection] = {}
        self._turns: defaultdict[Target, threading.Lock] = defaultdict(threading.Lock)
        self._known: dict[Path, KnownHosts] = {}
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> Connections:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def known(self, path: Path) -> KnownHosts:
        """Return the index of a fleet's host keys, read once for all devices."""
        with self._lock:
            if path not in self._known:
                self._known[path] = KnownHosts(path)
            return self._known[path]

    def open(
        self,
        target: Target,
        cancelled: Callable[[], bool] = never,
        limit_s: float | None = None,
    ) -> Connection:
        """Return the device's connection; where none stands, try once to open it.

        `limit_s` is at most the target's total limit; waiting for a turn does not count.

        Raises:
            DeviceError: with the class of what went wrong.
            Cancelled: it is no longer wanted.
        """
        with self._lock:
            turn = self._turns[target]
            server = self._servers[target.host, target.port]
        with _held(turn, cancelled):
            standing = self._open.get(target)
            if standing is not None:
                if standing.alive:
                    return standing
                self.drop(target)
            with _held(server, cancelled), _held(self._opening, cancelled):
                total = target.timeouts.total
                connection = connect(
                    target,
                    self.known(target.known_hosts),
                    passphrase=self._passphrase,
                    deadline=Deadline(min(total, limit_s or total), cancelled),
                )
            with self._lock:
                if not self._closed:
                    self._open[target] = connection
                    return connection
        connection.close()
        raise Cancelled

    def opening(
        self, target: Target, cancelled: Callable[[], bool] = never
    ) -> Generator[float, None, Connection]:
        """Try until a connection stands; yields the seconds to wait before the next try.

        Raises:
            DeviceError, Cancelled: as `open`; only a transient error has been tried again, and
                all tries together took no longer than the target's total limit.
        """
        deadline = Deadline(target.timeouts.total, cancelled)
        attempt = 1
        while True:
            try:
                return self.open(target, cancelled, deadline.left())
            except DeviceError as error:
                pause = backoff(attempt)
                if not error.transient or attempt == ATTEMPTS or deadline.left() <= pause:
                    raise
            yield pause
            attempt += 1

    def get(self, target: Target, cancelled: Callable[[], bool] = never) -> Connection:
        """Return the device's connection; where none stands, open it, and try again as helps.

        Raises:
            DeviceError, Cancelled: as `opening`.
        """
        tries = self.opening(target, cancelled)
        try:
            while True:
                Deadline(next(tries), cancelled).rest()
        except StopIteration as end:
            connection: Connection = end.value
            return connection

    def open_many(
        self, targets: Sequence[Target], cancelled: Callable[[], bool] = never
    ) -> Iterator[tuple[Target, Connection | DeviceError]]:
        """Open all at once, and yield each device with its connection or what went wrong.

        In the order in which they are ready; ends early once it is no longer wanted.
        """
        stop = threading.Event()

        def one(target: Target) -> Connection | DeviceError:
            try:
                return self.get(target, lambda: stop.is_set() or cancelled())
            except DeviceError as error:
                return error

        with ThreadPoolExecutor(min(self.bound, len(targets)) or 1, "connect") as workers:
            futures = {workers.submit(one, target): target for target in targets}
            try:
                for future in as_completed(futures):
                    if isinstance(future.exception(), Cancelled):
                        return
                    yield futures[future], future.result()
            finally:
                stop.set()
                workers.shutdown(wait=True, cancel_futures=True)

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
        for connection in connections:
            connection.close()


@contextlib.contextmanager
def _held(
    lock: threading.Lock | threading.BoundedSemaphore, cancelled: Callable[[], bool]
) -> Iterator[None]:
    while not lock.acquire(timeout=0.25):
        if cancelled():
            raise Cancelled
    try:
        yield
    finally:
        lock.release()
