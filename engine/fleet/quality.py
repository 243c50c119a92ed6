"""How good a clustering is: how well its clusters stand apart, and how surely they come again."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.fleet.clusters import Clustering
from engine.fleet.density import dbscan
from engine.fleet.features import Array
from engine.fleet.placing import Labels

SAMPLE = 2000
"""Devices that the figures are told from, at most."""
REPEATS = 20
UNSTABLE = 0.75
"""A cluster whose stability is below this is no finding (Hennig 2007)."""


@dataclass(frozen=True)
class Quality:
    """Figures to read a clustering by; none of them moves a threshold."""

    noise: float
    """Share of the devices that are in no cluster."""
    silhouette: float | None
    """Mean silhouette of the clustered devices, -1 to 1 (Rousseeuw 1987); None below two."""
    apart_percent: float | None
    """How far the middles of the nearest two clusters lie apart; None below two."""
    stability: tuple[float, ...]
    """One a cluster, 0 to 1: mean Jaccard index with what is found in the place of it when the
    devices are drawn anew (bootstrap; Hennig, Computational Statistics & Data Analysis 52, 2007).
    It says whether a cluster comes again, not whether it stands apart."""


def quality(found: Clustering, seed: int = 0) -> Quality:
    """Judge a clustering, by a sample where the fleet is large."""
    rng = np.random.default_rng(seed)
    placed = np.flatnonzero(~np.isnan(found.features).any(axis=1))
    rows = np.sort(rng.choice(placed, min(SAMPLE, len(placed)), replace=False))
    points, labels = found.features[rows], found.labels[rows]
    return Quality(
        noise=float(np.mean(found.labels < 0)) if len(found.labels) else 0.0,
        silhouette=_silhouette(points, labels),
        apart_percent=_apart(points, labels),
        stability=_stability(found, points, labels, len(rows) / max(len(placed), 1), rng),
    )


def _silhouette(points: Array, labels: Labels) -> float | None:
    from sklearn.metrics import silhouette_score

    inside = labels >= 0
    clusters = len(np.unique(labels[inside]))
    if not 2 <= clusters < inside.sum():
        return None
    return float(silhouette_score(points[inside], labels[inside]))


def _apart(points: Array, labels: Labels) -> float | None:
    middles = [np.median(points[labels == one], axis=0) for one in np.unique(labels[labels >= 0])]
    gaps = [
        float(np.linalg.norm(middles[i] - middles[j]))
        for i in range(len(middles))
        for j in range(i)
    ]
    return 100 * math.expm1(min(gaps)) if gaps else None


def _stability(
    found: Clustering, points: Array, labels: Labels, share: float, rng: np.random.Generator
) -> tuple[float, ...]:
    if not found.ids:
        return ()
    # Of n devices drawn n times with putting back, as many are different ones.
    different = 1 - math.exp(-1)
    least = max(1, round(found.min_samples * share * different))
    indices = np.full((REPEATS, len(found.ids)), np.nan)
    for row in indices:
        drawn = np.unique(rng.integers(0, len(points), len(points)))
        density = dbscan(points[drawn], found.eps, least)
        again = density.labels[density.member]
        others = [again == one for one in range(int(again.max(initial=-1)) + 1)]
        for column, one in enumerate(found.ids):
            own = labels[drawn] == one
            if own.any():
                row[column] = max((_jaccard(own, other) for other in others), default=0.0)
    known = ~np.isnan(indices)
    sums = np.where(known, indices, 0.0).sum(axis=0)
    return tuple(float(mean) for mean in sums / np.maximum(known.sum(axis=0), 1))


def _jaccard(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float(np.count_nonzero(one & other) / np.count_nonzero(one | other))
