"""Everything that the dashboard shows at a glance, as of one moment."""

from __future__ import annotations

from hdap_tui.store import alerts, clusters, decisions, deployments, devices, models
from hdap_tui.store.columns import columns
from hdap_tui.store.database import Store
from hdap_tui.store.records import FleetSnapshot
from hdap_tui.store.values import now


def version(store: Store) -> int:
    """Return a number that grows with every change; equal means nothing to redraw."""
    return store.version()


def snapshot(store: Store, fleet: str) -> FleetSnapshot:
    """Read the fleet in one transaction."""
    with store.read():
        clustering = clusters.latest(store)
        labels = dict(zip(clustering.devices, clustering.labels, strict=True))
        representatives = [cluster.representative for cluster in clustering.clusters]
        return FleetSnapshot(
            version=store.version(),
            at=now(),
            fleet=fleet,
            devices=devices.rows(store, labels, representatives),
            map=clustering,
            alerts=alerts.rows(store),
            decisions=decisions.rows(store, limit=20),
            models=models.rows(store),
            deployments=deployments.rows(store),
            columns=columns(store),
        )
