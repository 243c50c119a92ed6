"""Where the search lives: from genes to whole channels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Widths = tuple[int, ...]
"""Kept channels, one number a dependency group."""


def steps(multiples: Iterable[int]) -> tuple[int, ...]:
    """Return the multiples worth rounding up to on devices that are fast at these.

    With a multiple its halves down to 4, which thin layers have room for: ONNX Runtime's blocked
    convolutions need channels in fours.
    """
    found: set[int] = set()
    for multiple in multiples:
        while multiple > 1:
            found.add(multiple)
            multiple = multiple // 2 if multiple % 2 == 0 and multiple > 4 else 1
    return tuple(sorted(found))


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
    steps: tuple[int, ...] = ()
    """Multiples that kept channels may be rounded up to, design by design, where that is faster."""

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
        return _tuples(np.minimum(kept, now))

    def anywhere(self, genes: Array) -> Widths:
        """Return kept channels from genes (G,) that may reach beyond the box, to one channel."""
        return self._whole_channels(np.atleast_2d(genes), np.array(1))[0]

    def genes(self, widths: Widths) -> Array:
        """Return genes (G,) that stand for kept channels of the box."""
        lost = (np.array(self.now) - np.array(widths)) / np.array(self.channels)
        return np.asarray(np.clip(lost, 0.0, self.upper))

    def aligned(self, designs: ArrayLike, multiple: int) -> list[Widths]:
        """Return designs (n, G) rounded up to a multiple, as far as there are more channels now."""
        up = -(-np.asarray(designs) // multiple) * multiple
        return _tuples(np.minimum(up, self.now))

    def twins(self, widths: Widths) -> list[Widths]:
        """Return the other designs that a design becomes when rounded up to each of the steps."""
        found = dict.fromkeys(self.aligned([widths], step)[0] for step in self.steps)
        return [twin for twin in found if twin != widths]

    def inside(self, kept: ArrayLike) -> Widths:
        """Return kept channels (G,) moved into the box, where they are not, and rounded up."""
        blocks = np.ceil(np.asarray(kept, dtype=np.float64) / self.multiple)
        inside = np.maximum(blocks * self.multiple, np.array(self.smallest))
        return tuple(int(w) for w in np.minimum(inside, np.array(self.now)))


def _tuples(kept: NDArray[Any]) -> list[Widths]:
    return [tuple(row) for row in kept.astype(np.int64).tolist()]
