"""From canary rounds to alerts: what the drift detectors say becomes something with a life.

The detectors' state lies in the store between rounds, and is read, brought forward and written
back in one transaction, so that two processes cannot both bring it forward.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.fleet.limits import DriftSettings
from engine.fleet.rounds import FleetMonitor, Signal
from engine.latency import Latency
from hdap_tui.config import Settings
from hdap_tui.store import alerts, clusters, drift, measurements
from hdap_tui.store import models as table
from hdap_tui.store.database import Store
from hdap_tui.store.drift import DriftState
from hdap_tui.store.records import AlertRow, Scope

_WHOLE: tuple[Scope, str] = ("fleet", "fleet")


def drift_settings(settings: Settings) -> DriftSettings:
    """Return the detectors' limits as the settings' section [drift] has them."""
    own = settings.drift
    return DriftSettings(
        baseline=own.baseline,
        minimum=min(own.baseline, DriftSettings.minimum),
        k=own.k,
        h=own.h,
        jump_z=own.jump_z,
        jump_consecutive=own.jump_consecutive,
        sigma_floor=own.sigma_floor,
        effect_percent=own.effect_percent,
        clear_percent=own.clear_percent,
        clear_consecutive=own.clear_consecutive,
    )


def judge_round(
    settings: Settings, store: Store, digest: str, found: Sequence[Latency]
) -> list[AlertRow]:
    """Bring the detectors forward by one round of one model; return the alerts that opened."""
    if not found:
        return []
    latencies = {one.device: one.median_ms if one.ok else None for one in found}
    opened: list[AlertRow] = []
    with store.write():
        monitor = _load(settings, store, digest)
        where = clusters.latest(store)
        labels = dict(zip(where.devices, where.labels, strict=True))
        signals, clearances = monitor.update(latencies, labels)
        _save(store, digest, monitor)
        name = _name(store, digest)
        for over in clearances:
            _resolve(store, name, over.scope, over.subject, "back to its baseline")
        for signal in signals:
            alert, is_new = _fire(settings, store, digest, signal)
            if is_new:
                opened.append(alert)
        _refresh(store, name, monitor)
    return opened


def restart(settings: Settings, store: Store, digest: str, names: Sequence[str]) -> None:
    """Have devices learn their baselines anew: they run this model again, or from now on."""
    with store.write():
        monitor = _load(settings, store, digest)
        monitor.forget(names)
        _save(store, digest, monitor)
        for name in names:
            drift.forget(store, "device", name)


def forget_baseline(settings: Settings, store: Store, alert: AlertRow) -> None:
    """Have the baselines that an alert was told against learned anew."""
    names = [device.name for device in settings.devices]
    if alert.scope == "device":
        names = [alert.subject]
    elif alert.scope == "cluster":
        where = clusters.latest(store)
        label = int(alert.subject.rpartition(" ")[2])
        names = [d for d, own in zip(where.devices, where.labels, strict=True) if own == label]
    with store.write():
        model = table.by_name(store, alert.model)
        if model is not None:
            restart(settings, store, model.digest, names)


def _load(settings: Settings, store: Store, digest: str) -> FleetMonitor:
    limits = drift_settings(settings)
    known = drift.load_states(store, digest).get(_WHOLE)
    if known is None or not known.state:
        return FleetMonitor(limits)
    try:
        return FleetMonitor.from_state(known.state, limits)
    except ValueError:
        return FleetMonitor(limits)  # of another version: the baselines are learned anew


def _save(store: Store, digest: str, monitor: FleetMonitor) -> None:
    states = {_WHOLE: DriftState(state=monitor.to_state())}
    learning = monitor.learning
    for name, standing in monitor.standings().items():
        baseline = None if learning else standing.baseline_ms
        states["device", name] = DriftState(baseline_ms=baseline)
    drift.save_states(store, digest, states)


def _fire(settings: Settings, store: Store, digest: str, signal: Signal) -> tuple[AlertRow, bool]:
    emulated = {device.name for device in settings.devices if device.emulated}
    one = signal.scope == "device"
    narrower = [a for a in alerts.open_rows(store) if a.scope == "device"] if not one else []
    return alerts.fire(
        store,
        scope=signal.scope,
        subject=signal.subject,
        kind=signal.kind,
        direction=signal.direction,
        model=_name(store, digest),
        baseline_ms=signal.baseline_ms,
        now_ms=signal.now_ms,
        size_percent=signal.size_percent or 0.0,
        onset_at=_onset(store, digest, signal),
        emulated=signal.subject in emulated if one else bool(emulated),
        inhibited=len(narrower),
    )


def _onset(store: Store, digest: str, signal: Signal) -> str:
    """Return when the round began in which it all began."""
    ago = signal.round - signal.onset_round
    past = measurements.rounds(store, digest, limit=ago + 1)
    return past[0].started_at if past else ""


def _refresh(store: Store, model: str, monitor: FleetMonitor) -> None:
    """Let open alerts of devices say how large the change of their level is by now."""
    standings = monitor.standings()
    for alert in alerts.open_rows(store):
        if alert.scope != "device" or alert.model != model or alert.kind == "spread":
            continue
        standing = standings.get(alert.subject)
        if standing is None or standing.change_percent is None or standing.baseline_ms is None:
            continue
        alerts.fire(
            store,
            scope=alert.scope,
            subject=alert.subject,
            kind=alert.kind,
            direction=alert.direction,
            model=alert.model,
            baseline_ms=standing.baseline_ms,
            now_ms=standing.baseline_ms * (1 + standing.change_percent / 100),
            size_percent=standing.change_percent,
            onset_at=alert.onset_at,
            emulated=alert.emulated,
            inhibited=alert.inhibited,
        )


def _resolve(store: Store, model: str, scope: Scope, subject: str, reason: str) -> None:
    for alert in alerts.open_rows(store):
        if (alert.model, alert.scope, alert.subject) == (model, scope, subject):
            alerts.resolve(store, alert.id, reason)


def _name(store: Store, digest: str) -> str:
    model = table.by_digest(store, digest)
    return model.name if model else digest[:12]
