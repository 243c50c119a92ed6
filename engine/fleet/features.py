"""From measured latencies to the space in which devices are compared.

Logarithms make "10 % slower" the same step for every model; dividing by how well a measurement
repeats keeps a noisy probe from drowning the others; principal components leave noise behind.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

DIMENSIONS = 5
"""Principal components kept at most."""
WINSOR = 1.5
"""Log-latencies further than this from the fleet's median are pulled in (a factor of 4.5)."""
SIGMA_FLOOR = 0.005
"""No probe is believed to repeat better than this (half a per cent)."""


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


def features(latencies: ArrayLike, repeatability: ArrayLike | None = None) -> Features:
    """Return what devices are compared by.

    Args:
        latencies: (devices, models) in milliseconds, NaN where missing.
        repeatability: relative standard deviation of a measurement, one for all models or one a
            model; None where nobody knows.

    Raises:
        ValueError: the shape is wrong, a latency is not positive, or there is none at all.
    """
    table = np.asarray(latencies, dtype=float)
    if table.ndim != 2:
        raise ValueError(f"latencies must be devices x models, their shape is {table.shape}")
    if np.any(table <= 0) or np.any(np.isinf(table)):
        raise ValueError("latencies must be positive and finite; leave a missing one as NaN")
    known = ~np.isnan(table)
    if not known.any():
        raise ValueError("no device has a latency, so there is nothing to cluster")
    models = known.any(axis=0)
    scale = _noise_scale(repeatability, table.shape[1])[models]
    placed = known.any(axis=1)
    logs = np.log(table[np.ix_(placed, models)])
    logs = np.clip(logs - np.nanmedian(logs, axis=0), -WINSOR, WINSOR)
    reference = float(np.median(scale))
    space = impute(logs) * (reference / scale) / np.sqrt(len(scale))
    space = space - space.mean(axis=0)
    scores, explained = _components(space)
    return Features(
        placed=placed,
        complete=known[:, models].all(axis=1),
        space=space,
        scores=scores,
        explained=explained,
        sigma=None if repeatability is None else reference,
    )


def _noise_scale(repeatability: ArrayLike | None, models: int) -> Array:
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
    scale: Array = np.maximum(np.broadcast_to(sigma, (models,)), SIGMA_FLOOR)
    return scale


def impute(logs: Array) -> Array:
    """Fill what is missing from the device that is nearest by what is present.

    `logs` is (devices, models), centred, each row and column with a number at least. Where no
    other device has both what this one has and what it lacks, the model's median (0) stands in.
    """
    missing = np.isnan(logs)
    if not missing.any():
        return logs
    from scipy.spatial import cKDTree

    filled = np.where(missing, 0.0, logs)
    patterns, member = np.unique(missing, axis=0, return_inverse=True)
    for index, gaps in enumerate(patterns):
        rows = np.flatnonzero(member.ravel() == index)
        for column in np.flatnonzero(gaps):
            needed = ~gaps
            donors = np.flatnonzero(~missing[:, needed].any(axis=1) & ~missing[:, column])
            if not len(donors):
                donors = np.flatnonzero(~missing[:, column])
            tree = cKDTree(filled[np.ix_(donors, needed)])
            _, nearest = tree.query(filled[np.ix_(rows, needed)])
            filled[rows, column] = logs[donors[nearest], column]
    return filled


def _components(space: Array) -> tuple[Array, tuple[float, float]]:
    """Project on the principal components; more of a component is slower on the whole."""
    values, vectors = np.linalg.eigh(space.T @ space)
    order = np.argsort(values)[::-1][:DIMENSIONS]
    axes = vectors[:, order]
    signs = np.where(axes.sum(axis=0) < -1e-12, -1.0, 1.0)
    variance = np.maximum(values, 0.0)
    total = float(variance.sum())
    shares = variance[order] / total if total > 0 else np.zeros(len(order))
    first, second = (float(shares[i]) if i < len(shares) else 0.0 for i in (0, 1))
    return space @ (axes * signs), (first, second)
