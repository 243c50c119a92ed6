"""Notices from what is measured that a device is new or has become another, and looks again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from hdap_tui.facts.asking import gather_again
from hdap_tui.fanout import on_each
from hdap_tui.ssh.errors import DeviceError
from hdap_tui.store import facts as table

if TYPE_CHECKING:
    from engine.latency import Latency
    from hdap_tui.fact_names import Fact
    from hdap_tui.store.database import Store
    from hdap_tui.sweep import Fleet

_TOLD = {"boot_id": 36, "kernel": 120, "onnxruntime": 120, "runner": 12}
"""What every run of the runner says, with the characters that count."""


class Noticing:
    """Devices that should be looked at, for as long as something is measured."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._due: set[str] = set()
        self._seen: dict[str, dict[str, str]] = {}
        self._known: Mapping[str, Mapping[str, Fact]] | None = None

    def saw(self, latency: Latency) -> None:
        """Take in what a device said of itself when it was measured."""
        if not latency.ok:
            return
        told = {
            name: value[:length]
            for name, length in _TOLD.items()
            if isinstance(value := latency.conditions.get(name), str) and value != "unknown"
        }
        if self._seen.get(latency.device) == told:
            return  # looked at since, whatever came of it
        self._seen[latency.device] = told
        if self._known is None:
            self._known = table.latest(self._store)
        known = self._known.get(latency.device, {})
        if not known or any(known.get(name) != value for name, value in told.items()):
            self._due.add(latency.device)

    def look(self, fleet: Fleet, cancelled: Callable[[], bool]) -> None:
        """Look at the devices that are due: one command each, over the connections that are open.

        Nothing is measured meanwhile. A device that cannot be asked is asked again another time.
        """
        due, self._due = self._due, set()
        targets = [fleet.members[name] for name in sorted(due) if name in fleet.members]
        if not targets or cancelled():
            return
        answers = on_each(
            fleet.pool, targets, gather_again, cancelled, on_stage=fleet.on_stage, doing="facts"
        )
        for target, answer in answers:
            if not isinstance(answer, DeviceError):
                table.save(self._store, target.name, answer)
        self._known = None
