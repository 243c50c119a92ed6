"""How many may do something at once, without those who wait for a silent device."""

from __future__ import annotations

import threading
import time

_MOMENT_S = 2.0
_MOST = 4


class Places:
    """A number of places for work that is quick: whoever stays longer waits, and counts no more.

    So a few devices that never answer do not keep the others waiting. Never are more than four
    times as many at it. Who took a place gives it back in the same thread.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._fresh: dict[int, float] = {}  # thread: since when, the oldest first
        self._late: set[int] = set()
        self._changed = threading.Condition()

    def acquire(self, timeout: float) -> bool:
        """Take a place; return whether there was one in time."""
        end = time.monotonic() + timeout
        with self._changed:
            while True:
                now = time.monotonic()
                self._age(now)
                full = len(self._fresh) >= self._count
                if not full and len(self._fresh) + len(self._late) < _MOST * self._count:
                    self._fresh[threading.get_ident()] = now
                    return True
                if now >= end:
                    return False
                oldest = next(iter(self._fresh.values()), end)
                self._changed.wait(min(end, oldest + _MOMENT_S) - now)

    def release(self) -> None:
        """Give the place back."""
        with self._changed:
            self._fresh.pop(threading.get_ident(), None)
            self._late.discard(threading.get_ident())
            self._changed.notify()

    def _age(self, now: float) -> None:
        while self._fresh and now - next(iter(self._fresh.values())) >= _MOMENT_S:
            late = next(iter(self._fresh))
            del self._fresh[late]
            self._late.add(late)
