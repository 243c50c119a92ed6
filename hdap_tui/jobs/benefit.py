"""What quantization brings on each cluster: this job's measurements, and what was seen before.

Every network that devices have run in both precisions says something of how they take to int8. So a
cluster of which nobody can be measured is judged by what else it has run and by clusters that are
like it, and one odd measurement does not decide alone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.fleet.precision import Benefit, Int8Benefit, Pair
from engine.search.hdap import Cluster
from hdap_tui.store import measurements
from hdap_tui.store import models as table
from hdap_tui.store.database import open_store

if TYPE_CHECKING:
    from pathlib import Path

Pairs = Mapping[str, Mapping[str, tuple[float, float]]]
"""By device and by digest of the float network: milliseconds in float, and quantized."""


@dataclass(frozen=True)
class Timed:
    """What one device measured, side by side; milliseconds."""

    cluster: int
    device: str
    original_ms: float
    float_ms: float
    quantized_ms: float | None
    """None where nothing was quantized."""


def recorded(database: Path) -> dict[str, dict[str, tuple[float, float]]]:
    """Return the newest latencies of the networks that devices have run in both precisions."""
    found: dict[str, dict[str, tuple[float, float]]] = defaultdict(dict)
    with closing(open_store(database)) as store:
        for row in table.rows(store):
            network = row.metrics.get("float_digest")
            if network is None:
                continue
            names, ms = measurements.matrix(store, [network, row.digest])
            for name, (before, after) in zip(names, ms.tolist(), strict=True):
                if before > 0 and after > 0:  # NaN where nothing was measured
                    found[name][network] = before, after
    return dict(found)


def benefits(
    clusters: Sequence[Cluster], times: Sequence[Timed], network: str, known: Pairs
) -> dict[int, Benefit]:
    """Return what quantizing a network brings on each cluster.

    Args:
        clusters: whom to judge.
        times: what was measured now.
        network: digest of the float network.
        known: what had been measured before.
    """
    rows = {device: dict(pairs) for device, pairs in known.items()}
    for one in times:
        if one.quantized_ms is not None:
            rows.setdefault(one.device, {})[network] = one.float_ms, one.quantized_ms
    found = {}
    for cluster in clusters:
        own = set(cluster.devices)
        probes = _pooled(pairs for device, pairs in rows.items() if device in own)
        others = [_pooled([pairs]) for device, pairs in rows.items() if device not in own]
        model = Int8Benefit().fit(others, networks=(network, *probes))
        found[cluster.id] = model.given(probes).benefits[network]
    return found


def _pooled(rows: Iterable[Mapping[str, tuple[float, float]]]) -> dict[str, Pair]:
    """Return one pair a network: the geometric means over the devices."""
    gathered: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for pairs in rows:
        for network, pair in pairs.items():
            gathered[network].append(pair)
    return {
        network: Pair(float_ms=_mean(f for f, _ in pairs), int8_ms=_mean(q for _, q in pairs))
        for network, pairs in gathered.items()
    }


def _mean(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(math.fsum(logs) / len(logs))
