"""From canary rounds to alerts: what the drift detectors say becomes something with a life.

The detectors' state lies in the store between rounds, and is read, brought forward and written
back in one transaction, so that two processes cannot both bring it forward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from engine.fleet.budget import Budget
from engine.fleet.limits import DriftSettings
from engine.fleet.rounds import Clearance, FleetMonitor, Signal
from engine.fleet.rounds import Scope as Watched
from engine.latency import Latency
from hdap_tui.config import Settings
from hdap_tui.fact_names import Fact
from hdap_tui.names import with_letters
from hdap_tui.store import alerts, clusters, drift, facts, measurements
from hdap_tui.store import models as table
from hdap_tui.store.database import Store
from hdap_tui.store.drift import DriftState
from hdap_tui.store.records import AlertRow, Scope

_WHOLE: tuple[Scope, str] = ("fleet", "fleet")
_VERSION = ("os", "kernel", "onnxruntime")
"""Facts that make up a device's version; where one changes, so may what is normal."""
_WEEK_S = 7 * 86400.0
_COHORT = "version "
"""What the subject of a cohort's alert begins with; it counts as one of a cluster."""


def drift_settings(settings: Settings) -> DriftSettings:
    """Return the detectors' limits as the settings' section [drift] has them."""
    own = settings.drift
    return DriftSettings(
        baseline=own.baseline,
        minimum=min(own.baseline, DriftSettings.minimum),
        k=own.k,
        h=own.h or DriftSettings.h,
        jump_z=own.jump_z or DriftSettings.jump_z,
        jump_consecutive=own.jump_consecutive,
        sigma_floor=own.sigma_floor,
        effect_percent=own.effect_percent,
        clear_percent=own.clear_percent,
        clear_consecutive=own.clear_consecutive,
    )


def drift_budget(settings: Settings, share: float = 1.0) -> Budget:
    """Return how often chance may alarm, for a part of the fleet."""
    own = settings.drift
    return Budget(
        per_week=max(own.false_alerts_per_week * share, 1e-9),
        rounds_per_week=_WEEK_S / settings.watch.canary_every_s,
        fixed=frozenset(name for name in ("h", "jump_z") if getattr(own, name)),
    )


def judge_round(
    settings: Settings, store: Store, digest: str, found: Sequence[Latency]
) -> list[AlertRow]:
    """Bring the detectors forward by one round of one model; return the alerts that opened."""
    if not found:
        return []
    latencies = {one.device: one.median_ms if one.ok else None for one in found}
    opened: list[AlertRow] = []
    share = len(latencies) / max(len(settings.devices), len(latencies))
    with store.write():
        monitor = _load(settings, store, digest, share)
        where = clusters.latest(store)
        labels = dict(zip(where.devices, where.labels, strict=True))
        signals, clearances = monitor.update(latencies, labels, _versions(facts.latest(store)))
        _save(store, digest, monitor)
        name = _name(store, digest)
        for over in clearances:
            _resolve(store, name, over)
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
    """Take as normal what an alert told of.

    Baselines are learned anew; a device that has moved is at home where it is, and what a version
    brought its devices have learned, or are learning.
    """
    with store.write():
        model = table.by_name(store, alert.model)
        if model is None:
            return
        is_cohort = alert.scope == "cluster" and alert.subject.startswith(_COHORT)
        if alert.kind != "migration" and not is_cohort:
            restart(settings, store, model.digest, _concerned(settings, store, alert))
            return
        monitor = _load(settings, store, model.digest)
        if alert.kind == "migration":
            monitor.accept_moves(_concerned(settings, store, alert))
        else:
            monitor.accept_version(alert.subject.removeprefix(_COHORT))
        _save(store, model.digest, monitor)


def _concerned(settings: Settings, store: Store, alert: AlertRow) -> list[str]:
    """Return the devices that an alert is about."""
    if alert.scope == "device":
        return [alert.subject]
    if alert.scope == "fleet":
        return [device.name for device in settings.devices]
    where = clusters.latest(store)
    label = int(alert.subject.rpartition(" ")[2])
    return [d for d, own in zip(where.devices, where.labels, strict=True) if own == label]


def _versions(known: Mapping[str, Mapping[str, Fact]]) -> dict[str, str]:
    """Return what each device runs besides the model; those that did not say all are left out."""
    return {
        device: ", ".join(str(own[name]) for name in _VERSION)
        for device, own in known.items()
        if own.keys() >= set(_VERSION)
    }


def _load(settings: Settings, store: Store, digest: str, share: float = 1.0) -> FleetMonitor:
    limits, budget = drift_settings(settings), drift_budget(settings, share)
    known = drift.load_states(store, digest).get(_WHOLE)
    if known is None or not known.state:
        return FleetMonitor(limits, budget)
    try:
        return FleetMonitor.from_state(known.state, limits, budget)
    except ValueError:
        return FleetMonitor(limits, budget)  # of another version: the baselines are learned anew


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
    stands_for = signal.devices if signal.note and not one else 0
    return alerts.fire(
        store,
        scope=_scope(signal.scope),
        subject=signal.subject,
        kind=signal.kind,
        direction=signal.direction,
        model=_name(store, digest),
        baseline_ms=signal.baseline_ms,
        now_ms=signal.now_ms,
        size_percent=signal.size_percent or 0.0,
        onset_at=_onset(store, digest, signal),
        emulated=signal.subject in emulated if one else bool(emulated),
        inhibited=max(len(narrower), stands_for),
        text=with_letters(signal.note),
    )


def _scope(scope: Watched) -> Scope:
    return "cluster" if scope == "cohort" else scope


def _onset(store: Store, digest: str, signal: Signal) -> str:
    """Return when the round began in which it all began."""
    ago = signal.round - signal.onset_round
    past = measurements.rounds(store, digest, limit=ago + 1)
    return past[0].started_at if past else ""


def _refresh(store: Store, model: str, monitor: FleetMonitor) -> None:
    """Let open alerts say how large the change is by now, and how many devices it concerns."""
    standings = monitor.standings()
    for alert in alerts.open_rows(store):
        if alert.model != model:
            continue
        if alert.scope == "fleet" and monitor.crowd > alert.inhibited:
            _again(store, replace(alert, inhibited=monitor.crowd))
        if alert.scope != "device" or alert.kind == "spread":
            continue
        standing = standings.get(alert.subject)
        if standing is None or standing.change_percent is None or standing.baseline_ms is None:
            continue
        size = standing.change_percent
        now_ms = standing.baseline_ms * (1 + size / 100)
        _again(
            store,
            replace(alert, baseline_ms=standing.baseline_ms, now_ms=now_ms, size_percent=size),
        )


def _again(store: Store, alert: AlertRow) -> None:
    alerts.fire(
        store,
        scope=alert.scope,
        subject=alert.subject,
        kind=alert.kind,
        direction=alert.direction,
        model=alert.model,
        baseline_ms=alert.baseline_ms,
        now_ms=alert.now_ms,
        size_percent=alert.size_percent,
        onset_at=alert.onset_at,
        emulated=alert.emulated,
        inhibited=alert.inhibited,
    )


def _resolve(store: Store, model: str, over: Clearance) -> None:
    about = (model, _scope(over.scope), over.subject, over.kind == "migration")
    reason = "back to its baseline"
    if over.kind == "migration":
        reason = "back in its cluster"
    elif over.anew:
        reason = "its version changed, a new baseline is learned"
    for alert in alerts.open_rows(store):
        if (alert.model, alert.scope, alert.subject, alert.kind == "migration") == about:
            alerts.resolve(store, alert.id, reason)


def _name(store: Store, digest: str) -> str:
    model = table.by_digest(store, digest)
    return model.name if model else digest[:12]
