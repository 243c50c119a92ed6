"""From canary rounds to alerts: what the drift detectors say becomes something with a life.

The detectors' state lies in the store between rounds, and is read, brought forward and written
back in one transaction, so that two processes cannot both bring it forward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.fleet.budget import Budget
from engine.fleet.limits import DriftSettings
from engine.fleet.rounds import FleetMonitor
from engine.latency import Latency
from hdap_tui.alerting.lifecycle import Round, come_up
from hdap_tui.alerting.subjects import COHORT, members, versions
from hdap_tui.config import Settings
from hdap_tui.store import alerts, clusters, drift
from hdap_tui.store import models as table
from hdap_tui.store.database import Store
from hdap_tui.store.drift import DriftState
from hdap_tui.store.records import AlertRow, Scope

_WHOLE: tuple[Scope, str] = ("fleet", "fleet")
_WEEK_S = 7 * 86400.0


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
    share = len(latencies) / max(len(settings.devices), len(latencies))
    with store.write():
        monitor = _load(settings, store, digest, share)
        where = clusters.latest(store)
        labels = dict(zip(where.devices, where.labels, strict=True))
        runs = versions(store)
        signals, clearances = monitor.update(latencies, labels, runs)
        _save(store, digest, monitor, latencies)
        name = _name(store, digest)
        now = Round(settings, store, digest, name, monitor, labels, runs)
        return now.advance(signals, clearances)


def restart(settings: Settings, store: Store, digest: str, names: Sequence[str]) -> None:
    """Have devices learn their baselines anew: they run this model again, or from now on."""
    with store.write():
        monitor = _load(settings, store, digest)
        monitor.forget(names)
        _save(store, digest, monitor)
        for name in names:
            drift.forget(store, "device", name)


def accept(settings: Settings, store: Store, alert: AlertRow, reason: str, who: str) -> AlertRow:
    """Take an alert's present latency as normal: learn its baselines anew, and resolve it.

    The narrower alerts that it stands for are resolved with it.
    """
    with store.write():
        forget_baseline(settings, store, alert)
        found = alerts.resolve(store, alert.id, reason, who)
        for narrower in alerts.open_rows(store):
            if narrower.inhibited_by == alert.id and alert.kind != "migration":
                alerts.resolve(store, narrower.id, f"accepted with alert {alert.id}", who)
        come_up(store)
        return found


def forget_baseline(settings: Settings, store: Store, alert: AlertRow) -> None:
    """Take as normal what an alert told of.

    Baselines are learned anew; a device that has moved is at home where it is, and what a version
    brought its devices have learned, or are learning.
    """
    with store.write():
        model = table.by_name(store, alert.model)
        if model is None:
            return
        is_cohort = alert.scope == "cluster" and alert.subject.startswith(COHORT)
        if alert.kind != "migration" and not is_cohort:
            restart(settings, store, model.digest, members(settings, store, alert))
            return
        monitor = _load(settings, store, model.digest)
        if alert.kind == "migration":
            monitor.accept_moves(members(settings, store, alert))
        else:
            monitor.accept_version(alert.subject.removeprefix(COHORT))
        _save(store, model.digest, monitor)


def _load(settings: Settings, store: Store, digest: str, share: float = 1.0) -> FleetMonitor:
    limits, budget = drift_settings(settings), drift_budget(settings, share)
    known = drift.load_states(store, digest).get(_WHOLE)
    if known is None or not known.state:
        return FleetMonitor(limits, budget)
    try:
        return FleetMonitor.from_state(known.state, limits, budget)
    except ValueError:
        return FleetMonitor(limits, budget)  # of another version: the baselines are learned anew


def _save(
    store: Store,
    digest: str,
    monitor: FleetMonitor,
    latencies: Mapping[str, float | None] | None = None,
) -> None:
    """Keep what the detectors know; after a round with its latencies, None where one failed."""
    states = {_WHOLE: DriftState(state=monitor.to_state())}
    before = drift.load_missed(store, digest)
    learning = monitor.learning
    standings, asked = monitor.standings(), latencies or {}
    for name in {**standings, **asked}:  # some have never answered
        standing = standings.get(name)
        baseline = None if learning or standing is None else standing.baseline_ms
        missed = before.get(name, 0)
        if name in asked:
            missed = 0 if asked[name] is not None else missed + 1
        states["device", name] = DriftState(baseline_ms=baseline, missed=missed)
    drift.save_states(store, digest, states)


def _name(store: Store, digest: str) -> str:
    model = table.by_digest(store, digest)
    return model.name if model else digest[:12]
