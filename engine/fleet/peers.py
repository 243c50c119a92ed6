"""Parting what one device does from what its peers do."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from engine.fleet.pooled import Noise, pooled

Array = NDArray[np.float64]

PEERS = 5
"""Other devices that a group needs to speak for itself; below, a wider one has the peers."""
LEAST_PEERS = 3
"""Other devices below which nothing is said about what is common."""
_SHARED_MEDIAN = 50
"""From this many devices on, whether a device is among its own peers makes no difference."""


def fleet_round(
    ratios: Mapping[str, float],
    clusters: Mapping[str, int] | None = None,
    drifting: Collection[str] = (),
    versions: Mapping[str, str] | None = None,
) -> tuple[dict[str, float], float]:
    """Part what each device did from what its peers did.

    Args:
        ratios: by device, log of latency over baseline.
        clusters: by device, which cluster it is in; -1 or absent is none.
        drifting: devices known to have changed, which are nobody's peers.
        versions: by device, what it runs; empty or absent is not known.

    Returns:
        By device its ratio minus the median ratio of its peers, itself left out: the others of
        its cluster and version where they are `PEERS` at least, else those of its version, else
        those of its cluster, else all others, else (below `LEAST_PEERS`) nobody. And the median
        ratio over the whole fleet; 0 where there is no fleet to speak of.
    """
    names = list(ratios)
    values = np.asarray([ratios[name] for name in names], dtype=float)
    steady = np.asarray([name not in drifting for name in names], dtype=bool)
    if len(names) <= LEAST_PEERS:
        return dict(ratios), 0.0
    if steady.sum() <= LEAST_PEERS:
        steady[:] = True
    common = _others(values, steady)
    for _, members in _groups(names, clusters or {}, versions or {}):
        if steady[members].sum() > PEERS:
            common[members] = _others(values[members], steady[members])
    residuals = values - common
    return dict(zip(names, residuals.tolist(), strict=True)), float(np.median(values))


def own_change(
    ratios: Mapping[str, float], residuals: Mapping[str, float], practical: float
) -> dict[str, float]:
    """Return the residuals without what is the peers' change and not the device's.

    Where peers have moved and a device has not, or less, it stands out against them and has done
    nothing: it is not said to have moved the other way.

    Args:
        ratios: by device, log of latency over baseline.
        residuals: of these devices, as `fleet_round` parts them.
        practical: log ratio from which peers count as having moved.
    """
    found = dict(residuals)
    for name, residual in residuals.items():
        by_peers = ratios[name] - residual
        if abs(by_peers) >= practical and residual * by_peers < 0:
            found[name] = 0.0 if ratios[name] * by_peers >= 0 else ratios[name]
    return found


def peers(
    names: Collection[str],
    clusters: Mapping[str, int],
    drifting: Collection[str],
    versions: Mapping[str, str],
) -> dict[str, tuple[str, int]]:
    """Return whom `fleet_round` compares each device with, in words, and how many they are."""
    listed = list(names)
    if len(listed) <= LEAST_PEERS:
        return dict.fromkeys(listed, ("nobody", 0))
    steady = [name not in drifting for name in listed]
    if sum(steady) <= LEAST_PEERS:
        steady = [True] * len(listed)
    whole = sum(steady)
    found = {name: ("the fleet", whole - own) for name, own in zip(listed, steady, strict=True)}
    for kind, members in _groups(listed, clusters, versions):
        count = sum(steady[i] for i in members)
        if count > PEERS:
            found |= {listed[i]: (kind, count - steady[i]) for i in members}
    return found


def _groups(
    names: list[str], clusters: Mapping[str, int], versions: Mapping[str, str]
) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Yield who may be whose peers, and what they share; the widest groups first."""
    labels = [clusters.get(name, -1) for name in names]
    runs = [versions.get(name, "") for name in names]
    both = [None if n < 0 or not v else (n, v) for n, v in zip(labels, runs, strict=True)]
    for kind, keys in (
        ("its cluster", [None if label < 0 else label for label in labels]),
        ("its version", [version or None for version in runs]),
        ("its cluster and version", both),
    ):
        groups: dict[object, list[int]] = {}
        for place, key in enumerate(keys):
            if key is not None:
                groups.setdefault(key, []).append(place)
        for places in groups.values():
            yield kind, np.asarray(places)


def _others(values: Array, steady: NDArray[np.bool_]) -> Array:
    """Return for each value the median of the other steady ones."""
    common = np.full(len(values), np.median(values[steady]))
    own = np.flatnonzero(steady)
    if len(own) < _SHARED_MEDIAN:
        own = own[np.argsort(values[own])]
        ranked, ranks = values[own], np.arange(len(own))
        low, high = (len(own) - 2) // 2, (len(own) - 1) // 2  # the middle of one value fewer
        # Without a value, those from its rank on move up by one.
        common[own] = (ranked[low + (ranks <= low)] + ranked[high + (ranks <= high)]) / 2
    return common


def polish(
    rounds: list[dict[str, float]],
) -> tuple[dict[str, list[float]], list[float], Noise]:
    """Part the first rounds into devices and rounds, by Tukey's median polish.

    Returns:
        By device its log-latency in each round without what its peers did (NaN where missing),
        what all did in each round, and the noise of one measurement.
    """
    names = list(dict.fromkeys(name for early in rounds for name in early))
    table = np.asarray([[early.get(name, math.nan) for name in names] for early in rounds])
    if not names:
        return {}, [0.0] * len(rounds), Noise()
    levels, common = np.zeros(len(names)), np.zeros(len(rounds))
    enough = (~np.isnan(table)).sum(axis=1) > LEAST_PEERS
    for _ in range(3):
        levels = np.nanmedian(table - common[:, None], axis=0)
        common[enough] = np.nanmedian((table - levels)[enough], axis=1)
    common -= np.median(common)
    levels = np.nanmedian(table - common[:, None], axis=0)
    noise = np.full_like(table, np.nan)
    for row, values in enumerate(table - levels):
        present = np.flatnonzero(~np.isnan(values))
        noise[row, present] = values[present]
        if len(present) > LEAST_PEERS:
            noise[row, present] -= _others(values[present], np.ones(len(present), dtype=bool))
    series = {name: (levels[i] + noise[:, i]).tolist() for i, name in enumerate(names)}
    if len(rounds) < LEAST_PEERS:
        return series, common.tolist(), Noise()
    # As many levels as devices were fitted to these samples.
    return series, common.tolist(), pooled(noise, len(names))
