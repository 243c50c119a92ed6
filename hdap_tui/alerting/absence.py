"""Devices that no longer answer: an alert of each, and one of the fleet where they are many.

It is no model's: whatever a device runs, nobody knows how it does. One that answers, and cannot be
measured, is another matter.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from engine.latency import Latency
from hdap_tui.alerting import silencing
from hdap_tui.alerting.lifecycle import inhibit
from hdap_tui.config import Settings
from hdap_tui.measuring import is_off
from hdap_tui.store import alerts, drift, measurements
from hdap_tui.store.database import Store
from hdap_tui.store.devices import NO_DATA_ROUNDS
from hdap_tui.store.records import NO_DATA, AlertRow, Scope

MANY = 5
"""Silent devices beyond which, and beyond a tenth of the fleet, they are one event."""
_SHARE = 0.1


def follow(
    settings: Settings, store: Store, found: Sequence[Latency], away: Collection[str] = ()
) -> list[AlertRow]:
    """Let alerts open and resolve after a round; return those that opened to be seen.

    Args:
        settings: name the fleet's devices.
        store: holds the alerts, and how many rounds in a row each device has missed.
        found: what the round brought, of all its models; it has been judged already.
        away: devices that are left alone.
    """
    fleet = {device.name: device.emulated for device in settings.devices}
    with store.write():
        known = {a.subject: a for a in _open(store, "device")}
        answered = {one.device for one in found if not is_off(one)}
        for name, alert in known.items():
            if name not in fleet:
                alerts.resolve(store, alert.id, "the settings no longer name it")
            elif name in away:
                alerts.resolve(store, alert.id, "it is left alone")
            elif name in answered:
                alerts.resolve(store, alert.id, "it answers again")
        silent = fleet.keys() - answered - known.keys() - set(away)
        fresh = _missing(store, [one for one in found if one.device in silent])
        since = measurements.silent_since(store, fresh, NO_DATA_ROUNDS) if fresh else {}
        opened = [_fire(store, "device", name, since[name], fleet[name]) for name in fresh]
        opened += _widen(store, len(fleet))
        silencing.apply(settings, store)
        now = [alerts.row(store, alert.id) for alert in opened]
        return [alert for alert in now if alert.inhibited_by is None]


def _missing(store: Store, silent: Sequence[Latency]) -> list[str]:
    """Return those that have missed enough rounds in a row."""
    missed = {digest: drift.load_missed(store, digest) for digest in {one.model for one in silent}}
    return [one.device for one in silent if missed[one.model].get(one.device, 0) >= NO_DATA_ROUNDS]


def _widen(store: Store, fleet: int) -> list[AlertRow]:
    """Let one alert stand for those of many devices; return it where it is new."""
    silent, opened = _open(store, "device"), []
    wide = next(iter(_open(store, "fleet")), None)
    limit = max(MANY, _SHARE * fleet)
    if wide is not None and len(silent) <= min(limit, fleet) / 2:
        alerts.resolve(store, wide.id, "most of them answer again")
        wide = None
    elif wide is None and (len(silent) > limit or len(silent) == fleet > 1):
        first, emulated = min(a.onset_at for a in silent), any(a.emulated for a in silent)
        wide = _fire(store, "fleet", "fleet", first, emulated, len(silent))
        opened = [wide]
    if wide is not None:
        wide = alerts.change(store, wide, devices=len(silent))
    inhibit(store, lambda _wide, _narrow: True, [*silent, *([wide] if wide else [])])
    return opened


def _open(store: Store, scope: Scope) -> list[AlertRow]:
    return [a for a in alerts.open_rows(store) if a.kind == NO_DATA and a.scope == scope]


def _fire(
    store: Store, scope: Scope, subject: str, onset_at: str, emulated: bool, devices: int = 1
) -> AlertRow:
    alert, _ = alerts.fire(
        store,
        scope=scope,
        subject=subject,
        kind=NO_DATA,
        direction="",
        model="",
        baseline_ms=0.0,  # none of the three is known: an alert of this kind reads NaN
        now_ms=0.0,
        size_percent=0.0,
        onset_at=onset_at,
        emulated=emulated,
        devices=devices,
        text=f"no answer in {NO_DATA_ROUNDS} rounds",
    )
    return alert
