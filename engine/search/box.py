"""The box that an optimiser searches, and the unit cube that it thinks in."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


class Box:
    """A box of d dimensions.

    Args:
        lower: its lower ends, length d.
        upper: its upper ends, length d.

    Raises:
        ValueError: they make no box.
    """

    def __init__(self, lower: ArrayLike, upper: ArrayLike) -> None:
        self.lower = np.array(lower, dtype=np.float64)
        self.upper = np.array(upper, dtype=np.float64)
        if self.lower.ndim != 1 or self.lower.shape != self.upper.shape or not len(self.lower):
            raise ValueError("lower and upper are arrays of one length, at least 1")
        range_ = self.upper - self.lower
        if not (np.isfinite(range_).all() and (range_ > 0).all()):
            raise ValueError("every lower end is finite and below its upper end")

    def __len__(self) -> int:
        return len(self.lower)

    def points(self, cube: Array) -> Array:
        """Return points of the unit cube (n, d) or (d,) in the box's own units."""
        box = self.lower + cube * (self.upper - self.lower)
        return np.clip(box, self.lower, self.upper)  # rounding may step over an end

    def cube(self, points: ArrayLike, most: int) -> Array:
        """Return at most so many points of the box (n, d) in the unit cube.

        Raises:
            ValueError: they are more, of another length, or outside the box.
        """
        given = np.atleast_2d(np.asarray(points, dtype=np.float64))
        if given.ndim != 2 or given.shape[1] != len(self) or len(given) > most:
            raise ValueError(
                f"start needs at most {most} points of length {len(self)}, not shape {given.shape}"
            )
        if not ((given >= self.lower) & (given <= self.upper)).all():
            raise ValueError("a starting point lies outside the box")
        return np.asarray((given - self.lower) / (self.upper - self.lower))


class BestSoFar:
    """What every optimiser keeps: the box, how many points have been told, and the best of them.

    Args:
        lower: lower ends of the box, length d.
        upper: upper ends of the box, length d.
        evaluations: how many points may be told in all.
        population: points asked for at once.

    Raises:
        ValueError: they make no sense; the sentence says which.
    """

    def __init__(
        self, lower: ArrayLike, upper: ArrayLike, evaluations: int, population: int
    ) -> None:
        self._box = Box(lower, upper)
        if population < 1 or evaluations < population:
            raise ValueError("evaluations cover one population at least, of one point at least")
        self._evaluations_allowed, self._n = evaluations, population
        self._told = 0
        self._best_x: Array | None = None
        self._best_f = math.inf

    def _compare(self, points: Array, values: Array) -> None:
        """Take the best of these points of the unit cube (n, d) where it is better."""
        leader = int(np.argmin(values))
        if self._best_x is None or values[leader] < self._best_f:
            self._best_f, self._best_x = float(values[leader]), points[leader].copy()

    @property
    def best(self) -> Array:
        """The best point so far, in the box's own units.

        Raises:
            ValueError: nothing has been told yet.
        """
        if self._best_x is None:
            raise ValueError("there is no best point before the first values are told")
        return self._box.points(self._best_x)

    @property
    def best_value(self) -> float:
        """The value of the best point; infinite while there is none."""
        return self._best_f

    @property
    def evaluations(self) -> int:
        """How many points have been told."""
        return self._told


def check_steps(sigma: float, r: float, epoch: int) -> None:
    """Refuse step sizes that make no sense.

    Raises:
        ValueError: they do not.
    """
    if not (math.isfinite(sigma) and sigma > 0 and 0 < r < 1 and epoch >= 1):
        raise ValueError("sigma is positive, r between 0 and 1, epoch at least 1")
