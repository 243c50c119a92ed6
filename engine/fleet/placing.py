"""Where the clusters lie, kept: a device that comes later is assigned without clustering anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.fleet.features import Array, Frame, fill

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Places:
    """The dense parts of each cluster; what lies within eps of one belongs to it."""

    frame: Frame
    """What makes points of latencies."""
    dimensions: int
    """Principal components that were clustered in."""
    eps: float
    """How near is near enough."""
    cores: Array
    """(cores, models) in the frame's space: core points of DBSCAN, or the means of core bins."""
    labels: Labels
    """(cores,) the cluster of each."""
    beside: float
    """How far a device may lie beside what was clustered in; further is another direction."""

    @classmethod
    def of(
        cls, frame: Frame, dimensions: int, eps: float, cores: Array, labels: Labels, own: Array
    ) -> Places:
        """Return the places of clusters whose devices are `own`, (devices, models)."""
        found = cls(frame, dimensions, eps, cores, labels, np.inf)
        usual = float(np.quantile(found.residual(own), 0.99)) if len(own) else 0.0
        return replace(found, beside=eps + 1.5 * usual)

    def assign(self, latencies: ArrayLike) -> Labels:
        """Return the cluster of each device, -1 where it is like none of them.

        Args:
            latencies: (devices, columns) in milliseconds, NaN where missing; the columns are
                those that were clustered.

        Raises:
            ValueError: the columns are others, or a latency is not positive.
        """
        table = np.asarray(latencies)
        columns = len(self.frame.models)
        if table.ndim != 2 or table.shape[1] != columns:
            raise ValueError(f"latencies must be devices x {columns}, their shape is {table.shape}")
        if np.any(table <= 0) or np.any(np.isinf(table)):
            raise ValueError("latencies must be positive and finite; leave a missing one as NaN")
        return self.assign_logs(np.log(table))

    def assign_logs(self, logs: Array) -> Labels:
        """Return the cluster of each device by its log-latencies."""
        found = np.full(len(logs), -1, dtype=np.int64)
        space = self.frame.space(logs)
        placed = ~np.isnan(space).all(axis=1)
        found[placed] = self.within(fill(space[placed], self.cores))
        return found

    def within(self, space: Array) -> Labels:
        """Return the cluster whose dense part lies within eps, -1 where there is none."""
        found = self._looked_up(space, float(np.nextafter(self.eps, np.inf)))
        found[self.residual(space) > self.beside] = -1
        return found

    def nearest(self, space: Array) -> Labels:
        """Return the nearest cluster, however far; 0 where there is no cluster."""
        return np.maximum(self._looked_up(space, np.inf), 0)

    def points(self, space: Array) -> Array:
        """Return what is clustered: (devices, dimensions)."""
        return np.asarray(space @ self.frame.axes[:, : self.dimensions])

    def residual(self, space: Array) -> Array:
        """Return how far each device lies beside the components that were clustered in."""
        if self.dimensions >= space.shape[1]:
            return np.zeros(len(space))
        squares = np.sum(space**2, axis=1) - np.sum(self.points(space) ** 2, axis=1)
        return np.asarray(np.sqrt(np.maximum(squares, 0.0)))

    @cached_property
    def _tree(self) -> Any:
        from scipy.spatial import cKDTree

        return cKDTree(self.points(self.cores))

    def _looked_up(self, space: Array, reach: float) -> Labels:
        if not len(self.cores) or not len(space):
            return np.full(len(space), -1, dtype=np.int64)
        _, row = self._tree.query(self.points(space), distance_upper_bound=reach)
        return np.asarray(np.append(self.labels, -1)[row])

    def to_state(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        frame = self.frame
        arrays = {
            "models": frame.models, "centre": frame.centre, "factor": frame.factor,
            "mean": frame.mean, "axes": frame.axes, "cores": self.cores, "labels": self.labels,
        }  # fmt: skip
        return {
            "dimensions": self.dimensions,
            "eps": self.eps,
            "beside": self.beside,
            **{name: array.tolist() for name, array in arrays.items()},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Places:
        """Return what `to_state` was taken from.

        Raises:
            ValueError: the state is none.
        """
        try:
            models = np.asarray(state["models"], dtype=bool)
            width = int(models.sum())
            one = {
                name: np.asarray(state[name], dtype=float).reshape(width)
                for name in ("centre", "factor", "mean")
            }
            axes = np.asarray(state["axes"], dtype=float).reshape(width, -1)
            return cls(
                frame=Frame(models=models, axes=axes, **one),
                dimensions=int(state["dimensions"]),
                eps=float(state["eps"]),
                cores=np.asarray(state["cores"], dtype=float).reshape(-1, width),
                labels=np.asarray(state["labels"], dtype=np.int64),
                beside=float(state["beside"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"this is no state of clusters: {error}") from error
