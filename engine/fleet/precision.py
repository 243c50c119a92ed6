"""Whether int8 is faster than float on a device, from two or more networks measured in both.

Int8 is slower than float on about half of real devices, and which networks gain differs from device
to device. What is known of other devices is a table of log speed-ups and of log float latencies,
devices by networks, with gaps. Mean and covariance of its columns are learned by expectation
maximisation (Dempster, Laird, Rubin, J. R. Stat. Soc. B 39, 1977), shrunk towards networks that all
hang together alike; conditioned on what was measured on the new device, they give mean and
deviation of every network's log speed-up. Three things make it fit real tables:

- Speed-ups are compressed, `scale * asinh(log speed-up / scale)`: where int8 is many times slower,
  networks also differ by more, and that would outweigh what they tell of each other near 1, where
  the decisions are made.
- Float latencies tell kinds of processor apart that two ratios do not.
- The moments are weighted by how alike the known devices are to this one in what was measured
  (Cleveland, J. Am. Stat. Assoc. 74, 1979), for no single covariance holds for all of them.

Int8 is chosen where the expected log speed-up is above 0: what is then gained on average, as a
factor, is the most that can be expected. The distribution being symmetric before it is stretched
again, that is also where int8 is more likely than not to be faster, so no other rule would be
right more often. A tie stays float, which costs no accuracy.

    >>> fast, slow = Pair(float_ms=4.0, int8_ms=2.0), Pair(float_ms=9.0, int8_ms=12.0)
    >>> history = [{"a": fast, "b": fast, "c": fast}, {"a": slow, "b": slow, "c": slow}] * 3
    >>> found = Int8Benefit().fit(history).given({"a": slow, "b": slow})
    >>> found.benefits["c"].precision
    'float'
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_LEVEL, _OWN = 0.4, 0.2
"""Deviation of log speed-ups (compressed) before anything is known: common to a device's networks,
and of each network alone. Over the processors in ncnn's table it is 0.39 and 0.12; a user's
networks may be less alike than those are."""
_SPEED, _CHARACTER = 1.5, 0.3
"""The same of log float latencies; there 1.48 and 0.18."""
_ITERATIONS, _STILL = 60, 1e-3
"""Expectation maximisation ends after so many steps, or with one that changes less."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One network's latency on one device in both precisions."""

    float_ms: float
    int8_ms: float
    error: float = 0.0
    """Relative standard error of the speed-up; 0 where it is not known."""

    def __post_init__(self) -> None:
        """Refuse what is no measurement."""
        for ms in (self.float_ms, self.int8_ms):
            if not 0 < ms < math.inf:
                raise ValueError(f"a latency is a positive number of milliseconds, not {ms:g}")
        if not 0 <= self.error < math.inf:
            raise ValueError(f"a standard error is 0 or a positive number, not {self.error:g}")

    @property
    def log_speedup(self) -> float:
        """Above 0 where int8 is faster."""
        return math.log(self.float_ms / self.int8_ms)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the table is learned from."""

    scale: float = 0.4
    """Log speed-ups well beyond this are compressed."""
    reach: float = 0.5
    """How far devices may lie apart and be alike: standard deviations a measured number."""
    background: float = 0.05
    """How much a device counts that is not alike at all; one that is counts 1 more."""
    strength: float = 1.0
    """Devices that what is assumed before anything is known counts as."""
    floor: float = 0.05
    """Relative error that every measurement has, beyond its own: other versions, other days."""
    latencies: bool = True
    """Learn from float latencies as well, not from speed-ups alone."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name in ("scale", "reach", "background", "strength", "floor"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0, it is {getattr(self, name):g}")
        if self.scale < 0.1:
            raise ValueError(f"scale must be at least 0.1, it is {self.scale:g}")


@dataclass(frozen=True)
class Benefit:
    """What int8 is expected to do for one network on one device. Speed-ups are logarithms."""

    mean: float
    deviation: float
    probability: float
    """That int8 is faster."""
    prior_mean: float
    """What the other devices alone would say,"""
    prior_deviation: float
    """and how much they differ."""

    @property
    def precision(self) -> Literal["float", "int8"]:
        """Which one to run."""
        return "int8" if self.mean > 0 else "float"

    @property
    def speedup(self) -> float:
        """What to expect of int8 over float, as a factor."""
        return math.exp(self.mean)


@dataclass(frozen=True)
class Explanation:
    """What was measured, what it was compared with, and what follows for each network."""

    probes: Mapping[str, Pair]
    """What was measured; what the other devices said of it stands in `benefits`."""
    benefits: Mapping[str, Benefit]
    """Of every known network, the probes too."""
    likeness: tuple[float, ...]
    """How alike each device of the history is to this one, in the history's order: 0 to 1."""


class Int8Benefit:
    """Predicts what int8 does on a device from a few measurements and from other devices.

        known = Int8Benefit().fit(history)
        known.given({"resnet18": Pair(float_ms=31.0, int8_ms=22.5), ...}).benefits["vgg16"]

    Without any history it is the measurements alone that speak, shrunk a little towards no benefit.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings or Settings()
        self._networks: tuple[str, ...] = ()
        self._fitted: tuple[Array, Array] | None = None

    def fit(
        self,
        history: Sequence[Mapping[str, Pair]],
        networks: Sequence[str] = (),
        weights: Sequence[float] | None = None,
    ) -> Int8Benefit:
        """Learn from other devices.

        Args:
            history: what was measured on each, by network; any network may be missing.
            networks: further networks, of which the history need not know anything.
            weights: how much each row counts, 1 where not given; rows of one device share 1.

        Raises:
            ValueError: no network at all, or weights that do not fit.
        """
        names = dict.fromkeys(networks) | dict.fromkeys(name for row in history for name in row)
        if not names:
            raise ValueError("there is no network to learn about: name one, or give a history")
        counts = np.ones(len(history)) if weights is None else np.array(weights, dtype=np.float64)
        if len(counts) != len(history) or not (np.isfinite(counts) & (counts > 0)).all():
            raise ValueError("every row of the history has one weight, a positive number")
        self._networks = tuple(sorted(names))
        table, variances = self._table(history)
        self._weights = counts
        self._fitted = mean, covariance = self._learn(table, variances)
        self._rows, self._doubts = _condition(table, variances, mean, covariance)
        self._prior = self._stretched(mean, covariance * _widened(counts))
        return self

    def given(self, probes: Mapping[str, Pair]) -> Explanation:
        """Return what follows for every network from what was measured on a device.

        Args:
            probes: any of the networks; two or more tell a device's kind.

        Raises:
            ValueError: it has not been fitted, or does not know one of the networks.
        """
        if self._fitted is None:
            raise ValueError("fit it to a history before it predicts")
        unknown = sorted(set(probes) - set(self._networks))
        if unknown:
            known = ", ".join(self._networks)
            raise ValueError(f"nothing is known of {unknown[0]}: measure one of {known}")
        row, variance = self._table([probes])
        likeness = self._likeness(row, variance)
        mean, covariance = _condition(row, variance, *self._near(likeness))
        after = self._stretched(mean[0], covariance[0])
        benefits = {
            name: Benefit(*now, *then[:2])
            for name, now, then in zip(self._networks, after, self._prior, strict=True)
        }
        return Explanation(dict(probes), benefits, tuple(likeness.tolist()))

    def _table(self, rows: Sequence[Mapping[str, Pair]]) -> tuple[Array, Array]:
        """Return compressed log speed-ups, then log float latencies (n, 2 G), and variances."""
        scale, size = self._settings.scale, len(self._networks)
        table, variances = np.full((2, len(rows), 2 * size), np.nan)
        for i, row in enumerate(rows):
            for name, pair in row.items():
                j, ratio = self._networks.index(name), pair.log_speedup / scale
                error = self._settings.floor**2 + pair.error**2
                table[i, j], variances[i, j] = scale * math.asinh(ratio), error / (1 + ratio**2)
                if self._settings.latencies:
                    table[i, size + j], variances[i, size + j] = math.log(pair.float_ms), error
        return table, variances

    def _learn(self, table: Array, variances: Array) -> tuple[Array, Array]:
        """Return mean and covariance of the columns, by expectation maximisation."""
        size, strength = len(self._networks), self._settings.strength
        halves = slice(0, size), slice(size, 2 * size)
        prior, mean = np.zeros((2 * size, 2 * size)), np.zeros(2 * size)
        for half, common, own in zip(halves, (_LEVEL, _SPEED), (_OWN, _CHARACTER), strict=True):
            prior[half, half] = common**2 + own**2 * np.eye(size)
            mean[half] = np.nanmean(table[:, half]) if np.isfinite(table[:, half]).any() else 0.0
        covariance = prior
        for _ in range(_ITERATIONS):
            rows, doubts = _condition(table, variances, mean, covariance)
            # A network of which little is known is taken for an average one.
            usual = np.repeat([mean[half].mean() for half in halves], size)
            old = mean, covariance
            mean, covariance = _moments(rows, doubts, self._weights, usual, prior, strength)
            change = abs(mean - old[0]).max(), abs(covariance - old[1]).max()
            if max(change) < _STILL:
                break
        return mean, covariance

    def _likeness(self, row: Array, variance: Array) -> Array:
        """Return how alike the known devices are (n,), by Mahalanobis distance in what is seen."""
        assert self._fitted is not None
        seen = np.isfinite(row)
        apart = np.where(seen, self._rows - row, 0.0)
        inverse = np.linalg.inv(_spread(row, variance, self._fitted[1]))[0]
        squares = np.einsum("ni,ij,nj->n", apart, inverse, apart) / max(1, seen.sum())
        return np.asarray(np.exp(-squares / 2 / self._settings.reach**2))

    def _near(self, likeness: Array) -> tuple[Array, Array]:
        """Return mean and covariance among the devices that are alike."""
        assert self._fitted is not None
        weights = self._weights * (self._settings.background + likeness)
        mean, covariance = self._fitted
        strength = self._settings.strength
        mean, covariance = _moments(self._rows, self._doubts, weights, mean, covariance, strength)
        return mean, covariance * _widened(weights)

    def _stretched(self, mean: Array, covariance: Array) -> list[tuple[float, float, float]]:
        """Return mean and deviation of each log speed-up, and how likely it is above 0."""
        scale, size = self._settings.scale, len(self._networks)
        found = []
        for m, variance in zip(mean[:size] / scale, np.diag(covariance) / scale**2, strict=False):
            # Moments of the hyperbolic sine of a normal variable.
            middle = math.sinh(m) * math.exp(variance / 2)
            square = math.expm1(variance) * (math.exp(variance) * math.cosh(2 * m) + 1) / 2
            likely = 0.5 * math.erfc(-m / math.sqrt(2 * variance))
            found.append((scale * middle, scale * math.sqrt(square), likely))
        return found


def _spread(table: Array, variances: Array, covariance: Array) -> Array:
    """Return the covariance of what is seen in each row (n, d, d); what is not stands apart."""
    seen = np.isfinite(table)
    shared = covariance * seen[:, :, None] * seen[:, None, :]
    noise: Array = np.where(seen, variances, 1.0)[:, :, None] * np.eye(len(covariance))
    return np.asarray(shared + noise)


def _condition(
    table: Array, variances: Array, mean: Array, covariance: Array
) -> tuple[Array, Array]:
    """Return mean (n, d) and covariance (n, d, d) of the rows, given what is seen of each."""
    seen = np.isfinite(table)
    gains = (covariance * seen[:, None, :]) @ np.linalg.inv(_spread(table, variances, covariance))
    apart = np.where(seen, table - mean, 0.0)
    rows = mean + (gains @ apart[:, :, None])[:, :, 0]
    return rows, covariance - gains @ (covariance * seen[:, :, None])


def _widened(weights: Array) -> float:
    """Return by how much a new row's covariance grows, the mean being that of so few rows."""
    total = float(weights.sum())
    return 1 + total / (total + 1) ** 2


def _moments(
    rows: Array, doubts: Array, weights: Array, mean: Array, covariance: Array, strength: float
) -> tuple[Array, Array]:
    """Return the rows' weighted mean and covariance; what was assumed counts as rows as well."""
    total = weights.sum()
    middle = (weights @ rows + mean) / (total + 1)
    apart = rows - middle
    squares = (weights[:, None] * apart).T @ apart + np.tensordot(weights, doubts, 1)
    return middle, (squares + strength * covariance) / (total + strength)
