"""One short thing on many devices at once; a device that fails is a value, not an exception."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TypeVar

from hdap_tui import schedule
from hdap_tui.context import OnStage, silent_stage
from hdap_tui.schedule import Result, Steps
from hdap_tui.ssh.connection import Connection
from hdap_tui.ssh.errors import Cancelled, DeviceError, classify
from hdap_tui.ssh.limits import allow_connections
from hdap_tui.ssh.pool import Connections
from hdap_tui.ssh.sockets import never
from hdap_tui.ssh.target import Target

T = TypeVar("T")


def on_each(
    pool: Connections,
    targets: Sequence[Target],
    action: Callable[[Connection], T],
    cancelled: Callable[[], bool] = never,
    stop: threading.Event | None = None,
    *,
    on_stage: OnStage = silent_stage,
    doing: str = "asking",
) -> Iterator[tuple[Target, T | DeviceError]]:
    """Connect to every device and act on it; yields what came of it, in order of arrival.

    A device that is slow or silent costs its own time limit and keeps no other waiting. Ends early
    once it is no longer wanted. `stop` is set at the end, an interruption for one, before the
    actions that still run are waited for; an action that takes long asks it. `on_stage` is told
    that a device is connected to, then what is being `doing` there, then how it ended.

    Raises:
        UserError: the system does not allow that many connections.
    """

    def work(target: Target, unwanted: Callable[[], bool]) -> Generator[float, None, T]:
        on_stage(target.name, "connecting")
        connection = yield from pool.opening(target, unwanted)
        on_stage(target.name, doing)
        return action(connection)

    return fan_out(targets, work, pool.bound, cancelled, stop, on_stage)


def fan_out(
    targets: Sequence[Target],
    work: Callable[[Target, Callable[[], bool]], Generator[float, None, T]],
    bound: int,
    cancelled: Callable[[], bool] = never,
    stop: threading.Event | None = None,
    on_stage: OnStage = silent_stage,
) -> Iterator[tuple[Target, T | DeviceError]]:
    """Work on every device, at most `bound` at once; yields what came of it, as `on_each` does.

    The work gets the device, and what says whether it is no longer wanted; it yields the seconds
    for which it waits.

    Raises:
        UserError: the system does not allow that many connections.
    """
    ended = stop or threading.Event()

    def unwanted() -> bool:
        return ended.is_set() or cancelled()

    def one(target: Target) -> Steps[tuple[Target, T | DeviceError]]:
        answer: T | DeviceError
        try:
            answer = yield from schedule.pausing(work(target, unwanted))
            on_stage(target.name, "done")
        except (Cancelled, GeneratorExit):
            on_stage(target.name, "cancelled")
            raise
        except Exception as error:
            answer = classify(error, target.name)
            on_stage(target.name, f"failed: {answer.kind}")
        yield Result((target, answer))

    allow_connections(len(targets))
    workers = max(1, min(bound, len(targets)))
    running = schedule.run(map(one, targets), workers, lambda _group, _count: None, unwanted, ended)
    try:
        yield from running
    finally:
        ended.set()
        running.close()
