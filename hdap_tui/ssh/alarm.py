"""Something to be done at a certain time, unless it is called off before: one thread for all."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import threading
import time
from collections.abc import Callable, Iterator

_IDLE_S = 0.5
"""How often the thread looks whether there is still something to wait for."""


class Alarm:
    """Calls functions at their time, each in a thread of its own: it may get stuck on a device."""

    def __init__(self) -> None:
        self._calls: dict[int, Callable[[], None]] = {}
        self._times: list[tuple[float, int]] = []
        self._count = itertools.count()
        self._changed = threading.Condition()
        self._running = False

    @contextlib.contextmanager
    def after(self, seconds: float, call: Callable[[], None]) -> Iterator[None]:
        """Call the function after so many seconds, unless the block has ended by then."""
        number = self._set(time.monotonic() + seconds, call)
        try:
            yield
        finally:
            self._calls.pop(number, None)

    def _set(self, at: float, call: Callable[[], None]) -> int:
        with self._changed:
            number = next(self._count)
            self._calls[number] = call
            heapq.heappush(self._times, (at, number))
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="alarm", daemon=True).start()
            elif self._times[0][1] == number:
                self._changed.notify()
            return number

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._times and self._times[0][1] not in self._calls:
                    heapq.heappop(self._times)  # called off
                wait = self._times[0][0] - time.monotonic() if self._calls else _IDLE_S
                if wait > 0:
                    self._changed.wait(min(wait, _IDLE_S))
                    if not self._calls:
                        self._times.clear()
                        self._running = False
                        return
                    continue
                call = self._calls.pop(heapq.heappop(self._times)[1], None)
            if call is not None:
                threading.Thread(target=call, name="alarm call", daemon=True).start()


alarm = Alarm()
"""The program's own."""
