"""What a device's conditions say about a measurement: summed up, and judged in words.

A reading that is not there is no reason for anything: a device without a temperature sensor is
neither cool nor hot.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any, TypeGuard

BUSY = 0.10
"""Share of the CPU in use by others from which a measurement is doubted."""
CLOCK = 0.90
"""Lowest clock over the median clock below which it counts as unsteady."""
CONTENDED = 0.10
"""Share of interrupted inferences from which a measurement is doubted."""
TREND = 0.02
"""Change of latency over a run, as a share, from which it has a first and a last value."""
TREND_BLOCKS = 5
"""Blocks below which no trend can be told from chance."""

_THROTTLED_NOW = 0xE
"""Bits of a Raspberry Pi's flags: clock capped, throttled, soft temperature limit."""
_UNDER_VOLTAGE_NOW = 0x1


def during(blocks: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Sum up what was seen while the blocks of a run were timed.

    Clocks as lowest, median and highest in kHz, temperatures as first and highest in °C, shares
    of all blocks' time.
    """
    seen = [block for block in blocks if _positive(block.get("span_s"))]
    if not seen:
        return {}
    clocks = [c for block in seen if (c := _numbers(block.get("clock_khz"), 3))]
    heat = [t for block in seen if (t := _numbers(block.get("temperature_c"), 2))]
    looks = [int(block["looks"]) for block in seen if _positive(block.get("looks"))]
    found = {
        "span_s": round(sum(block["span_s"] for block in seen), 3),
        "looks": sum(looks),
        "look_ms": _largest(seen, "look_ms"),
        "clock_khz": [
            min(c[0] for c in clocks), median(c[1] for c in clocks), max(c[2] for c in clocks)
        ] if clocks else None,
        "temperature_c": [heat[0][0], max(t[1] for t in heat)] if heat else None,
        "cooling": _largest(seen, "cooling"),
        "throttle_count": _total(seen, "throttle_count"),
        "others_share": _mean(seen, "others_share"),
        "pressure_share": _mean(seen, "pressure_share"),
        "fetched": sum(block.get("fetched") is True for block in seen) or None,
    }  # fmt: skip
    return {key: value for key, value in found.items() if value is not None}


def throttled(
    before: Mapping[str, Any], after: Mapping[str, Any], meanwhile: Mapping[str, Any]
) -> bool | None:
    """Tell whether the device was slowed down to cool it, None where nothing can tell.

    Counters are compared before with after. A Raspberry Pi's bits "has occurred since the start"
    prove nothing for a run unless they came up during it.
    """
    told: list[bool] = []
    first, last = before.get("throttle_count"), after.get("throttle_count")
    if _is_number(first) and _is_number(last):
        told.append(last > first)
    if _is_number(meanwhile.get("throttle_count")):
        told.append(meanwhile["throttle_count"] > 0)
    for side in (before, after):
        states = side.get("cooling_states")
        if isinstance(states, Mapping) and states:
            told.append(side is after and any(_positive(state) for state in states.values()))
    if _positive(meanwhile.get("cooling")):
        told.append(True)
    old, new = _bits(before), _bits(after)
    if new is not None:
        risen = 0 if old is None else new & ~old
        told.append(bool((new | risen >> 16) & _THROTTLED_NOW))
    return any(told) if told else None


def trend(medians: Sequence[float]) -> tuple[float, float, float] | None:
    """Return first and last latency and the change as a share, where a run's blocks have a trend.

    Kendall's test of the block medians against their order (Mann 1945), 5 % two-sided with the
    correction for continuity, and Theil and Sen's slope for the size; a change below `TREND` is
    of no interest. First and last are medians of a quarter of the blocks, one at least.
    """
    n = len(medians)
    if n < TREND_BLOCKS:
        return None
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    score = sum((medians[j] > medians[i]) - (medians[j] < medians[i]) for i, j in pairs)
    spread = math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    if (abs(score) - 1) / spread < 1.96:
        return None
    slope = median((medians[j] - medians[i]) / (j - i) for i, j in pairs)
    change = slope * (n - 1) / median(medians)
    if abs(change) < TREND:
        return None
    quarter = max(n // 4, 1)
    return median(medians[:quarter]), median(medians[-quarter:]), change


def dirty(conditions: Mapping[str, Any], contended: float, emulated: bool) -> list[str]:
    """Return in words what was off about a measurement; empty where nothing was.

    The devices of the emulated lab share a machine on purpose, and what others take there is
    taken out of their times, so it is no fault of theirs.
    """
    said: list[str] = []
    meanwhile = _mapping(conditions.get("during"))
    after = _mapping(conditions.get("after"))
    if conditions.get("throttled") is True:
        said.append("throttled during the run")
    bits = _bits(after)
    if _positive(after.get("undervoltage_alarm")) or (bits or 0) & _UNDER_VOLTAGE_NOW:
        said.append("the supply's voltage was too low")
    share = meanwhile.get("others_share")
    if not emulated and _is_number(share) and share >= BUSY:
        said.append(f"somebody else used {100 * share:.0f} % of the CPU")
    clocks = _numbers(meanwhile.get("clock_khz"), 3)
    if clocks and clocks[0] < CLOCK * clocks[1]:
        said.append(f"the clock varied from {clocks[0] / 1e6:.2f} to {clocks[2] / 1e6:.2f} GHz")
    if not emulated and contended >= CONTENDED:
        said.append(f"{100 * contended:.0f} % of the runs were interrupted")
    waited = _mapping(conditions.get("waited"))
    if waited.get("in_vain"):
        said.append(f"{waited['in_vain']} after {_positive(waited.get('s')) or 0:.0f} s of waiting")
    if waited.get("no_sensor"):
        said.append(f"it has no {waited['no_sensor']} sensor to wait for")
    cold, sustained = conditions.get("cold_ms"), conditions.get("sustained_ms")
    if _is_number(cold) and _is_number(sustained):
        way = "slower" if sustained > cold else "faster"
        said.append(f"it became {way} meanwhile: {cold:.3f} ms at first, {sustained:.3f} at last")
    if meanwhile.get("fetched"):
        said.append(f"results were fetched during {meanwhile['fetched']} of the blocks")
    return said


def _bits(side: Mapping[str, Any]) -> int | None:
    try:
        return int(str(side["vcgencmd_throttled"]), 16)
    except (KeyError, ValueError):
        return None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _positive(value: Any) -> Any:
    """Return the value where it is a number above zero, else nothing."""
    return value if _is_number(value) and value > 0 else None


def _numbers(value: object, count: int) -> list[float] | None:
    if not isinstance(value, list) or len(value) != count or not all(map(_is_number, value)):
        return None
    return value


def _largest(blocks: Sequence[Mapping[str, Any]], key: str) -> float | None:
    return max((b[key] for b in blocks if _is_number(b.get(key))), default=None)


def _total(blocks: Sequence[Mapping[str, Any]], key: str) -> float | None:
    known = [b[key] for b in blocks if _is_number(b.get(key))]
    return sum(known) if known else None


def _mean(blocks: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """Return the mean over the blocks that know it, each counted by its length."""
    known = [(float(b["span_s"]), float(b[key])) for b in blocks if _is_number(b.get(key))]
    if not known:
        return None
    return round(sum(span * value for span, value in known) / sum(s for s, _ in known), 4)
