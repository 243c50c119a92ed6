"""Optimisers that ask for one population after the other, and the simplest two of them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.search.box import BestSoFar

Array = NDArray[np.float64]


class Population(BestSoFar, ABC):
    """What asks for whole populations shares: the box, the count, and the best point.

    Args:
        lower: lower ends of the box, length d.
        upper: upper ends of the box, length d.
        evaluations: how many points may be told in all; a last population that is too large for
            them is cut short.
        population: points asked for at once.
        start: points (k, d) to begin with, k at most `population`.
        seed: seed of the random numbers.

    Raises:
        ValueError: an argument makes no sense; the sentence says which.
    """

    objectives = 1
    _least = 1, ""
    """The smallest population, and what is said of one that is smaller."""

    def __init__(
        self,
        lower: ArrayLike,
        upper: ArrayLike,
        evaluations: int,
        population: int = 10,
        start: ArrayLike | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(lower, upper, evaluations, population)
        if population < self._least[0]:
            raise ValueError(self._least[1])
        self._random = np.random.Generator(np.random.PCG64(seed))
        self._given = np.empty((0, len(self._box)))
        if start is not None:
            self._given = self._box.cube(start, population)
        self._asked: Array | None = None

    @abstractmethod
    def _propose(self) -> Array:
        """Return points (n, d) of the unit cube."""

    @abstractmethod
    def _learn(self, points: Array, values: Array) -> None:
        """Take the values (n,) or (n, 2), all finite, of the points proposed last."""

    def ask(self) -> Array:
        """Return the points to evaluate next, (n, d); asked again before `tell`, the same.

        Raises:
            ValueError: the evaluations are used up.
        """
        if self.done:
            raise ValueError("the search is done: all its evaluations are used")
        if self._asked is None:
            self._asked = self._propose()
        return self._box.points(self._asked[: self._evaluations_allowed - self._told])

    def tell(self, values: ArrayLike) -> None:
        """Take the values of the points last asked for, in their order.

        Raises:
            ValueError: nothing was asked for, or the number of values is wrong.
        """
        if self._asked is None:
            raise ValueError("ask for points before telling their values")
        points, told = self._asked, np.array(values, dtype=np.float64)
        count = min(len(points), self._evaluations_allowed - self._told)
        shape = (count,) if self.objectives == 1 else (count, self.objectives)
        if told.shape != shape:
            raise ValueError(f"values of shape {shape} are expected, not {told.shape}")
        told[~np.isfinite(told)] = math.inf
        single = told if told.ndim == 1 else told.sum(axis=1)
        self._compare(points, single)
        if count == len(points):
            self._learn(points, _finite(told))
        self._asked = None
        self._told += count

    @property
    def done(self) -> bool:
        """Whether the evaluations are used up."""
        return self._told >= self._evaluations_allowed

    def _first(self) -> Array:
        """The first population: the points given, and uniform ones."""
        points = self._random.random((self._n, len(self._box)))
        points[: len(self._given)] = self._given
        return points


class Random(Population):
    """Uniform points: what any search has to beat."""

    def _propose(self) -> Array:
        return self._random.random((self._n, len(self._box))) if self._told else self._first()

    def _learn(self, points: Array, values: Array) -> None:
        pass


class DifferentialEvolution(Population):
    """Differential evolution, DE/best/1/bin, whose two factors are drawn for every point.

    Storn, Price: *Differential evolution*, Journal of Global Optimization 11, 1997. A point that
    leaves the box is drawn anew in the coordinates in which it does. Arguments as with
    `Population`, which holds four points at least.
    """

    _FACTOR = (0.4, 0.7)
    """From which to which share of a difference is added to the best point."""
    _CROSSOVER = (0.2, 0.8)
    """From which to which probability a coordinate is taken from there."""

    _least = 4, "differential evolution needs a population of four at least"
    _points: Array | None = None
    _values: Array

    def _propose(self) -> Array:
        if self._points is None:
            return self._first()
        random, (n, d) = self._random, self._points.shape
        order = random.random((n, n))
        np.fill_diagonal(order, np.inf)  # nobody is set against itself
        one, other = np.argsort(order, axis=1)[:, :2].T
        steps = self._points[one] - self._points[other]
        best = self._points[np.argmin(self._values)]
        found = best + random.uniform(*self._FACTOR, (n, 1)) * steps
        found = np.where((found < 0) | (found > 1), random.random((n, d)), found)
        taken = random.random((n, d)) < random.uniform(*self._CROSSOVER, (n, 1))
        taken[np.arange(n), random.integers(d, size=n)] = True
        return np.where(taken, found, self._points)

    def _learn(self, points: Array, values: Array) -> None:
        if self._points is None:
            self._points, self._values = points, values
            return
        better = values <= self._values
        self._points = np.where(better[:, None], points, self._points)
        self._values = np.where(better, values, self._values)


def _finite(values: Array) -> Array:
    """Values with those that are infinite put just beyond the worst of their column."""
    columns = values.reshape(len(values), -1)
    known = np.where(np.isfinite(columns), columns, 0.0)
    worst = known.max(axis=0) + np.abs(known).max(axis=0) + 1.0
    return np.where(np.isfinite(columns), columns, worst).reshape(values.shape)
