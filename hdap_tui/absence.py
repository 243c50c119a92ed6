"""Devices that no longer answer: an alert of each, and one of the fleet where they are many.

It is no model's: whatever a device runs, nobody knows how it does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from hdap_tui.config import Settings
from hdap_tui.store import alerts
from hdap_tui.store.database import Store
from hdap_tui.store.devices import NO_DATA_ROUNDS
from hdap_tui.store.records import NO_DATA, AlertRow, Scope

MANY = 5
"""Silent devices beyond which, and beyond a tenth of the fleet, they are one event."""
_SHARE = 0.1


def follow(
    settings: Settings, store: Store, missed: Mapping[str, int], onset: Callable[[int], str]
) -> list[int]:
    """Let alerts open and resolve after a round; return the numbers of those that opened.

    Args:
        settings: name the fleet's devices.
        store: holds the alerts.
        missed: for how many rounds in a row each device of this round has not answered.
        onset: tells when the round began that was so many rounds ago.
    """
    fleet = {device.name: device.emulated for device in settings.devices}
    with store.write():
        known = {a.subject: a for a in _open(store, "device")}
        for name, alert in known.items():
            if name not in fleet:
                alerts.resolve(store, alert.id, "the settings no longer name it")
            elif missed.get(name) == 0:
                alerts.resolve(store, alert.id, "it answers again")
        fresh = [
            _fire(store, "device", name, onset(rounds - 1), emulated=fleet[name])
            for name, rounds in missed.items()
            if rounds >= NO_DATA_ROUNDS and name in fleet and name not in known
        ]
        silent = _open(store, "device")
        limit = max(MANY, _SHARE * len(fleet))
        wide = next(iter(_open(store, "fleet")), None)
        if wide is not None and len(silent) <= limit / 2:
            alerts.resolve(store, wide.id, "most of them answer again")
        elif wide is not None:
            alerts.change(store, wide, devices=len(silent))
        elif len(silent) > limit or len(silent) == len(fleet) > 1:
            first = min(alert.onset_at for alert in silent)
            emulated = any(alert.emulated for alert in silent)
            fresh.append(_fire(store, "fleet", "fleet", first, emulated, len(silent)))
        return fresh


def _open(store: Store, scope: Scope) -> list[AlertRow]:
    return [a for a in alerts.open_rows(store) if a.kind == NO_DATA and a.scope == scope]


def _fire(
    store: Store, scope: Scope, subject: str, onset_at: str, emulated: bool, devices: int = 1
) -> int:
    alert, _ = alerts.fire(
        store,
        scope=scope,
        subject=subject,
        kind=NO_DATA,
        direction="",
        model="",
        baseline_ms=math.nan,
        now_ms=math.nan,
        size_percent=math.nan,
        onset_at=onset_at,
        emulated=emulated,
        devices=devices,
        text=f"no answer in {NO_DATA_ROUNDS} rounds or more",
    )
    return alert.id
