"""Which devices of a fleet have become alike: DBSCAN of devices by latency.

>>> import numpy as np
>>> alike = np.array([[10.0, 5.0], [10.1, 5.0], [13.0, 5.1], [13.1, 5.0]])
>>> cluster(alike).labels.tolist()
[0, 0, 1, 1]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.fleet.bins import Density
from engine.fleet.density import (
    SAMPLE,
    SMALL_FLEET,
    Rule,
    dbscan,
    k_distance_rule,
    small_fleet_rule,
)
from engine.fleet.features import Array, Features, features
from engine.fleet.placing import Labels, Places

_MEDOID_UP_TO = 2000
_PASSES = 3
_PRIOR_FREEDOM = 3
"""How many degrees of freedom the models' common repeatability weighs against a model's own."""


@dataclass(frozen=True)
class Clustering:
    """Which devices are alike; distances are of log-latency, root mean square over the models."""

    labels: Labels
    """One a device, the id of its cluster; -1 is noise."""
    ids: tuple[int, ...]
    """The clusters: they count from 0 by falling size, unless ids of an earlier time were kept."""
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
    """Row of each cluster's medoid, in the order of `ids`."""
    weights: tuple[float, ...]
    """Share of the fleet that each cluster stands for; noise counts with its nearest cluster."""
    nearest: Labels
    """Each device's cluster, and the nearest one for noise; zeros where there is no cluster."""
    places: Places
    """Where the clusters lie: assigns devices that come later."""


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
    found = _found(seen, rule)
    inside = found.core & (found.labels >= 0)
    own = found.labels[found.member]
    places = Places.of(
        seen.frame,
        rule.dimensions,
        rule.eps,
        cores=found.means(seen.space)[inside],
        labels=found.labels[inside],
        own=seen.space[np.flatnonzero(own >= 0)[:: 1 + len(own) // SAMPLE]],
    )
    labels = np.full(len(seen.placed), -1, dtype=np.int64)
    labels[seen.placed] = own
    return arranged(places, labels, seen, rule.min_samples, range(int(labels.max()) + 1))


def arranged(
    places: Places, labels: Labels, seen: Features, min_samples: int, ids: Sequence[int]
) -> Clustering:
    """Return a clustering of devices of which one knows where they lie and whose they are."""
    nearest = np.full(len(labels), ids[0] if ids else 0, dtype=np.int64)
    nearest[seen.placed] = labels[seen.placed]
    noise = np.flatnonzero(seen.placed & (labels < 0))
    rows = np.cumsum(seen.placed) - 1
    nearest[noise] = places.nearest(seen.space[rows[noise]])
    plane = np.zeros((len(seen.scores), 2), dtype=seen.scores.dtype)
    plane[:, : seen.scores.shape[1]] = 100 * seen.scores[:, :2]
    return Clustering(
        labels=labels,
        ids=tuple(ids),
        eps=places.eps,
        eps_percent=100 * math.expm1(places.eps),
        min_samples=min_samples,
        features=_spread_out(seen.scores[:, : places.dimensions], seen.placed),
        points=_spread_out(plane, seen.placed),
        explained=seen.explained,
        representatives=tuple(_medoid(seen, labels[seen.placed] == one) for one in ids),
        weights=tuple(float(np.mean(nearest == one)) for one in ids),
        nearest=nearest,
        places=places,
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


def _found(seen: Features, rule: Rule) -> Density:
    """Cluster, and renumber by falling size, the first device deciding a tie."""
    found = dbscan(seen.scores[:, : rule.dimensions], rule.eps, rule.min_samples)
    labels = found.labels[found.member]
    ids, first, counts = np.unique(labels, return_index=True, return_counts=True)
    kept = (ids >= 0) & (counts >= rule.least_size)  # small ones are noise
    order = np.lexsort((first[kept], -counts[kept]))
    new = np.full(len(ids), -1, dtype=np.int64)
    new[np.flatnonzero(kept)[order]] = np.arange(len(order))
    return replace(found, labels=new[np.searchsorted(ids, found.labels)])


def _rescaled(latencies: Array, seen: Features) -> Features:
    """Learn from the clusters how well each model repeats, and look at the fleet again."""
    for _ in range(_PASSES):
        found = _found(seen, _rule(seen, None, None))
        labels = found.labels[found.member]
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


def _medoid(seen: Features, own: NDArray[np.bool_]) -> int:
    """Return the row of the device in the middle, of those with every measurement if any."""
    members = np.flatnonzero(own)
    members = members[:: 1 + len(members) // SAMPLE]
    complete = seen.complete[seen.placed][members]
    candidates = members[complete] if complete.any() else members
    inside = seen.space[members]
    of = inside if len(candidates) == len(members) else seen.space[candidates]
    if len(members) <= _MEDOID_UP_TO:
        gaps = np.linalg.norm(of[:, None] - inside, axis=2).sum(axis=1)
    else:
        gaps = np.linalg.norm(of - np.median(inside, axis=0), axis=1)
    return int(np.flatnonzero(seen.placed)[candidates[gaps.argmin()]])


def _spread_out(values: Array, placed: NDArray[np.bool_]) -> Array:
    """Put the rows of placed devices back among all devices, NaN for the others."""
    if placed.all():
        return values
    whole = np.full((len(placed), values.shape[1]), np.nan, dtype=values.dtype)
    whole[placed] = values
    return whole
