"""Many tasks that mostly wait, on few threads.

A task is a generator that works until it has to wait, then says for what: some seconds, or one of
its machine's slots. While it waits it holds no thread, so a task that waits never keeps another
from working. A step that takes longer than a moment waits as well, for a device that is slow or
silent: it keeps its thread, and another may work in its stead.
"""

from __future__ import annotations

import heapq
import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from hdap_tui.ssh.errors import Cancelled

T = TypeVar("T")

_MOMENT_S = 2.0  # how long a step counts as work
_TICK_S = 0.1  # how often a cancellation, or another process's slot, is looked for


@dataclass(frozen=True)
class Pause:
    """Go on after so many seconds."""

    seconds: float


@dataclass(frozen=True)
class NeedSlot:
    """Go on with one of the group's slots; it is given back when the task ends, at the latest."""

    group: str
    count: int
    """How many slots the group has."""


@dataclass(frozen=True)
class FreeSlot:
    """Give the slot back."""


@dataclass(frozen=True)
class Result(Generic[T]):
    """Something for whoever started all this."""

    value: T


Step = Pause | NeedSlot | FreeSlot | Result[T]
Steps = Generator[Step[T], None, None]


def pausing(waits: Generator[float, None, T]) -> Generator[Pause, None, T]:
    """Pause for the seconds that a generator yields, and return what it returns."""
    while True:
        try:
            seconds = next(waits)
        except StopIteration as end:
            found: T = end.value
            return found
        yield Pause(seconds)


class Slot(Protocol):
    """A slot that is held."""

    def close(self) -> None:
        """Give it back."""


@dataclass(eq=False)
class _Task(Generic[T]):
    steps: Steps[T]
    slot: Slot | None = None

    def free(self) -> None:
        if self.slot is not None:
            self.slot.close()
            self.slot = None


@dataclass(frozen=True)
class _Broken:
    error: BaseException


class _Ended:
    pass


def run(
    tasks: Iterable[Steps[T]],
    workers: int,
    take: Callable[[str, int], Slot | None],
    cancelled: Callable[[], bool],
    stop: threading.Event | None = None,
    dropped: Callable[[Steps[T]], bool] | None = None,
) -> Generator[T, None, None]:
    """Run all tasks at once, and yield their results in the order in which they come.

    `take(group, count)` returns one of a group's slots or None, without waiting. Once it is
    cancelled, or the iterator is closed, every task gets :class:`Cancelled` where it waits, and
    the iterator ends when the last of them has tidied up. `stop` is set before they are waited
    for, an interruption included, so that what is just being done can end early. A single task
    that is `dropped` gets :class:`Cancelled` where it waits as well, and the others go on.

    Raises:
        Exception: what a task did not handle itself; the others are cancelled first.
    """
    scheduler = _Scheduler(tasks, workers, take, cancelled, dropped)
    if stop is not None:
        scheduler.stop = stop
    scheduler.start()
    try:
        while not isinstance(item := scheduler.out.get(), _Ended):
            if isinstance(item, _Broken):
                raise item.error
            yield item
    finally:
        scheduler.stop.set()
        scheduler.join()


class _Scheduler(threading.Thread, Generic[T]):
    """Its thread alone decides; the workers only run a task's next step."""

    def __init__(
        self,
        tasks: Iterable[Steps[T]],
        workers: int,
        take: Callable[[str, int], Slot | None],
        cancelled: Callable[[], bool],
        dropped: Callable[[Steps[T]], bool] | None,
    ) -> None:
        super().__init__(name="schedule", daemon=True)
        self.out: queue.SimpleQueue[T | _Broken | _Ended] = queue.SimpleQueue()
        self.stop = threading.Event()
        self._take, self._cancelled, self._dropped = take, cancelled, dropped
        self._tasks = {_Task(steps) for steps in tasks}
        self._done: queue.SimpleQueue[tuple[_Task[T], Step[T] | _Broken | None]]
        self._done = queue.SimpleQueue()
        self._ready: deque[tuple[_Task[T], BaseException | None]] = deque()
        self._working: dict[_Task[T], float] = {}  # since when, the oldest first
        self._bound = max(1, workers)
        self._timers: list[tuple[float, int, _Task[T]]] = []
        self._queues: dict[str, deque[tuple[_Task[T], int]]] = {}
        self._count = itertools.count()
        self._stopping = False
        self._look = 0.0  # when it is looked next for tasks that were dropped
        # It starts a thread only where none is idle.
        self._workers = ThreadPoolExecutor(max(self._bound, len(self._tasks)), "task")

    def run(self) -> None:
        """Run until no task is left."""
        try:
            for task in list(self._tasks):
                self._go_on(task)
            while self._tasks:
                self._dispatch()
                self._turn()
        except BaseException as error:
            self.out.put(_Broken(error))
        finally:
            self._workers.shutdown(wait=False)
            self.out.put(_Ended())

    def _turn(self) -> None:
        now = time.monotonic()
        due = self._timers[0][0] - now if self._timers else _TICK_S
        try:
            task, step = self._done.get(timeout=min(max(due, 0.0), _TICK_S))
        except queue.Empty:
            pass
        else:
            self._handle(task, step)
        if not self._stopping and (self.stop.is_set() or self._cancelled()):
            self._cancel(lambda _steps: True)
            self._stopping = True
        if self._dropped is not None and now >= self._look:
            self._look = now + _TICK_S
            self._cancel(self._dropped)
        while self._timers and self._timers[0][0] <= time.monotonic():
            self._go_on(heapq.heappop(self._timers)[2])
        for group in list(self._queues):
            self._grant(group)

    def _handle(self, task: _Task[T], step: Step[T] | _Broken | None) -> None:
        """See what a task said: what it waits for, or that it has ended (None)."""
        self._working.pop(task, None)
        if step is None or isinstance(step, _Broken):
            task.free()
            self._tasks.discard(task)
            if step is not None:
                self.out.put(step)
        elif isinstance(step, Result):
            self.out.put(step.value)
            self._go_on(task)
        elif isinstance(step, FreeSlot):
            task.free()
            self._go_on(task)
        elif self._stopping:
            self._go_on(task, Cancelled())
        elif isinstance(step, Pause):
            due = time.monotonic() + step.seconds
            heapq.heappush(self._timers, (due, next(self._count), task))
        else:
            self._queues.setdefault(step.group, deque()).append((task, step.count))

    def _grant(self, group: str) -> None:
        waiting = self._queues[group]
        while waiting:
            task, count = waiting[0]
            slot = self._take(group, count)
            if slot is None:
                return
            waiting.popleft()
            task.slot = slot
            self._go_on(task)
        del self._queues[group]

    def _cancel(self, unwanted: Callable[[Steps[T]], bool]) -> None:
        """Have those that wait and are unwanted go on with Cancelled."""
        waiting = [task for _, _, task in self._timers]
        waiting += [task for group in self._queues.values() for task, _ in group]
        gone = {task for task in waiting if unwanted(task.steps)}
        if not gone:
            return
        self._timers = [timer for timer in self._timers if timer[2] not in gone]
        heapq.heapify(self._timers)
        self._queues = {
            group: deque(one for one in queue if one[0] not in gone)
            for group, queue in self._queues.items()
        }
        for task in waiting:
            if task in gone:
                self._go_on(task, Cancelled())

    def _go_on(self, task: _Task[T], error: BaseException | None = None) -> None:
        self._ready.append((task, error))

    def _dispatch(self) -> None:
        """Start as many steps as may work at once."""
        now = time.monotonic()
        while self._working and now - next(iter(self._working.values())) > _MOMENT_S:
            del self._working[next(iter(self._working))]
        while self._ready and len(self._working) < self._bound:
            task, error = self._ready.popleft()
            self._working[task] = now
            self._workers.submit(self._advance, task, error)

    def _advance(self, task: _Task[T], error: BaseException | None) -> None:
        step: Step[T] | _Broken | None
        try:
            step = next(task.steps) if error is None else task.steps.throw(error)
        except (StopIteration, Cancelled):
            step = None
        except BaseException as broken:
            step = _Broken(broken)
        self._done.put((task, step))
