"""Which cluster of a new clustering is which of the old one."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def match(old: ArrayLike, new: ArrayLike, least: float = 0.3, first: int = 0) -> dict[int, int]:
    """Return which id each new cluster should keep, so that ids stay stable over time.

    Clusters are paired so that they share as many devices as possible (Kuhn, 1955); a pair
    counts where its Jaccard index is at least `least`. A cluster without a partner gets an id
    that was not used before.

    Args:
        old: labels of the devices before, -1 for noise.
        new: labels of the same devices now.
        least: smallest Jaccard index of a pair.
        first: the first id that may be given to a new cluster; above all old labels in any case.

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
    mapping, fresh = {}, max(height, first)
    for label in range(width):
        partner = kept.get(label)
        if partner is not None and jaccard[partner, label] >= least:
            mapping[label] = partner
        else:
            mapping[label], fresh = fresh, fresh + 1
    return mapping
