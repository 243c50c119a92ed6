"""Who belongs to which cluster, round after round: ids that last, and moves that are no accident.

The clusters are found once and then stay where they are; each round only places the devices among
them. A device's place is the mean over its last rounds, and it changes its cluster when several
rounds agree. Clusters are sought anew when many devices fit none of them any more, when the fleet
has grown or shrunk, and once in a while; they keep their ids by the devices that they share.

>>> import numpy as np
>>> latencies = np.array([[10.0], [10.1], [13.0], [13.1]])
>>> held = Membership.begin("abcd", latencies)
>>> held.update("abcd", latencies[[2, 1, 2, 3]])
False
>>> held.labels.tolist()
[0, 0, 1, 1]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.fleet.clusters import Clustering, arranged, cluster
from engine.fleet.features import Array, Features, fill
from engine.fleet.matching import match
from engine.fleet.placing import Labels, Places

AGREE = 3
"""Rounds in a row that must put a device into another cluster."""
ROUNDS = 5
"""A place is a mean with weight 1 / ROUNDS for the newest round, once there were as many."""
MORE_NOISE = 0.05
"""Share of devices that fit no cluster, above what it was at first, from which to seek anew."""
REFIT_EVERY = 50
"""Rounds after which the clusters are sought anew in any case."""
_USUAL = 4.0
"""A round further from a device's place than this many times the fleet's median is no accident."""
_FEW = 3
"""Devices from which what all share can be told."""
_VERSION = 1


@dataclass(frozen=True)
class Asked:
    """What is prescribed about the clusters; 0 finds it."""

    eps_percent: float = 0.0
    min_samples: int = 0


def record_type(columns: int) -> np.dtype[Any]:
    """Return how a device is kept: its place (log-latencies), and how sure that is."""
    return np.dtype(
        [
            ("label", "<i4"),
            ("candidate", "<i4"),  # where the last rounds put it, if elsewhere
            ("agreed", "<i2"),  # how many of them in a row
            ("away", "<i2"),  # rounds in a row that were far from its place
            ("rounds", "<i2"),  # rounds in its place; 0: never measured
            ("place", "<f4", (columns,)),
        ]
    )


class Membership:
    """The clusters of a fleet as they stand."""

    def __init__(
        self, names: Sequence[str], records: NDArray[Any], state: Mapping[str, Any]
    ) -> None:
        """Take up what `to_state` and `records` kept; a new one comes from `begin`.

        Raises:
            ValueError: the state is none, or of another version.
        """
        if state.get("version") != _VERSION or len(names) != len(records):
            raise ValueError("this is no state of a fleet's clusters")
        self.names = list(names)
        self.records = records
        try:
            self.places = Places.from_state(state["places"])
            self.asked = Asked(**state["asked"])
            self.min_samples = int(state["min_samples"])
            self.next_id = int(state["next_id"])
            self._explained = (float(state["explained"][0]), float(state["explained"][1]))
            self._noise, self._devices = float(state["noise"]), int(state["devices"])
            self._rounds, self._due = int(state["rounds"]), int(state["due"])
            self._heads = {int(key): str(name) for key, name in state["heads"].items()}
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"not the whole state of a fleet's clusters: {error!r}") from error

    @classmethod
    def begin(
        cls,
        names: Sequence[str],
        latencies: ArrayLike,
        repeatability: ArrayLike | None = None,
        asked: Asked | None = None,
        before: Mapping[str, int] | None = None,
        next_id: int = 0,
    ) -> Membership:
        """Find the clusters for the first time, or on other measurements than before.

        Args:
            names: the devices, one a row.
            latencies: (devices, models) in milliseconds, NaN where missing.
            repeatability: relative standard deviation of a measurement, as `cluster` takes it.
            asked: what is prescribed about the clusters.
            before: cluster of each device by an earlier clustering, whose ids are kept.
            next_id: the first id that was never used.

        Raises:
            ValueError: as `cluster` does.
        """
        table = np.asarray(latencies)
        records = np.zeros(len(table), record_type(table.shape[1]))
        records["place"] = np.log(table)
        records["rounds"] = ~np.isnan(table).all(axis=1)
        held = cls.__new__(cls)
        held.names, held.records, held.asked = list(names), records, asked or Asked()
        held.next_id, held._heads = next_id, {}
        old = np.array([(before or {}).get(name, -1) for name in held.names], dtype=np.int64)
        held._fit(records["place"], old, repeatability)
        records["label"] = records["candidate"] = held._fresh
        return held

    @property
    def labels(self) -> Labels:
        """The cluster of each device, -1 for noise."""
        return self.records["label"].astype(np.int64)

    def update(
        self,
        names: Sequence[str],
        latencies: ArrayLike,
        repeatability: ArrayLike | None = None,
    ) -> bool:
        """Take in one round; return whether the clusters were sought anew.

        Args:
            names: the fleet's devices by now, one a row.
            latencies: (devices, models) in milliseconds; NaN where nothing was measured leaves a
                device as it is.
            repeatability: as `begin` takes it; used where the clusters are sought anew.

        Raises:
            ValueError: the models are others than those that were clustered.
        """
        logs = np.log(np.asarray(latencies))
        if logs.shape != (len(names), self.records["place"].shape[1]):
            raise ValueError(f"{len(names)} devices do not fit latencies of {logs.shape}")
        self._align(names)
        new = self.records["rounds"] == 0
        position, measured = self._take(logs)
        assigned = self.places.assign_logs(position)
        anew = self._wants_anew(assigned)
        settled = new & measured
        if anew:
            before = self.labels
            self._fit(position, before, repeatability)
            assigned = self._fresh
            # A cluster that is new, or in the place of one that is gone, needs no second look.
            known = set(np.unique(before).tolist()) & {-1, *self._ids}
            settled |= ~(np.isin(assigned, list(known)) & np.isin(before, list(known)))
        self._move(assigned, measured, settled)
        return anew

    def clustering(self) -> Clustering:
        """Return the clusters as they stand, as `cluster` does: the ids are those that last."""
        place, labels = self.records["place"], self.labels
        placed = np.asarray(~np.isnan(self.places.frame.space(place)).all(axis=1))
        labels[~placed] = -1
        space = fill(self.places.frame.space(place[placed]), self.places.cores)
        seen = Features(
            placed=placed,
            complete=~np.isnan(place[:, self.places.frame.models]).any(axis=1),
            space=space,
            scores=np.asarray(space @ self.places.frame.axes),
            explained=self._explained,
            sigma=None,
            frame=self.places.frame,
        )
        sizes = {
            int(one): int(n) for one, n in zip(*np.unique(labels, return_counts=True), strict=True)
        }
        ids = sorted((one for one in sizes if one >= 0), key=lambda one: (-sizes[one], one))
        found = arranged(self.places, labels, seen, self.min_samples, ids)
        found = replace(found, representatives=self._kept_heads(found))
        self._heads = {
            one: self.names[row] for one, row in zip(ids, found.representatives, strict=True)
        }
        return found

    def to_state(self) -> dict[str, Any]:
        """Return what is not in `records`, as plain data for JSON."""
        return {
            "version": _VERSION,
            "places": self.places.to_state(),
            "asked": {
                "eps_percent": self.asked.eps_percent, "min_samples": self.asked.min_samples
            },
            "min_samples": self.min_samples,
            "next_id": self.next_id,
            "explained": list(self._explained),
            "noise": self._noise,
            "devices": self._devices,
            "rounds": self._rounds,
            "due": self._due,
            "heads": {str(key): name for key, name in self._heads.items()},
        }  # fmt: skip

    def _align(self, names: Sequence[str]) -> None:
        """Take over the devices that there are by now."""
        if list(names) == self.names:
            return
        row = {name: index for index, name in enumerate(self.names)}
        records = np.zeros(len(names), self.records.dtype)
        records["label"] = records["candidate"] = -1
        records["place"] = np.nan
        known = [index for index, name in enumerate(names) if name in row]
        records[known] = self.records[[row[names[index]] for index in known]]
        self.names, self.records = list(names), records

    def _take(self, logs: Array) -> tuple[Array, NDArray[np.bool_]]:
        """Move each place towards the round; return where each device is now, and who is new.

        What all devices share is no move: it is taken off. A round that is far off does not
        count towards the place until as many in a row are, and then it is the place.
        """
        records, place = self.records, self.records["place"].astype(float)
        measured = np.asarray(~np.isnan(logs).all(axis=1))
        both = ~np.isnan(logs) & ~np.isnan(place)
        moved = np.where(both, logs - place, np.nan)
        shift = np.zeros(logs.shape[1])
        told = both.sum(axis=0) >= _FEW
        shift[told] = np.nanmedian(moved[:, told], axis=0)
        logs = logs - shift
        gap = self._gaps(moved - shift)
        compared = measured & both.any(axis=1)
        usual = float(np.median(gap[compared])) if compared.any() else 0.0
        far = compared & (gap > max(self.places.eps, _USUAL * usual))
        records["away"] = np.where(measured, np.where(far, records["away"] + 1, 0), records["away"])
        restart = measured & (records["away"] >= AGREE)
        records["away"][restart] = 0
        records["rounds"][restart] = 0
        counts = measured & (~far | restart)
        records["rounds"] += counts & (records["rounds"] < ROUNDS)
        weight = 1 / np.maximum(records["rounds"], 1)[:, None]
        mixed = np.where(both, place + weight * np.where(both, logs - place, 0.0), place)
        mixed = np.where(np.isnan(place) & ~np.isnan(logs), logs, mixed)
        place = np.where(counts[:, None], mixed, place)
        records["place"] = place
        return np.where(far[:, None] & ~np.isnan(logs), logs, place), measured

    def _gaps(self, moved: Array) -> Array:
        """Return how far each device's round lies from its place, over the models in both."""
        kept = moved[:, self.places.frame.models] * self.places.frame.factor
        known = ~np.isnan(kept)
        squares = np.where(known, kept, 0.0) ** 2
        share = known.sum(axis=1) / known.shape[1]
        return np.asarray(np.sqrt(squares.sum(axis=1) / np.maximum(share, 1e-9)))

    def _wants_anew(self, assigned: Labels) -> bool:
        """Tell whether the clusters do not fit the fleet any more."""
        placed = self.records["rounds"] > 0
        devices = int(placed.sum())
        if not devices:
            return False
        noise = float(np.mean(assigned[placed] < 0))
        self._rounds += 1
        self._due = self._due + 1 if noise > self._noise + MORE_NOISE else 0
        other_size = not 2 / 3 <= devices / max(self._devices, 1) <= 3 / 2
        return self._due >= AGREE or self._rounds >= REFIT_EVERY or other_size

    def _fit(self, position: Array, before: Labels, repeatability: ArrayLike | None) -> None:
        """Find the clusters, with the ids that earlier ones had."""
        found = cluster(
            np.exp(position.astype(float)),
            repeatability,
            self.asked.eps_percent or None,
            self.asked.min_samples or None,
        )
        self.next_id = max(self.next_id, int(before.max(initial=-1)) + 1)
        ids = match(before, found.labels, first=self.next_id)
        self.next_id = max([self.next_id, *(one + 1 for one in ids.values())])
        renamed = np.append([ids[one] for one in range(len(found.ids))], -1).astype(np.int64)
        self.places = replace(found.places, labels=renamed[found.places.labels])
        self.min_samples, self._explained = found.min_samples, found.explained
        self._fresh, self._ids = renamed[found.labels], tuple(ids.values())
        placed = ~np.isnan(position).all(axis=1)
        self._noise = float(np.mean(found.labels[placed] < 0))
        self._devices, self._rounds, self._due = int(placed.sum()), 0, 0

    def _move(
        self, assigned: Labels, measured: NDArray[np.bool_], settled: NDArray[np.bool_]
    ) -> None:
        """Let devices change their cluster: those that are settled now, the others in time."""
        records = self.records
        elsewhere = measured & (assigned != records["label"])
        again = elsewhere & (assigned == records["candidate"])
        agreed = np.where(again, records["agreed"] + 1, elsewhere.astype(np.int16))
        records["agreed"] = np.where(measured, agreed, records["agreed"])
        records["candidate"] = np.where(measured, assigned, records["candidate"])
        moves = settled | (elsewhere & (records["agreed"] >= AGREE))
        records["label"] = np.where(moves, assigned, records["label"])
        records["agreed"][moves] = 0

    def _kept_heads(self, found: Clustering) -> tuple[int, ...]:
        """Return each cluster's representative: the one it had, as long as that is still in it."""
        row = {name: index for index, name in enumerate(self.names)} if self._heads else {}
        kept = []
        for one, medoid in zip(found.ids, found.representatives, strict=True):
            head = row.get(self._heads.get(one, ""), -1)
            kept.append(head if head >= 0 and found.labels[head] == one else medoid)
        return tuple(kept)
