"""Clusterings of the fleet: each is kept as it was found, the latest is what the screens show."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from hdap_tui.store.database import Store
from hdap_tui.store.records import ClusterMap, ClusterRow
from hdap_tui.store.values import now

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from engine.fleet.clusters import Clustering
    from engine.fleet.quality import Quality


def save(
    store: Store,
    clustering: Clustering,
    devices: Sequence[str],
    models: Sequence[str],
    latencies: NDArray[np.float64],
    notes: Mapping[int, str] | None = None,
    quality: Quality | None = None,
) -> ClusterMap:
    """Keep a clustering and return it as the map shows it; the arguments are those of `as_map`."""
    found = as_map(clustering, devices, models, latencies, notes, quality)
    with store.write() as connection:
        connection.execute(
            "INSERT INTO clusterings (at, map) VALUES (?, ?)", (found.at, json.dumps(asdict(found)))
        )
    return found


def as_map(
    clustering: Clustering,
    devices: Sequence[str],
    models: Sequence[str],
    latencies: NDArray[np.float64],
    notes: Mapping[int, str] | None = None,
    quality: Quality | None = None,
) -> ClusterMap:
    """Return a clustering as the map shows it.

    Args:
        clustering: What was found.
        devices: Names, one for each row that was clustered.
        models: Names of the models, one for each column of `latencies`.
        latencies: What was clustered, (devices, models) in ms, NaN where missing.
        notes: What tells each cluster from the rest, by its number.
        quality: How good the clustering is.
    """
    return ClusterMap(
        at=now(),
        eps=float(clustering.eps),
        eps_percent=float(clustering.eps_percent),
        min_samples=int(clustering.min_samples),
        models=tuple(models),
        explained=(float(clustering.explained[0]), float(clustering.explained[1])),
        devices=tuple(devices),
        labels=tuple(int(label) for label in clustering.labels),
        points=tuple((float(x), float(y)) for x, y in clustering.points),
        clusters=tuple(_clusters(clustering, devices, models, latencies, notes or {}, quality)),
        silhouette=quality.silhouette if quality else None,
        apart_percent=quality.apart_percent if quality else None,
    )


def latest(store: Store) -> ClusterMap:
    """Return the latest clustering; an empty one where there has been none."""
    found = store.row("SELECT map FROM clusterings ORDER BY id DESC LIMIT 1")
    return _from_json(json.loads(found["map"])) if found else ClusterMap()


def at(store: Store, moment: str) -> ClusterMap:
    """Return the clustering that was the latest at a moment; an empty one before the first."""
    found = store.row(
        "SELECT map FROM clusterings WHERE at <= ? ORDER BY at DESC, id DESC LIMIT 1", (moment,)
    )
    return _from_json(json.loads(found["map"])) if found else ClusterMap()


def leave_out(store: Store, device: str) -> None:
    """Keep the latest clustering once more, without a device: its name is another's now."""
    with store.write() as connection:
        found = latest(store)
        if device not in found.devices:
            return
        kept = [index for index, name in enumerate(found.devices) if name != device]
        label = found.labels[found.devices.index(device)]
        new = replace(
            found,
            at=now(),
            devices=tuple(found.devices[index] for index in kept),
            labels=tuple(found.labels[index] for index in kept),
            points=tuple(found.points[index] for index in kept),
            clusters=tuple(
                replace(row, size=row.size - 1) if row.id == label else row
                for row in found.clusters
                if row.id != label or row.size > 1
            ),
        )
        connection.execute(
            "INSERT INTO clusterings (at, map) VALUES (?, ?)", (new.at, json.dumps(asdict(new)))
        )


def _clusters(
    clustering: Clustering,
    devices: Sequence[str],
    models: Sequence[str],
    latencies: NDArray[np.float64],
    notes: Mapping[int, str],
    quality: Quality | None,
) -> list[ClusterRow]:
    import numpy as np

    rows = []
    for index, number in enumerate(clustering.ids):
        members = clustering.labels == number
        medians = {
            name: float(np.nanmedian(latencies[members, column]))
            for column, name in enumerate(models)
            if np.isfinite(latencies[members, column]).any()
        }
        rows.append(
            ClusterRow(
                id=number,
                size=int(members.sum()),
                representative=devices[clustering.representatives[index]],
                median_ms=medians,
                note=notes.get(number, ""),
                stability=quality.stability[index] if quality else None,
            )
        )
    return rows


def _from_json(data: dict[str, Any]) -> ClusterMap:
    return ClusterMap(
        at=data["at"],
        eps=data["eps"],
        eps_percent=data["eps_percent"],
        min_samples=data["min_samples"],
        models=tuple(data["models"]),
        explained=(data["explained"][0], data["explained"][1]),
        devices=tuple(data["devices"]),
        labels=tuple(data["labels"]),
        points=tuple((x, y) for x, y in data["points"]),
        clusters=tuple(ClusterRow(**row) for row in data["clusters"]),
        silhouette=data.get("silhouette"),
        apart_percent=data.get("apart_percent"),
    )
