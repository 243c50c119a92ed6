"""Latency of a design on the devices of one cluster, learned from a few measured designs.

HDAP (Zhang et al., arXiv 2501.15240) uses gradient-boosted trees; they are here, beside a
Gaussian process and ridge regression, which need fewer samples. All see the same
hardware-aware features (:mod:`engine.fleet.geometry`) and learn the logarithm of latency, so
that errors are relative. Cross-validation chooses, or the caller does.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.fleet.geometry import Geometry

Array = NDArray[np.float64]
Kind = Literal["auto", "gbrt", "gp", "ridge"]

KINDS: tuple[Kind, ...] = ("gbrt", "gp", "ridge")
"""What "auto" chooses from; "gbrt" is the paper's."""
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

    kind: Kind
    """Which regression predicts."""
    samples: int
    errors: Mapping[Kind, Error]
    """Cross-validated, by kind; of all kinds, also of those not chosen."""
    floor: float | None
    """MAPE that a perfect prediction would still have, from the measurements' own spread."""

    @property
    def error(self) -> Error:
        """The error of the regression that predicts."""
        return self.errors[self.kind]


class _Regressor(Protocol):
    def fit(self, features: Array, targets: Array) -> Any: ...
    def predict(self, features: Array) -> Array: ...


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
        self._fitted: _Scaled | None = None
        self._process: _Scaled | None = None
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
        models = {k: _Scaled(_regressor(k, self._seed), weights) for k in KINDS}
        errors = {
            k: self._cross_validate(model.fit(features, targets), features, targets)
            for k, model in models.items()
        }
        kind = self._kind
        if kind == "auto":
            kind = min(KINDS, key=lambda k: errors[k].mape)
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
        twin._fitted = _Scaled(_regressor(report.kind, self._seed), self._geometry.weights)
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

    def _cross_validate(self, model: _Scaled, features: Array, targets: Array) -> Error:
        order = np.random.default_rng(self._seed).permutation(len(targets))
        predicted = np.empty_like(targets)
        for fold in np.array_split(order, min(self._folds, len(targets))):
            rest = np.setdiff1d(order, fold)
            predicted[fold] = (
                model.again().fit(features[rest], targets[rest]).predict(features[fold])
            )
        return compare_predictions(np.exp(predicted), np.exp(targets))


class _Scaled:
    """A regression on standardised, weighted features; those that never vary are left out."""

    def __init__(self, model: _Regressor, weights: Array) -> None:
        self._model = model
        self._weights = weights

    def fit(self, features: Array, targets: Array) -> _Scaled:
        spread = features.std(axis=0)
        self._used = np.flatnonzero(spread > 1e-9)
        self._mean = features.mean(axis=0)[self._used]
        self._factor = self._weights[self._used] / spread[self._used]
        self._level = float(targets.mean())
        if len(self._used):
            with warnings.catch_warnings():
                # A kernel's parameter at its bound is no fault: the data is that smooth.
                warnings.simplefilter("ignore")
                self._model.fit(self._scale(features), targets - self._level)
        return self

    def predict(self, features: Array) -> Array:
        if not len(self._used):
            return np.full(len(features), self._level)
        return np.asarray(self._model.predict(self._scale(features)) + self._level)

    def covariance(self, features: Array) -> Array:
        if not len(self._used):
            return np.eye(len(features))
        assert isinstance(self._model, _Process)
        return self._model.covariance(self._scale(features))

    def again(self) -> _Scaled:
        """Return an unfitted copy."""
        from sklearn.base import clone

        if isinstance(self._model, _Process):
            return _Scaled(self._model.again(), self._weights)
        return _Scaled(clone(self._model), self._weights)

    def _scale(self, features: Array) -> Array:
        return np.asarray((features[:, self._used] - self._mean) * self._factor)


def _regressor(kind: Kind, seed: int) -> _Regressor:
    if kind == "gbrt":
        from sklearn.ensemble import GradientBoostingRegressor

        return GradientBoostingRegressor(random_state=seed)  # type: ignore[no-any-return]
    if kind == "ridge":
        from sklearn.linear_model import RidgeCV

        return RidgeCV(alphas=np.logspace(-3, 4, 22))  # type: ignore[no-any-return]
    return _Process()


class _Process:
    """A Gaussian process: a linear trend, and an isotropic Matérn 5/2 for what it leaves over.

    scikit-learn finds the kernel's parameters; prediction is its mean, by matrix products.
    """

    def __init__(self, kernel: Any = None) -> None:
        self._kernel = kernel

    def fit(self, features: Array, targets: Array) -> _Process:
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import (
            ConstantKernel,
            DotProduct,
            Matern,
            WhiteKernel,
        )

        kernel, search = self._kernel, {"optimizer": None}
        if kernel is None:
            # One length for all features: one for each overfits a few dozen samples.
            kernel = ConstantKernel(1.0, (1e-4, 1e4)) * DotProduct(1.0, "fixed")
            kernel += ConstantKernel(1.0, (1e-4, 1e4)) * Matern(3.0, (0.3, 1e3), nu=2.5)
            kernel += WhiteKernel(1e-2, (1e-6, 1.0))
            search = {}
        self._model = GaussianProcessRegressor(kernel, normalize_y=True, **search)
        self._model.fit(features, targets)
        self._kernel = self._model.kernel_
        smooth = self._kernel.k1
        self._linear = float(smooth.k1.k1.constant_value)
        self._rough = float(smooth.k2.k1.constant_value)
        self._length = float(smooth.k2.k2.length_scale)
        self._train, self._alpha = features, self._model.alpha_.ravel()
        self._norms = np.square(features).sum(axis=1)
        return self

    def predict(self, features: Array) -> Array:
        products = features @ self._train.T
        norms = np.square(features).sum(axis=1)[:, None]
        far = np.sqrt(np.maximum(norms + self._norms - 2 * products, 0.0))
        far *= math.sqrt(5) / self._length
        rough = (1 + far + far**2 / 3) * np.exp(-far)
        mean = (self._linear * (products + 1) + self._rough * rough) @ self._alpha
        return np.asarray(mean * self._model._y_train_std + self._model._y_train_mean)

    def covariance(self, features: Array) -> Array:
        return np.asarray(self._model.predict(features, return_cov=True)[1])

    def again(self) -> _Process:
        """Return an unfitted copy that keeps the parameters, which take long to find."""
        return _Process(self._kernel)


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
