"""The fleet's clusters as a job takes them: sizes, and whom to measure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np

from hdap_tui.config import Settings
from hdap_tui.errors import UserError
from hdap_tui.store import clusters as maps
from hdap_tui.store import devices, measurements
from hdap_tui.store.database import Store
from hdap_tui.store.facts import common_multiple
from hdap_tui.store.records import ClusterMap

_LEVELS = 32
"""Devices of a cluster whose levels are told one by one."""


def latest(settings: Settings, store: Store) -> ClusterMap:
    """Return the latest clustering of the devices that the settings name by now.

    Raises:
        UserError: the fleet has not been clustered yet.
    """
    devices.sync(store, settings.devices)
    found = _present(maps.latest(store), {device.name for device in settings.devices})
    if not found.clusters and not found.devices:
        raise UserError('The fleet has not been clustered yet: run "hdap sweep" first.')
    return found


def clusters(found: ClusterMap, store: Store, digest: str) -> list[dict[str, Any]]:
    """Return the clusters for a job's request.

    Args:
        found: see `latest`.
        store: holds what was measured, and the facts.
        digest: the model in use, whose latencies tell how far devices lie from representatives.
    """
    return _aligned(groups(found, _latencies(store, digest)), store)


def groups(found: ClusterMap, latencies: Mapping[str, float] | None = None) -> list[dict[str, Any]]:
    """Return the clusters as the search takes them: size, and whom to measure, best first.

    `latencies` of the model in use tell how far each device lies from its representative.

    A noise device counts with the cluster of its nearest neighbour on the map, since it will run
    the model too. Where there is no cluster at all the fleet is one.
    """
    points = {
        device: point
        for device, point in zip(found.devices, found.points, strict=True)
        if all(math.isfinite(value) for value in point)
    }
    label = dict(zip(found.devices, found.labels, strict=True))
    heads = {cluster.id: cluster.representative for cluster in found.clusters}
    if not heads:
        names = list(points) or list(found.devices)
        return [_group(0, names, list(found.devices), latencies or {})]
    members: dict[int, list[str]] = {number: [] for number in heads}
    for device in found.devices:
        number = label[device]
        if number < 0 and device in points:
            near = (
                (math.dist(points[device], points[other]), label[other])
                for other in points
                if label[other] >= 0
            )
            number = min(near, default=(0.0, number))[1]
        members[number if number in heads else next(iter(heads))].append(device)
    return [
        _group(number, _order(found, number, points), members[number], latencies or {})
        for number in heads
    ]


def _group(
    number: int, own: list[str], members: list[str], latencies: Mapping[str, float]
) -> dict[str, Any]:
    """Return a cluster; of a large one, the levels of its devices are some quantiles."""
    level = latencies.get(own[0], math.nan)
    ratios = [latencies[name] / level for name in members if name in latencies]
    ratios = sorted(ratio for ratio in ratios if math.isfinite(ratio))
    if len(ratios) > _LEVELS:
        ratios = [float(q) for q in np.quantile(ratios, (np.arange(_LEVELS) + 0.5) / _LEVELS)]
    return {
        "id": number,
        "size": len(members),
        "devices": own,
        "members": members,
        "levels": ratios,
    }


def _latencies(store: Store, digest: str) -> dict[str, float]:
    """Return the newest latency of a model by device, in milliseconds."""
    names, found = measurements.matrix(store, [digest])
    return {
        name: float(ms)
        for name, ms in zip(names, found[:, 0], strict=True)
        if math.isfinite(ms) and ms > 0
    }


def _order(found: ClusterMap, number: int, points: dict[str, tuple[float, float]]) -> list[str]:
    """Return a cluster's own devices: the representative, then those nearest to it.

    Those that have no place on the map, since the last sweep did not reach them, come last.
    """
    head = next(c.representative for c in found.clusters if c.id == number)
    own = [d for d, label in zip(found.devices, found.labels, strict=True) if label == number]
    placed = [points[device] for device in own if device in points]
    if not placed:
        return own
    at = points.get(head, (fmean(x for x, _ in placed), fmean(y for _, y in placed)))
    return sorted(own, key=lambda d: math.dist(points[d], at) if d in points else math.inf)


def _aligned(clusters: list[dict[str, Any]], store: Store) -> list[dict[str, Any]]:
    """Return the clusters with the channel multiple of most of their devices that were probed.

    Else it is that of most of the fleet; where nobody was probed it is missing.
    """
    fleet = common_multiple(store)
    if fleet is None:
        return clusters
    return [{**c, "multiple": common_multiple(store, c["members"]) or fleet} for c in clusters]


def _present(found: ClusterMap, names: set[str]) -> ClusterMap:
    """Return the clustering without devices that the settings no longer name."""
    kept = [n for n, device in enumerate(found.devices) if device in names]
    heads = {found.labels[n] for n in kept}
    return replace(
        found,
        devices=tuple(found.devices[n] for n in kept),
        labels=tuple(found.labels[n] for n in kept),
        points=tuple(found.points[n] for n in kept),
        clusters=tuple(
            c if c.representative in names else replace(c, representative=_any(found, kept, c.id))
            for c in found.clusters
            if c.id in heads
        ),
    )


def _any(found: ClusterMap, kept: list[int], cluster: int) -> str:
    return next(found.devices[n] for n in kept if found.labels[n] == cluster)
