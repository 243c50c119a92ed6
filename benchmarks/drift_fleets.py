"""Fleets that are simulated round by round and watched by the real monitor.

Noise is normal, 2.5 % of the latency, with a given lag-1 correlation; two samples in a hundred are
slow outliers besides, 15 % in the mean and heavy-tailed (Lomax, shape 2: no finite variance). What
all devices share moves by 1 % from round to round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engine.fleet.budget import Budget
from engine.fleet.drift import FleetMonitor, Signal

Array = NDArray[np.float64]

NOISE, COMMON = 0.025, 0.01
OUTLIERS, OUTLIER_SIZE = 0.02, 0.15
SIZES = (0.05, 0.1, 0.2)
RAMP = 0.0002
"""Growth a round: 2 % in a hundred."""
SHARES = (0.55, 0.3, 0.15)
"""Of the clusters."""


@dataclass
class Watched:
    """What became of one simulated fleet."""

    weeks: float
    """After the first baselines were there."""
    false: list[Signal] = field(default_factory=list)
    delays: dict[float, list[float]] = field(default_factory=dict)
    """Samples until a step was told, by its size; infinite where it was not."""
    ramps: list[float] = field(default_factory=list)
    """By how much devices had slowed down when their ramp was told."""
    rho: float = 0.0
    """Correlation as the monitor learned it."""
    h: float = 0.0
    jump_z: float = 0.0


def noise(rng: np.random.Generator, devices: int, rho: float) -> Iterator[Array]:
    """Yield the log-latencies of round after round, around each device's level."""
    normal = rng.normal(0, 1, devices)
    while True:
        values = NOISE * normal + rng.normal(0, COMMON)
        slow = rng.random(devices) < OUTLIERS
        values[slow] += OUTLIER_SIZE * rng.pareto(2, int(slow.sum()))
        yield values
        normal = rho * normal + math.sqrt(1 - rho**2) * rng.normal(0, 1, devices)


def watch(
    seed: int,
    devices: int,
    rounds: int,
    rho: float,
    change: Callable[[int], Array | float],
    versions: Callable[[int], dict[str, str]] | None = None,
) -> tuple[list[Signal], FleetMonitor]:
    """Watch a fleet whose devices change as they are told; return all that is said.

    Args:
        change: log of what each device's latency is multiplied by in a round.
        versions: what each device runs in a round.
    """
    rng = np.random.default_rng(seed)
    monitor = FleetMonitor(budget=Budget())
    names = [f"d{i}" for i in range(devices)]
    level = rng.normal(math.log(10), 0.1, devices)
    labels = rng.choice(len(SHARES), devices, p=SHARES)
    clusters = dict(zip(names, labels.tolist(), strict=True))
    said: list[Signal] = []
    for at, values in zip(range(rounds), noise(rng, devices, rho), strict=False):
        latencies = np.exp(level + values + change(at))
        runs = versions(at) if versions else None
        told, _ = monitor.update(dict(zip(names, latencies.tolist(), strict=True)), clusters, runs)
        said += told
    return said, monitor


def hourly(seed: int, rho: float, devices: int = 5000, rounds: int = 480) -> Watched:
    """Watch a fleet in which now and then one device changes, and most never do.

    From round 150 to round 370 some 330 devices take a step of 5, 10 or 20 %, up or down, one after
    the other; thirty slow down by 2 % in a hundred rounds from round 150 on.
    """
    rng = np.random.default_rng([seed, 1])
    first, last = 150, 370
    starts = np.full(devices, rounds)
    steps = np.zeros(devices)
    stepping = 330
    starts[:stepping] = np.linspace(first, last, stepping)
    percent = np.resize(SIZES, stepping)
    steps[:stepping] = np.log1p(percent) * rng.choice([-1, 1], stepping)
    ramping = range(stepping, stepping + 30)

    def change(at: int) -> Array:
        moved = np.where(at >= starts, steps, 0.0)
        moved[list(ramping)] = math.log1p(RAMP * max(at - first, 0))
        return moved

    said, monitor = watch(seed, devices, rounds, rho, change)
    limits = monitor.limits
    found = Watched(
        (rounds - limits.minimum) / 168, rho=monitor.noise.rho, h=limits.h, jump_z=limits.jump_z
    )
    told: dict[int, int] = {}
    for one in said:
        number = int(one.subject[1:]) if one.scope == "device" else -1
        since = first if number in ramping else int(starts[number]) if number >= 0 else rounds
        if one.round < since:
            found.false.append(one)
        else:
            told.setdefault(number, one.round)
    for number in range(stepping):
        delay = told.get(number, math.inf) - starts[number] + 1
        found.delays.setdefault(float(percent[number]), []).append(float(delay))
    found.ramps = [RAMP * (told.get(number, math.inf) - first) for number in ramping]
    return found


def update(
    seed: int, staged: int, told: bool, devices: int = 2000, size: float = 0.06
) -> tuple[list[Signal], FleetMonitor]:
    """Watch an update reach a whole fleet from round 150 on, within so many rounds.

    Args:
        told: whether the monitor is told what version each device runs.
    """
    rng = np.random.default_rng([seed, 2])
    when = 150 + (rng.integers(0, staged, devices) if staged else np.zeros(devices, dtype=int))

    def versions(at: int) -> dict[str, str]:
        return {f"d{i}": "2" if at >= when[i] else "1" for i in range(devices)}

    return watch(
        seed,
        devices,
        150 + staged + 100,
        0.0,
        lambda at: np.where(at >= when, math.log1p(size), 0.0),
        versions if told else None,
    )
