"""DBSCAN, and how close two devices must be to count as alike (eps) when nobody says.

Ester, Kriegel, Sander, Xu: A density-based algorithm for discovering clusters, KDD 1996.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from engine.fleet.bins import Array, Density, Labels, binned

SMALL_FLEET = 60
"""Below this many devices the k-distance rules fail (30 devices in four groups come out as one or
none), and the partitions are weighed instead."""
EXACT_UP_TO = 3000
"""Above this many points DBSCAN runs on weighted bins; exact DBSCAN needs quadratic memory."""
_LARGE = 1000
"""In a fleet of so many devices a cluster is larger than the neighbourhood that makes it dense."""
SAMPLE = 20_000

LEAST_EPS = math.log1p(0.03)
"""Devices of a small fleet that lie less than 3 % apart are alike, whatever the noise."""
_LEAST_SIGMA = 0.0075
"""Repeatability of a small fleet is taken to be at least this, a quarter of `LEAST_EPS`."""
_SPREAD = 0.15
"""Expected spread of group profiles (log-latency): how far apart groups of a fleet lie."""
_LONE = 1.0
"""What a device outside all clusters costs, in natural logarithms of likelihood."""


@dataclass(frozen=True)
class Rule:
    """The parameters of DBSCAN that suit a fleet."""

    eps: float
    min_samples: int
    dimensions: int
    """Principal components to cluster in; those left out hold noise only."""
    least_size: int
    """Clusters smaller than this are noise."""


def dbscan(points: Array, eps: float, min_samples: int) -> Density:
    """Find the dense parts of a set of points.

    Up to `EXACT_UP_TO` points it is exact; beyond, points are put into bins.
    """
    if len(points) > EXACT_UP_TO:
        return binned(points, eps, min_samples)
    from sklearn.cluster import DBSCAN

    model = DBSCAN(eps=eps, min_samples=min_samples).fit(points)
    core = np.zeros(len(points), dtype=bool)
    core[model.core_sample_indices_] = True
    return Density(
        member=np.arange(len(points)),
        counts=np.ones(len(points), dtype=np.intp),
        labels=np.asarray(model.labels_, dtype=np.int64),
        core=core,
    )


def k_distance_rule(points: Array) -> Rule:
    """Choose from distances to the `min_samples`-th neighbour, for `SMALL_FLEET` devices and more.

    min_samples grows with the fleet, or a little background joins everything up; eps is the
    larger of twice the median and a high quantile of the neighbour distances (compare Schubert
    et al.: DBSCAN revisited, revisited, ACM TODS 42(3), 2017).
    """
    from scipy.spatial import cKDTree

    n, dimensions = points.shape
    least = max(min(2 * dimensions, 10), 4 if n < 200 else 1)
    min_samples = max(least, math.ceil(math.sqrt(n) / 4), math.ceil(0.001 * n))
    sample, neighbour = points, min_samples
    if n > SAMPLE:
        rows = np.random.default_rng(0).choice(n, SAMPLE, replace=False)
        sample, neighbour = points[rows], max(2, math.ceil(min_samples * SAMPLE / n))
    # The nearest is the point itself, which DBSCAN counts too.
    distances, _ = cKDTree(sample).query(sample, k=[neighbour])
    # In a small fleet one device in ten may belong to groups with too few to be neighbours.
    quantile = 0.9 if n < _LARGE else 0.95
    eps = max(2 * float(np.median(distances)), float(np.quantile(distances, quantile)))
    return Rule(
        eps=max(eps, math.log1p(0.005)),
        min_samples=min_samples,
        dimensions=dimensions,
        least_size=max(5, math.ceil(0.01 * n)),
    )


def small_fleet_rule(space: Array, scores: Array, sigma: float | None) -> Rule:
    """Choose by weighing every clustering that DBSCAN can give, for a small fleet.

    With two devices enough for a cluster, each number of components leaves at most as many
    different clusterings as there are devices. Each is judged as a mixture of equal round
    Gaussians: its marginal likelihood over the groups' means and over the repeatability, times
    the prior of a Chinese restaurant process (Ferguson, Annals of Statistics 1(2), 1973). The
    best one gives eps: four times the repeatability, moved to where this clustering holds.

    Args:
        space: (devices, models) noise-scaled log-latencies over the root of the models.
        scores: (devices, d) its principal components.
        sigma: repeatability of one model's log-latency where it is known. Where it is not, it is
            inferred along with the clusters.
    """
    devices, models = space.shape
    if devices == 1:
        return Rule(eps=LEAST_EPS, min_samples=1, dimensions=scores.shape[1], least_size=1)
    # 3 % over all models together: a gap that only one of them shows must stay visible.
    least = LEAST_EPS / math.sqrt(models)
    judge = _Judge(space * math.sqrt(models), sigma)
    best, best_value = (scores.shape[1], least, math.inf, LEAST_EPS / 4), -math.inf
    for dimensions in range(1, scores.shape[1] + 1):
        for lower, upper, partition in _partitions(scores[:, :dimensions]):
            if upper <= least:
                continue
            value, likely = judge(partition)
            if value > best_value + 1e-9:
                best_value = value
                best = (dimensions, max(lower, least), upper, likely)
    dimensions, lower, upper, likely = best
    eps = max(4 * likely, LEAST_EPS, lower * 1.001)
    eps = min(eps, (lower + upper) / 2)
    return Rule(eps=eps, min_samples=2, dimensions=dimensions, least_size=2)


def _partitions(points: Array) -> Iterator[tuple[float, float, Labels]]:
    """Yield every clustering of single linkage with the eps (from, up to) that gives it."""
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import pdist

    merges = linkage(pdist(points), "single")
    labels = np.arange(len(points))
    heights = [0.0, *(float(h) for h in merges[:, 2]), math.inf]
    for step, (lower, upper) in enumerate(pairwise(heights)):
        if step:
            first, second = (int(m) for m in merges[step - 1, :2])
            labels[(labels == first) | (labels == second)] = len(points) + step - 1
        if lower < upper:
            numbers = np.cumsum(np.bincount(labels) > 0) - 1
            yield lower, upper, numbers[labels]


class _Judge:
    """How likely the fleet's points are, given who belongs together."""

    def __init__(self, points: Array, sigma: float | None) -> None:
        self._points = points
        self._known: dict[bytes, tuple[float, float]] = {}
        if sigma is None:
            self._sigma = np.geomspace(_LEAST_SIGMA, 0.06, 12)
            prior = -0.5 * (np.log(self._sigma / 0.02) / math.log(2)) ** 2
        else:
            # Alike devices differ by at least what a measurement repeats to, perhaps by more.
            self._sigma = max(sigma, _LEAST_SIGMA) * np.geomspace(1, 3, 8)
            prior = -0.5 * (np.log(self._sigma / self._sigma[0]) / math.log(1.5)) ** 2
        self._prior = prior - np.logaddexp.reduce(prior)

    def __call__(self, partition: Labels) -> tuple[float, float]:
        """Return log posterior (up to a constant) and the repeatability that fits best."""
        key = partition.tobytes()
        if key not in self._known:
            self._known[key] = max(self._log_posterior(partition, 0), self._attached(partition))
        return self._known[key]

    def _attached(self, partition: Labels) -> tuple[float, float]:
        """Judge with every lone device counted as a straggler of the nearest cluster."""
        sizes = np.bincount(partition)
        lone, clusters = np.flatnonzero(sizes[partition] == 1), np.flatnonzero(sizes > 1)
        if not len(lone) or not len(clusters):
            return -math.inf, 0.0
        means = np.stack([self._points[partition == c].mean(axis=0) for c in clusters])
        gaps = ((self._points[lone, None] - means) ** 2).sum(axis=2)
        joined = partition.copy()
        joined[lone] = clusters[gaps.argmin(axis=1)]
        return self._log_posterior(joined, len(lone))

    def _log_posterior(self, partition: Labels, stragglers: int) -> tuple[float, float]:
        models = self._points.shape[1]
        variance = self._sigma**2
        log_variance = np.log(variance)
        value = self._prior - _LONE * stragglers
        for cluster in np.flatnonzero(np.bincount(partition)):
            members = self._points[partition == cluster]
            size, mean = len(members), members.mean(axis=0)
            scatter = float(((members - mean) ** 2).sum())
            total = variance + size * _SPREAD**2
            value = (
                value
                - 0.5 * (size - 1) * models * log_variance
                - 0.5 * models * np.log(total)
                - 0.5 * scatter / variance
                - 0.5 * size * float(mean @ mean) / total
                + math.lgamma(size)
            )
        return float(np.logaddexp.reduce(value)), float(self._sigma[value.argmax()])
