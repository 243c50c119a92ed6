"""What the search minimises: a fleet's latency in one number, and accuracy beside it.

HDAP (Zhang et al., arXiv 2501.15240) minimises the mean latency over the devices of a fleet, while
enough accuracy is kept. An operator with a deadline cares for the slowest devices instead, or
knows the latency that is needed and wants as much accuracy as it allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Objective = Literal["mean", "percentile-95", "worst"]
Constraint = Literal["accuracy", "latency", "both"]
Penalty = Literal["replace", "add"]
Weighting = Literal["size", "plain"]


class _Cluster(Protocol):
    @property
    def size(self) -> int: ...
    @property
    def levels(self) -> tuple[float, ...]: ...


@dataclass(frozen=True, eq=False)
class FleetLatency:
    """Latency of a whole fleet, from that of its clusters' representatives.

    Each device is as far from its representative on every design as it was when both were last
    measured.
    """

    kind: Objective
    levels: Array
    """(D,) latency of each device relative to its cluster's representative."""
    cluster: NDArray[np.int64]
    """(D,) the row of its cluster."""
    weights: Array
    """(D,) what share of the fleet it counts for; they sum to 1."""

    @classmethod
    def of(
        cls, clusters: Sequence[_Cluster], kind: Objective, weighting: Weighting
    ) -> FleetLatency:
        """Return the latency of a fleet of these clusters.

        Args:
            clusters: in the order of the rows that will be handed over.
            kind: mean, 95th percentile or worst of the devices.
            weighting: whether a cluster counts by its size, or all alike as in the authors' code.
        """
        levels: list[float] = []
        rows: list[int] = []
        weights: list[float] = []
        for row, cluster in enumerate(clusters):
            own = cluster.levels or (1.0,)
            share = float(cluster.size) if weighting == "size" else 1.0
            levels += own
            rows += [row] * len(own)
            weights += [share / len(own)] * len(own)
        total = np.array(weights)
        return cls(kind, np.array(levels), np.array(rows), total / total.sum())

    def __call__(self, latencies: Array) -> Array:
        """Return milliseconds (n,) of n designs, from those of the representatives (clusters, n).

        The 95th percentile is the least latency that 95 % of the devices stay within.
        """
        devices = latencies[self.cluster] * self.levels[:, None]
        if self.kind == "mean":
            return np.asarray(self.weights @ devices)
        if self.kind == "worst":
            return np.asarray(devices.max(axis=0))
        order = np.argsort(devices, axis=0)
        within = np.cumsum(self.weights[order], axis=0) >= 0.95 - 1e-9
        place = order[within.argmax(axis=0), np.arange(devices.shape[1])]
        return np.asarray(devices[place, np.arange(devices.shape[1])])


@dataclass(frozen=True)
class Fitness:
    """One number for a candidate; the least is the best, and whatever keeps to the constraint is
    better than whatever does not."""

    alpha: float
    """Share of the accuracy that is to be kept, relative to the start of the outer iteration."""
    penalty: Penalty = "replace"
    latency: float | None = None
    """Latency to be reached, relative to the unpruned network; then the accuracy is what is
    sought. None: the other way round."""

    def __call__(self, latency: Array, accuracy: Array) -> Array:
        """Return the values of n candidates.

        HDAP (released code): the latency while enough accuracy is kept, else
        (1 - accuracy) / (1 - alpha), which is above 1. A feasible candidate that is slower than
        the unpruned network counts as 1, so that it is never worse than an infeasible one. "add"
        puts the missing accuracy on top of the latency instead, which lets a fast candidate miss
        a little. Where a latency is to be reached, the roles change: the accuracy lost, or more
        than 1 by what is missing; "add" puts that on top of the accuracy lost.

        Args:
            latency: of the fleet, relative to the unpruned network (n,).
            accuracy: relative to the start of the outer iteration (n,).
        """
        if self.latency is not None:
            lost, over = 1.0 - accuracy, np.maximum(0.0, latency / self.latency - 1.0)
            if self.penalty == "add":
                return np.asarray(lost + over / max(1.0 - self.alpha, 1e-9))
            return np.where(over > 0, 1.0 + over, np.minimum(lost, 1.0))
        room = max(1.0 - self.alpha, 1e-9)
        if self.penalty == "add":
            return np.asarray(latency + np.maximum(0.0, self.alpha - accuracy) / room)
        missing = np.maximum(1.0 + 1e-9, (1.0 - accuracy) / room)
        return np.where(accuracy >= self.alpha, np.minimum(latency, 1.0), missing)
