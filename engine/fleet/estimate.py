"""The fleet's mean latency from few devices: a stratified estimate over the clusters.

Devices of a cluster are alike, so that a few of each tell as much as many of the fleet. Formulas
are numbered as in Cochran: Sampling Techniques, third edition, 1977.

>>> import numpy as np
>>> labels = np.repeat([0, 1], [60, 40])
>>> values = np.full(100, np.nan)
>>> values[[3, 20, 41, 70, 80, 90]] = 10.1, 10.0, 9.9, 15.2, 15.0, 14.8
>>> round(estimate(values, labels).mean_ms, 2)
12.0
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Labels = NDArray[np.int64]

NOISE = -1
"""The stratum of the devices that are in no cluster."""
CONFIDENCE = 0.95
LEAST = 3
"""Devices of a stratum to measure at least; fewer leave its spread to chance."""
LEAST_SPREAD = 0.005
"""Devices of a stratum are taken to differ by at least this, relative to their mean."""
UNKNOWN_SPREAD = 0.05
"""The same where nothing tells how much they differ."""


@dataclass(frozen=True)
class Stratum:
    """One cluster, or the noise, in an estimate."""

    id: int
    """The cluster's id; -1 is noise."""
    devices: int
    """How many devices it stands for."""
    measured: int
    """How many of them were measured."""
    mean_ms: float
    """Mean of those; NaN where there are none."""
    deviation_ms: float
    """Their standard deviation; NaN below two."""


@dataclass(frozen=True)
class Estimate:
    """The mean latency of a fleet, with its interval."""

    mean_ms: float
    low_ms: float
    high_ms: float
    """Ends of the interval; the mean itself where every device was measured and no error told."""
    freedom: float
    """Degrees of freedom of Student's t behind it; infinite where nothing is left to chance."""
    devices: int
    """Devices of the fleet."""
    measured: int
    covered: float
    """Share of the fleet in strata of which a device was measured; the mean is over these."""
    strata: tuple[Stratum, ...]
    """The clusters, the noise last."""
    repeatability: float = 0.0
    """Relative standard deviation of one measurement that was reckoned with."""

    @property
    def within_percent(self) -> float:
        """Half of the interval's width, in per cent of the mean."""
        return 50 * (self.high_ms - self.low_ms) / self.mean_ms


@dataclass(frozen=True)
class Plan:
    """How many devices of each stratum to measure."""

    allocation: Mapping[int, int]
    """Devices by stratum."""
    within_percent: float
    """Half of the width, in per cent of the mean, that the interval is expected to have."""

    @property
    def devices(self) -> int:
        """All of them together."""
        return sum(self.allocation.values())


def estimate(
    values: ArrayLike,
    labels: ArrayLike,
    placed: ArrayLike | None = None,
    repeatability: float = 0.0,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """Estimate the mean of a fleet from the devices that were measured.

    The measured devices of each stratum must be as good as drawn at random. The variance is
    Cochran's (5.6) with the finite population correction, the degrees of freedom are
    Satterthwaite's (5.16). A stratum of which one device alone was measured is taken to spread as
    all measured devices do, which errs on the safe side.

    Args:
        values: (devices,) latency in milliseconds, NaN where not measured.
        labels: (devices,) the cluster of each, -1 for noise.
        placed: (devices,) whose label is known; the others are taken to be spread over the strata
            as these are, and the chance in that is counted (12.2). All where left out.
        repeatability: relative standard deviation of one measurement; it is what is left of the
            uncertainty where every device was measured (10.15).
        confidence: of the interval.

    Raises:
        ValueError: the shapes do not fit, a value is not positive, or fewer than two devices were
            measured.
    """
    found, ids = np.asarray(values, dtype=float), np.asarray(labels, dtype=np.int64)
    known = np.ones(ids.shape, dtype=bool) if placed is None else np.asarray(placed, dtype=bool)
    _check(found, ids, known, confidence)
    strata = strata_of(found, ids, known)
    sampled = [one for one in strata if one.measured]
    sizes = np.array([one.devices for one in sampled], dtype=float)
    counts = np.array([one.measured for one in sampled], dtype=float)
    means = np.array([one.mean_ms for one in sampled])
    everything = found[known & ~np.isnan(found)]
    spreads, freedoms = _spreads(sampled, everything)
    weights = sizes / sizes.sum()
    mean = float(weights @ means)
    parts, error = _variance(sizes, counts, spreads, repeatability * means)
    between = 0.0
    if not known.all():
        phase = 1 / known.sum() - 1 / len(ids)
        between = float(phase * (weights @ (means - mean) ** 2))
    variance = float(parts.sum()) + error + between
    freedom = _freedom(parts, freedoms, variance)
    half = _quantile(confidence, freedom) * math.sqrt(variance)
    return Estimate(
        mean_ms=mean,
        low_ms=mean - half,
        high_ms=mean + half,
        freedom=freedom,
        devices=len(ids),
        measured=len(everything),
        covered=float(sizes.sum() / sum(one.devices for one in strata)),
        strata=strata,
        repeatability=repeatability,
    )


def strata_of(values: Array, labels: Labels, placed: NDArray[np.bool_]) -> tuple[Stratum, ...]:
    """Return the strata of a fleet with what was measured in each, the noise last.

    Devices without a place are shared out over the strata.
    """
    ids, member = np.unique(labels[placed], return_inverse=True)
    counts = np.bincount(member, minlength=len(ids))
    sizes = _shared_out(counts, len(labels))
    strata = []
    for index, one in enumerate(int(i) for i in ids):
        own = values[placed][member == index]
        own = own[~np.isnan(own)]
        strata.append(
            Stratum(
                id=one,
                devices=int(sizes[index]),
                measured=len(own),
                mean_ms=float(own.mean()) if len(own) else math.nan,
                deviation_ms=float(own.std(ddof=1)) if len(own) > 1 else math.nan,
            )
        )
    return tuple(sorted(strata, key=lambda one: (one.id == NOISE, one.id)))


def plan(
    strata: Sequence[Stratum],
    within_percent: float,
    confidence: float = CONFIDENCE,
    repeatability: float = 0.0,
) -> Plan:
    """Return how many devices to measure until the mean is known within so many per cent.

    As many of each stratum as is in proportion to its size times its spread (Neyman, Journal of
    the Royal Statistical Society 97, 1934; Cochran 5.26), at least `LEAST` of them or all.

    Args:
        strata: as far as they are known; one that was not measured is taken to be like the rest.
        within_percent: half of the interval's width.
        confidence: of the interval.
        repeatability: as `estimate` takes it; even all devices may not be enough for the width.

    Raises:
        ValueError: the width is not positive, or there is no measurement at all.
    """
    if not (math.isfinite(within_percent) and within_percent > 0):
        raise ValueError(f"the width must be a number above 0, it is {within_percent:g}")
    sizes = np.array([one.devices for one in strata], dtype=float)
    means = np.array([one.mean_ms for one in strata])
    if not len(strata) or np.isnan(means).all():
        raise ValueError("nothing was measured yet that could tell how much devices differ")
    means = np.where(np.isnan(means), np.nanmean(means), means)
    spreads = np.array([one.deviation_ms for one in strata])
    spreads = np.where(np.isnan(spreads), UNKNOWN_SPREAD * means, spreads)
    spreads = np.maximum(spreads, LEAST_SPREAD * means)
    mean = float(sizes @ means / sizes.sum())
    wanted = mean * within_percent / 100

    def allocated(scale: float) -> Array:
        wished = np.maximum(LEAST, np.ceil(scale * sizes * spreads))
        return np.asarray(np.minimum(sizes, wished))

    def half(counts: Array) -> float:
        parts, error = _variance(sizes, counts, spreads, repeatability * means)
        variance = float(parts.sum()) + error
        freedom = _freedom(parts, np.maximum(counts - 1, 1), variance)
        return _quantile(confidence, freedom) * math.sqrt(variance)

    low, high = 0.0, 1 / float(spreads.min())
    if half(allocated(low)) <= wanted:
        high = low
    for _ in range(60):
        if np.sum(allocated(high) - allocated(low)) <= 1:
            break  # no scale between them gives other counts
        middle = (low + high) / 2
        low, high = (low, middle) if half(allocated(middle)) <= wanted else (middle, high)
    counts = allocated(high)
    return Plan(
        allocation={one.id: int(n) for one, n in zip(strata, counts, strict=True)},
        within_percent=100 * half(counts) / mean,
    )


def draw(
    labels: ArrayLike, allocation: Mapping[int, int], rng: np.random.Generator
) -> tuple[int, ...]:
    """Return rows drawn at random, as many of each stratum as the allocation says."""
    ids = np.asarray(labels, dtype=np.int64)
    rows: list[int] = []
    for one, count in allocation.items():
        own = np.flatnonzero(ids == one)
        rows += rng.choice(own, min(count, len(own)), replace=False).tolist()
    return tuple(sorted(rows))


def document(found: Estimate, wanted: Sequence[float] = ()) -> dict[str, Any]:
    """Return an estimate as plain data for JSON, with the plans for some widths."""
    plans = [
        (within, plan(found.strata, within, repeatability=found.repeatability)) for within in wanted
    ]
    return {
        "mean_ms": found.mean_ms,
        "low_ms": found.low_ms,
        "high_ms": found.high_ms,
        "within_percent": found.within_percent,
        "devices": found.devices,
        "measured": found.measured,
        "covered": found.covered,
        "strata": [
            {
                "id": one.id,
                "devices": one.devices,
                "measured": one.measured,
                "mean_ms": None if math.isnan(one.mean_ms) else one.mean_ms,
                "deviation_ms": None if math.isnan(one.deviation_ms) else one.deviation_ms,
            }
            for one in found.strata
        ],
        "needed": [
            {
                "within_percent": within,
                "devices": needed.devices,
                "expected_percent": needed.within_percent,
                "allocation": {str(one): count for one, count in needed.allocation.items()},
            }
            for within, needed in plans
        ],
    }


def _check(values: Array, labels: Labels, placed: NDArray[np.bool_], confidence: float) -> None:
    if values.ndim != 1 or values.shape != labels.shape or values.shape != placed.shape:
        raise ValueError(f"{values.size} latencies, {labels.size} labels and {placed.size} places")
    if np.any(values <= 0) or np.any(np.isinf(values)):
        raise ValueError("latencies must be positive and finite; leave a missing one as NaN")
    if not 0 < confidence < 1:
        raise ValueError(f"the confidence must lie between 0 and 1, it is {confidence:g}")
    measured = int(np.sum(placed & ~np.isnan(values)))
    if measured < 2:
        devices = "no device was" if not measured else "one device alone was"
        raise ValueError(f"{devices} measured; an interval needs two at least")


def _variance(sizes: Array, counts: Array, spreads: Array, errors: Array) -> tuple[Array, float]:
    """Return each stratum's part of the mean's variance (5.6), and what measuring adds (10.15)."""
    weights, share = sizes / sizes.sum(), counts / sizes
    parts = weights**2 * spreads**2 / counts * (1 - share)
    return parts, float(np.sum(weights**2 * errors**2 / counts * share))


def _spreads(sampled: Sequence[Stratum], everything: Array) -> tuple[Array, Array]:
    """Return each stratum's standard deviation and its degrees of freedom."""
    whole = float(everything.std(ddof=1))
    alone = [math.isnan(one.deviation_ms) for one in sampled]
    spreads = [
        whole if lone else one.deviation_ms for lone, one in zip(alone, sampled, strict=True)
    ]
    freedoms = [
        len(everything) - 1 if lone else one.measured - 1
        for lone, one in zip(alone, sampled, strict=True)
    ]
    return np.array(spreads), np.array(freedoms, dtype=float)


def _freedom(parts: Array, freedoms: Array, variance: float) -> float:
    """Return the degrees of freedom of a sum of estimated variances (Satterthwaite 1946)."""
    unsure = float(np.sum(parts**2 / freedoms))
    return variance**2 / unsure if unsure > 0 else math.inf


def _quantile(confidence: float, freedom: float) -> float:
    from scipy.special import ndtri, stdtrit

    level = (1 + confidence) / 2
    return float(ndtri(level) if math.isinf(freedom) else stdtrit(freedom, level))


def _shared_out(counts: NDArray[np.intp], devices: int) -> NDArray[np.intp]:
    """Return sizes in proportion to counts that add up to the devices (largest remainders)."""
    exact = counts * (devices / counts.sum())
    sizes = np.floor(exact).astype(np.intp)
    left = devices - int(sizes.sum())
    sizes[np.argsort(sizes - exact, kind="stable")[:left]] += 1
    return np.asarray(sizes)
