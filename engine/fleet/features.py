"""From measured latencies to the space in which devices are compared.

Logarithms make "10 % slower" the same step for every model; dividing by how well a measurement
repeats keeps a noisy probe from drowning the others; principal components leave noise behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.floating[Any]]

DIMENSIONS = 5
"""Principal components kept at most."""
WINSOR = 1.5
"""Log-latencies further than this from the fleet's median are pulled in (a factor of 4.5)."""
SIGMA_FLOOR = 0.005
"""No probe is believed to repeat better than this (half a per cent)."""
SINGLE_ABOVE = 20_000
"""So many devices are held in double precision; more in single, in half the memory."""
SAMPLE = 20_000
"""Devices that noise is told from, and that what is missing is looked up among, at most."""
MANY = 10
"""Of more measurements than this, each shows in others what is no noise."""


@dataclass(frozen=True)
class Frame:
    """How latencies become points: kept, so that later devices get their place among the same."""

    models: NDArray[np.bool_]
    """(columns,) which columns count; nobody measured the others."""
    centre: Array
    """(models,) the fleet's median log-latency."""
    factor: Array
    """(models,) what a log-latency is multiplied by: noise-scaled, over the root of the models."""
    mean: Array
    """(models,) mean of what comes out, taken off."""
    axes: Array
    """(models, d) the principal components."""

    def space(self, logs: Array) -> Array:
        """Return coordinates (devices, models) of log-latencies (devices, columns); NaN stays."""
        kept = logs if self.models.all() else logs[:, self.models]
        inside = np.clip(kept - self.centre, -WINSOR, WINSOR)
        return np.asarray(inside * self.factor - self.mean)


@dataclass(frozen=True)
class Features:
    """The fleet as points.

    A distance of 0.1 means that two devices differ by about 10 % in root mean square over the
    models, whatever their number: one that is 10 % slower everywhere lies 0.1 away.
    """

    placed: NDArray[np.bool_]
    """(devices,) which devices have any measurement; the others have no place."""
    complete: NDArray[np.bool_]
    """(devices,) which devices have every measurement."""
    space: Array
    """(placed, models) noise-scaled log-latencies, centred, divided by the root of the models."""
    scores: Array
    """(placed, d) principal components of `space`, d at most `DIMENSIONS`."""
    explained: tuple[float, float]
    """Share of the variance on the first and on the second component."""
    sigma: float | None
    """Repeatability in `space` of one coordinate times the root of the models; None: unknown."""
    frame: Frame
    """What made these points of latencies."""


def features(latencies: ArrayLike, repeatability: ArrayLike | None = None) -> Features:
    """Return what devices are compared by.

    Args:
        latencies: (devices, models) in milliseconds, NaN where missing.
        repeatability: relative standard deviation of a measurement, one for all models or one a
            model; None where nobody knows.

    Raises:
        ValueError: the shape is wrong, a latency is not positive, or there is none at all.
    """
    table = np.asarray(latencies)
    if table.ndim != 2:
        raise ValueError(f"latencies must be devices x models, their shape is {table.shape}")
    if np.any(table <= 0) or np.any(np.isinf(table)):
        raise ValueError("latencies must be positive and finite; leave a missing one as NaN")
    known = ~np.isnan(table)
    if not known.any():
        raise ValueError("no device has a latency, so there is nothing to cluster")
    models, placed = known.any(axis=0), known.any(axis=1)
    complete = known[:, models].all(axis=1)
    space = table.astype(float if len(table) <= SINGLE_ABOVE else np.float32)
    del known
    if not (models.all() and placed.all()):
        space = space[np.ix_(placed, models)]
    # In place from here on: a million devices are copied as seldom as can be.
    np.log(space, out=space)
    centre = np.nanmedian(space, axis=0)
    space -= centre
    np.clip(space, -WINSOR, WINSOR, out=space)
    space = impute(space)
    if repeatability is None and len(centre) > MANY and len(space) >= MANY * len(centre):
        scale = _unexplained(space)
    else:
        scale = _noise_scale(repeatability, len(models))[models]
    reference = float(np.median(scale))
    factor = (reference / scale / np.sqrt(len(scale))).astype(space.dtype)
    space *= factor
    mean = space.mean(axis=0)
    space -= mean
    axes, explained = _components(space)
    return Features(
        placed=placed,
        complete=complete,
        space=space,
        scores=space @ axes,
        explained=explained,
        sigma=None if repeatability is None else reference,
        frame=Frame(models=models, centre=centre, factor=factor, mean=mean, axes=axes),
    )


def _noise_scale(repeatability: ArrayLike | None, models: int) -> NDArray[np.float64]:
    if repeatability is None:
        return np.ones(models)
    sigma = np.asarray(repeatability, dtype=float)
    if sigma.ndim > 1 or (sigma.ndim == 1 and len(sigma) != models):
        raise ValueError(
            f"repeatability must be one number, or one for each of the {models} models, "
            f"its shape is {sigma.shape}"
        )
    if not np.all(np.isfinite(sigma)) or np.any(sigma < 0):
        raise ValueError("repeatability must be finite and not negative")
    return np.asarray(np.maximum(np.broadcast_to(sigma, (models,)), SIGMA_FLOOR))


def _unexplained(rows: Array) -> Array:
    """Return of each measurement the deviation that the others do not explain.

    What differs between devices shows in several of many measurements; what a measurement shows
    alone is how badly it repeats (Guttman: Image theory for the structure of quantitative
    variates, Psychometrika 18, 1953).
    """
    some = rows[:: 1 + len(rows) // SAMPLE]
    low, high = np.quantile(some, [0.01, 0.99], axis=0)
    covariance = np.cov(np.clip(some, low, high).T)
    covariance[np.diag_indices_from(covariance)] += SIGMA_FLOOR**2
    return np.asarray(1 / np.sqrt(np.diag(np.linalg.inv(covariance))))


def impute(rows: Array) -> Array:
    """Fill what is missing from the device that is nearest by what is present.

    `rows` is (devices, models), centred, each row and column with a number at least. Where no
    other device has both what this one has and what it lacks, the model's median (0) stands in.
    """
    missing = np.isnan(rows)
    return _filled(rows, missing, rows, missing) if missing.any() else rows


def fill(rows: Array, donors: Array) -> Array:
    """Fill what is missing in rows from the nearest donor; the donors lack nothing."""
    missing = np.isnan(rows)
    if not missing.any():
        return rows
    if not len(donors):
        return np.where(missing, 0.0, rows)
    return _filled(rows, missing, donors, np.zeros(donors.shape, dtype=bool))


def _filled(
    rows: Array, missing: NDArray[np.bool_], donors: Array, lacking: NDArray[np.bool_]
) -> Array:
    from scipy.spatial import cKDTree

    if len(donors) > SAMPLE:
        some = np.random.default_rng(0).choice(len(donors), SAMPLE, replace=False)
        donors, lacking = donors[some], lacking[some]
    filled, given = np.where(missing, 0.0, rows), np.where(lacking, 0.0, donors)
    incomplete = np.flatnonzero(missing.any(axis=1))
    patterns, member = np.unique(missing[incomplete], axis=0, return_inverse=True)
    for index, gaps in enumerate(patterns):
        own = incomplete[member.ravel() == index]
        for column in np.flatnonzero(gaps):
            needed = ~gaps
            able = np.flatnonzero(~lacking[:, needed].any(axis=1) & ~lacking[:, column])
            if not len(able):
                able = np.flatnonzero(~lacking[:, column])
            if len(able):
                tree = cKDTree(given[np.ix_(able, needed)])
                _, nearest = tree.query(filled[np.ix_(own, needed)])
                filled[own, column] = donors[able[nearest], column]
    return filled


def _components(space: Array) -> tuple[Array, tuple[float, float]]:
    """Return the principal components; more of one is slower on the whole."""
    values, vectors = np.linalg.eigh(space.T @ space)
    order = np.argsort(values)[::-1][:DIMENSIONS]
    axes = vectors[:, order]
    signs = np.where(axes.sum(axis=0) < -1e-12, -1.0, 1.0).astype(axes.dtype)
    variance = np.maximum(values, 0.0)
    total = float(variance.sum())
    shares = variance[order] / total if total > 0 else np.zeros(len(order))
    first, second = (float(shares[i]) if i < len(shares) else 0.0 for i in (0, 1))
    return axes * signs, (first, second)
