"""Other people's optimisers behind ask and tell, for comparison at equal evaluations.

CMA-ES is the package `cma` (Hansen), differential evolution and NSGA-II are `pymoo` (Blank and
Deb: *Pymoo: Multi-Objective Optimization in Python*, IEEE Access 8, 2020).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.search.box import check_steps
from engine.search.populations import DifferentialEvolution, Population

Array = NDArray[np.float64]


class CMAES(Population):
    """CMA-ES with restarts of twice the population (IPOP).

    Hansen, Ostermeier: *Completely derandomized self-adaptation in evolution strategies*, 2001;
    Auger, Hansen: *A restart CMA evolution strategy with increasing population size*, CEC 2005.
    It begins around the first starting point; a restart, once it has converged, begins anywhere.

    Args:
        lower: as with `Population`.
        upper: as with `Population`.
        evaluations: as with `Population`.
        population: as with `Population`; two at least.
        start: as with `Population`.
        seed: as with `Population`.
        sigma: first step size as a share of the range.
    """

    _least = 2, "CMA-ES needs a population of two at least"

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


class Pymoo(Population):
    """An algorithm of pymoo; arguments and errors as with `Population`."""

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
        from pymoo.core.population import Population as Individuals

        self._individuals = self._algorithm.ask()
        if self._individuals is None or not len(self._individuals):  # nothing but duplicates
            self._individuals = Individuals.new(X=self._random.random((self._n, len(self._box))))
        return np.array(self._individuals.get("X"), dtype=np.float64)

    def _learn(self, points: Array, values: Array) -> None:
        self._individuals.set("F", values.reshape(len(points), self.objectives))
        self._algorithm.tell(infills=self._individuals)


class DE(Pymoo):
    """Differential evolution, DE/best/1/bin with pymoo's settings, which adapt themselves.

    Storn, Price: *Differential evolution*, Journal of Global Optimization 11, 1997.
    """

    _least = DifferentialEvolution._least

    def _build(self, population: int, first: Array) -> Any:
        from pymoo.algorithms.soo.nonconvex.de import DE as Algorithm

        return Algorithm(pop_size=population, sampling=first)


class NSGA2(Pymoo):
    """NSGA-II, which minimises two objectives at once, with pymoo's settings.

    Deb, Pratap, Agarwal, Meyarivan: *A fast and elitist multiobjective genetic algorithm:
    NSGA-II*, IEEE Transactions on Evolutionary Computation 6, 2002.
    """

    objectives = 2
    _least = 2, "NSGA-II needs a population of two at least"

    def _build(self, population: int, first: Array) -> Any:
        from pymoo.algorithms.moo.nsga2 import NSGA2 as Algorithm

        return Algorithm(pop_size=population, sampling=first)


class _Normal:
    """Normal random numbers in the shape that `cma` asks for them."""

    def __init__(self, random: np.random.Generator) -> None:
        self._random = random

    def __call__(self, *shape: int) -> Array:
        return self._random.standard_normal(shape)
