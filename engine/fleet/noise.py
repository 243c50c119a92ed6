"""The noise of one series, told from the series itself, whatever its level and trend do."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from engine.fleet.limits import MAD

Array = NDArray[np.float64]

_TELLING = 40
"""A shorter series does not tell correlated noise from a change."""
_INTEGRATED = 0.85
"""Lag-1 correlation from which a series has no level to return to."""
_AROUND = 21
"""Differences from which the noise at one place is told."""


def noise_of(series: Array) -> tuple[float, float]:
    """Return standard deviation and lag-1 correlation of what is not level or trend."""
    # What a short series shows of correlation may be chance.
    most = 0.97 if len(series) >= _TELLING else 0.5
    rho = min(max(correlation(series) - 2 / math.sqrt(len(series)), 0.0), most)
    return deviation(series) / math.sqrt(2 * (1 - rho)), rho


def wanders(series: Array) -> bool:
    """Tell whether a series has no level to return to."""
    return len(series) >= _TELLING and correlation(series) > _INTEGRATED


def correlation(series: Array) -> float:
    """Return the lag-1 correlation of what is not level or trend.

    For AR(1) noise with correlation r, differences have variance 2 s^2 (1 - r) and correlate by
    (r - 1) / 2 with the next; changes of level are outliers among them, and are left out.
    """
    steps, scale = differences(series)
    usual = np.abs(steps) <= 3 * scale
    # In units of the noise around them, so that a change of spread is none of correlation.
    steps = steps / np.where(scale > 0, scale, 1.0)
    pairs = usual[1:] & usual[:-1]
    first, second = steps[:-1][pairs], steps[1:][pairs]
    power = float(first @ first + second @ second) / 2
    if not power > 0:
        return 0.0
    return 1 + 2 * float(first @ second) / power


def differences(series: Array) -> tuple[Array, Array]:
    """Return a series' differences without its trend, and the standard deviation around each."""
    steps = np.diff(series)
    steps = steps - np.median(steps)
    width = min(_AROUND, len(steps))
    windows = np.lib.stride_tricks.sliding_window_view(np.abs(steps), width)
    scale = MAD * np.median(windows, axis=1)
    missing = len(steps) - len(scale)
    return steps, np.pad(scale, (missing // 2, missing - missing // 2), mode="edge")


def deviation(series: Array) -> float:
    """Return the standard deviation of differences; outliers among them do not count.

    Where the noise is not the same everywhere, it is the geometric mean: a noisy half does not
    hide what happens in the quiet one.
    """
    steps, scale = differences(series)
    usual = np.abs(steps) <= 3 * scale
    whole = float(np.sqrt(np.mean(steps[usual] ** 2))) / 0.987
    if not scale.min() > 0:
        return whole
    # Of equal noise both are the same but for chance.
    return min(whole, 1.06 * float(np.exp(np.mean(np.log(scale)))))
