"""Which devices an expression names: settings, store and facts, as far as it asks for them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from hdap_tui.config.fields import FIELDS
from hdap_tui.config.selector import check, parse
from hdap_tui.errors import SettingsError
from hdap_tui.names import cluster_letter
from hdap_tui.text import clean

if TYPE_CHECKING:
    from hdap_tui.config.settings import Device
    from hdap_tui.store.database import Store
    from hdap_tui.store.records import DeviceRow

NOISE = "noise"

_OF_DEVICE: dict[str, Callable[[Device], object]] = {
    "name": lambda device: device.name,
    "host": lambda device: device.host,
    "user": lambda device: device.user,
    "port": lambda device: device.port,
    "tag": lambda device: device.tags,
    "group": lambda device: device.host_group,
    "emulated": lambda device: device.emulated,
}
_OF_ROW: dict[str, Callable[[DeviceRow], object]] = {
    "name": lambda row: row.name,
    "tag": lambda row: row.tags,
    "emulated": lambda row: row.emulated,
    "state": lambda row: row.state,
    "error": lambda row: row.error,
    "model": lambda row: row.model,
    "cluster": lambda row: cluster_words(row.cluster),
    "alert": lambda row: row.alert,
    "latency": lambda row: row.latency_ms,
    "change": lambda row: row.change_percent,
}


def select(
    devices: tuple[Device, ...], expression: str | None, store: Callable[[], Store]
) -> tuple[Device, ...]:
    """Return the devices that an expression names, in the fleet's order; all without one.

    The store is opened only where the expression asks for something that it holds.

    Raises:
        SettingsError: the expression makes no sense, or names nothing.
    """
    wanted = parse(expression or "")
    if not wanted.fields:
        return devices
    of_alerts = sorted(f for f in wanted.fields if FIELDS[f].home == "alert")
    if of_alerts:
        raise SettingsError(f"{of_alerts[0]} is a field of alerts, and selects no devices.")
    check(wanted, known_values(devices))
    found = records(devices, wanted.fields, store)
    chosen = tuple(device for device in devices if wanted.matches(found[device.name]))
    if not chosen:
        raise SettingsError(f"no device matches {clean(expression, 200)}.")
    return chosen


def records(
    devices: Iterable[Device], fields: frozenset[str], store: Callable[[], Store]
) -> dict[str, dict[str, object]]:
    """Return by device what it is selected by, as far as these fields go."""
    of_device = [field for field in fields if field in _OF_DEVICE]
    stored = _stored(fields - _OF_DEVICE.keys(), store)
    return {
        device.name: {field: _OF_DEVICE[field](device) for field in of_device}
        | stored.get(device.name, _NEVER_SEEN)
        for device in devices
    }


def select_rows(
    rows: Sequence[DeviceRow], expression: str | None, devices: Mapping[str, Device]
) -> tuple[DeviceRow, ...]:
    """Return the lines of a fleet table that an expression names, in their order.

    `devices` are those of the settings by name; a line of the past may be of none of them.

    Raises:
        SettingsError: the expression makes no sense, or names nothing.
    """
    wanted = parse(expression or "")
    if not wanted.fields:
        return tuple(rows)
    chosen = tuple(
        row for row in rows if wanted.matches(row_record(row, wanted.fields, devices.get(row.name)))
    )
    if not chosen:
        raise SettingsError(f"no device matches {clean(expression, 200)}.")
    return chosen


def known_values(devices: Iterable[Device]) -> dict[str, frozenset[str]]:
    """Return the names, tags and groups that there are; anything else is a mistake."""
    devices = tuple(devices)
    return {
        "name": frozenset(device.name for device in devices),
        "tag": frozenset(tag for device in devices for tag in device.tags),
        "group": frozenset(device.host_group for device in devices if device.host_group),
    }


def row_record(
    row: DeviceRow, fields: Collection[str], device: Device | None = None
) -> dict[str, object]:
    """Return what a line of the fleet table is selected by; the settings know its address."""
    record: dict[str, object] = {}
    for field in fields:
        if field in _OF_ROW:
            record[field] = _OF_ROW[field](row)
        elif field in _OF_DEVICE:
            record[field] = _OF_DEVICE[field](device) if device is not None else None
        else:
            record[field] = row.facts.get(field)
    return record


def cluster_words(cluster: int | None) -> tuple[str, ...]:
    """Return what a cluster may be called: its letter, as on the screen, or its number."""
    if cluster is None:
        return ()
    if cluster < 0:
        return (NOISE, str(cluster))
    return (cluster_letter(cluster), str(cluster))


_NEVER_SEEN: dict[str, object] = {"state": "unknown"}


def _stored(fields: frozenset[str], store: Callable[[], Store]) -> dict[str, dict[str, object]]:
    """Return by device what the store knows of these fields."""
    if not fields:
        return {}
    from hdap_tui.store import clusters, devices

    opened = store()
    asked_store = any(FIELDS[field].home == "store" for field in fields)
    with opened.read():
        labels: dict[str, int] = {}
        if "cluster" in fields:
            latest = clusters.latest(opened)
            labels = dict(zip(latest.devices, latest.labels, strict=True))
        records = {
            row.name: {field: _OF_ROW[field](row) for field in fields if field in _OF_ROW}
            for row in (devices.rows(opened, labels) if asked_store else ())
        }
        if any(FIELDS[field].home == "facts" for field in fields):
            from hdap_tui.store import facts

            for name, values in facts.latest(opened).items():
                record = records.setdefault(name, dict(_NEVER_SEEN))
                record.update({f: values.get(f) for f in fields if f not in _OF_ROW})
    return records
