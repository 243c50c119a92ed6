"""What is being done on each device right now, for the screens and for who started it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Self

from hdap_tui import locking
from hdap_tui.context import OnStage, ShowStage, silent_stage
from hdap_tui.errors import UserError
from hdap_tui.progress import kind_of
from hdap_tui.store import devices
from hdap_tui.store.database import Store
from hdap_tui.store.values import now


class Stages:
    """Writes what is being done on each device into the store, a few times a second.

    Stages change faster than anybody can read; only the latest of each device is written. A store
    that is locked for long, or full, costs these stages and no more. Safe to use from several
    threads; stopped at the end, best by `with`.
    """

    every_s = 0.25

    def __init__(self, store: Store, listen: OnStage = silent_stage) -> None:
        """`listen` is told of every stage at once."""
        self._store, self._listen = store, listen
        self._latest: dict[str, str] = {}
        self._since: dict[str, tuple[str, str]] = {}
        """The kind of each device's latest stage, and when that began."""
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write_often, name="stages", daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to write; what a killed process left is forgotten where no other one works."""
        self._at_work = open(self._store.path.with_name("stages.lock"), "ab")  # noqa: SIM115
        if locking.take(self._at_work):
            self._forget(None)
        locking.wait(self._at_work, shared=True)
        self._thread.start()

    def stop(self) -> None:
        """Forget these stages, and write no more."""
        self._stop.set()
        self._thread.join()
        try:
            self._forget(self._since)
        finally:
            self._at_work.close()

    def say(self, device: str, stage: str) -> None:
        """Say what is being done on a device; "done", "cancelled" and "failed…" end it."""
        kind = kind_of(stage)
        with self._lock:
            self._latest[device] = stage
            if self._since.get(device, ("", ""))[0] != kind:
                self._since[device] = kind, now()
        self._listen(device, stage)

    def _forget(self, names: Iterable[str] | None) -> None:
        with contextlib.suppress(UserError):
            devices.clear_stages(self._store, names)

    def _write_often(self) -> None:
        while not self._stop.wait(self.every_s):
            with self._lock:
                latest, self._latest = self._latest, {}
                since = {device: self._since[device][1] for device in latest}
            if latest:
                with contextlib.suppress(UserError), self._store.write():
                    for device, stage in latest.items():
                        ended = stage in {"done", "cancelled"} or stage.startswith("failed")
                        devices.set_stage(
                            self._store, device, "" if ended else stage, since[device]
                        )


class Follower:
    """Shows what another process does on some devices, as the store has it."""

    def __init__(self, store: Store, names: Iterable[str], show: ShowStage) -> None:
        self._store, self._names, self._show = store, frozenset(names), show
        self._version = -1
        self._shown: dict[str, tuple[str, str]] = {}

    def look(self) -> None:
        """Show what has changed since the last look; a store that did not change is not read."""
        with contextlib.suppress(UserError):  # locked for long, or damaged: nothing is shown
            version = self._store.version()
            if version == self._version:
                return
            found = devices.stages(self._store)
            self._version = version
            self._take({name: one for name, one in found.items() if name in self._names})

    def _take(self, found: dict[str, tuple[str, str]]) -> None:
        before, self._shown = self._shown, found
        for name in before.keys() - found.keys():
            self._show(name, "")
        for name, (stage, since) in found.items():
            if before.get(name) != (stage, since):
                self._show(name, stage, _seconds_since(since))


def _seconds_since(at: str) -> float | None:
    """Return how long ago that was; None where nobody said when."""
    if not at:
        return None
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(at)).total_seconds())
