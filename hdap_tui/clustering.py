"""Cluster the fleet from what the store holds, and save what was found."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.fleet.clusters import cluster, explain
from hdap_tui.cohorts import with_facts
from hdap_tui.config import Settings
from hdap_tui.errors import UserError
from hdap_tui.store import clusters, facts, measurements
from hdap_tui.store.database import Store
from hdap_tui.store.records import ClusterMap, ModelRow


def cluster_fleet(
    settings: Settings,
    store: Store,
    models: Sequence[ModelRow],
    sweep: int | None = None,
    eps_percent: float | None = None,
) -> ClusterMap:
    """Cluster the devices by their latencies on these models.

    Args:
        settings: their section [clusters] may fix what is otherwise found.
        store: where the latencies are, and where the result goes.
        models: one column each.
        sweep: only what this sweep measured; without it the newest of each device and model.
        eps_percent: devices within this many per cent are alike, before the settings' own.

    Raises:
        UserError: fewer than two devices have been measured.
    """
    digests = [model.digest for model in models]
    names, latencies = measurements.matrix(store, digests, sweep)
    measured = np.isfinite(latencies).any(axis=1)
    if measured.sum() < 2:
        raise UserError(
            f"{int(measured.sum())} devices have been measured, and two at least are needed to "
            'tell which are alike; run "hdap sweep".'
        )
    # A model that nobody could run tells nothing about anybody.
    columns = np.flatnonzero(np.isfinite(latencies[measured]).any(axis=0))
    table = latencies[:, columns]
    used = [models[int(column)] for column in columns]
    sigma = np.array([np.nan])
    if sweep is not None:
        sigma = measurements.relative_sigma(store, [model.digest for model in used], sweep)
    own = settings.clusters
    found = cluster(
        table,
        repeatability=sigma if np.isfinite(sigma).all() else None,
        eps_percent=eps_percent or own.eps_percent or None,
        min_samples=own.min_samples or None,
    )
    titles = [model.name for model in used]
    labels = [int(label) for label in found.labels]
    notes = with_facts(explain(table, found.labels, titles), names, labels, facts.latest(store))
    return clusters.save(store, found, names, titles, table, notes)
