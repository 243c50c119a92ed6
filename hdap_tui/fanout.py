"""One short thing on many devices at once; a device that fails is a value, not an exception."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from hdap_tui.ssh.connection import Connection
from hdap_tui.ssh.errors import Cancelled, DeviceError, classify
from hdap_tui.ssh.pool import Connections
from hdap_tui.ssh.target import Target

T = TypeVar("T")


def on_each(
    pool: Connections,
    targets: Sequence[Target],
    action: Callable[[Connection], T],
    cancelled: Callable[[], bool] = lambda: False,
    stop: threading.Event | None = None,
) -> Iterator[tuple[Target, T | DeviceError]]:
    """Connect to every device and act on it; yields what came of it, in order of arrival.

    Ends early once it is no longer wanted. `stop` is set at the end, an interruption for one,
    before the actions that still run are waited for; an action that takes long asks it.
    """

    stop = stop or threading.Event()

    def one(target: Target) -> T | DeviceError:
        try:
            return action(pool.get(target, lambda: stop.is_set() or cancelled()))
        except Cancelled:
            raise
        except Exception as error:
            return classify(error, target.name)

    workers = max(1, min(pool.bound, len(targets)))
    executor = ThreadPoolExecutor(workers, thread_name_prefix="device")
    try:
        futures = {executor.submit(one, target): target for target in targets}
        for future in as_completed(futures):
            if isinstance(future.exception(), Cancelled):
                continue
            yield futures[future], future.result()
    finally:
        stop.set()
        executor.shutdown(wait=True, cancel_futures=True)
