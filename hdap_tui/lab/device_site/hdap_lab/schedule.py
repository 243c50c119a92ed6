"""How a lab device's speed changes while one watches: factors over true time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def factor(schedule: Sequence[Mapping[str, Any]], age_s: float) -> float:
    """Return by how much a device is slower than at its start, `age_s` seconds later.

    The entries multiply. `steady` changes nothing; `ageing` adds `percent_per_hour` per hour;
    `step` adds `percent` from `at_s` on, up to `until_s` where it is given; `sawtooth` climbs to
    `percent` in each `period_s` and falls back, as a chip that heats up and then throttles down.

    Raises:
        ValueError: an entry's kind is unknown, or it lacks a number.
    """
    product = 1.0
    for item in schedule:
        try:
            product *= 1.0 + _percent(item, max(age_s, 0.0)) / 100.0
        except KeyError as missing:
            raise ValueError(f"schedule: {item.get('kind')} needs {missing.args[0]}") from None
    return product


def _percent(item: Mapping[str, Any], age_s: float) -> float:
    kind = item["kind"]
    if kind == "steady":
        return 0.0
    if kind == "ageing":
        return float(item["percent_per_hour"]) * age_s / 3600.0
    if kind == "step":
        until = float(item.get("until_s") or "inf")
        return float(item["percent"]) if float(item["at_s"]) <= age_s < until else 0.0
    if kind == "sawtooth":
        period = float(item["period_s"])
        return float(item["percent"]) * (age_s % period) / period
    raise ValueError(f"schedule: {kind!r} is none of steady, ageing, step, sawtooth")
