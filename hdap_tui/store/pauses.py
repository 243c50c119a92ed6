"""Pauses: devices that the watcher leaves alone until a time, by command."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from hdap_tui.store.database import Store
from hdap_tui.store.values import now
from hdap_tui.text import clean


@dataclass(frozen=True, kw_only=True)
class Pause:
    """One pause that is not over."""

    id: int
    devices: tuple[str, ...]
    """Empty: the whole fleet, whoever belongs to it."""
    since: str
    until: str
    reason: str = ""


def add(store: Store, devices: Sequence[str], until: str, reason: str = "") -> Pause:
    """Leave devices alone until a time (UTC); without devices the whole fleet."""
    since, said = now(), clean(reason, 200)
    with store.write() as connection:
        cursor = connection.execute(
            "INSERT INTO pauses (devices, since, until, reason) VALUES (?, ?, ?, ?)",
            (json.dumps(list(devices)), since, until, said),
        )
        assert cursor.lastrowid is not None
    return Pause(id=cursor.lastrowid, devices=tuple(devices), since=since, until=until, reason=said)


def rows(store: Store) -> tuple[Pause, ...]:
    """Return the pauses that are not over, oldest first."""
    found = store.rows(
        "SELECT * FROM pauses WHERE ended_at = '' AND until > ? ORDER BY id", (now(),)
    )
    return tuple(map(_pause, found))


def resume(store: Store, everybody: Sequence[str], names: Collection[str] = ()) -> tuple[str, ...]:
    """End the pauses of some devices, without names all; return who was paused and is no longer.

    What pauses others too goes on for these, as a pause of its own.
    """
    before = rows(store)
    with store.write() as connection:
        for pause in rows(store):
            paused = pause.devices or tuple(everybody)
            if names and not set(paused) & set(names):
                continue
            connection.execute("UPDATE pauses SET ended_at = ? WHERE id = ?", (now(), pause.id))
            rest = [name for name in paused if name not in names] if names else []
            if rest:
                add(store, rest, pause.until, pause.reason)
    left = paused_names(rows(store), everybody)
    return tuple(n for n in everybody if n in paused_names(before, everybody) and n not in left)


def paused_names(pauses: Sequence[Pause], everybody: Sequence[str]) -> frozenset[str]:
    """Return the devices that are paused."""
    if any(not pause.devices for pause in pauses):
        return frozenset(everybody)
    return frozenset(name for pause in pauses for name in pause.devices)


def _pause(row: sqlite3.Row) -> Pause:
    return Pause(
        id=row["id"],
        devices=tuple(json.loads(row["devices"])),
        since=row["since"],
        until=row["until"],
        reason=row["reason"],
    )
