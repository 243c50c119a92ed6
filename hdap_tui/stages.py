"""What is being done on each device right now, for the screens and for who started it."""

from __future__ import annotations

import contextlib
import threading
from typing import Self

from hdap_tui import locking
from hdap_tui.context import OnStage, silent_stage
from hdap_tui.errors import UserError
from hdap_tui.store import devices
from hdap_tui.store.database import Store


class Stages:
    """Writes what is being done on each device into the store, a few times a second.

    Stages change faster than anybody can read; only the latest of each device is written. Safe
    to use from several threads; stopped at the end, best by `with`.
    """

    every_s = 0.25

    def __init__(self, store: Store, listen: OnStage = silent_stage) -> None:
        """`listen` is told of every stage at once."""
        self._store, self._listen = store, listen
        self._latest: dict[str, str] = {}
        self._own: set[str] = set()
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
            devices.clear_stages(self._store)
        locking.wait(self._at_work, shared=True)
        self._thread.start()

    def stop(self) -> None:
        """Forget these stages, and write no more."""
        self._stop.set()
        self._thread.join()
        try:
            devices.clear_stages(self._store, self._own)
        finally:
            self._at_work.close()

    def say(self, device: str, stage: str) -> None:
        """Say what is being done on a device; "done" and "failed…" end it."""
        with self._lock:
            self._latest[device] = stage
            self._own.add(device)
        self._listen(device, stage)

    def _write_often(self) -> None:
        while not self._stop.wait(self.every_s):
            with self._lock:
                latest, self._latest = self._latest, {}
            if latest:
                # A store that is locked for long, or full, costs these stages and no more.
                with contextlib.suppress(UserError), self._store.write():
                    for device, stage in latest.items():
                        ended = stage == "done" or stage.startswith("failed")
                        devices.set_stage(self._store, device, "" if ended else stage)
