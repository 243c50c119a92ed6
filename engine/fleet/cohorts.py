"""Devices that changed to one version: they learn anew, and what they share is one alert.

A roll-out makes devices slower one after the other, and a median over peers follows only once
half of them are there. So a device is held against those of its own version, and those that came
to a version together against what each was before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.fleet.limits import DriftSettings, median_error
from engine.fleet.monitor import Change, Cleared, Monitor
from engine.fleet.peers import PEERS
from engine.fleet.signals import Chart


@dataclass(frozen=True)
class Shift:
    """What a version brought to the devices that changed to it."""

    version: str
    devices: list[str]
    chart: Chart
    change: Change | Cleared


class Cohorts:
    """Which version each device runs, and what became of those that changed.

    Args:
        settings: limits of the charts.
    """

    def __init__(self, settings: DriftSettings) -> None:
        self.settings = settings
        self._versions: dict[str, str] = {}
        self._moved: set[str] = set()
        self._before: dict[str, float] = {}
        self._charts: dict[str, Chart] = {}

    def __len__(self) -> int:
        """Return how many series there are."""
        return len(self._charts)

    @property
    def versions(self) -> Mapping[str, str]:
        """What each device runs, as far as it is known."""
        return self._versions

    def saw(self, versions: Mapping[str, str]) -> None:
        """Take note of what devices run; an empty text is not known, and changes nothing."""
        for name, version in versions.items():
            if version and self._versions.get(name, version) != version:
                self._moved.add(name)
            if version:
                self._versions[name] = version

    def due(self, baselines: Mapping[str, float | None]) -> list[str]:
        """Return the devices that must learn anew now, and remember their baselines.

        Those are devices whose version more than `PEERS` have changed to: fewer cannot tell what
        the version brought from what is their own, and go on under the baselines that they have.
        """
        found: list[str] = []
        for members in self._members(self._moved).values():
            if len(members) <= PEERS:
                continue
            for name in sorted(members - self._before.keys()):
                baseline = baselines.get(name)
                if baseline is None:
                    self._moved.discard(name)  # it is learning anyhow
                else:
                    self._before[name] = baseline
                    found.append(name)
        return found

    def check(
        self, logs: Mapping[str, float], common: float, sigma: float, others: int, now: int
    ) -> list[Shift]:
        """Hold the devices of each version against what they were before.

        Args:
            logs: log-latency by device.
            common: what all others do together.
            sigma: noise of one measurement.
            others: how many the others are.
            now: the round.

        Returns:
            The versions that this round found to make a difference, or none any more.
        """
        said = []
        groups = self._members(self._before.keys() & logs.keys())
        for version, members in sorted(groups.items()):
            if len(members) <= PEERS:
                continue
            fresh = Chart(Monitor.settled(0.0, self.settings), now)
            chart = self._charts.setdefault(version, fresh)
            names = sorted(members)
            level = float(np.median([logs[name] - self._before[name] for name in names])) - common
            share = 1 / len(names) + (1 / others if others else 0.0)
            noise = sigma * median_error(1) * math.sqrt(share)
            change = chart.monitor.update(level, noise)
            if change is not None:
                said.append(Shift(version, names, chart, change))
        for version in self._charts.keys() - groups.keys():
            # What was told stays until somebody accepts it: the devices were never back.
            if not self._charts[version].monitor.active:
                del self._charts[version]
        return said

    def expected(self) -> dict[str, float]:
        """Return where the devices that learn anew should be, by what their version brought."""
        shifts = {
            version: (chart.monitor.baseline or 0.0) + (chart.monitor.deviation or 0.0)
            for version, chart in self._charts.items()
        }
        return {
            name: before + shifts.get(self._versions[name], 0.0)
            for name, before in self._before.items()
        }

    def levels(self) -> dict[str, tuple[Chart, float]]:
        """Return the charts by version, with the log-latency that their devices had before."""
        members = self._members(self._before)
        return {
            version: (chart, float(np.median([self._before[n] for n in members[version]])))
            for version, chart in self._charts.items()
            if version in members
        }

    def before(self, name: str) -> float:
        """Return the baseline that a device had before its version changed."""
        return self._before[name]

    def settle(self, name: str) -> None:
        """Count a device as one that has always run its version."""
        self._moved.discard(name)
        self._before.pop(name, None)

    def accept(self, version: str, now: int) -> None:
        """Take what a version brought as normal: only what it does from now on is a change."""
        chart = self._charts.get(version)
        if chart is not None:
            level = (chart.monitor.baseline or 0.0) + (chart.monitor.deviation or 0.0)
            self._charts[version] = Chart(Monitor.settled(level, self.settings), now)

    def set_limits(self, settings: DriftSettings) -> None:
        """Give all charts other limits."""
        self.settings = settings
        for chart in self._charts.values():
            chart.monitor.settings = settings

    def to_state(self) -> dict[str, Any]:
        """Return all it knows as plain data for JSON."""
        return {
            "versions": dict(self._versions),
            "moved": sorted(self._moved),
            "before": dict(self._before),
            "charts": {version: chart.to_state() for version, chart in self._charts.items()},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], settings: DriftSettings) -> Cohorts:
        """Return what goes on where `to_state` left off."""
        cohorts = cls(settings)
        cohorts._versions = dict(state["versions"])
        cohorts._moved = set(state["moved"])
        cohorts._before = dict(state["before"])
        cohorts._charts = {
            version: Chart.from_state(chart, settings) for version, chart in state["charts"].items()
        }
        return cohorts

    def _members(self, names: Iterable[str]) -> dict[str, set[str]]:
        groups: dict[str, set[str]] = {}
        for name in names:
            groups.setdefault(self._versions[name], set()).add(name)
        return groups
