"""How high the charts must be so that chance alarms no more often than is allowed.

The allowance is shared out over all series and rounds of a week. A chart's rate of false alarms
is that of a Markov chain (Brook and Evans, An approach to the probability distribution of cusum
run length, Biometrika 59, 1972) over the height of the sum and the correlated noise beneath it,
averaged over how far a baseline of 60 independent samples may be off.
`python -m benchmarks.drift_heights` computes the tables.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from engine.fleet.limits import DriftSettings
from engine.fleet.pooled import REACHES, Noise

JUMP, SPREAD = 0.4, 0.1
"""Shares of the allowance: that of jumps at most, that of the spread; the CUSUM has the rest."""
RATES = (-3, -4, -5, -6, -7, -8, -9)
"""Alarms a sample, as powers of ten, for which there are heights."""
RHOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
LEVEL_HEIGHTS = (
    (4.3, 6.2, 8.3, 10.6, 13.3, 16.5, 20.7),  # 0.0
    (4.8, 6.9, 9.3, 12.0, 15.1, 18.9, 23.8),  # 0.1
    (5.3, 7.8, 10.6, 13.8, 17.5, 22.2, 28.2),  # 0.2
    (6.0, 9.1, 12.4, 16.2, 20.7, 26.3, 33.5),  # 0.3
    (7.0, 10.7, 14.8, 19.5, 25.0, 31.7, 40.5),  # 0.4
    (8.3, 12.9, 18.1, 24.1, 31.1, 39.5, 50.3),  # 0.5
    (10.1, 16.1, 22.9, 30.5, 39.6, 50.8, 65.1),  # 0.6
    (12.8, 21.2, 30.6, 41.4, 54.0, 69.4, 89.2),  # 0.7
    (17.6, 30.6, 45.2, 61.8, 81.3, 105.3, 136.3),  # 0.8
)
"""Heights of the CUSUM (k 0.8, clip 3, both sides together), a row for each of `RHOS`."""
SPREAD_HEIGHTS = (
    (3.8, 5.4, 7.0, 8.6, 10.2, 11.9, 13.5),  # 0.0
    (3.8, 5.5, 7.1, 8.8, 10.5, 12.2, 14.0),  # 0.1
    (4.0, 5.8, 7.6, 9.4, 11.2, 13.1, 15.1),  # 0.2
    (4.4, 6.3, 8.3, 10.3, 12.4, 14.6, 16.9),  # 0.3
    (4.9, 7.1, 9.5, 11.9, 14.4, 17.0, 19.8),  # 0.4
    (5.6, 8.4, 11.2, 14.2, 17.3, 20.4, 24.0),  # 0.5
    (6.7, 10.3, 14.0, 17.8, 21.8, 26.1, 30.4),  # 0.6
    (8.5, 13.4, 18.5, 23.8, 29.4, 35.2, 41.6),  # 0.7
    (11.6, 19.3, 27.3, 35.6, 44.5, 53.8, 63.5),  # 0.8
)
"""Heights of the chart of the spread (k 0.5, cap 1.5)."""
_LEAST_LEVEL, _LEAST_SPREAD = 6.0, 10.0
"""Lower than this no chart is, however small the fleet."""


@dataclass(frozen=True)
class Budget:
    """How often a fleet may alarm by chance."""

    per_week: float = 1.0
    """False alerts in a week, over the whole fleet."""
    rounds_per_week: float = 168.0
    """How often each device is looked at; hourly as it stands."""
    fixed: frozenset[str] = frozenset()
    """Limits that stay as they were given: "h", "jump_z", "scale_h"."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name in ("per_week", "rounds_per_week"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be above 0, it is {value}")

    def limits(self, settings: DriftSettings, noise: Noise, series: int) -> DriftSettings:
        """Return the settings with heights that keep within the budget.

        Args:
            settings: everything that no budget decides.
            noise: of the fleet.
            series: how many series are watched.
        """
        rate = self.per_week / (max(series, 1) * self.rounds_per_week)
        jump_z, jumps = _jump(JUMP * rate, noise, settings.jump_consecutive)
        level = (1 - SPREAD) * rate - jumps
        found: dict[str, Any] = {
            "h": max(height(LEVEL_HEIGHTS, level, noise.rho), _LEAST_LEVEL),
            "scale_h": max(height(SPREAD_HEIGHTS, SPREAD * rate, noise.rho), _LEAST_SPREAD),
            "jump_z": jump_z,
            "correlation": noise.rho,
        }
        return replace(settings, **{n: v for n, v in found.items() if n not in self.fixed})


def height(table: tuple[tuple[float, ...], ...], rate: float, rho: float) -> float:
    """Return the height at which a chart alarms so often; beyond the table its last slope goes on.

    Args:
        table: heights by correlation and rate, each in steps as `RHOS` and `RATES`.
        rate: alarms a sample.
        rho: lag-1 correlation of the noise.
    """
    at = -math.log10(rate)
    row = [float(np.interp(rho, RHOS, column)) for column in zip(*table, strict=True)]
    powers = [-float(power) for power in RATES]
    if at > powers[-1]:
        return row[-1] + (at - powers[-1]) * (row[-1] - row[-2])
    return float(np.interp(at, powers, row))


def _jump(rate: float, noise: Noise, lasting: int) -> tuple[float, float]:
    """Return the smallest deviation that outliers reach so many times in a row seldom enough.

    And how often they do; never more than `rate`, wherever the tails end.
    """
    for reach, (share, follow) in zip(REACHES, noise.tails, strict=True):
        often = share * follow ** (lasting - 1)
        if often <= rate:
            return reach, often
    return REACHES[-1], rate
