"""Latency of a design on the devices of one cluster, learned from a few measured designs.

HDAP (Zhang et al., arXiv 2501.15240) uses gradient-boosted trees; they are here, beside a
Gaussian process and ridge regression, which need fewer samples. All see the same
hardware-aware features (:mod:`engine.fleet.geometry`) and learn the logarithm of latency, so
that errors are relative. Cross-validation chooses, or the caller does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.fleet.geometry import Geometry
from engine.fleet.regressors import KINDS, Regression, Scaled, make

Array = NDArray[np.float64]
Kind = Literal["auto", "gbrt", "gp", "ridge"]
LEAST = 5
"""Fewer measured designs than these say nothing about a network."""


@dataclass(frozen=True)
class Error:
    """How far predictions lie from measurements that they were not learned from."""

    mape: float
    """Mean absolute error in per cent."""
    spearman: float
    """Rank correlation: 1 is the right order."""


@dataclass(frozen=True)
class Report:
    """What a fitted surrogate is worth."""

    kind: Regression
    """Which regression predicts."""
    samples: int
    errors: Mapping[Regression, Error]
    """Cross-validated, by kind; of the kinds that were asked for."""
    floor: float | None
    """MAPE that a perfect prediction would still have, from the measurements' own spread."""

    @property
    def error(self) -> Error:
        """The error of the regression that predicts."""
        return self.errors[self.kind]


class Surrogate:
    """Predicts milliseconds of designs (kept channels per group).

        surrogate = Surrogate(geometry).fit(widths, latencies)
        surrogate.predict(population)      # (n, G) -> (n,)

    Args:
        geometry: the network's layers.
        kind: "gbrt" (scikit-learn's gradient boosting with its defaults, as the paper), "gp"
            (isotropic Matérn 5/2 on a linear trend), "ridge", or "auto" for the least
            cross-validated MAPE.
        folds: folds of the cross-validation.
        seed: seed of the folds and of the trees.
        multiple: channel multiple at which the devices are fastest; 1: not known.
    """

    def __init__(
        self,
        geometry: Geometry,
        kind: Kind = "auto",
        folds: int = 5,
        seed: int = 0,
        multiple: int = 1,
    ) -> None:
        if kind not in ("auto", *KINDS):
            raise ValueError(f"a surrogate is auto, {', '.join(KINDS)}, not {kind!r}")
        self._geometry = geometry
        self._kind = kind
        self._folds = folds
        self._seed = seed
        self.multiple = multiple
        self._fitted: Scaled | None = None
        self._process: Scaled | None = None
        self._report: Report | None = None

    def fit(
        self, widths: ArrayLike, latencies: ArrayLike, repeatability: ArrayLike | None = None
    ) -> Surrogate:
        """Learn from measured designs.

        Args:
            widths: kept channels (n, G).
            latencies: milliseconds (n,), positive.
            repeatability: relative standard error of each latency (n,), where known.

        Raises:
            ValueError: too few designs, or a latency that is not a positive number.
        """
        features, targets = self._checked(widths, latencies)
        weights = self._geometry.weights
        asked = KINDS if self._kind == "auto" else (self._kind,)
        models = {
            k: Scaled(make(k, self._seed), weights).fit(features, targets)
            for k in dict.fromkeys([*asked, "gp"])  # the process, for the doubts
        }
        errors = {k: self._cross_validate(models[k], features, targets) for k in asked}
        kind = min(errors, key=lambda k: errors[k].mape)
        self._fitted, self._process = models[kind], models["gp"]
        floor = None
        if repeatability is not None:
            # The mean absolute value of a normal variable is 0.798 of its deviation.
            floor = float(100 * np.sqrt(2 / np.pi * np.mean(np.square(repeatability))))
        self._report = Report(kind, len(targets), errors, floor)
        return self

    def refit(self, widths: ArrayLike, latencies: ArrayLike) -> Surrogate:
        """Return a surrogate of the same kind that has learned from more designs.

        Nothing is cross-validated, which takes most of the time: errors and floor in its report
        are those of before.

        Raises:
            ValueError: this one has not been fitted, or as with `fit`.
        """
        report = self.report
        features, targets = self._checked(widths, latencies)
        twin = Surrogate(self._geometry, self._kind, self._folds, self._seed, self.multiple)
        twin._fitted = Scaled(make(report.kind, self._seed), self._geometry.weights)
        twin._fitted.fit(features, targets)
        assert self._process is not None
        twin._process = self._process.again().fit(features, targets)
        twin._report = replace(report, samples=len(targets))
        return twin

    def _features(self, widths: ArrayLike) -> Array:
        return self._geometry.features(widths, self.multiple)

    def _checked(self, widths: ArrayLike, latencies: ArrayLike) -> tuple[Array, Array]:
        measured = np.asarray(latencies, dtype=np.float64)
        if len(measured) < LEAST:
            raise ValueError(
                f"{len(measured)} measured designs are too few to predict from: "
                f"measure {LEAST} at least"
            )
        if not (np.isfinite(measured).all() and (measured > 0).all()):
            raise ValueError("every latency to learn from is a positive number of milliseconds")
        return self._features(widths), np.log(measured)

    def predict(self, widths: ArrayLike) -> Array:
        """Return milliseconds (n,) of designs (n, G).

        Raises:
            ValueError: it has not been fitted.
        """
        return self.predict_features(self._features(widths))

    def predict_features(self, features: Array) -> Array:
        """Return the same from the geometry's features at this multiple, which several surrogates
        can share."""
        if self._fitted is None:
            raise ValueError("fit the surrogate before it predicts")
        return np.asarray(np.exp(self._fitted.predict(features)))

    def covariance(self, widths: ArrayLike) -> Array:
        """Return how the doubts about designs hang together, (n, n) in log latency.

        By the Gaussian process, whichever regression predicts.

        Raises:
            ValueError: it has not been fitted.
        """
        if self._process is None:
            raise ValueError("fit the surrogate before it predicts")
        return self._process.covariance(self._features(widths))

    @property
    def report(self) -> Report:
        """What it is worth.

        Raises:
            ValueError: it has not been fitted.
        """
        if self._report is None:
            raise ValueError("fit the surrogate before asking what it is worth")
        return self._report

    def _cross_validate(self, model: Scaled, features: Array, targets: Array) -> Error:
        order = np.random.default_rng(self._seed).permutation(len(targets))
        predicted = np.empty_like(targets)
        for fold in np.array_split(order, min(self._folds, len(targets))):
            rest = np.setdiff1d(order, fold)
            predicted[fold] = (
                model.again().fit(features[rest], targets[rest]).predict(features[fold])
            )
        return compare_predictions(np.exp(predicted), np.exp(targets))


def teaching(surrogates: Sequence[Surrogate], designs: ArrayLike, count: int) -> list[int]:
    """Choose the designs that, once measured, would leave the least doubt about all of them.

    One after the other, each is the one that lowers the sum of the posterior variances most
    (Cohn, Ghahramani, Jordan, Active learning with statistical models, JAIR 4, 1996, for a
    Gaussian process), given those before it; so no two of them teach the same.

    Args:
        surrogates: one a cluster, fitted; each cluster's doubt counts alike.
        designs: kept channels (n, G), where the search may go.
        count: how many to choose, n at most.
    """
    doubts = [surrogate.covariance(designs) for surrogate in surrogates]
    doubts = [doubt / np.trace(doubt) for doubt in doubts]
    chosen: list[int] = []
    for _ in range(count):
        gains = np.sum([np.square(doubt).sum(axis=0) / np.diag(doubt) for doubt in doubts], axis=0)
        gains[chosen] = -1.0
        best = int(gains.argmax())
        chosen.append(best)
        for doubt in doubts:
            doubt -= np.outer(doubt[:, best], doubt[best]) / doubt[best, best]
            # What is known can be measured no better; rounding must not make it negative.
            np.fill_diagonal(doubt, np.maximum(np.diag(doubt), 1e-12))
    return chosen


def compare_predictions(predicted: ArrayLike, measured: ArrayLike) -> Error:
    """Return MAPE (per cent) and rank correlation of predictions (n,) with measurements (n,).

    The correlation is 0 where one of them has a single value only.
    """
    from scipy.stats import rankdata

    guess, truth = np.asarray(predicted, float), np.asarray(measured, float)
    mape = float(100 * np.mean(np.abs(guess - truth) / truth))
    a, b = (rank - rank.mean() for rank in (rankdata(guess), rankdata(truth)))
    length = float(np.sqrt((a @ a) * (b @ b)))
    return Error(mape, float(a @ b) / length if length else 0.0)
