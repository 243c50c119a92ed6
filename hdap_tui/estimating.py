"""The fleet's mean latency from a few devices: which to measure, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.fleet.estimate import Estimate, Plan, draw, estimate, plan, strata_of
from engine.latency import Latency
from hdap_tui.errors import SettingsError, UserError
from hdap_tui.measuring import Measuring
from hdap_tui.store import clusters, devices, measurements
from hdap_tui.store.database import Store
from hdap_tui.store.records import DeviceRow

_UNPLACED = -2
"""Stands for the cluster of a device that was never clustered."""


@dataclass(frozen=True)
class Round:
    """A fleet with what one round measured on it."""

    names: tuple[str, ...]
    values: tuple[float, ...]
    """Latency of the model that each device runs, in ms; NaN where it was not measured."""
    labels: tuple[int, ...]
    repeatability: float
    """Relative standard deviation of one measurement; 0 where nobody knows."""

    def estimate(self) -> Estimate:
        """Return the fleet's mean latency.

        Raises:
            UserError: fewer than two devices were measured.
        """
        labels = np.array(self.labels, dtype=np.int64)
        try:
            return estimate(self.values, labels, labels != _UNPLACED, self.repeatability)
        except ValueError as error:
            raise UserError(f'{error}; run "hdap sweep".') from error


def latest_round(store: Store, sweep: int | None = None) -> Round:
    """Return the latest whole round that timed the models in use; `sweep` asks for that one.

    Raises:
        UserError: there is none, or the fleet has not been clustered yet.
    """
    found = measurements.last_of_deployed(store, sweep)
    if found is None:
        raise UserError('The models in use have not been measured yet: run "hdap sweep" first.')
    number, values = found
    rows = devices.rows(store)
    labels = _labels(store, rows)
    return Round(
        names=tuple(row.name for row in rows),
        values=tuple(values.get(row.name, math.nan) for row in rows),
        labels=labels,
        repeatability=_repeatability(store, rows, number),
    )


def plan_sample(store: Store, within_percent: float) -> tuple[Plan, tuple[str, ...]]:
    """Return how many devices to measure for an interval of so many per cent, and draw them.

    Raises:
        SettingsError: the width is not positive.
        UserError: nothing tells yet how much devices differ.
    """
    if not (math.isfinite(within_percent) and within_percent > 0):
        raise SettingsError(f"the width must be above 0 %, it is {within_percent:g} %.")
    rows = devices.rows(store)
    labels = np.array(_labels(store, rows), dtype=np.int64)
    values = np.array([math.nan if r.latency_ms is None else r.latency_ms for r in rows])
    placed = labels != _UNPLACED
    try:
        latest = measurements.last_of_deployed(store)
        sigma = _repeatability(store, rows, latest[0]) if latest else 0.0
        needed = plan(strata_of(values, labels, placed), within_percent, repeatability=sigma)
    except ValueError as error:
        raise UserError(f'{error}; run "hdap sweep" first.') from error
    drawn = draw(labels, needed.allocation, np.random.default_rng())
    return needed, tuple(rows[row].name for row in drawn)


def measure_sample(measuring: Measuring, names: Sequence[str]) -> list[Latency]:
    """Time the model in use on some devices, as a round of its own."""
    return measuring.run("estimate", {name: [measuring.deployed(name)] for name in names})


def _repeatability(store: Store, rows: Sequence[DeviceRow], sweep: int) -> float:
    """Return how well one measurement of the models in use repeats; 0 where nobody knows.

    A canary round of one block does not tell; the blocks of the latest sweep do.
    """
    digests = sorted({row.model_digest for row in rows if row.model_digest})
    sigma = measurements.relative_sigma(store, digests, sweep)
    before = measurements.last_finished(store, "sweep")
    if not np.isfinite(sigma).any() and before is not None:
        sigma = measurements.relative_sigma(store, digests, before[0], one_block=True)
    known = sigma[np.isfinite(sigma)]
    return float(np.median(known)) if len(known) else 0.0


def _labels(store: Store, rows: Sequence[DeviceRow]) -> tuple[int, ...]:
    found = clusters.latest(store)
    if not found.devices:
        raise UserError('The fleet has not been clustered yet: run "hdap sweep" first.')
    label = {
        name: one
        for name, one, point in zip(found.devices, found.labels, found.points, strict=True)
        if all(map(math.isfinite, point))
    }
    return tuple(label.get(row.name, _UNPLACED) for row in rows)
