"""The noise that the devices of a fleet share: how large, how correlated, how often far out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.fleet.limits import robust_sigma

Array = NDArray[np.float64]

REACHES = tuple(5 + i / 2 for i in range(21))
"""How far out is looked, in standard deviations."""
_MOST = 0.8
"""Correlation beyond which nothing is believed."""
_CHANCE = 6.0
"""Correlation of one over the root of the samples times this may be chance."""
_WEIGHT = 1000
"""How many samples the usual share of outliers weighs against what was seen,"""
_FOLLOWERS = 10
"""and how many outliers the assumption that they come independently."""


def usual_share(reach: float) -> float:
    """Return the share of samples beyond so many sigma where nothing was seen yet.

    Two in a hundred are outliers, six sigma far in the mean.
    """
    return 0.02 * math.exp(-reach / 6)


@dataclass(frozen=True)
class Noise:
    """What a fleet's first rounds tell about one measurement, without level and common changes."""

    sigma: float | None = None
    """Standard deviation, outliers pulled in; None while it is unknown."""
    samples: int = 0
    """How many samples it rests on."""
    rho: float = 0.0
    """Correlation of one round with the next, as far as it is certain."""
    tails: tuple[tuple[float, float], ...] = tuple((usual_share(r),) * 2 for r in REACHES)
    """For each of `REACHES` the share of samples beyond it on the worse side, and the share of
    those that another such sample follows."""

    def to_state(self) -> dict[str, Any]:
        """Return it as plain data for JSON."""
        return {**asdict(self), "tails": [list(tail) for tail in self.tails]}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Noise:
        """Return what `to_state` wrote."""
        tails = tuple((float(share), float(follow)) for share, follow in state["tails"])
        return cls(state["sigma"], int(state["samples"]), float(state["rho"]), tails)


def pooled(residuals: Array, levels: int) -> Noise:
    """Return the noise of a table.

    Args:
        residuals: (rounds, devices) around each device's level, NaN where missing.
        levels: how many levels were fitted to them.
    """
    known = residuals[~np.isnan(residuals)]
    freedom = max(len(known) - levels, 1)
    rho = _correlation(residuals)
    # A level follows its samples, and the more so the more they follow each other.
    sigma = robust_sigma(known) * math.sqrt(1 + levels / freedom * (1 + rho) / (1 - rho))
    if not sigma > 0:
        return Noise(sigma, freedom)
    return Noise(sigma, freedom, rho, _tails(residuals / sigma))


def _correlation(residuals: Array) -> float:
    """Return the lag-1 correlation, drawn towards 0 as far as chance may explain it.

    Of AR(1) noise with correlation r, values two rounds apart differ by 1 + r times the variance
    of the next ones' difference; neither knows of levels, and outliers are in both alike.
    """
    next_one, after_next = residuals[1:] - residuals[:-1], residuals[2:] - residuals[:-2]
    near, far = (np.abs(steps[~np.isnan(steps)]) for steps in (next_one, after_next))
    if not len(near) or not len(far) or not np.median(near) > 0:
        return 0.0
    rho = (float(np.median(far)) / float(np.median(near))) ** 2 - 1
    chance = _CHANCE / math.sqrt(len(far))
    return min(rho * (1 - (chance / rho) ** 2), _MOST) if rho > chance else 0.0


def _tails(z: Array) -> tuple[tuple[float, float], ...]:
    known = ~np.isnan(z)
    count, followed = int(known.sum()), known[:-1] & known[1:]
    tails = []
    for reach in REACHES:
        out = max((z > reach, z < -reach), key=np.count_nonzero)
        share = (int(out.sum()) + _WEIGHT * usual_share(reach)) / (count + _WEIGHT)
        first = out[:-1] & followed
        again = int((first & out[1:]).sum())
        tails.append((share, (again + _FOLLOWERS * share) / (int(first.sum()) + _FOLLOWERS)))
    return tuple(tails)
