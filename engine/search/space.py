"""Where the search lives: from genes to whole channels, and which designs to measure first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Widths = tuple[int, ...]
"""Kept channels, one number a dependency group."""


@dataclass(frozen=True)
class Space:
    """One outer iteration's box: a gene is the share of a group's *original* channels to remove.

    A gene lies between 0, which keeps the group as it is now, and `upper`, and every width from
    there down to the smallest allowed takes an equal part of that range.
    """

    channels: Widths
    """Width of each group in the unpruned network."""
    now: Widths
    """Its width at the start of this outer iteration."""
    reach: float
    """The largest share to remove (HDAP: at most 0.2 an outer iteration)."""
    multiple: int = 1
    """Kept channels are rounded up to it."""
    minimum: int = 1
    """Fewer are never kept."""

    def widths(self, genes: ArrayLike) -> list[Widths]:
        """Return the kept channels of each row of genes (n, G)."""
        return self._whole_channels(np.atleast_2d(genes), np.array(self.smallest))

    @cached_property
    def smallest(self) -> Widths:
        """The most pruned design of the box."""
        return self._whole_channels(np.full((1, len(self.now)), self.reach), np.array(1))[0]

    @cached_property
    def upper(self) -> Array:
        """The genes' upper ends (G,).

        Rounding up gives a width to all genes from the one that reaches it to just before the
        next one, so the smallest width needs as much room beyond its own.
        """
        lost = np.array(self.now) - np.array(self.smallest)
        return np.asarray((lost + self.multiple) / np.array(self.channels) - 1e-6)

    def _whole_channels(self, genes: Array, least: NDArray[np.int64]) -> list[Widths]:
        now = np.array(self.now)
        # The small number keeps 10 * (1 - 0.7) from becoming 4.
        blocks = np.ceil((now - genes * np.array(self.channels)) / self.multiple - 1e-9)
        kept = np.maximum(np.maximum(blocks * self.multiple, least), max(self.minimum, 1))
        return [tuple(int(w) for w in row) for row in np.minimum(kept, now)]

    def sample(
        self, count: int, random: np.random.Generator, taken: set[Widths], wide: float
    ) -> list[Widths]:
        """Choose designs to learn latency from; fewer where the box has no more.

        Half lie where the search begins, with small genes among them; a quarter at the ends of
        the genes, which tells the groups' effects apart; a quarter prunes all groups to much the
        same degree, up to `wide`, so that later outer iterations are not blind. The first one is
        the most pruned of the box, for trees do not look beyond what they have seen.

        Args:
            count: how many.
            random: what is random comes from here.
            taken: designs that are known already; the chosen ones are added.
            wide: largest share of channels to remove in the last quarter.
        """
        size, least = len(self.now), np.array(1)
        draws: tuple[Callable[[], Array], ...] = (
            lambda: self.upper * random.random(size) * random.uniform(0.1, 1.0),
            lambda: self.upper * random.beta(0.5, 0.5, size),
            lambda: self.upper * random.random(size) * random.uniform(0.1, 1.0),
            lambda: wide * np.clip(random.random() + 0.2 * (random.random(size) - 0.5), 0, 1),
        )
        chosen: list[Widths] = []
        candidate = self.smallest
        for attempt in range(50 * count):
            if candidate not in taken and len(chosen) < count:
                taken.add(candidate)
                chosen.append(candidate)
            kind = attempt % len(draws)
            genes = draws[kind]()[None]
            far = kind == len(draws) - 1
            candidate = (self._whole_channels(genes, least) if far else self.widths(genes))[0]
        return chosen
