"""Which devices of a fleet have become alike: DBSCAN of devices by latency.

>>> import numpy as np
>>> alike = np.array([[10.0, 5.0], [10.1, 5.0], [13.0, 5.1], [13.1, 5.0]])
>>> cluster(alike).labels.tolist()
[0, 0, 1, 1]
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.fleet.density import SMALL_FLEET, Rule, dbscan, k_distance_rule, small_fleet_rule
from engine.fleet.features import Features, features

Array = NDArray[np.float64]
Labels = NDArray[np.int64]

AS_THE_REST = 0.03
"""Differences below this (of log-latency) are not worth a word."""
_MEDOID_UP_TO = 2000
_PASSES = 3
_PRIOR_FREEDOM = 3
"""How many degrees of freedom the models' common repeatability weighs against a model's own."""


@dataclass(frozen=True)
class Clustering:
    """Which devices are alike; distances are of log-latency, root mean square over the models."""

    labels: Labels
    """One a device: clusters count from 0 by falling size, -1 is noise."""
    eps: float
    """Devices closer than this are neighbours; 0.08 is 8 % or so."""
    eps_percent: float
    """The same as a ratio of latencies, in per cent."""
    min_samples: int
    """Devices (itself included) that make a neighbourhood dense."""
    features: Array
    """(devices, d) what was clustered; NaN for a device without any measurement."""
    points: Array
    """(devices, 2) the first two principal components in per cent of latency; NaN likewise."""
    explained: tuple[float, float]
    """Share of the variance on each of the two."""
    representatives: tuple[int, ...]
    """Row of each cluster's medoid."""
    weights: tuple[float, ...]
    """Share of the fleet that each cluster stands for; noise counts with its nearest cluster."""
    nearest: Labels
    """Each device's cluster, and the nearest one for noise; zeros where there is no cluster."""


def cluster(
    latencies: ArrayLike,
    repeatability: ArrayLike | None = None,
    eps_percent: float | None = None,
    min_samples: int | None = None,
) -> Clustering:
    """Group devices whose latencies are alike over all models.

    A device that lacks some measurements is placed by those that it has; one that has none is
    noise, and counts with the largest cluster.

    Args:
        latencies: (devices, models) in milliseconds, NaN where missing.
        repeatability: relative standard deviation of a measurement, one for all models or one a
            model; None has it inferred where it is needed.
        eps_percent: devices within this many per cent are neighbours; None or 0 finds it.
        min_samples: devices that make a neighbourhood dense; None or 0 finds it.

    Raises:
        ValueError: a latency is not positive, there is none at all, or an argument makes no sense.
    """
    if eps_percent is not None and not (math.isfinite(eps_percent) and eps_percent >= 0):
        raise ValueError(f"eps_percent must be a number of at least 0, it is {eps_percent}")
    if min_samples is not None and min_samples < 0:
        raise ValueError(f"min_samples must be at least 0, it is {min_samples}")
    seen = features(latencies, repeatability)
    if repeatability is None and not eps_percent and 2 < len(seen.space) < SMALL_FLEET:
        seen = _rescaled(np.asarray(latencies, dtype=float), seen)
    rule = _rule(seen, eps_percent or None, min_samples or None)
    points, found = _found(seen, rule)
    devices = len(seen.placed)
    labels = np.full(devices, -1, dtype=np.int64)
    labels[seen.placed] = found
    nearest = np.zeros(devices, dtype=np.int64)
    nearest[seen.placed] = _nearest(points, found)
    clusters = int(found.max()) + 1
    plane = np.zeros((len(points), 2))
    plane[:, : seen.scores.shape[1]] = 100 * seen.scores[:, :2]
    return Clustering(
        labels=labels,
        eps=rule.eps,
        eps_percent=100 * math.expm1(rule.eps),
        min_samples=rule.min_samples,
        features=_spread_out(points, seen.placed),
        points=_spread_out(plane, seen.placed),
        explained=seen.explained,
        representatives=_representatives(seen, found),
        weights=tuple(float(w) for w in np.bincount(nearest, minlength=clusters) / devices)[
            :clusters
        ],
        nearest=nearest,
    )


def _rule(seen: Features, eps_percent: float | None, min_samples: int | None) -> Rule:
    small = len(seen.space) < SMALL_FLEET
    if small:
        rule = small_fleet_rule(seen.space, seen.scores, seen.sigma)
    else:
        rule = k_distance_rule(seen.scores)
    dimensions = rule.dimensions if eps_percent is None else seen.scores.shape[1]
    return Rule(
        eps=rule.eps if eps_percent is None else math.log1p(eps_percent / 100),
        min_samples=rule.min_samples if min_samples is None else min_samples,
        dimensions=dimensions,
        least_size=rule.least_size if min_samples is None else 1,
    )


def _found(seen: Features, rule: Rule) -> tuple[Array, Labels]:
    points = seen.scores[:, : rule.dimensions]
    return points, _by_size(dbscan(points, rule.eps, rule.min_samples), rule.least_size)


def _rescaled(latencies: Array, seen: Features) -> Features:
    """Learn from the clusters how well each model repeats, and look at the fleet again."""
    for _ in range(_PASSES):
        _, labels = _found(seen, _rule(seen, None, None))
        sigma = _repeatability(np.log(latencies[seen.placed]), labels)
        if sigma is None:
            break
        seen = features(latencies, sigma)
    return seen


def _repeatability(logs: Array, labels: Labels) -> Array | None:
    """Return each model's standard deviation within clusters, drawn towards their median.

    None where the clusters leave too few devices to tell.
    """
    squares, freedom = np.zeros(logs.shape[1]), np.zeros(logs.shape[1])
    for label in range(int(labels.max()) + 1):
        members = logs[labels == label]
        known = ~np.isnan(members)
        counts = known.sum(axis=0)
        means = np.where(known, members, 0.0).sum(axis=0) / np.maximum(counts, 1)
        squares += (np.where(known, members - means, 0.0) ** 2).sum(axis=0)
        freedom += np.maximum(counts - 1, 0)
    if freedom.min() < _PRIOR_FREEDOM:
        return None
    common = float(np.median(squares / freedom))
    return np.asarray(
        np.sqrt((squares + _PRIOR_FREEDOM * common) / (freedom + _PRIOR_FREEDOM)), dtype=float
    )


def _by_size(labels: Labels, least: int) -> Labels:
    """Renumber clusters by falling size, the first device deciding a tie; small ones are noise."""
    ids, first, counts = np.unique(labels, return_index=True, return_counts=True)
    kept = (ids >= 0) & (counts >= least)
    order = np.lexsort((first[kept], -counts[kept]))
    new = np.full(len(ids), -1, dtype=np.int64)
    new[np.flatnonzero(kept)[order]] = np.arange(len(order))
    return new[np.searchsorted(ids, labels)]


def _nearest(points: Array, labels: Labels) -> Labels:
    """Give every noise point the cluster of the nearest point that has one."""
    inside = labels >= 0
    if not inside.any():
        return np.zeros_like(labels)
    nearest = labels.copy()
    if not inside.all():
        from scipy.spatial import cKDTree

        _, row = cKDTree(points[inside]).query(points[~inside])
        nearest[~inside] = labels[inside][row]
    return nearest


def _representatives(seen: Features, labels: Labels) -> tuple[int, ...]:
    """Return each cluster's medoid, of the devices with every measurement if there are any."""
    rows = np.flatnonzero(seen.placed)
    complete = seen.complete[seen.placed]
    chosen = []
    for label in range(int(labels.max()) + 1):
        members = np.flatnonzero(labels == label)
        candidates = members[complete[members]] if complete[members].any() else members
        inside, of = seen.space[members], seen.space[candidates]
        if len(members) <= _MEDOID_UP_TO:
            gaps = np.linalg.norm(of[:, None] - inside, axis=2).sum(axis=1)
        else:
            gaps = np.linalg.norm(of - np.median(inside, axis=0), axis=1)
        chosen.append(int(rows[candidates[gaps.argmin()]]))
    return tuple(chosen)


def _spread_out(values: Array, placed: NDArray[np.bool_]) -> Array:
    """Put the rows of placed devices back among all devices, NaN for the others."""
    whole = np.full((len(placed), values.shape[1]), np.nan)
    whole[placed] = values
    return whole


def explain(latencies: ArrayLike, labels: ArrayLike, models: Sequence[str]) -> dict[int, str]:
    """Say in a few words what tells each cluster from the rest of the fleet.

    Args:
        latencies: (devices, models) in milliseconds, NaN where missing.
        labels: one a device, -1 for noise.
        models: names, in the order of the columns.

    Returns:
        By cluster id a text such as "compute 18 % slower, dispatch as the rest".

    Raises:
        ValueError: the shapes do not fit together.
    """
    table, ids = np.asarray(latencies, dtype=float), np.asarray(labels, dtype=np.int64)
    if table.shape != (len(ids), len(models)):
        raise ValueError(
            f"{len(ids)} labels and {len(models)} models do not fit latencies of {table.shape}"
        )
    logs = np.log(table)
    words = {}
    for label in (int(i) for i in np.unique(ids[ids >= 0])):
        inside, outside = logs[ids == label], logs[ids != label]
        differences = {
            name: _median(inside[:, column]) - _median(outside[:, column])
            for column, name in enumerate(models)
        }
        words[label] = _sentence({k: v for k, v in differences.items() if math.isfinite(v)})
    return words


def _median(values: Array) -> float:
    present = values[~np.isnan(values)]
    return float(np.median(present)) if len(present) else math.nan


def _sentence(differences: Mapping[str, float]) -> str:
    if not differences:
        return "nothing to compare with"
    far = {name: d for name, d in differences.items() if abs(d) >= AS_THE_REST}
    if not far:
        return "as the rest"
    parts: dict[str, list[str]] = {}
    for name, difference in sorted(far.items(), key=lambda item: -abs(item[1])):
        change = 100 * math.expm1(difference)
        parts.setdefault(f"{abs(change):.0f} % {'slower' if change > 0 else 'faster'}", []).append(
            name
        )
    same = [name for name in differences if name not in far]
    if same:
        parts["as the rest"] = same
    return ", ".join(f"{_listed(names)} {what}" for what, names in parts.items())


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def match(old: ArrayLike, new: ArrayLike, least: float = 0.3) -> dict[int, int]:
    """Return which id each new cluster should keep, so that ids stay stable over time.

    Clusters are paired so that they share as many devices as possible (Kuhn, 1955); a pair
    counts where its Jaccard index is at least `least`. A cluster without a partner gets an id
    that the old clustering did not use.

    Args:
        old: labels of the devices before, -1 for noise.
        new: labels of the same devices now.
        least: smallest Jaccard index of a pair.

    Raises:
        ValueError: the two do not have the same length.
    """
    from scipy.optimize import linear_sum_assignment

    before, now = np.asarray(old, dtype=np.int64), np.asarray(new, dtype=np.int64)
    if before.shape != now.shape:
        raise ValueError(f"{before.size} old labels do not fit {now.size} new ones")
    height, width = int(before.max(initial=-1)) + 1, int(now.max(initial=-1)) + 1
    both = (before >= 0) & (now >= 0)
    overlap = np.bincount(before[both] * width + now[both], minlength=height * width)
    overlap = overlap.reshape(height, width)
    sizes = np.bincount(before[before >= 0], minlength=height)[:, None]
    union = sizes + np.bincount(now[now >= 0], minlength=width) - overlap
    jaccard = overlap / np.maximum(union, 1)
    kept = {int(c): int(r) for r, c in zip(*linear_sum_assignment(-overlap), strict=True)}
    mapping, fresh = {}, height
    for label in range(width):
        partner = kept.get(label)
        if partner is not None and jaccard[partner, label] >= least:
            mapping[label] = partner
        else:
            mapping[label], fresh = fresh, fresh + 1
    return mapping
