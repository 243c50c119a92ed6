"""What an alert is about: the devices behind its subject."""

from __future__ import annotations

from collections.abc import Mapping

from hdap_tui.config import Settings
from hdap_tui.fact_names import Fact
from hdap_tui.store import clusters, facts
from hdap_tui.store.database import Store
from hdap_tui.store.records import AlertRow

COHORT = "version "
"""What the subject of a cohort's alert begins with; it counts as one of a cluster."""
_VERSION = ("os", "kernel", "onnxruntime")
"""Facts that make up a device's version; where one changes, so may what is normal."""


def members(settings: Settings, store: Store, alert: AlertRow) -> list[str]:
    """Return the devices that an alert is about, in the fleet's order."""
    every = [device.name for device in settings.devices]
    if alert.scope == "device":
        return [alert.subject]
    if alert.scope == "fleet":
        return every
    if alert.subject.startswith(COHORT):
        version = alert.subject.removeprefix(COHORT)
        known = facts.latest(store)
        return [name for name in every if version_of(known.get(name, {})) == version]
    where = clusters.latest(store)
    labels = dict(zip(where.devices, where.labels, strict=True))
    return [name for name in every if f"cluster {labels.get(name, -1)}" == alert.subject]


def version_of(known: Mapping[str, Fact]) -> str:
    """Return what a device runs besides the model; empty where it did not say all."""
    if not known.keys() >= set(_VERSION):
        return ""
    return ", ".join(str(known[name]) for name in _VERSION)


def versions(store: Store) -> dict[str, str]:
    """Return by device what it runs besides the model; those that did not say all are left out."""
    found = {device: version_of(own) for device, own in facts.latest(store).items()}
    return {device: version for device, version in found.items() if version}
