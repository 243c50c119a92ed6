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


def check_steps(sigma: float, r: float, epoch: int) -> None:
    """Refuse step sizes that make no sense.

    Raises:
        ValueError: they do not.
    """
    if not (math.isfinite(sigma) and sigma > 0 and 0 < r < 1 and epoch >= 1):
        raise ValueError("sigma is positive, r between 0 and 1, epoch at least 1")
