"""Watching a whole fleet, round by round: devices, clusters and the fleet as one.

What all devices do together (a hot day, a system update) is the fleet's change and not each
device's: a device is judged by how it moves against its peers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from engine.fleet.fits import Kind
from engine.fleet.limits import DriftSettings, median_error
from engine.fleet.monitor import Change, Cleared, Direction, Monitor
from engine.fleet.peers import LEAST_PEERS, PEERS, fleet_round, polish

Scope = Literal["device", "cluster", "fleet"]

_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Signal:
    """Something changed."""

    scope: Scope
    subject: str
    """The device's name, "cluster 2", or "fleet"."""
    kind: Kind
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


@dataclass(frozen=True, kw_only=True)
class Clearance:
    """What a signal told is over."""

    scope: Scope
    subject: str
    round: int


_Said = Signal | Clearance


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
class _Chart:
    """A monitor, and the round in which it began to count."""

    monitor: Monitor
    start: int = 0

    def to_state(self) -> dict[str, Any]:
        return {"start": self.start, "monitor": self.monitor.to_state()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], settings: DriftSettings) -> _Chart:
        return cls(Monitor.from_state(state["monitor"], settings), int(state["start"]))


class FleetMonitor:
    """Watches the latency of one model on many devices.

        >>> monitor = FleetMonitor(DriftSettings(baseline=4))
        >>> noise = [0.0, 0.1, -0.1, 0.0, 0.1]
        >>> for n, slow in zip(noise * 2, [0.0] * 6 + [3.0] * 4):
        ...     signals, _ = monitor.update({"a": 10 + n + slow, "b": 10 - n, "c": 10, "d": 10})
        ...     for signal in signals:
        ...         print(signal.subject, signal.kind, signal.direction, signal.onset_round)
        a step up 6

    Args:
        settings: limits of all charts.
    """

    def __init__(self, settings: DriftSettings | None = None) -> None:
        self.settings = settings or DriftSettings()
        self._round = 0
        self._first: list[dict[str, float]] = []
        self._sigma: float | None = None
        self._sigma_samples = 0
        self._devices: dict[str, _Chart] = {}
        self._clusters: dict[int, _Chart] = {}
        self._fleet: _Chart | None = None

    @property
    def learning(self) -> bool:
        """Whether the fleet's first baselines are still being learned."""
        return self._fleet is None

    @property
    def rounds(self) -> int:
        """How many rounds it has seen."""
        return self._round

    def standings(self) -> dict[str, Standing]:
        """Return how every device seen so far stands."""
        standings = {}
        for name, chart in self._devices.items():
            base, off = chart.monitor.baseline, chart.monitor.deviation
            standings[name] = Standing(
                learning=base is None,
                drifting=chart.monitor.active,
                baseline_ms=None if base is None else math.exp(base),
                change_percent=None if off is None else 100 * math.expm1(off),
            )
        return standings

    def forget(self, devices: Iterable[str]) -> None:
        """Learn these devices' baselines anew: the new level was accepted, or the model changed."""
        for name in devices:
            self._devices.pop(name, None)
            for early in self._first:
                early.pop(name, None)

    def to_state(self) -> dict[str, Any]:
        """Return all it knows as plain data for JSON."""
        return {
            "version": _VERSION,
            "round": self._round,
            "first": [dict(early) for early in self._first],
            "sigma": self._sigma,
            "sigma_samples": self._sigma_samples,
            "devices": {name: chart.to_state() for name, chart in self._devices.items()},
            "clusters": {str(label): chart.to_state() for label, chart in self._clusters.items()},
            "fleet": None if self._fleet is None else self._fleet.to_state(),
        }

    @classmethod
    def from_state(
        cls, state: Mapping[str, Any], settings: DriftSettings | None = None
    ) -> FleetMonitor:
        """Return a monitor that goes on exactly where `to_state` left off.

        Raises:
            ValueError: the state is not one of a fleet's monitor, or of another version.
        """
        monitor = cls(settings)
        if state.get("version") != _VERSION:
            raise ValueError(f"not the state of a fleet's monitor, version {_VERSION}")
        try:
            monitor._round = int(state["round"])
            monitor._first = [dict(early) for early in state["first"]]
            monitor._sigma = state["sigma"]
            monitor._sigma_samples = int(state["sigma_samples"])
            for name, chart in state["devices"].items():
                monitor._devices[name] = _Chart.from_state(chart, monitor.settings)
            for label, chart in state["clusters"].items():
                monitor._clusters[int(label)] = _Chart.from_state(chart, monitor.settings)
            if state["fleet"] is not None:
                monitor._fleet = _Chart.from_state(state["fleet"], monitor.settings)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not the whole state of a fleet's monitor: {error!r}") from error
        return monitor

    def update(
        self,
        latencies: Mapping[str, float | None],
        clusters: Mapping[str, int] | None = None,
    ) -> tuple[list[Signal], list[Clearance]]:
        """Take one round.

        Args:
            latencies: milliseconds by device; None, NaN or absent where there is none.
            clusters: by device, which cluster it is in now; -1 or absent is none.

        Returns:
            What has changed with this round, and what is over; the fleet first.
        """
        logs = {
            name: math.log(ms)
            for name, ms in latencies.items()
            if ms is not None and math.isfinite(ms) and ms > 0
        }
        said = self._learn(logs) if self._fleet is None else self._check(logs, clusters or {})
        signals = [s for s in said if isinstance(s, Signal)]
        clearances = [s for s in said if isinstance(s, Clearance)]
        self._round += 1
        return signals, clearances

    def _learn(self, logs: dict[str, float]) -> list[_Said]:
        """Keep the first rounds until there are enough to part devices from rounds."""
        self._first.append(logs)
        residuals, common, sigma, count = polish(self._first)
        before, self._devices = self._devices, {}
        said: list[_Said] = []
        for name, series in residuals.items():
            chart = self._devices[name] = _Chart(Monitor(self.settings))
            last: Change | Cleared | None = None
            for value in series:
                last = chart.monitor.update(value, sigma, count) or last
            drifted = name in before and before[name].monitor.active
            if chart.monitor.active != drifted:
                said += self._said("device", name, chart, last or Cleared(self._round, 0))
        if len(self._first) >= min(self.settings.minimum, self.settings.baseline):
            self._sigma, self._sigma_samples, self._first = sigma, count, []
            self._fleet = _Chart(Monitor(self.settings))
            for value in common:
                self._fleet.monitor.update(value)
        return said

    def _check(self, logs: Mapping[str, float], clusters: Mapping[str, int]) -> list[_Said]:
        """Hold a round against the baselines."""
        ratios = {
            name: value - chart.monitor.baseline
            for name, value in logs.items()
            if (chart := self._devices.get(name)) and chart.monitor.baseline is not None
        }
        drifting = {name for name in ratios if self._devices[name].monitor.active}
        residuals, common = fleet_round(ratios, clusters, drifting)
        said = self._fleet_chart(ratios, common)
        said += self._cluster_charts(ratios, common, clusters)
        for name in {**self._devices, **logs}:
            chart = self._devices.setdefault(name, _Chart(Monitor(self.settings), self._round))
            monitor = chart.monitor
            if name not in logs:
                monitor.skip()
                continue
            if monitor.baseline is None:
                value = logs[name] - common
            else:
                value = monitor.baseline + residuals[name]
            said += self._said(
                "device", name, chart, monitor.update(value, self._sigma, self._sigma_samples)
            )
        return said

    def _fleet_chart(self, ratios: Mapping[str, float], common: float) -> list[_Said]:
        assert self._fleet is not None
        monitor = self._fleet.monitor
        if len(ratios) <= LEAST_PEERS:
            monitor.skip()
            return []
        # What the fleet does together is seen once a round: its noise is known less well.
        noise = max(self._noise(1 / len(ratios)), monitor.own_sigma or 0.0)
        change = monitor.update(common, noise, self.settings.baseline)
        return self._said("fleet", "fleet", self._fleet, change, ratios)

    def _cluster_charts(
        self, ratios: Mapping[str, float], common: float, clusters: Mapping[str, int]
    ) -> list[_Said]:
        """Chart clusters large enough to be their devices' peers, against the fleet."""
        groups: dict[int, dict[str, float]] = {}
        for name, ratio in ratios.items():
            groups.setdefault(clusters.get(name, -1), {})[name] = ratio
        large = {
            label: group
            for label, group in sorted(groups.items())
            if label >= 0 and PEERS < len(group) < len(ratios)
        }
        said: list[_Said] = []
        for label, group in large.items():
            # Ratios are to each device's own baseline, so a cluster's is 0 from the start.
            fresh = _Chart(Monitor.settled(0.0, self.settings), self._round)
            chart = self._clusters.setdefault(label, fresh)
            level = float(np.median(list(group.values()))) - common
            noise = self._noise(1 / len(group) + 1 / len(ratios))
            change = chart.monitor.update(level, noise, self._sigma_samples)
            said += self._said("cluster", f"cluster {label}", chart, change, group)
        for label in sorted(self._clusters.keys() - large.keys()):
            self._clusters[label].monitor.skip()
            if label not in groups and self._clusters.pop(label).monitor.active:
                said.append(
                    Clearance(scope="cluster", subject=f"cluster {label}", round=self._round)
                )
        return said

    def _noise(self, share: float) -> float:
        """Return the standard error of a median over devices."""
        return (self._sigma or 0.0) * median_error(1) * math.sqrt(share)

    def _said(
        self,
        scope: Scope,
        subject: str,
        chart: _Chart,
        what: Change | Cleared | None,
        members: Iterable[str] = (),
    ) -> list[_Said]:
        """Put what a chart says into milliseconds and rounds."""
        if what is None:
            return []
        if isinstance(what, Cleared):
            return [Clearance(scope=scope, subject=subject, round=self._round)]
        level = what.baseline
        if scope != "device":
            levels = [self._devices[name].monitor.baseline for name in members]
            level += float(np.median([b for b in levels if b is not None]))
        return [
            Signal(
                scope=scope,
                subject=subject,
                kind=what.kind,
                direction=what.direction,
                size_percent=None if what.size is None else 100 * math.expm1(what.size),
                baseline_ms=math.exp(level),
                now_ms=math.exp(level + (what.size or 0.0)),
                onset_round=max(what.onset_index, 0) + chart.start,
                round=self._round,
            )
        ]
