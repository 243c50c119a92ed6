"""The life of alerts: what the detectors say in a round becomes what people see and are told.

    pending -> firing -> (acknowledged) -> recovering -> resolved

A wider alert stands for narrower ones of the same model, direction and sort: the fleet's for those
of clusters and devices, a cluster's for those of its devices. Nobody is told of these until the
wider one is over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from engine.fleet.rounds import Clearance, FleetMonitor, Signal
from engine.fleet.rounds import Scope as Watched
from engine.fleet.signals import Standing
from hdap_tui.alerting import silencing
from hdap_tui.alerting.subjects import COHORT
from hdap_tui.config import Settings
from hdap_tui.names import with_letters
from hdap_tui.store import alerts, measurements
from hdap_tui.store.database import Store
from hdap_tui.store.records import AlertRow, Scope

_SPREAD = "spread"
_RANK = {"fleet": 2, "cluster": 1, "device": 0}


@dataclass
class Round:
    """One round of one model, and what is known of the fleet in it."""

    settings: Settings
    store: Store
    digest: str
    model: str
    """Its name."""
    monitor: FleetMonitor
    labels: Mapping[str, int]
    """By device its cluster."""
    versions: Mapping[str, str]
    """By device what it runs besides the model."""
    _onsets: dict[int, str] = field(default_factory=dict)

    def advance(self, signals: Sequence[Signal], clearances: Sequence[Clearance]) -> list[AlertRow]:
        """Let alerts open, grow, recover and resolve; return those that opened to be seen."""
        with self.store.write():
            for over in clearances:
                self._resolve(over)
            fresh = [self._fire(signal) for signal in signals]
            known = self._open()
            for signal in self.monitor.silent:
                before = known.get(("device", signal.subject, "level"))
                if before is None or before.state == "pending":
                    self._fire(signal)
            self._follow()
            inhibit(self.store, self._covers)
            silencing.apply(self.settings, self.store)
            opened = [alerts.row(self.store, number) for number in fresh if number is not None]
        return [alert for alert in opened if alert.inhibited_by is None]

    def _open(self) -> dict[tuple[Scope, str, str], AlertRow]:
        rows = alerts.open_rows(self.store)
        return {(a.scope, a.subject, sort(a.kind)): a for a in rows if a.model == self.model}

    def _fire(self, signal: Signal) -> int | None:
        """Open an alert; return its number where it is new."""
        one, note = signal.scope == "device", with_letters(signal.note)
        alert, is_new = alerts.fire(
            self.store,
            scope=_scope(signal.scope),
            subject=signal.subject,
            kind=signal.kind,
            direction=signal.direction,
            model=self.model,
            baseline_ms=signal.baseline_ms,
            now_ms=signal.now_ms,
            size_percent=signal.size_percent or 0.0,
            onset_at=self._onset(signal.round - signal.onset_round),
            emulated=self._emulated(signal.subject if one else ""),
            devices=signal.devices,
            evidence={**signal.evidence, **({"note": note} if note else {})},
            text=note,
        )
        return alert.id if is_new else None

    def _resolve(self, over: Clearance) -> None:
        kinds = ("migration",) if over.kind == "migration" else ("step", _SPREAD)
        for kind in kinds:
            found = alerts.find(self.store, _scope(over.scope), over.subject, self.model, kind)
            if found is not None:
                alerts.resolve(self.store, found.id, _why_over(over, found))

    def _follow(self) -> None:
        """Bring open alerts up to date with how what they are about stands, and open what brews."""
        standings: dict[tuple[Scope, str], Standing] = {
            ("device", name): standing for name, standing in self.monitor.standings().items()
        }
        for (scope, subject), standing in self.monitor.wider().items():
            standings[_scope(scope), subject] = standing
        known = self._open()
        for (scope, subject, kind), alert in known.items():
            found = standings.get((scope, subject))
            if kind == "level" and found is not None:
                self._grow(alert, found)
        for (scope, subject), standing in standings.items():
            if standing.pending and (scope, subject, "level") not in known:
                self._pend(scope, subject, standing)

    def _grow(self, alert: AlertRow, standing: Standing) -> None:
        """Bring one alert up to date: its size, and whether it is on its way back."""
        size, baseline = standing.change_percent, standing.baseline_ms
        if alert.state == "pending" and not standing.pending:
            alerts.resolve(self.store, alert.id, "it did not last")
            return
        if size is None or baseline is None or not (standing.drifting or standing.pending):
            return
        alert = alerts.grow(
            self.store,
            alert,
            baseline_ms=baseline,
            now_ms=baseline * (1 + size / 100),
            size_percent=size,
        )
        drift, toward = self.settings.drift, size if alert.direction == "up" else -size
        if toward < drift.clear_percent and alert.state in ("firing", "acknowledged"):
            alerts.turn(self.store, alert, "recovering")
        elif toward >= max(drift.effect_percent, drift.clear_percent) and (
            alert.state == "recovering"
        ):
            alerts.turn(self.store, alert, "firing")

    def _pend(self, scope: Scope, subject: str, standing: Standing) -> None:
        baseline, size = standing.baseline_ms, standing.change_percent
        if baseline is None or size is None:
            return
        alerts.fire(
            self.store,
            scope=scope,
            subject=subject,
            kind="step",
            direction=standing.direction or "up",
            model=self.model,
            baseline_ms=baseline,
            now_ms=baseline * (1 + size / 100),
            size_percent=size,
            onset_at=self._onset(self.monitor.rounds - 1 - standing.since),
            emulated=self._emulated(subject if scope == "device" else ""),
            pending=True,
        )

    def _onset(self, ago: int) -> str:
        """Return when the round began in which it all began."""
        if ago not in self._onsets:
            self._onsets[ago] = measurements.round_start(self.store, self.digest, max(ago, 0))
        return self._onsets[ago]

    def _emulated(self, device: str) -> bool:
        """Say whether a device, or any of the fleet, is emulated."""
        return device in self._made_up if device else bool(self._made_up)

    @cached_property
    def _made_up(self) -> frozenset[str]:
        return frozenset(device.name for device in self.settings.devices if device.emulated)

    def _covers(self, wide: AlertRow, narrow: AlertRow) -> bool:
        if wide.scope == "fleet":
            return True
        if wide.subject.startswith(COHORT):
            return f"{COHORT}{self.versions.get(narrow.subject, '')}" == wide.subject
        return f"cluster {self.labels.get(narrow.subject, -1)}" == wide.subject


def inhibit(
    store: Store,
    covers: Callable[[AlertRow, AlertRow], bool],
    among: Sequence[AlertRow] | None = None,
) -> None:
    """Let wider alerts stand for narrower ones, and let those come up that none stands for.

    `covers` says whether a narrower alert lies within a wider one; `among` are the alerts that are
    looked at, all open ones where left out.
    """
    with store.write():
        rows = alerts.open_rows(store) if among is None else among
        wide = [a for a in rows if a.scope != "device" and a.state != "pending"]
        beneath: dict[int, int] = {}
        for alert in rows:
            over = [w for w in wide if _stands_for(w, alert) and covers(w, alert)]
            widest = max(over, key=lambda w: (_RANK[w.scope], -w.id), default=None)
            alerts.inhibit(store, alert, widest)
            if widest is not None and alert.state != "pending":
                beneath[widest.id] = beneath.get(widest.id, 0) + 1
        for alert in wide:
            # A version or a move names its devices itself: they learn anew, and have no alerts.
            own = alert.devices if "note" in alert.evidence and alert.scope == "cluster" else 0
            alerts.change(store, alert, inhibited=max(beneath.get(alert.id, 0), own))


def come_up(store: Store) -> None:
    """Let alerts come up whose wider alert was resolved by hand."""
    with store.write():
        for alert in alerts.open_rows(store):
            if alert.inhibited_by is not None:
                wide = alerts.row(store, alert.inhibited_by)
                if wide.state == "resolved":
                    alerts.inhibit(store, alert, None)


def sort(kind: str) -> str:
    """Return what sort of change a kind is: a step and a ramp are one."""
    return "level" if kind in alerts.LEVEL else kind


def _stands_for(wide: AlertRow, narrow: AlertRow) -> bool:
    return _RANK[wide.scope] > _RANK[narrow.scope] and (
        wide.model,
        wide.direction,
        sort(wide.kind),
    ) == (narrow.model, narrow.direction, sort(narrow.kind))


def _scope(scope: Watched) -> Scope:
    return "cluster" if scope == "cohort" else scope


def _why_over(over: Clearance, alert: AlertRow) -> str:
    if over.kind == "migration":
        return "back in its cluster"
    if over.anew:
        return "its version changed, a new baseline is learned"
    if alert.evidence.get("peer_count"):  # these may have become slower, too
        return "level with its peers again"
    return "back to its baseline"
