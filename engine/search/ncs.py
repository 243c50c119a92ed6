"""Negatively Correlated Search (NCS-C), ask/tell.

Tang, Yang, Yao: Negatively Correlated Search, IEEE JSAC 34(3), 2016 (arXiv 1504.04914). Several
randomised local searches run side by side; each keeps to a region of its own, because a step is
taken for its value *and* for how far its search distribution lies from those of the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.search.box import BestSoFar, check_steps

Array = NDArray[np.float64]


class NCS(BestSoFar):
    """Minimises a function over a box; owns no loop, so anything can drive it.

        >>> import numpy as np
        >>> search = NCS(lower=np.full(3, -5.0), upper=np.full(3, 5.0), evaluations=5000, seed=1)
        >>> while not search.done:
        ...     points = search.ask()
        ...     search.tell((points**2).sum(axis=1))
        >>> bool(search.best_value < 0.05)
        True

    It pickles, and `state` gives the same as plain data for JSON; either way the continuation is
    identical to the last bit, because the state of the random numbers goes along.

    Args:
        lower: lower ends of the box, length d.
        upper: upper ends of the box, length d.
        evaluations: how many points may be told in all, the first population among them.
        population: number of search processes (N).
        start: points (k, d) that the first k processes start from; the others start uniformly.
        sigma: first step size as a fraction of the range (the paper's is 0.1).
        r: factor of the step size, in (0, 1).
        epoch: iterations between two adaptations of the step size.
        seed: seed of the random numbers.
        correlation: False leaves the correlation out, which makes it parallel hill climbing
            (PHC): an offspring replaces its parent where it is better.

    Raises:
        ValueError: an argument makes no sense; the sentence says which.
    """

    objectives = 1

    def __init__(
        self,
        lower: ArrayLike,
        upper: ArrayLike,
        evaluations: int,
        population: int = 10,
        start: ArrayLike | None = None,
        sigma: float = 0.1,
        r: float = 0.99,
        epoch: int = 10,
        seed: int | None = None,
        *,
        correlation: bool = True,
    ) -> None:
        super().__init__(lower, upper, evaluations, population)
        self._r = r
        self._epoch = epoch
        self._correlation = correlation
        check_steps(sigma, r, epoch)
        self._random = np.random.Generator(np.random.PCG64(seed))
        self._x = self._random.random((population, len(self._box)))
        if start is not None:
            given = self._box.cube(start, population)
            self._x[: len(given)] = given
        self._f = np.full(population, math.inf)
        self._sigma = np.full(population, float(sigma))
        self._replaced = np.zeros(population, dtype=np.int64)
        self._offspring: Array | None = None
        self._weight = 1.0

    def ask(self) -> Array:
        """Return the points to evaluate next, (population, d), in the box's own units.

        The first ones are the starting points. Asked again before `tell`, it gives the same.

        Raises:
            ValueError: the evaluations are used up.
        """
        if self.done:
            raise ValueError("the search is done: all its evaluations are used")
        if not self._told:
            return self._box.points(self._x)
        if self._offspring is None:
            # (step a) one draw of lambda_t an iteration
            deviation = self._deviation(self._told // self._n - 1)
            self._weight = 1.0 + deviation * float(self._random.standard_normal())
            # (step b) x'_i = x_i + sigma_i N(0, I), kept in the box
            noise = self._random.standard_normal(self._x.shape)
            self._offspring = self._inside(self._x + self._sigma[:, None] * noise)
        return self._box.points(self._offspring)

    def tell(self, values: ArrayLike) -> None:
        """Take the values of the points last asked for, in their order.

        A value that is not finite counts as the worst.

        Raises:
            ValueError: nothing was asked for, or the number of values is wrong.
        """
        told = np.array(values, dtype=np.float64)
        if told.shape != (self._n,):
            raise ValueError(f"{self._n} values are expected, one a point, not shape {told.shape}")
        told[~np.isfinite(told)] = math.inf
        if self._told and self._offspring is None:
            raise ValueError("ask for points before telling their values")
        points = self._x if self._offspring is None else self._offspring
        # (step c) f_min takes the offspring in before anything is normalised by it
        self._compare(points, told)
        if self._offspring is None:
            self._f = told
        else:
            self._step(self._offspring, told)
        self._offspring = None
        self._told += self._n

    def _step(self, offspring: Array, values: Array) -> None:
        """Steps d to h: accept or not, all processes together, then adapt the step sizes."""
        if self._correlation:
            fitness, correlation = self._shares(offspring, values)
            # (step f) F' < lambda_t C'; 0/0 is NaN and compares false
            better = fitness < self._weight * correlation
        else:
            better = values < self._f
        self._x = np.where(better[:, None], offspring, self._x)
        self._f = np.where(better, values, self._f)
        self._replaced += better  # (step g)
        if (self._told // self._n) % self._epoch == 0:  # (step h) the 1/5 rule
            share = self._replaced / self._epoch
            self._sigma = np.where(share > 0.2, self._sigma / self._r, self._sigma)
            self._sigma = np.where(share < 0.2, self._sigma * self._r, self._sigma)
            self._replaced[:] = 0

    def _deviation(self, t: int) -> float:
        """Lambda's standard deviation in iteration t: 0.1 - 0.1 t / T_max."""
        return 0.1 - 0.1 * t / (self._evaluations_allowed / self._n)

    def _inside(self, x: Array) -> Array:
        """Points moved into the unit cube."""
        return reflect(x)

    def _shares(self, offspring: Array, values: Array) -> tuple[Array, Array]:
        """F' and C' (step e)."""
        return (
            normalised_fitness(self._f, values, self._best_f),
            normalised_correlation(self._x, offspring, self._sigma, self._x),
        )

    @property
    def done(self) -> bool:
        """Whether another population would go beyond the evaluations allowed."""
        return self._told + self._n > self._evaluations_allowed

    @property
    def population(self) -> Array:
        """Where the processes stand, (population, d), in the box's own units."""
        return self._box.points(self._x)

    @property
    def sigmas(self) -> Array:
        """The step size of every process, as a fraction of the range."""
        return self._sigma.copy()

    def state(self) -> dict[str, Any]:
        """Return everything as plain data that survives JSON unchanged."""
        return {
            "lower": self._box.lower.tolist(),
            "upper": self._box.upper.tolist(),
            "evaluations": self._evaluations_allowed,
            "population": self._n,
            "r": self._r,
            "epoch": self._epoch,
            "correlation": self._correlation,
            "random": self._random.bit_generator.state,
            "x": self._x.tolist(),
            "f": [_plain(v) for v in self._f],
            "sigma": self._sigma.tolist(),
            "replaced": self._replaced.tolist(),
            "told": self._told,
            "best_x": None if self._best_x is None else self._best_x.tolist(),
            "best_f": _plain(self._best_f),
            "offspring": None if self._offspring is None else self._offspring.tolist(),
            "weight": self._weight,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> NCS:
        """Return the search that `state` described."""
        search = cls(
            state["lower"],
            state["upper"],
            state["evaluations"],
            state["population"],
            r=state["r"],
            epoch=state["epoch"],
            correlation=state["correlation"],
        )
        search._random.bit_generator.state = state["random"]
        search._x = np.array(state["x"], dtype=np.float64)
        search._f = np.array([_number(v) for v in state["f"]])
        search._sigma = np.array(state["sigma"], dtype=np.float64)
        search._replaced = np.array(state["replaced"], dtype=np.int64)
        search._told = state["told"]
        search._best_x = None if state["best_x"] is None else np.array(state["best_x"])
        search._best_f = _number(state["best_f"])
        search._offspring = None if state["offspring"] is None else np.array(state["offspring"])
        search._weight = state["weight"]
        return search


class AuthorsNCS(NCS):
    """The search as the code of HDAP's authors does it, for comparison only.

    Four things differ from the paper: fitness is normalised without taking f_min off, so that
    values close together weigh the same, infeasible ones too; lambda's deviation falls to 0
    within a tenth of the run (HDAP's 10th generation of 100) and grows to 0.9 from then on, so
    that accepting becomes chance; an offspring is held against the other offspring; and what
    steps out of the box is clipped.
    """

    def _deviation(self, t: int) -> float:
        return abs(0.1 - t / (self._evaluations_allowed / self._n))

    def _inside(self, x: Array) -> Array:
        return np.clip(x, 0.0, 1.0)

    def _shares(self, offspring: Array, values: Array) -> tuple[Array, Array]:
        return (
            normalised_fitness(self._f, values, 0.0),
            normalised_correlation(self._x, offspring, self._sigma, offspring),
        )


def reflect(x: Array) -> Array:
    """Return the points folded back into the unit cube at its faces, as often as it takes."""
    folded = np.abs(x) % 2.0  # two reflections are a shift by 2
    return np.minimum(folded, 2.0 - folded)


def normalised_fitness(parents: Array, offspring: Array, lowest: float) -> Array:
    """Return F' (step e): 0 where the offspring is the best known, NaN where both are.

    An infinite value is the limit of a large one; two of them weigh the same.
    """
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        above, below = offspring - lowest, parents - lowest
        share = above / (below + above)
    lost, was_lost = ~np.isfinite(above), ~np.isfinite(below)
    if lost.any() or was_lost.any():
        share = np.where(lost & ~was_lost, 1.0, np.where(was_lost & ~lost, 0.0, share))
        share = np.where(lost & was_lost, 0.5, share)
    return np.asarray(share)


def normalised_correlation(parents: Array, offspring: Array, sigma: Array, others: Array) -> Array:
    """Return C' (step e): the share of distance that the offspring has over its parent.

    Parents are held against the parents of the other processes; an offspring against `others`,
    which are *the parents* as well.
    """
    n, d = parents.shape
    if n == 1:
        return np.full(1, 0.5)  # nobody to be different from: the fitness alone decides
    # (step d) D_B(i, j) = |x_i - x_j|^2 / (4 (s_i^2 + s_j^2))
    #                      + (D / 2) ln((s_i^2 + s_j^2) / (2 s_i s_j))
    square = sigma**2
    both = square[:, None] + square
    spread = 0.5 * d * np.log(both / (2.0 * sigma[:, None] * sigma))
    np.fill_diagonal(spread, np.inf)  # j != i
    old = (_squared_distances(parents, parents) / (4.0 * both) + spread).min(axis=1)
    new = (_squared_distances(offspring, others) / (4.0 * both) + spread).min(axis=1)
    with np.errstate(invalid="ignore"):
        return np.asarray(new / (old + new))


def _squared_distances(a: Array, b: Array) -> Array:
    difference = a[:, None, :] - b[None, :, :]
    return np.asarray(np.einsum("ijk,ijk->ij", difference, difference))


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _number(value: float | None) -> float:
    return math.inf if value is None else value
