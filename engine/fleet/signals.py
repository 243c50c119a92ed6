"""What is said about a fleet: what changed, what is over, how a device stands."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from engine.fleet.fits import Kind
from engine.fleet.limits import DriftSettings
from engine.fleet.monitor import Change, Direction, Monitor

Scope = Literal["device", "cohort", "cluster", "fleet"]
"""A cohort is all devices that changed to one version."""


@dataclass(frozen=True, kw_only=True)
class Signal:
    """Something changed."""

    scope: Scope
    subject: str
    """The device's name, "version 2.1", "cluster 2", or "fleet"."""
    kind: Kind | Literal["migration"]
    """Migration: it behaves like the devices of another cluster."""
    direction: Direction
    """Up is slower."""
    size_percent: float | None
    """Change of the latency, against peers for a device; None for a spread."""
    baseline_ms: float
    now_ms: float
    onset_round: int
    """Round in which it began, from 0."""
    round: int
    """Round in which it was noticed."""
    devices: int = 1
    """How many devices it is about."""
    note: str = ""
    """What more there is to say, in words."""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """What it was told by, as plain data: an `Evidence` with its noise in per cent, and who the
    device was compared with (`peers`, `peer_count`)."""


@dataclass(frozen=True, kw_only=True)
class Clearance:
    """What a signal told is over."""

    scope: Scope
    subject: str
    round: int
    kind: Literal["level", "migration"] = "level"
    """Level: steps, ramps and spreads alike."""
    anew: bool = False
    """It is not back; its baseline is learned anew, because its version changed."""


Said = Signal | Clearance


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a device stands."""

    learning: bool
    """Its baseline is not known yet."""
    drifting: bool
    baseline_ms: float | None
    change_percent: float | None
    """Its last rounds against its baseline and its peers."""
    kind: str = ""
    """Kind of the change that is not over: step, ramp or spread."""
    direction: Direction | None = None
    """Of that change, or of what is brewing."""
    pending: bool = False
    """Something is brewing that has not lasted yet,"""
    since: int = 0
    """since this round."""


@dataclass
class Chart:
    """A monitor, and the round in which it began to count."""

    monitor: Monitor
    start: int = 0

    def to_state(self) -> dict[str, Any]:
        """Return it as plain data for JSON."""
        return {"start": self.start, "monitor": self.monitor.to_state()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], settings: DriftSettings) -> Chart:
        """Return what `to_state` wrote."""
        return cls(Monitor.from_state(state["monitor"], settings), int(state["start"]))


def standing(chart: Chart, level: float | None = None) -> Standing:
    """Return how a chart stands; `level` is the log-latency that its baseline is added to."""
    monitor = chart.monitor
    base, off, brewing = monitor.baseline, monitor.deviation, monitor.brewing
    return Standing(
        learning=base is None,
        drifting=monitor.active,
        baseline_ms=None if base is None else math.exp(base + (level or 0.0)),
        change_percent=None if off is None else 100 * math.expm1(off),
        kind=monitor.kind,
        direction=monitor.direction if monitor.active else brewing[0] if brewing else None,
        pending=brewing is not None,
        since=(max(brewing[1], 0) if brewing else 0) + chart.start,
    )


def signal(
    scope: Scope,
    subject: str,
    chart: Chart,
    change: Change,
    level: float,
    devices: int,
    now: int,
) -> Signal:
    """Put what a chart says into milliseconds and rounds.

    Args:
        scope: what it is about,
        subject: and by which name.
        chart: whose change it is.
        change: what the chart says.
        level: log-latency before the change.
        devices: how many it is about.
        now: the round.
    """
    size = change.size or 0.0
    evidence = asdict(change.evidence) if change.evidence else {}
    if evidence:
        evidence["noise_percent"] = 100 * math.expm1(evidence.pop("noise"))
    return Signal(
        scope=scope,
        subject=subject,
        kind=change.kind,
        direction=change.direction,
        size_percent=None if change.size is None else 100 * math.expm1(size),
        baseline_ms=math.exp(level),
        now_ms=math.exp(level + size),
        onset_round=max(change.onset_index, 0) + chart.start,
        round=now,
        devices=devices,
        evidence=evidence,
    )
