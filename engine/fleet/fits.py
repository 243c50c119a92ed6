"""Telling a step from a ramp: least squares of either, for every start at once."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Kind = Literal["step", "ramp", "spread"]

RAMP_LEAST = 5
"""Samples that a ramp needs."""
STRETCH = 9
"""Samples from which is told how far a ramp has got."""


def jumps(z: Array, at: int) -> bool:
    """Tell whether most of a rise from 0 happens at one place."""
    before, after = z[max(at - STRETCH, 0) : at], z[at : at + STRETCH]
    if not len(before):
        return False
    jump = abs(float(np.median(after) - np.median(before)))
    return jump > 0.5 * abs(float(np.median(z[-STRETCH:])))


def misfit(values: Array, kind: Kind) -> float:
    """Return the sum of squares around a level (step) or a line (ramp)."""
    if kind == "step" or len(values) < 3:
        return float(((values - values.mean()) ** 2).sum()) if len(values) else 0.0
    at = np.arange(len(values), dtype=float)
    at -= at.mean()
    centred = values - values.mean()
    return float(centred @ centred - (at @ centred) ** 2 / (at @ at))


def gains(z: Array) -> tuple[Array, Array]:
    """Return how much of the sum of squares a step and a ramp up from 0 explain, by start."""
    at, count = np.arange(len(z)), np.arange(len(z), 0, -1)
    left = np.cumsum(z[::-1])[::-1]
    steps = left**2 / count
    moment = np.cumsum((at * z)[::-1])[::-1] - (at - 1) * left
    ramps = moment**2 / (count * (count + 1) * (2 * count + 1) / 6)
    steps[-2:], ramps[-RAMP_LEAST:] = 0.0, 0.0
    return steps, ramps
