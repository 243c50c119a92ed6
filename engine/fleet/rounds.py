"""Watching a whole fleet, round by round: devices, clusters and the fleet as one.

What all devices do together (a hot day, a system update) is the fleet's change and not each
device's: a device is judged by how it moves against its peers.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from engine.fleet.budget import Budget
from engine.fleet.cohorts import Cohorts
from engine.fleet.crowds import Crowd
from engine.fleet.limits import DriftSettings, median_error
from engine.fleet.migration import Homes, tell
from engine.fleet.monitor import Change, Cleared, Monitor
from engine.fleet.older import of_version_1
from engine.fleet.peers import LEAST_PEERS, PEERS, fleet_round, own_change, peers, polish
from engine.fleet.pooled import Noise
from engine.fleet.signals import (
    Chart,
    Clearance,
    Said,
    Scope,
    Signal,
    Standing,
    signal,
    standing,
)

__all__ = ["Clearance", "FleetMonitor", "Scope", "Signal", "Standing"]

_VERSION = 2


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
        budget: how often chance may alarm; where it is given, heights follow from it, from how
            many devices there are and from their noise. None keeps those of the settings.
    """

    def __init__(self, settings: DriftSettings | None = None, budget: Budget | None = None) -> None:
        self.settings = settings or DriftSettings()
        self.budget = budget
        self.limits = self.settings
        """The settings, with the heights that are in force."""
        self.noise = Noise()
        """What the first rounds told of one measurement."""
        self._round = 0
        self._first: list[dict[str, float]] = []
        self._devices: dict[str, Chart] = {}
        self._clusters: dict[int, Chart] = {}
        self._fleet: Chart | None = None
        self._cohorts = Cohorts(self.limits)
        self._crowd = Crowd()
        self._homes = Homes()
        self._labels: Mapping[str, int] = {}  # those of the latest round

    @property
    def learning(self) -> bool:
        """Whether the fleet's first baselines are still being learned."""
        return self._fleet is None

    @property
    def rounds(self) -> int:
        """How many rounds it has seen."""
        return self._round

    @property
    def crowd(self) -> int:
        """How many devices the fleet's alert stands for; 0 where it is none of many devices."""
        return len(self._crowd)

    @property
    def silent(self) -> tuple[Signal, ...]:
        """What devices would have told that the fleet's alert stands for, and that is not over."""
        return tuple(s for s in self._crowd.silent if self._devices[s.subject].monitor.active)

    def standings(self) -> dict[str, Standing]:
        """Return how every device seen so far stands."""
        return {name: standing(chart) for name, chart in self._devices.items()}

    def wider(self) -> dict[tuple[Scope, str], Standing]:
        """Return how the fleet, its clusters and cohorts stand, as far as they are charted."""
        found: dict[tuple[Scope, str], Standing] = {}
        if self._fleet is not None:
            found["fleet", "fleet"] = self._whole(self._fleet)
        for version, (chart, level) in self._cohorts.levels().items():
            found["cohort", f"version {version}"] = standing(chart, level)
        for label, chart in self._clusters.items():
            members = [name for name in self._devices if self._labels.get(name) == label]
            if members:
                found["cluster", f"cluster {label}"] = standing(chart, self._level(members))
        return found

    def _whole(self, chart: Chart) -> Standing:
        """Return how the fleet stands; a crowd is as far off as the middle of its devices."""
        found = standing(chart, self._level(self._devices))
        if not self._crowd or found.drifting:
            return found
        charts = [self._devices[name] for name in self._crowd.members if name in self._devices]
        moved = [chart.monitor.deviation or 0.0 for chart in charts]
        off = float(np.median(moved)) if moved else 0.0
        return replace(
            found,
            drifting=True,
            kind="step",
            direction="up" if off >= 0 else "down",
            change_percent=100 * math.expm1(off),
            pending=False,
        )

    def _level(self, members: Iterable[str]) -> float:
        """Return the middle of devices' baselines; 0 where they have none."""
        levels = [self._devices[name].monitor.baseline for name in members]
        known = [level for level in levels if level is not None]
        return float(np.median(known)) if known else 0.0

    def forget(self, devices: Iterable[str]) -> None:
        """Learn these devices' baselines anew: the new level was accepted, or the model changed."""
        names = list(devices)
        for name in names:
            self._devices.pop(name, None)
            self._cohorts.settle(name)
            for early in self._first:
                early.pop(name, None)
        self._crowd.forget(names)
        self._homes.forget(names)

    def accept_version(self, version: str) -> None:
        """Take what a version brought as normal; its devices learn anew by themselves."""
        self._cohorts.accept(version, self._round)

    def accept_moves(self, devices: Iterable[str]) -> None:
        """Take devices as being at home in the cluster that they have moved to."""
        self._homes.settle(devices)

    def to_state(self) -> dict[str, Any]:
        """Return all it knows as plain data for JSON."""
        return {
            "version": _VERSION,
            "round": self._round,
            "first": [dict(early) for early in self._first],
            "noise": self.noise.to_state(),
            "devices": {name: chart.to_state() for name, chart in self._devices.items()},
            "clusters": {str(label): chart.to_state() for label, chart in self._clusters.items()},
            "fleet": None if self._fleet is None else self._fleet.to_state(),
            "cohorts": self._cohorts.to_state(),
            "crowd": self._crowd.to_state(),
            "homes": self._homes.to_state(),
        }

    @classmethod
    def from_state(
        cls,
        state: Mapping[str, Any],
        settings: DriftSettings | None = None,
        budget: Budget | None = None,
    ) -> FleetMonitor:
        """Return a monitor that goes on exactly where `to_state` left off.

        Raises:
            ValueError: the state is not one of a fleet's monitor, or of a newer version.
        """
        monitor = cls(settings, budget)
        if state.get("version") not in (1, _VERSION):
            raise ValueError(f"not the state of a fleet's monitor, version {_VERSION}")
        try:
            if state["version"] == 1:
                state = of_version_1(state)
            monitor._round = int(state["round"])
            monitor._first = [dict(early) for early in state["first"]]
            monitor.noise = Noise.from_state(state["noise"])
            for name, chart in state["devices"].items():
                monitor._devices[name] = Chart.from_state(chart, monitor.settings)
            for label, chart in state["clusters"].items():
                monitor._clusters[int(label)] = Chart.from_state(chart, monitor.settings)
            if state["fleet"] is not None:
                monitor._fleet = Chart.from_state(state["fleet"], monitor.settings)
            monitor._cohorts = Cohorts.from_state(state["cohorts"], monitor.settings)
            monitor._crowd = Crowd.from_state(state["crowd"])
            monitor._homes = Homes.from_state(state["homes"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not the whole state of a fleet's monitor: {error!r}") from error
        return monitor

    def update(
        self,
        latencies: Mapping[str, float | None],
        clusters: Mapping[str, int] | None = None,
        versions: Mapping[str, str] | None = None,
    ) -> tuple[list[Signal], list[Clearance]]:
        """Take one round.

        Args:
            latencies: milliseconds by device; None, NaN or absent where there is none.
            clusters: by device, which cluster it is in now, with ids that last; -1 or absent is
                none.
            versions: by device, what it runs besides the model; empty or absent is not known.

        Returns:
            What has changed with this round, and what is over; the fleet first.
        """
        logs = {
            name: math.log(ms)
            for name, ms in latencies.items()
            if ms is not None and math.isfinite(ms) and ms > 0
        }
        self._labels = clusters or {}
        self._cohorts.saw(versions or {})
        self._set_limits()
        said = self._learn(logs) if self._fleet is None else self._check(logs, clusters or {})
        active = {name for name, chart in self._devices.items() if chart.monitor.active}
        if self._crowd:  # the fleet has its alert already
            said = [s for s in said if s.scope != "fleet" or isinstance(s, Clearance)]
        said = self._crowd.sift(said, self._round, len(self._devices), active)
        said += tell(self._homes.update(clusters or {}), self._devices, self._round)
        together = len(self._crowd) or (self._fleet is not None and self._fleet.monitor.active)
        signals = [s for s in said if isinstance(s, Signal)]
        clearances = [
            s for s in said if isinstance(s, Clearance) and not (s.scope == "fleet" and together)
        ]
        self._round += 1
        return signals, clearances

    def _set_limits(self) -> None:
        """Hold the charts to the budget, for as many of them as there are now."""
        if self.budget is None:
            return
        series = len(self._devices) + len(self._clusters) + len(self._cohorts) + 1
        limits = self.budget.limits(self.settings, self.noise, series)
        if limits == self.limits:
            return
        self.limits = limits
        fleet = [] if self._fleet is None else [self._fleet]
        for chart in (*self._devices.values(), *self._clusters.values(), *fleet):
            chart.monitor.settings = limits
        self._cohorts.set_limits(limits)

    def _learn(self, logs: dict[str, float]) -> list[Said]:
        """Keep the first rounds until there are enough to part devices from rounds."""
        self._first.append(logs)
        residuals, common, noise = polish(self._first)
        whole = len(self._first) >= min(self.settings.minimum, self.settings.baseline)
        before, self._devices = self._devices, {}
        said: list[Said] = []
        for name, series in residuals.items():
            chart = self._devices[name] = Chart(Monitor(self.limits))
            drifted = name in before and before[name].monitor.active
            self._cohorts.settle(name)
            # Until there are baselines only a jump is told.
            if not (whole or drifted or self._may_have_jumped(series)):
                continue
            last: Change | Cleared | None = None
            for value in series:
                last = chart.monitor.update(value, noise.sigma, noise.samples) or last
            if chart.monitor.active != drifted:
                said += self._said("device", name, chart, last or Cleared(self._round, 0))
        if whole:
            self.noise, self._first = noise, []
            self._fleet = Chart(Monitor(self.limits))
            for value in common:
                self._fleet.monitor.update(value)
        return said

    def _may_have_jumped(self, series: list[float]) -> bool:
        known = [value for value in series if not math.isnan(value)]
        latest = known[-self.limits.jump_consecutive :]
        return min(latest) - min(known) > math.log1p(self.limits.learning_percent / 100)

    def _check(self, logs: Mapping[str, float], clusters: Mapping[str, int]) -> list[Said]:
        """Hold a round against the baselines."""
        said = self._renew()
        ratios = {
            name: value - chart.monitor.baseline
            for name, value in logs.items()
            if (chart := self._devices.get(name)) and chart.monitor.baseline is not None
        }
        drifting = {name for name in ratios if self._devices[name].monitor.active}
        residuals, common = fleet_round(ratios, clusters, drifting, self._cohorts.versions)
        residuals = own_change(ratios, residuals, math.log1p(self.settings.effect_percent / 100))
        said += self._fleet_chart(ratios, common)
        said += self._cohort_charts(logs, ratios, common)
        said += self._cluster_charts(ratios, common, clusters)
        for name in {**self._devices, **logs}:
            chart = self._devices.get(name)
            if chart is None:
                chart = self._devices[name] = Chart(Monitor(self.limits), self._round)
            monitor = chart.monitor
            if name not in logs:
                monitor.skip()
                continue
            if monitor.baseline is None:
                value = logs[name] - common
            else:
                value = monitor.baseline + residuals[name]
            change = monitor.update(value, self.noise.sigma, self.noise.samples)
            said += self._said("device", name, chart, change)
        self._settle()
        if any(isinstance(one, Signal) and one.scope == "device" for one in said):
            whom = peers(ratios, clusters, drifting, self._cohorts.versions)
            said = [_compared(one, whom) for one in said]
        return said

    def _renew(self) -> list[Said]:
        """Have devices learn anew that came to a new version together."""
        baselines = {name: chart.monitor.baseline for name, chart in self._devices.items()}
        names = self._cohorts.due(baselines)
        said: list[Said] = [
            Clearance(scope="device", subject=name, round=self._round, anew=True)
            for name in names
            if self._devices[name].monitor.active
        ]
        for name in names:
            self._devices[name] = Chart(Monitor(self.limits), self._round)
        self._crowd.forget(names)
        return said

    def _settle(self) -> None:
        """Hold who has learned anew against what its version brought to the others."""
        for name, expected in self._cohorts.expected().items():
            chart = self._devices[name]
            if chart.monitor.baseline is None:
                continue
            doubt = 3 * self._noise(1 / chart.monitor.samples)
            gap = abs(chart.monitor.baseline - expected)
            if gap > max(doubt, math.log1p(self.limits.effect_percent / 100)):
                # Its own change is told against where it should be.
                self._devices[name] = Chart(Monitor.settled(expected, self.limits), self._round + 1)
            self._cohorts.settle(name)

    def _fleet_chart(self, ratios: Mapping[str, float], common: float) -> list[Said]:
        assert self._fleet is not None
        monitor = self._fleet.monitor
        if len(ratios) <= LEAST_PEERS:
            monitor.skip()
            return []
        # What the fleet does together is seen once a round: its noise is known less well.
        noise = max(self._noise(1 / len(ratios)), monitor.own_sigma or 0.0)
        change = monitor.update(common, noise, self.settings.baseline)
        return self._said("fleet", "fleet", self._fleet, change, ratios)

    def _cohort_charts(
        self, logs: Mapping[str, float], ratios: Mapping[str, float], common: float
    ) -> list[Said]:
        """Chart what came to a new version against what it was before."""
        said: list[Said] = []
        others = len(ratios) if len(ratios) > LEAST_PEERS else 0
        noise = self._noise(1.0)
        for found in self._cohorts.check(logs, common, noise, others, self._round):
            level = float(np.median([self._cohorts.before(name) for name in found.devices]))
            subject = f"version {found.version}"
            if isinstance(found.change, Cleared):
                said.append(Clearance(scope="cohort", subject=subject, round=self._round))
            else:
                count = len(found.devices)
                level += found.change.baseline  # what was accepted already
                chart, now = found.chart, self._round
                said.append(signal("cohort", subject, chart, found.change, level, count, now))
        return said

    def _cluster_charts(
        self, ratios: Mapping[str, float], common: float, clusters: Mapping[str, int]
    ) -> list[Said]:
        """Chart clusters large enough to be their devices' peers, against the fleet."""
        groups: dict[int, dict[str, float]] = {}
        for name, ratio in ratios.items():
            groups.setdefault(clusters.get(name, -1), {})[name] = ratio
        large = {
            label: group
            for label, group in sorted(groups.items())
            if label >= 0 and PEERS < len(group) < len(ratios)
        }
        said: list[Said] = []
        for label, group in large.items():
            # Ratios are to each device's own baseline, so a cluster's is 0 from the start.
            fresh = Chart(Monitor.settled(0.0, self.limits), self._round)
            chart = self._clusters.setdefault(label, fresh)
            level = float(np.median(list(group.values()))) - common
            noise = self._noise(1 / len(group) + 1 / len(ratios))
            change = chart.monitor.update(level, noise, self.noise.samples)
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
        return (self.noise.sigma or 0.0) * median_error(1) * math.sqrt(share)

    def _said(
        self,
        scope: Scope,
        subject: str,
        chart: Chart,
        what: Change | Cleared | None,
        members: Collection[str] = (),
    ) -> list[Said]:
        """Put what a chart says into milliseconds and rounds."""
        if what is None:
            return []
        if isinstance(what, Cleared):
            return [Clearance(scope=scope, subject=subject, round=self._round)]
        level = what.baseline + (0.0 if scope == "device" else self._level(members))
        count = max(len(members), 1)
        return [signal(scope, subject, chart, what, level, count, self._round)]


def _compared(one: Said, whom: Mapping[str, tuple[str, int]]) -> Said:
    """Return what is said of a device with whom it was compared with."""
    if isinstance(one, Clearance) or one.scope != "device" or one.subject not in whom:
        return one
    kind, count = whom[one.subject]
    return replace(one, evidence={**one.evidence, "peers": kind, "peer_count": count})
