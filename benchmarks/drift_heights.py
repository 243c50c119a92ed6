"""The heights of `engine.fleet.budget`: how often each chart alarms on noise alone.

    python -m benchmarks.drift_heights

Noise is normal with lag-1 correlation rho; two samples in a hundred are slow outliers, six
deviations in the mean and exponential, as `engine.fleet.pooled` has them. The pooled deviation is
larger by what those outliers add to it, and each baseline is off by the error of 60
independent samples.
"""

from __future__ import annotations

import argparse
import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from engine.fleet.budget import RATES, RHOS
from engine.fleet.limits import DriftSettings, midmean_error

Array = NDArray[np.float64]

ERROR = midmean_error(60)
"""Of a baseline, which rests on more samples where they are correlated."""
OUTLIERS = 0.02
SLOW = -6 * np.log(1 - (np.arange(5) + 0.5) / 5)
"""Outliers, a fifth of all each."""
CORE = 0.949
"""Deviation of the normal noise in units of the pooled one, outliers pulled in to three."""
CELLS = np.arange(-4.6, 4.61, 0.2)
"""Values of the noise, each standing for all around it."""
OFF = np.linspace(-1, 5, 9)
"""Errors of the baseline, in standard errors."""
LIMITS = DriftSettings()


def transitions(rho: float) -> Array:
    """Return the probability of each cell after each cell."""
    edges = np.r_[-np.inf, (CELLS[1:] + CELLS[:-1]) / 2, np.inf]
    scaled = (edges - rho * CELLS[:, None]) / math.sqrt(1 - rho**2)
    return np.diff(np.vectorize(NormalDist().cdf)(scaled), axis=1)


def alarm_rate(steps: Array, outliers: Array, share: float, rho: float, height: float) -> Array:
    """Return the alarms a sample of a chart that has run for long without one.

    Args:
        steps: (variants, cells) what the noise adds to the sum.
        outliers: what an outlier adds instead, all equally likely.
        share: of the outliers.
        rho: lag-1 correlation.
        height: at which the chart alarms.
    """
    after, variants, cells = transitions(rho), len(steps), len(CELLS)
    levels = round(height / max(0.2, height / 80) + 0.5)
    width = height / (levels - 0.5)

    def targets(step: Array) -> tuple[Array, Array, Array]:
        reached = np.maximum(np.arange(levels)[None, :, None] * width + step[:, None, :], 0)
        low = np.floor(reached / width + 1e-9)
        part = np.maximum(reached / width - low, 0.0)
        beyond = low >= levels
        part[beyond] = 0.0
        return np.minimum(low, levels), np.minimum(low + 1, levels), part

    first = np.arange(variants)[:, None, None] * ((levels + 1) * cells) + np.arange(cells)
    places, weights = [], []
    for step, weight in [(steps, 1 - share)] + [
        (np.full_like(steps, outlier), share / len(outliers)) for outlier in outliers
    ]:
        low, high, part = targets(step)
        places += [(first + low * cells).ravel(), (first + high * cells).ravel()]
        weights += [weight * (1 - part), weight * part]
    place = np.concatenate(places).astype(int)
    state = np.zeros((variants, levels, cells))
    state[:, 0] = after[cells // 2]
    leak = np.ones(variants)
    for _ in range(200):
        before = leak
        for _ in range(25):
            moved = state @ after
            mass = np.bincount(
                place,
                np.concatenate([(weight * moved).ravel() for weight in weights]),
                minlength=variants * (levels + 1) * cells,
            ).reshape(variants, levels + 1, cells)
            leak = mass[:, levels].sum(axis=-1)
            state = mass[:, :levels] / (1 - leak)[:, None, None]
        if np.all(np.abs(leak - before) <= 0.01 * leak):
            break
    return leak


def averaged(rates: Array) -> float:
    """Return the mean over all baselines, from the rates at `OFF`."""
    fine = np.linspace(-5, 5, 1001)
    density = np.exp(-(fine**2) / 2)
    logs = np.interp(fine, OFF, np.log(np.maximum(rates, 1e-300)))
    return float(np.exp(logs) @ density / density.sum())


def level_rate(height: float, rho: float) -> float:
    """Return the alarms a sample of the two-sided CUSUM."""
    z = CORE * (CELLS + ERROR * OFF[:, None])

    def one_side(sign: int) -> float:
        steps = np.clip(z, -LIMITS.clip, LIMITS.clip) - LIMITS.k
        slow = np.clip(sign * SLOW, -LIMITS.clip, LIMITS.clip) - LIMITS.k
        return averaged(alarm_rate(steps, slow, OUTLIERS, rho, height))

    return one_side(1) + one_side(-1)


def spread_rate(height: float, rho: float) -> float:
    """Return the alarms a sample of the chart of the spread."""
    z = CORE * (CELLS + ERROR * OFF[:, None]) / math.hypot(1, ERROR)

    def steps(values: Array) -> Array:
        excess = np.minimum((np.sqrt(np.abs(values)) - 0.822) / 0.349, LIMITS.scale_cap)
        return excess - LIMITS.scale_k

    return averaged(alarm_rate(steps(z), steps(SLOW), OUTLIERS, rho, height))


def heights(rate, rho: float) -> list[float]:  # type: ignore[no-untyped-def]
    """Return the height for each of `RATES`, from rates at growing heights."""
    at, logs = [], []
    height, step = 3.0, 1.0 + 4 * rho
    while not logs or logs[-1] > RATES[-1]:
        at.append(height)
        logs.append(math.log10(rate(height, rho)))
        height, step = height + step, step * 1.25
    return [round(float(np.interp(-power, -np.array(logs), at)), 1) for power in RATES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("charts", nargs="*", default=["level", "spread"])
    parser.add_argument("--rhos", nargs="*", type=float, default=RHOS)
    args = parser.parse_args()
    for name in args.charts:
        print(f"{name}: heights for rates of 10 to the power of {RATES}")
        for rho in args.rhos:
            row = heights({"level": level_rate, "spread": spread_rate}[name], rho)
            print(f"    {tuple(row)},  # rho {rho}", flush=True)


if __name__ == "__main__":
    main()
