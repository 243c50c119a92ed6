"""Series of many devices from elsewhere, watched as one fleet, round by round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import numpy as np

from engine.fleet.budget import Budget
from engine.fleet.limits import DriftSettings
from engine.fleet.rounds import FleetMonitor
from engine.fleet.signals import Clearance, Signal
from engine.fleet.tables import SCHEMA_VERSION, Series, shown

_LEAST = 8
"""Rounds of a baseline, however short the series are."""
_WEEK_S = 7 * 86400.0


@dataclass(frozen=True)
class Rounds:
    """The rows of many devices, put together by time."""

    times: list[str | float]
    """When each round began, as it stands in the table."""
    values: list[dict[str, float]]
    """By device; who has no row in a round is missing."""
    per_week: float
    """Rounds in a week; where times are mere numbers, each counts as an hour."""


def rounds_of(series: Sequence[Series]) -> Rounds:
    """Put rows together that belong to one round.

    A round is as long as the usual time between two rows of a device. Of two rows in one round
    the later counts, and rounds in which nobody has a row are left out.

    Raises:
        ValueError: a device has no name, or a value is not positive.
    """
    named: dict[str, Series] = {}
    for one in series:
        if one.device is None:
            raise ValueError("a fleet needs a column device: the header is time,value")
        if not min(one.values) > 0:
            raise ValueError(f"device {shown(one.device)} has a value that is not positive")
        named[one.device] = one
    moments = {name: [_moment(time) for time in one.times] for name, one in named.items()}
    gaps = [b - a for own in moments.values() for a, b in pairwise(own) if b > a]
    length = float(np.median(gaps)) if gaps else 1.0
    first = min(own[0] for own in moments.values())
    found: dict[int, tuple[float, str | float, dict[str, float]]] = {}
    for name, one in named.items():
        for moment, time, value in zip(moments[name], one.times, one.values, strict=True):
            number = math.floor((moment - first) / length + 0.5)
            began, _, values = found.setdefault(number, (moment, time, {}))
            values[name] = value
            if moment < began:
                found[number] = (moment, time, values)
    ordered = [found[number] for number in sorted(found)]
    numbers = isinstance(series[0].times[0], int | float)
    return Rounds(
        times=[time for _, time, _ in ordered],
        values=[values for _, _, values in ordered],
        per_week=168.0 if numbers else _WEEK_S / length,
    )


def watch(
    rounds: Rounds, settings: DriftSettings | None = None, per_week: float = 1.0
) -> tuple[list[Signal], list[Clearance]]:
    """Return all that is said about a fleet, in order.

    Args:
        rounds: what was measured.
        settings: limits of the charts.
        per_week: false alerts a week that are allowed.
    """
    limits = settings or DriftSettings()
    monitor = FleetMonitor(limits, Budget(per_week, rounds.per_week))
    signals: list[Signal] = []
    clearances: list[Clearance] = []
    for values in rounds.values:
        told, over = monitor.update(values)
        signals += told
        clearances += over
    return signals, clearances


def fleet_document(
    series: Sequence[Series], settings: DriftSettings | None = None, per_week: float = 1.0
) -> dict[str, Any]:
    """Return what changed in a fleet, as plain data for JSON; indexes count its rounds.

    The code path is that of the live fleet: nothing is looked at with hindsight. Short series
    have a short baseline, a quarter of the rounds.

    Raises:
        ValueError: as `rounds_of` does.
    """
    rounds = rounds_of(series)
    limits = settings or DriftSettings()
    baseline = min(limits.baseline, max(_LEAST, len(rounds.values) // 4))
    limits = replace(limits, baseline=baseline, minimum=min(limits.minimum, baseline))
    signals, clearances = watch(rounds, limits, per_week)
    return {
        "schema_version": SCHEMA_VERSION,
        "devices": len(series),
        "rounds": len(rounds.values),
        "baseline": baseline,
        "changes": [_change(one, clearances, rounds.times) for one in signals],
    }


def _change(
    one: Signal, clearances: Sequence[Clearance], times: Sequence[str | float]
) -> dict[str, Any]:
    over = next((c.round for c in clearances if _ends(c, one)), None)
    return {
        "scope": one.scope,
        "subject": one.subject,
        "device": one.subject if one.scope == "device" else None,
        "devices": one.devices,
        "index": one.round,
        "time": times[one.round],
        "onset_index": one.onset_round,
        "onset_time": times[one.onset_round],
        "kind": one.kind,
        "direction": one.direction,
        "size_percent": one.size_percent,
        "over_index": over,
        "over_time": None if over is None else times[over],
    }


def _ends(over: Clearance, one: Signal) -> bool:
    same = (over.scope, over.subject) == (one.scope, one.subject)
    return same and over.round > one.round


def _moment(time: str | float) -> float:
    if not isinstance(time, str):
        return float(time)
    moment = datetime.fromisoformat(time)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
