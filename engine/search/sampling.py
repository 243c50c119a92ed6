"""Which designs to measure: before a search, and near its incumbents as it goes on.

A surrogate is as good as its designs are near to where it is asked. The paper's (ratios uniform
on (0, 1]) nearly all lie far beyond the small ratios that the search lives in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from engine.search.space import Space, Widths

Array = NDArray[np.float64]
Sampling = Literal["guided", "uniform"]
Learns = Callable[[Sequence[Widths], int], Sequence[int]]
"""Chooses that many of the designs, by what measuring them would teach."""

POOL = 400
"""Designs near the incumbents from which those to be measured are chosen."""


def first(
    space: Space,
    count: int,
    random: np.random.Generator,
    taken: set[Widths],
    wide: float,
    sampling: Sampling = "guided",
) -> list[Widths]:
    """Choose designs to learn latency from; fewer where there are no more.

    Guided, half lie where the search begins, with small genes among them; a quarter at the ends
    of the genes, which tells the groups' effects apart; a quarter prunes all groups to much the
    same degree, up to `wide`, so that later outer iterations are not blind. The first one is the
    most pruned of the box, for trees do not look beyond what they have seen. "uniform" is HDAP's
    (arXiv 2501.15240): each group keeps a share of its channels that is uniform on (0, 1].

    Args:
        space: the box of the outer iteration.
        count: how many.
        random: what is random comes from here.
        taken: designs that are known already; the chosen ones are added.
        wide: largest share of channels to remove in the last quarter.
        sampling: how.
    """
    size = len(space.now)
    draws: tuple[Callable[[], Widths], ...] = (
        lambda: space.widths(space.upper * random.random(size) * random.uniform(0.1, 1.0))[0],
        lambda: space.widths(space.upper * random.beta(0.5, 0.5, size))[0],
        lambda: space.widths(space.upper * random.random(size) * random.uniform(0.1, 1.0))[0],
        lambda: space.anywhere(
            wide * np.clip(random.random() + 0.2 * (random.random(size) - 0.5), 0, 1)
        ),
    )
    start = space.smallest
    if sampling == "uniform":
        draws = (lambda: space.anywhere(random.random(size)),)
        start = draws[0]()
    return _distinct(start, draws, count, taken, space, random)


def more(
    space: Space,
    count: int,
    random: np.random.Generator,
    taken: set[Widths],
    incumbents: Sequence[Widths],
    learns: Learns,
    moved: Callable[[Sequence[Widths]], Sequence[Widths]] = lambda designs: designs,
) -> list[Widths]:
    """Choose designs near the incumbents that would teach the surrogates most.

    A pool is drawn as an optimiser would go on: incumbents with some groups changed, mixtures of
    two, and a few from anywhere in the box; what is taken from it is decided by `learns`.

    Args:
        space: the box of the outer iteration.
        count: how many.
        random: what is random comes from here.
        taken: designs that are known already; the chosen ones are added.
        incumbents: the best designs so far, at least one.
        learns: see `Learns`.
        moved: what the search makes of designs before it scores them.
    """
    size, least = len(space.now), np.array(space.smallest)
    spread = np.maximum(1.0, 0.35 * (np.array(space.now) - least))
    best = np.array(incumbents)

    def near() -> Widths:
        mother, father = best[random.integers(len(best), size=2)]
        mixed = np.where(random.random(size) < random.random(), mother, father)
        changed = random.random(size) < random.uniform(0.1, 1.0)
        step = np.rint(spread * random.standard_normal(size) * random.uniform(0.2, 1.0))
        return space.inside(mixed + changed * step)

    def box() -> Widths:
        return space.widths(space.upper * random.random(size) * random.uniform(0.1, 1.0))[0]

    pool = _distinct(near(), (near, near, near, box), POOL, set(taken), space, random)
    pool = [w for w in dict.fromkeys(moved(pool)) if w not in taken]
    chosen = [pool[i] for i in learns(pool, min(count, len(pool)))]
    taken.update(chosen)
    return chosen


def _distinct(
    start: Widths,
    draws: Sequence[Callable[[], Widths]],
    count: int,
    taken: set[Widths],
    space: Space,
    random: np.random.Generator,
) -> list[Widths]:
    """Draw by turns until that many are found, or nothing new turns up any more.

    As the search rounds designs up where it pays, every other round of draws is rounded up.
    """
    chosen: list[Widths] = []
    candidate = start
    for attempt in range(50 * count):
        if candidate not in taken:
            taken.add(candidate)
            chosen.append(candidate)
        if len(chosen) == count:
            break
        candidate = draws[attempt % len(draws)]()
        if space.steps and attempt // len(draws) % 2:
            [candidate] = space.aligned([candidate], int(random.choice(space.steps)))
    return chosen
