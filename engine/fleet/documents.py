"""What is found in a table of devices and latencies, as plain data for JSON."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.fleet import estimate
from engine.fleet.clusters import cluster
from engine.fleet.quality import quality
from engine.fleet.tables import SCHEMA_VERSION, LatencyTable
from engine.fleet.words import explain


def clusters_document(
    table: LatencyTable,
    eps_percent: float | None = None,
    min_samples: int | None = None,
    later: LatencyTable | None = None,
) -> dict[str, Any]:
    """Return which devices are alike, as plain data for JSON.

    Args:
        table: the devices that are clustered.
        eps_percent: devices within this many per cent are alike; None finds it.
        min_samples: devices that make a neighbourhood dense; None finds it.
        later: more devices with the same measurements in the same order, which are only
            assigned.

    Raises:
        ValueError: an argument makes no sense, or `later` has other measurements.
    """
    if later is not None and later.measurements != table.measurements:
        raise ValueError("the devices to assign must have the same measurements in the same order")
    found = cluster(table.latencies, None, eps_percent, min_samples)
    notes = explain(table.latencies, found.labels, table.measurements, table.facts)
    figures = quality(found)
    clusters = []
    for index, label in enumerate(found.ids):
        members = table.latencies[found.labels == label]
        clusters.append(
            {
                "id": label,
                "size": len(members),
                "representative": table.devices[found.representatives[index]],
                "weight": found.weights[index],
                "stability": figures.stability[index],
                "median": {
                    name: float(np.median(column[~np.isnan(column)]))
                    for name, column in zip(table.measurements, members.T, strict=True)
                    if not np.isnan(column).all()
                },
                "note": notes[label],
            }
        )
    document = {
        "schema_version": SCHEMA_VERSION,
        "eps": found.eps,
        "eps_percent": found.eps_percent,
        "min_samples": found.min_samples,
        "noise": figures.noise,
        "silhouette": figures.silhouette,
        "apart_percent": figures.apart_percent,
        "clusters": clusters,
        "labels": dict(zip(table.devices, found.labels.tolist(), strict=True)),
    }
    if later is not None:
        assigned = found.places.assign(later.latencies)
        document["assigned"] = dict(zip(later.devices, assigned.tolist(), strict=True))
    return document


def estimate_document(
    table: LatencyTable,
    within_percent: float | None = None,
    eps_percent: float | None = None,
    min_samples: int | None = None,
) -> dict[str, Any]:
    """Return the mean of each measurement over all devices, as plain data for JSON.

    The devices with a number stand for the others of their cluster.

    Args:
        table: all devices of the fleet, whether measured or not.
        within_percent: half of the width that the interval should have; says how many devices
            must be measured for it.
        eps_percent: as for the clusters.
        min_samples: as for the clusters.

    Raises:
        ValueError: an argument makes no sense, or no measurement has two numbers.
    """
    found = cluster(table.latencies, None, eps_percent, min_samples)
    placed = ~np.isnan(found.features).any(axis=1)
    wanted = () if within_percent is None else (within_percent,)
    estimates = []
    for name, column in zip(table.measurements, table.latencies.T, strict=True):
        if np.sum(~np.isnan(column)) < 2:
            continue
        one = estimate.estimate(column, found.labels, placed)
        estimates.append({"measurement": name, **estimate.document(one, wanted)})
    if not estimates:
        raise ValueError("no measurement has numbers of two devices; one gives no interval")
    return {"schema_version": SCHEMA_VERSION, "estimates": estimates}
