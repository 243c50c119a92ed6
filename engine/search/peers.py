"""Other people's optimisers behind ask and tell, for comparison at equal evaluations.

CMA-ES is the package `cma` (Hansen), differential evolution and NSGA-II are `pymoo` (Blank and
Deb: *Pymoo: Multi-Objective Optimization in Python*, IEEE Access 8, 2020).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.search.box import BestSoFar, check_steps

Array = NDArray[np.float64]


class Peer(BestSoFar, ABC):
    """What all of them share: the box, the count, and the best point.

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


class Random(Peer):
    """Uniform points: what any search has to beat."""

    def _propose(self) -> Array:
        return self._random.random((self._n, len(self._box))) if self._told else self._first()

    def _learn(self, points: Array, values: Array) -> None:
        pass


class CMAES(Peer):
    """CMA-ES with restarts of twice the population (IPOP).

    Hansen, Ostermeier: *Completely derandomized self-adaptation in evolution strategies*, 2001;
    Auger, Hansen: *A restart CMA evolution strategy with increasing population size*, CEC 2005.
    It begins around the first starting point; a restart, once it has converged, begins anywhere.

    Args:
        lower: as with `Peer`.
        upper: as with `Peer`.
        evaluations: as with `Peer`.
        population: as with `Peer`; two at least.
        start: as with `Peer`.
        seed: as with `Peer`.
        sigma: first step size as a share of the range.
    """

    def __init__(
        self,
        lower: ArrayLike,
        upper: ArrayLike,
        evaluations: int,
        population: int = 10,
        start: ArrayLike | None = None,
        seed: int | None = None,
        sigma: float = 0.1,
    ) -> None:
        super().__init__(lower, upper, evaluations, population, start, seed)
        check_steps(sigma, 0.5, 1)
        if population < 2:
            raise ValueError("CMA-ES needs a population of two at least")
        self._sigma = sigma
        self._strategy = self._begin(self._first()[0], population)

    def _begin(self, mean: Array, population: int) -> Any:
        import cma

        options = {
            "bounds": [0.0, 1.0],
            "popsize": population,
            "randn": _Normal(self._random),
            "seed": math.nan,  # numpy's global random numbers are left alone
            "verbose": -10,  # nor does it read options from files
            "verb_log": 0,
        }
        return cma.CMAEvolutionStrategy(mean, self._sigma, options)

    def _propose(self) -> Array:
        if self._strategy.stop():
            again = self._random.random(len(self._box))
            self._strategy = self._begin(again, 2 * self._strategy.popsize)
        return np.array(self._strategy.ask())

    def _learn(self, points: Array, values: Array) -> None:
        self._strategy.tell(list(points), values.tolist())


class Pymoo(Peer):
    """An algorithm of pymoo; arguments and errors as with `Peer`."""

    def __init__(
        self,
        lower: ArrayLike,
        upper: ArrayLike,
        evaluations: int,
        population: int = 10,
        start: ArrayLike | None = None,
        seed: int | None = None,
    ) -> None:
        from pymoo.core.problem import Problem
        from pymoo.core.termination import NoTermination

        super().__init__(lower, upper, evaluations, population, start, seed)
        size = len(self._box)
        problem = Problem(n_var=size, n_obj=self.objectives, xl=np.zeros(size), xu=np.ones(size))
        self._algorithm = self._build(population, self._first())
        self._algorithm.setup(
            problem,
            termination=NoTermination(),
            seed=int(self._random.integers(2**31)),
            verbose=False,
        )
        self._individuals: Any = None

    @abstractmethod
    def _build(self, population: int, first: Array) -> Any:
        """Return the algorithm of pymoo that begins with that population."""

    def _propose(self) -> Array:
        from pymoo.core.population import Population

        self._individuals = self._algorithm.ask()
        if self._individuals is None or not len(self._individuals):  # nothing but duplicates
            self._individuals = Population.new(X=self._random.random((self._n, len(self._box))))
        return np.array(self._individuals.get("X"), dtype=np.float64)

    def _learn(self, points: Array, values: Array) -> None:
        self._individuals.set("F", values.reshape(len(points), self.objectives))
        self._algorithm.tell(infills=self._individuals)


class DE(Pymoo):
    """Differential evolution, DE/best/1/bin with pymoo's settings.

    Storn, Price: *Differential evolution*, Journal of Global Optimization 11, 1997.
    """

    def _build(self, population: int, first: Array) -> Any:
        from pymoo.algorithms.soo.nonconvex.de import DE as Algorithm

        if population < 4:
            raise ValueError("differential evolution needs a population of four at least")
        return Algorithm(pop_size=population, sampling=first)


class NSGA2(Pymoo):
    """NSGA-II, which minimises two objectives at once, with pymoo's settings.

    Deb, Pratap, Agarwal, Meyarivan: *A fast and elitist multiobjective genetic algorithm:
    NSGA-II*, IEEE Transactions on Evolutionary Computation 6, 2002.
    """

    objectives = 2

    def _build(self, population: int, first: Array) -> Any:
        from pymoo.algorithms.moo.nsga2 import NSGA2 as Algorithm

        if population < 2:
            raise ValueError("NSGA-II needs a population of two at least")
        return Algorithm(pop_size=population, sampling=first)


class _Normal:
    """Normal random numbers in the shape that `cma` asks for them."""

    def __init__(self, random: np.random.Generator) -> None:
        self._random = random

    def __call__(self, *shape: int) -> Array:
        return self._random.standard_normal(shape)


def _finite(values: Array) -> Array:
    """Values with those that are infinite put just beyond the worst of their column."""
    columns = values.reshape(len(values), -1)
    known = np.where(np.isfinite(columns), columns, 0.0)
    worst = known.max(axis=0) + np.abs(known).max(axis=0) + 1.0
    return np.where(np.isfinite(columns), columns, worst).reshape(values.shape)
