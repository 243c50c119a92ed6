"""What tells a cluster from the rest, in words: by its latencies, and by facts that it shares."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from engine.fleet.features import Array

AS_THE_REST = 0.03
"""Differences below this (of log-latency) are not worth a word."""
MOST, FEW = 0.9, 0.1
"""Share of a cluster that must have a fact, and share of the others that may, to explain it."""
_NAMED, _TOLD = 3, 3
"""Models named in a row, and differences told, at most."""


def explain(
    latencies: ArrayLike,
    labels: ArrayLike,
    models: Sequence[str],
    facts: Mapping[str, Sequence[str | None]] | None = None,
) -> dict[int, str]:
    """Say in a few words what tells each cluster from the rest of the fleet.

    Args:
        latencies: (devices, models) in milliseconds, NaN where missing.
        labels: one a device, -1 for noise.
        models: names, in the order of the columns.
        facts: by the fact's name its value on each device, None where unknown; what explains a
            speed best comes first.

    Returns:
        By cluster id a text such as "compute 18 % slower, the others as the rest; system
        Debian 12 on 9 of 10".

    Raises:
        ValueError: the shapes do not fit together.
    """
    table, ids = np.asarray(latencies), np.asarray(labels, dtype=np.int64)
    if table.shape != (len(ids), len(models)):
        raise ValueError(
            f"{len(ids)} labels and {len(models)} models do not fit latencies of {table.shape}"
        )
    for name, values in (facts or {}).items():
        if len(values) != len(ids):
            raise ValueError(f"{len(values)} values of {name} do not fit {len(ids)} devices")
    words = {}
    for label in (int(i) for i in np.unique(ids[ids >= 0])):
        own = ids == label
        differences = {
            name: _median(column[own]) - _median(column[~own])
            for name, column in zip(models, table.T, strict=True)
        }
        told = _sentence({k: v for k, v in differences.items() if math.isfinite(v)})
        words[label] = "; ".join(filter(None, (told, _fact(own.tolist(), facts or {}))))
    return words


def telling(own: Sequence[str | None], others: Sequence[str | None]) -> tuple[str, int] | None:
    """Return a value that most of some devices have and few others, and how many have it.

    None where there is no such value, or not everything is known of the others.
    """
    if len(own) < 2 or not others or None in others:
        return None
    value, count = Counter(own).most_common(1)[0]
    if value is None or count < MOST * len(own) or others.count(value) > FEW * len(others):
        return None
    return value, count


def shared(name: str, value: str, count: int, devices: int) -> str:
    """Return in words that most of a cluster's devices have a fact."""
    return f"{name} {value}" + (f" on {count} of {devices}" if count < devices else "")


def _fact(own: Sequence[bool], facts: Mapping[str, Sequence[str | None]]) -> str:
    for name, values in facts.items():
        inside = [value for value, is_own in zip(values, own, strict=True) if is_own]
        outside = [value for value, is_own in zip(values, own, strict=True) if not is_own]
        found = telling(inside, outside)
        if found:
            return shared(name, *found, len(inside))
    return ""


def _median(values: Array) -> float:
    present = values[~np.isnan(values)]
    return math.log(float(np.median(present))) if len(present) else math.nan


def _sentence(differences: Mapping[str, float]) -> str:
    if not differences:
        return "nothing to compare with"
    far = {name: d for name, d in differences.items() if abs(d) >= AS_THE_REST}
    same = [name for name in differences if name not in far]
    if not far:
        return "as the rest"
    groups = _alike(far)
    parts = [f"{_listed(list(group))} {_change(group)}" for group in groups[:_TOLD]]
    if len(groups) == 1 and not same and len(far) > 2:
        parts = [f"{_change(far)} on all models"]
    if len(groups) > _TOLD:
        parts.append(f"{sum(len(group) for group in groups[_TOLD:])} more by less")
    if same:
        parts.append(f"{same[0] if len(same) == 1 else 'the others'} as the rest")
    return ", ".join(parts)


def _alike(far: Mapping[str, float]) -> list[dict[str, float]]:
    """Put together what differs by about as much, the largest difference first."""
    groups: list[dict[str, float]] = []
    for name, difference in sorted(far.items(), key=lambda item: -abs(item[1])):
        for group in groups:
            if abs(next(iter(group.values())) - difference) < AS_THE_REST:
                group[name] = difference
                break
        else:
            groups.append({name: difference})
    return groups


def _change(group: Mapping[str, float]) -> str:
    change = 100 * math.expm1(float(np.median(list(group.values()))))
    return f"{abs(change):.0f} % {'slower' if change > 0 else 'faster'}"


def _listed(names: Sequence[str]) -> str:
    if len(names) > _NAMED:
        names = [*names[: _NAMED - 1], f"{len(names) - _NAMED + 1} more"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
