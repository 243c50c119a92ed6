"""How much a series must change to count as changed, and how well noise is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MAD = 1.4826
"""Makes the median absolute deviation of normal noise its standard deviation."""


@dataclass(frozen=True)
class DriftSettings:
    """When a series counts as changed. Deviations are in standard deviations (sigma)."""

    baseline: int = 60
    """Samples whose middle half becomes the baseline, which then stays frozen; more of them where
    they are correlated."""
    minimum: int = 30
    """Samples before which only a jump of `learning_percent` is told (at most `baseline`)."""
    clip: float = 3.0
    """Winsorising: larger deviations count as this."""
    k: float = 0.8
    """Slack of the CUSUM: half the shift that it is sharpest for."""
    h: float = 12.0
    """Height at which the CUSUM alarms."""
    jump_z: float = 6.0
    """Deviation that counts as a jump."""
    jump_consecutive: int = 3
    """Samples in a row that a jump must last."""
    scale_k: float = 0.5
    """Slack of the chart of the spread."""
    scale_h: float = 10.0
    """Height at which it alarms."""
    scale_cap: float = 1.5
    """Winsorising of it."""
    sigma_floor: float = 0.005
    """Smallest standard deviation of log-latency that is believed."""
    effect_percent: float = 3.0
    """Smallest change worth telling."""
    clear_percent: float = 2.0
    """A change is over once the series is back within this of its baseline,"""
    clear_consecutive: int = 5
    """for this many samples."""
    learning_percent: float = 20.0
    """A jump up of this much is told while the baseline is still being learned."""
    correlation: float = 0.0
    """Of one sample's noise with the next one's."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name in ("baseline", "minimum", "jump_consecutive", "clear_consecutive"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, it is {getattr(self, name)}")
        for name in ("clip", "h", "jump_z", "scale_h", "sigma_floor"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, it is {getattr(self, name)}")
        if not 0 <= self.correlation < 1:
            raise ValueError(f"correlation must be from 0 to below 1, it is {self.correlation}")

    @property
    def whole_baseline(self) -> int:
        """How many samples tell as much as `baseline` independent ones."""
        return math.ceil(self.baseline / self.independent(1.0))

    def independent(self, samples: float) -> float:
        """Return how many independent samples tell as much as these."""
        return samples * (1 - self.correlation) / (1 + self.correlation)


def midmean(values: Sequence[float]) -> float:
    """Return the mean of the middle half: outliers do not move it, and it is off by less than a
    median."""
    ordered, cut = sorted(values), (len(values) + 1) // 4
    kept = ordered[cut : len(ordered) - cut]
    return sum(kept) / len(kept)


def midmean_error(samples: float) -> float:
    """Return the standard error of a mean of the middle half of normal samples, in sigma."""
    return 1.09 / math.sqrt(samples)


def median_error(samples: float) -> float:
    """Return the standard error of a median of that many normal samples, in sigma."""
    return 1.2533 / math.sqrt(samples)


def sigma_error(samples: int) -> float:
    """Return the relative standard error of `robust_sigma` of that many normal samples."""
    return 0.8 / math.sqrt(samples)


def robust_sigma(deviations: Array) -> float:
    """Return the standard deviation of noise around 0, outliers pulled in to three sigma.

    Three sigma by the median absolute deviation, which alone would waste two thirds of the
    samples.
    """
    rough = MAD * float(np.median(np.abs(deviations)))
    pulled = np.clip(deviations, -3 * rough, 3 * rough)
    return float(np.sqrt(np.mean(pulled**2)))
