"""Every optimiser that a search can be driven by, in one shape.

All of them are asked for points and told their values, count exactly the same evaluations, and
pickle: with the same seed a run that was cut in the middle goes on to the last bit.

    >>> import numpy as np
    >>> search = make("ncs", np.zeros(3), np.ones(3), evaluations=2000, seed=1)
    >>> while not search.done:
    ...     points = search.ask()
    ...     search.tell(((points - 0.3) ** 2).sum(axis=1))
    >>> bool(search.best_value < 0.01)
    True
"""

from __future__ import annotations

from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.search.ncs import NCS, AuthorsNCS
from engine.search.populations import DifferentialEvolution, Random

Array = NDArray[np.float64]
Kind = Literal["ncs", "ncs-authors", "phc", "random", "cma", "de", "de-pymoo", "nsga2"]
KINDS: tuple[Kind, ...] = get_args(Kind)

POPULATION: dict[Kind, int] = {
    "ncs": 3, "ncs-authors": 10, "phc": 3, "random": 10, "cma": 6, "de": 20, "de-pymoo": 10,
    "nsga2": 20,
}  # fmt: skip
"""What suits each on a pruning problem of a dozen groups and 400 evaluations. Few processes with
long steps (sigma 0.3, r 0.9, epoch 5) suit NCS-C there better than the paper's: docs/results.md."""
LEAST: dict[Kind, int] = {"cma": 2, "de": 4, "de-pymoo": 4, "nsga2": 2}
"""The smallest population of those that need more than one point."""
_GENERATIONS = 20


def suited(kind: Kind, evaluations: int) -> int:
    """Return the population that suits a kind: `POPULATION`, but for twenty of them at least."""
    return min(POPULATION[kind], max(4, evaluations // _GENERATIONS))


class Optimiser(Protocol):
    """Minimises over a box; owns no loop. All of them pickle."""

    @property
    def objectives(self) -> int:
        """How many values `tell` takes for a point: 1, or 2 and then all are minimised at once."""

    def ask(self) -> Array:
        """Return the points to evaluate next (n, d); asked again before `tell`, the same ones."""

    def tell(self, values: ArrayLike) -> None:
        """Take their values, (n,) or with two objectives (n, 2); not finite is the worst."""

    @property
    def done(self) -> bool:
        """Whether the evaluations are used up."""

    @property
    def best(self) -> Array:
        """The best point told so far (d,); with two objectives the least sum of them."""

    @property
    def best_value(self) -> float:
        """Its value; infinite while there is none."""

    @property
    def evaluations(self) -> int:
        """How many points have been told."""


def make(
    kind: Kind,
    lower: ArrayLike,
    upper: ArrayLike,
    evaluations: int,
    population: int = 10,
    start: ArrayLike | None = None,
    sigma: float = 0.1,
    r: float = 0.99,
    epoch: int = 10,
    seed: int | None = None,
) -> Optimiser:
    """Return an optimiser.

    Args:
        kind: "ncs" (NCS-C), "ncs-authors" (with the faults of the code of HDAP's authors, for
            comparison), "phc" (NCS-C without its correlation), "random" (uniform points), "cma"
            (CMA-ES), "de" (differential evolution), "de-pymoo" (that of pymoo) or "nsga2", which
            minimises two objectives.
        lower: lower ends of the box, length d.
        upper: upper ends of the box, length d.
        evaluations: how many points may be told in all.
        population: points asked for at once; 0: what suits the kind (`suited`).
        start: points (k, d) of the first population, k at most `population`; the others are
            uniform. CMA-ES begins around the first one.
        sigma: first step size as a share of the range ("ncs", "ncs-authors", "phc", "cma").
        r: factor of the step size ("ncs", "ncs-authors", "phc").
        epoch: iterations between two adaptations of the step size (the same).
        seed: seed of the random numbers.

    Raises:
        ValueError: an argument makes no sense, or what the kind needs is not installed.
    """
    if kind not in KINDS:
        raise ValueError(f"{kind}: no such optimiser: choose one of {', '.join(KINDS)}")
    population = population or suited(kind, evaluations)
    if kind in ("ncs", "phc", "ncs-authors"):
        variant = AuthorsNCS if kind == "ncs-authors" else NCS
        return variant(
            lower,
            upper,
            evaluations,
            population,
            start,
            sigma,
            r,
            epoch,
            seed,
            correlation=kind != "phc",
        )
    common = (lower, upper, evaluations, population, start, seed)
    if kind == "random":
        return Random(*common)
    if kind == "de":
        return DifferentialEvolution(*common)
    from engine.search import peers

    try:
        if kind == "cma":
            return peers.CMAES(*common, sigma=sigma)
        return peers.DE(*common) if kind == "de-pymoo" else peers.NSGA2(*common)
    except ImportError as error:
        raise ValueError(
            f'the optimiser "{kind}" needs {error.name}: pip install "hdap-tui[peers]"'
        ) from error
