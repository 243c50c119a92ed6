"""One process watches a fleet at a time.

Two things say so. A lock on a file beside the database, which the kernel frees when its holder
dies, whatever path the database was named by. And, where no lock reaches (another machine, another
mount), the watcher's row in the database: its beat grows for as long as it lives. A beat is watched
for a while, not compared with a clock, since two machines' clocks may differ by any amount.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from hdap_tui import locking
from hdap_tui.errors import RefusedError, UserError
from hdap_tui.store import watchers
from hdap_tui.store.database import Store
from hdap_tui.store.values import to_seconds
from hdap_tui.store.watchers import WatcherRow
from hdap_tui.watching.service import notify, watchdog_s

BEAT_S = 10.0
MOMENT_S = 0.4
STUCK_S = 900.0
"""A watcher that did not come round for so long lives no more, whatever its threads say."""
_PATIENCE_S = 0.3  # others hold the lock for a moment to see whether it is free
_SILENT_BEATS = 2.5
_FORGOTTEN_S = 86400.0


class Owner:
    """The one watcher, for as long as it lives; by `owning`."""

    def __init__(self, store: Store, number: int) -> None:
        self.store, self.number = store, number
        self.lost = False
        """Another machine's watcher has taken over, because this one was silent for too long."""
        self.often: Callable[[], None] = lambda: None
        """Done every moment, in a thread of its own; nobody waits for it."""
        self._seen = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="beat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(UserError):  # a full disk: its beat has stopped all the same
            watchers.end(self.store, self.number)

    def alive(self) -> None:
        """Say that the watcher comes round; called often, from any thread."""
        self._seen = time.monotonic()

    def _beat(self) -> None:
        guarded = watchdog_s()
        every = min(BEAT_S, guarded / 3) if guarded else BEAT_S
        due = time.monotonic() + every
        while not self._ended.wait(min(MOMENT_S, every)):
            with contextlib.suppress(UserError):  # a full disk, a lock held for long
                self.often()
                now = time.monotonic()
                if now < due or now - self._seen > STUCK_S:
                    continue  # systemd's watchdog ends what does not come round
                due = now + every
                notify("WATCHDOG=1")
                self.lost = not watchers.beat(self.store, self.number)


@contextmanager
def owning(store: Store, cancelled: Callable[[], bool] = lambda: False) -> Iterator[Owner]:
    """Be the one process that watches the fleet; death in any way ends it.

    Raises:
        RefusedError: another one does.
    """
    path = lock_path(store.path)
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as lock:
        until = time.monotonic() + _PATIENCE_S
        while not locking.take(lock):
            if time.monotonic() > until:
                raise _refused(watchers.latest(store))
            time.sleep(0.02)
        before = watchers.latest(store)
        if before is not None and not _is_over(store, before, cancelled):
            raise _refused(watchers.latest(store))
        number = watchers.begin(store, socket.gethostname(), boot(), os.getpid(), before)
        if number is None:
            raise _refused(watchers.latest(store))
        with Owner(store, number) as owner:
            yield owner


def lock_path(database: Path) -> Path:
    """Return the file whose lock says that a database's fleet is watched."""
    return database.resolve().with_name("watch.lock")


def running(store: Store, now: float | None = None) -> WatcherRow | None:
    """Return the watcher that lives, as far as can be told without waiting; None where none does.

    Of one on another machine its latest sign of life tells, by this machine's clock.
    """
    row = watchers.latest(store)
    if row is None or row.ended_at:
        return None
    if is_locked(store.path):
        return row
    if _is_here(row) and not _lives(row.pid):
        return None
    age = (time.time() if now is None else now) - to_seconds(row.heard_at)
    return row if abs(age) < 4 * BEAT_S else None


def is_locked(database: Path) -> bool:
    """Whether a process of this machine watches the fleet, this one included."""
    return locking.is_held(lock_path(database))


def where(row: WatcherRow) -> str:
    """Return who a watcher is, in words."""
    return f"process {row.pid} on {row.host}, since {row.since[:16].replace('T', ' ')} UTC"


def boot() -> str:
    """Return what tells this start of the machine from all others; empty where nothing does."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _is_over(store: Store, row: WatcherRow, cancelled: Callable[[], bool]) -> bool:
    """Say whether a watcher is dead; whoever holds the lock asks, and may have to wait for it."""
    if row.ended_at or (_is_here(row) and not _lives(row.pid)):
        return True
    if row.host == socket.gethostname() and row.boot != boot():
        return True  # this machine was started anew
    if time.time() - to_seconds(row.heard_at) > _FORGOTTEN_S:
        return True
    until = time.monotonic() + _SILENT_BEATS * BEAT_S
    while time.monotonic() < until and not cancelled():
        time.sleep(0.1)
        now = watchers.latest(store)
        if now is None or now.id != row.id or now.beat != row.beat:
            return now is not None and bool(now.ended_at)
    return not cancelled()


def _is_here(row: WatcherRow) -> bool:
    return row.host == socket.gethostname() and row.boot == boot()


def _lives(pid: int) -> bool:
    if pid == os.getpid():
        return False  # an earlier watcher of this process
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _refused(row: WatcherRow | None) -> RefusedError:
    who = f" ({where(row)})" if row is not None and not row.ended_at else ""
    return RefusedError(f"Another process watches this fleet already{who}; one is enough.")
