"""Compare models that were timed in the same blocks: on each device, and over the fleet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from engine.latency import (
    Comparison,
    Configuration,
    FleetComparison,
    Latency,
    compare,
    compare_fleet,
)
from hdap_tui.context import Table
from hdap_tui.figures import count


@dataclass(frozen=True)
class Pair:
    """One model beside the first, in one configuration: over the devices that measured both."""

    model: str
    configuration: Configuration
    devices: tuple[tuple[Comparison, Latency, Latency], ...]
    fleet: FleetComparison


def pairs(latencies: Iterable[Latency], old: str, others: Sequence[str]) -> list[Pair]:
    """Return each other model beside the old one, in every configuration."""
    by = {(f.device, f.model, f.configuration): f for f in latencies}
    devices = dict.fromkeys(device for device, _, _ in by)
    found = []
    for model, how in product(others, dict.fromkeys(how for _, _, how in by)):
        both = [
            (by[device, old, how], by[device, model, how])
            for device in devices
            if (device, old, how) in by and (device, model, how) in by
        ]
        whole = [(a, b) for a, b in both if a.ok and b.ok and _blocks(a, b) > 1]
        if whole:
            single = tuple((compare(a, b), a, b) for a, b in whole)
            found.append(Pair(model, how, single, compare_fleet(whole)))
    return found


def _blocks(old: Latency, new: Latency) -> int:
    return min(len(old.block_medians_ms), len(new.block_medians_ms))


def document(found: Sequence[Pair], names: Mapping[str, str], old: str) -> dict[str, Any]:
    """Return comparisons as the JSON that the command line prints."""

    def common(pair: Pair) -> dict[str, Any]:
        return {
            "old": names.get(old, old[:12]),
            "new": names.get(pair.model, pair.model[:12]),
            **asdict(pair.configuration),
        }

    return {
        "comparisons": [
            {**common(pair), **asdict(one), "emulated": a.emulated}
            for pair in found
            for one, a, _ in pair.devices
        ],
        "fleet": [
            {
                **common(pair),
                **asdict(pair.fleet),
                "emulated": any(a.emulated for _, a, _ in pair.devices),
            }
            for pair in found
        ],
    }


def table(
    found: Sequence[Pair], names: Mapping[str, str], old: str, failed: Sequence[Latency] = ()
) -> Table:
    """Return one line a device for a person, then one for each reason why there is no more."""
    rows: list[tuple[str, ...]] = [
        (
            one.device,
            names.get(pair.model, pair.model[:12]),
            str(pair.configuration),
            f"{a.median_ms:.3f} ms",
            f"{b.median_ms:.3f} ms",
            f"{one.speedup:.3f}",
            f"{one.low:.3f} to {one.high:.3f}",
            one.verdict,
            "; ".join((["emulated"] if a.emulated else []) + list(dict.fromkeys(
                (*a.remarks, *b.remarks)
            ))),
        )
        for pair in found
        for one, a, b in pair.devices
    ]  # fmt: skip
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for latency in failed:
        reason = (latency.device, latency.error, latency.detail)
        reasons.setdefault(reason, []).append(names.get(latency.model, latency.model[:12]))
    for (device, error, detail), models in reasons.items():
        affected = ", ".join(dict.fromkeys(models))
        rows.append((device, affected, "", "", "", "", "", error, detail))
    first = names.get(old, old[:12])
    columns = (
        "device", "model", "run with", first, "it", "speed-up", "95 % interval", "verdict", "",
    )  # fmt: skip
    return Table(columns, tuple(rows), title=f"against {first}")


def sentence(found: Sequence[Pair], names: Mapping[str, str], old: str) -> str:
    """Return what that comes to over the fleet, a sentence a model."""
    if not found:
        return "Nothing to compare: no device measured both in two blocks or more."
    lines = []
    for pair in found:
        fleet, new = pair.fleet, names.get(pair.model, pair.model[:12])
        emulated = " (emulated)" if any(a.emulated for _, a, _ in pair.devices) else ""
        lines.append(
            f"{new} against {names.get(old, old[:12])} on "
            f"{count(fleet.devices, 'device')}{emulated}, "
            f"{pair.configuration}: {fleet.speedup:.3f} times as fast on average "
            f"({fleet.low:.3f} to {fleet.high:.3f}): {fleet.verdict}; faster on {fleet.faster}, "
            f"slower on {fleet.slower}."
        )
    return "\n".join(lines)
