"""What is said about a fleet: what changed, what is over, how a device stands."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
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
    )
