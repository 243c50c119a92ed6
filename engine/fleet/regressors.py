"""The regressions that surrogates are made of: trees, a Gaussian process, ridge.

scikit-learn fits them. What they predict is computed from what it found, since a search asks for
a few designs thousands of times, and scikit-learn checks its input for longer than it predicts.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Regression = Literal["gbrt", "gp", "ridge"]

KINDS: tuple[Regression, ...] = ("gbrt", "gp", "ridge")
"""All of them; "gbrt" is what HDAP uses."""


class Regressor(Protocol):
    """Learns numbers (n,) from features (n, F), both centred."""

    def fit(self, features: Array, targets: Array) -> Any:
        """Learn, and forget what was learned before."""

    def predict(self, features: Array) -> Array:
        """Return (n,)."""

    def again(self) -> Regressor:
        """Return an unfitted copy, with the parameters that take long to find."""


def make(kind: Regression, seed: int) -> Regressor:
    """Return a regression of a kind; the trees draw by the seed."""
    if kind == "gbrt":
        return Trees(seed)
    return Process() if kind == "gp" else Ridge()


class Scaled:
    """A regression on standardised, weighted features; those that never vary are left out."""

    def __init__(self, model: Regressor, weights: Array) -> None:
        self._model = model
        self._weights = weights

    def fit(self, features: Array, targets: Array) -> Scaled:
        """Learn."""
        spread = features.std(axis=0)
        varies = spread > 1e-9
        self._mean = features.mean(axis=0)
        # A factor of 0 is faster than leaving a column out.
        self._factor = np.where(varies, self._weights / np.where(varies, spread, 1.0), 0.0)
        self._level = float(targets.mean())
        self._flat = not varies.any()
        if not self._flat:
            import sklearn

            # Our own numbers need no check, which each of a hundred trees would make anew.
            unchecked = sklearn.config_context(assume_finite=True, skip_parameter_validation=True)
            with warnings.catch_warnings(), unchecked:
                # A kernel's parameter at its bound is no fault: the data is that smooth.
                warnings.simplefilter("ignore")
                self._model.fit(self._scale(features), targets - self._level)
        return self

    def predict(self, features: Array) -> Array:
        """Return (n,)."""
        if self._flat:
            return np.full(len(features), self._level)
        return np.asarray(self._model.predict(self._scale(features)) + self._level)

    def covariance(self, features: Array) -> Array:
        """Return the posterior covariance (n, n), of a Gaussian process alone."""
        if self._flat:
            return np.eye(len(features))
        assert isinstance(self._model, Process)
        return self._model.covariance(self._scale(features))

    def again(self) -> Scaled:
        """Return an unfitted copy, with the parameters that take long to find."""
        return Scaled(self._model.again(), self._weights)

    def _scale(self, features: Array) -> Array:
        scaled = features - self._mean
        scaled *= self._factor
        return np.asarray(scaled)


class Trees:
    """Gradient-boosted trees, with scikit-learn's defaults."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def fit(self, features: Array, targets: Array) -> Trees:
        """Learn."""
        from sklearn.ensemble import GradientBoostingRegressor

        model = GradientBoostingRegressor(random_state=self._seed).fit(features, targets)
        trees = [tree.tree_ for tree in model.estimators_[:, 0]]
        # All nodes in one row; a leaf leads to itself.
        self._roots = np.cumsum([0, *(tree.node_count for tree in trees)])[:-1]
        own = [np.arange(tree.node_count) for tree in trees]
        leaf = [tree.children_left < 0 for tree in trees]

        def row(parts: list[NDArray[Any]]) -> NDArray[Any]:
            return np.concatenate(parts)

        def lead(name: str) -> NDArray[Any]:
            ways = zip(leaf, own, (getattr(tree, name) for tree in trees), self._roots, strict=True)
            return row([np.where(end, here, to) + root for end, here, to, root in ways])

        self._left, self._right = lead("children_left"), lead("children_right")
        self._feature = np.maximum(row([tree.feature for tree in trees]), 0)
        self._threshold = row([tree.threshold for tree in trees])
        self._value = model.learning_rate * row([tree.value[:, 0, 0] for tree in trees])
        self._start = float(model.init_.constant_.item())
        self._depth = max(tree.max_depth for tree in trees)
        return self

    def predict(self, features: Array) -> Array:
        """Return (n,)."""
        exact = features.astype(np.float32)  # as the thresholds were found
        rows = np.arange(len(exact))[:, None]
        at = np.broadcast_to(self._roots, (len(exact), len(self._roots)))
        for _ in range(self._depth):
            left = exact[rows, self._feature[at]] <= self._threshold[at]
            at = np.where(left, self._left[at], self._right[at])
        return np.asarray(self._start + self._value[at].sum(axis=1))

    def again(self) -> Trees:
        """Return an unfitted copy."""
        return Trees(self._seed)


class Ridge:
    """Ridge regression; generalised cross-validation chooses how much it shrinks."""

    def fit(self, features: Array, targets: Array) -> Ridge:
        """Learn."""
        from sklearn.linear_model import RidgeCV

        model = RidgeCV(alphas=np.logspace(-3, 4, 22)).fit(features, targets)
        self._slopes, self._start = model.coef_, float(model.intercept_)
        return self

    def predict(self, features: Array) -> Array:
        """Return (n,)."""
        return np.asarray(features @ self._slopes + self._start)

    def again(self) -> Ridge:
        """Return an unfitted copy."""
        return Ridge()


class Process:
    """A Gaussian process: a linear trend, and an isotropic Matérn 5/2 for what it leaves over.

    scikit-learn finds the kernel's parameters; prediction is its mean, by matrix products.
    """

    def __init__(self, kernel: Any = None) -> None:
        self._kernel = kernel

    def fit(self, features: Array, targets: Array) -> Process:
        """Learn, the kernel's parameters too where none were handed over."""
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
        """Return (n,)."""
        products = features @ self._train.T
        norms = np.einsum("nf,nf->n", features, features)[:, None]
        square = norms + self._norms - 2 * products
        square *= 5 / self._length**2
        np.maximum(square, 0.0, out=square)
        far = np.sqrt(square)
        rough = (square / 3 + far + 1) * np.exp(-far)
        mean = self._linear * (products @ self._alpha + self._alpha.sum())
        mean += self._rough * (rough @ self._alpha)
        return np.asarray(mean * self._model._y_train_std + self._model._y_train_mean)

    def covariance(self, features: Array) -> Array:
        """Return the posterior covariance (n, n)."""
        return np.asarray(self._model.predict(features, return_cov=True)[1])

    def again(self) -> Process:
        """Return an unfitted copy that keeps the parameters, which take long to find."""
        return Process(self._kernel)
