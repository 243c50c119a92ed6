"""Devices that took another's name, and devices that got another name themselves.

A device is known by its host key: another key under the same name is another device, unless the
operator says that it is the same one set up anew. The histories of two devices are never mixed.
"""

from __future__ import annotations

from datetime import UTC, datetime

from hdap_tui.alerting.drifting import restart
from hdap_tui.config import Settings
from hdap_tui.errors import RefusedError
from hdap_tui.store import alerts, clusters, devices, drift
from hdap_tui.store.database import Store


def take_key(settings: Settings, store: Store, name: str, fingerprint: str, is_same: bool) -> str:
    """Note the host key that a device has from now on; return what the one before is called now.

    Empty where there was none before, it was the same device, or nothing was recorded of it.
    """
    with store.write():
        if devices.host_key(store, name) == fingerprint:
            return ""
        if is_same or not devices.is_recorded(store, name):
            devices.set_host_key(store, name, fingerprint)
            return ""
        old = devices.replace(store, name, f"{name}@{datetime.now(UTC):%Y-%m-%d}", fingerprint)
        _forget(settings, store, name, f"another device has this name now, this one is {old}")
        return old


def rename(settings: Settings, store: Store, old: str, new: str) -> None:
    """Give what was recorded of a device to the name that the settings have for it now.

    Raises:
        RefusedError: the settings still name the old one, or something was measured under the new.
        SettingsError: the settings do not name the new one.
        StoreError: nothing was ever recorded under the old name.
    """
    settings.device(new)
    if any(device.name == old for device in settings.devices):
        raise RefusedError(f"{settings.path}: it still names {old}; rename it there first.")
    with store.write():
        devices.device_id(store, old)
        devices.sync(store, settings.devices)
        if devices.is_recorded(store, new):
            raise RefusedError(
                f"{new} has measurements or deployments of its own, and two histories are never "
                f'mixed; "hdap devices show {old}" shows the other one.'
            )
        devices.rename(store, old, new)
        devices.sync(store, settings.devices)
        _forget(settings, store, old, f"the device is called {new} now")


def _forget(settings: Settings, store: Store, name: str, reason: str) -> None:
    """Have nothing that goes by the name speak of the device that had it."""
    for digest in drift.models_of(store, name):
        restart(settings, store, digest, [name])
    clusters.leave_out(store, name)
    for alert in alerts.open_rows(store):
        if alert.scope == "device" and alert.subject == name:
            alerts.resolve(store, alert.id, reason)
