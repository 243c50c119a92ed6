"""DBSCAN of very many points: on bins that stand for the points in them.

Each bin lies at the mean of its points and weighs as much as they are; a bin is no wider than eps,
and narrower where there are few. The idea is that of rho-approximate DBSCAN (Gan and Tao: DBSCAN
revisited, SIGMOD 2015): the result lies between those of exact DBSCAN at a slightly smaller and a
slightly larger eps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Labels = NDArray[np.int64]

MAX_BINS = 40_000
MAX_NEAR = 10_000_000
"""Neighbours of all bins together; more make a grid too fine for the memory."""
_FINENESS = (4.0, 3.0, 2.0, 1.5, 1.0)
"""Widths of bins that are tried, as parts of eps."""
_TRIED, _LOOKED = 200_000, 500
"""Points, and bins, from which a grid is told to be too fine."""


@dataclass(frozen=True)
class Density:
    """What DBSCAN found in bins of points; where points are few, each is a bin of its own."""

    member: NDArray[np.intp]
    """(points,) the bin of each."""
    counts: NDArray[np.intp]
    """(bins,) how many points each holds."""
    labels: Labels
    """(bins,) the cluster of each, -1 for noise."""
    core: NDArray[np.bool_]
    """(bins,) which lie in a dense neighbourhood."""

    def means(self, values: Array) -> Array:
        """Return the mean of something (points, d) in each bin."""
        return _means(values, self.member, self.counts)


def binned(points: Array, eps: float, min_samples: int) -> Density:
    """Find the dense parts of a set of points by their bins."""
    member, counts, means = _grid(points, eps)
    labels, core = weighted_dbscan(means, counts, eps, min_samples)
    return Density(member, counts, labels, core)


def weighted_dbscan(
    points: Array, weights: NDArray[np.intp], eps: float, min_samples: int
) -> tuple[Labels, NDArray[np.bool_]]:
    """Return each point's cluster, -1 for noise, and which points are core.

    A point within eps of several clusters goes to that of the nearest core point.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    size = len(points)
    one, other = cKDTree(points).query_pairs(eps, output_type="ndarray").T
    around = np.bincount(one, weights[other], size) + np.bincount(other, weights[one], size)
    core = np.asarray(weights + around >= min_samples)
    labels = np.full(size, -1, dtype=np.int64)
    if not core.any():
        return labels, core
    both = core[one] & core[other]
    links = (np.ones(int(both.sum()), dtype=bool), (one[both], other[both]))
    component = connected_components(coo_array(links, shape=(size, size)), directed=False)[1]
    labels[core] = np.unique(component[core], return_inverse=True)[1]
    _, nearest = cKDTree(points[core]).query(
        points[~core], distance_upper_bound=float(np.nextafter(eps, np.inf))
    )
    labels[~core] = np.append(labels[core], -1)[nearest]
    return labels, core


def _grid(points: Array, eps: float) -> tuple[NDArray[np.intp], NDArray[np.intp], Array]:
    """Return each point's bin, and the bins' sizes and means, in the finest grid that has room."""
    low = points.min(axis=0)
    some = points[:: 1 + len(points) // _TRIED]
    for fineness in _FINENESS:
        width, last = eps / fineness, fineness == _FINENESS[-1]
        if not last and len(np.unique(_cells(some, low, width))) > MAX_BINS:
            continue  # what a part of the points fills is enough to know
        cells = _cells(points, low, width)
        _, member, counts = np.unique(cells, return_inverse=True, return_counts=True)
        means = _means(points, member, counts)
        if last or (len(counts) <= MAX_BINS and _near(means, eps) <= MAX_NEAR):
            break
    return member, counts, means


def _near(points: Array, eps: float) -> float:
    """Return about how many neighbours all points together have."""
    from scipy.spatial import cKDTree

    some = points[:: 1 + len(points) // _LOOKED]
    near = cKDTree(points).query_ball_point(some, eps, return_length=True)
    return float(np.mean(near)) * len(points)


def _means(values: Array, member: NDArray[np.intp], counts: NDArray[np.intp]) -> Array:
    sums = [np.bincount(member, weights=column) for column in values.T]
    return np.asarray(np.stack(sums, axis=1) / counts[:, None])


def _cells(points: Array, low: Array, width: float) -> NDArray[np.int64]:
    """Return a number for the cell that each point lies in."""
    keys = np.zeros(len(points), dtype=np.int64)
    for column, least in zip(points.T, low, strict=True):
        cells = ((column - least) / width).astype(np.int64)
        extent = int(cells.max()) + 1
        if int(keys.max()) + 1 > 2**62 // extent:
            keys = np.unique(keys, return_inverse=True)[1].astype(np.int64)  # numbers close up
        keys *= extent
        keys += cells
    return keys
