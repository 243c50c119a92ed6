"""Who watches the fleet, what it does now, and which times of its grids it has taken."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from hdap_tui.store.database import Store
from hdap_tui.store.values import now
from hdap_tui.text import clean


@dataclass(frozen=True, kw_only=True)
class Rest:
    """Devices that are left alone by a maintenance window just now."""

    devices: tuple[str, ...]
    until: str
    reason: str = ""
    whole: bool = False
    """Whether these are all."""


@dataclass(frozen=True, kw_only=True)
class WatcherRow:
    """A watcher: the one that runs, or that ran last."""

    id: int
    host: str
    boot: str
    """Which start of that machine it belongs to."""
    pid: int
    since: str
    ended_at: str = ""
    """Empty while it runs, and where it was killed."""
    beat: int = 0
    """Grows for as long as it lives."""
    heard_at: str = ""
    """When it said that it lives, by its own clock."""
    doing: str = ""
    doing_since: str = ""
    next_sweep_at: str = ""
    next_round_at: str = ""
    missed_sweeps: int = 0
    """Times of the grid that passed since it began, and nothing was measured."""
    missed_rounds: int = 0
    error: str = ""
    """What went wrong last; empty once a round of the same kind went well."""
    error_at: str = ""
    rests: tuple[Rest, ...] = ()


def latest(store: Store) -> WatcherRow | None:
    """Return the watcher that began last."""
    found = store.row("SELECT * FROM watchers ORDER BY id DESC LIMIT 1")
    return _watcher(found) if found else None


def begin(store: Store, host: str, boot: str, pid: int, before: WatcherRow | None) -> int | None:
    """Enter a watcher and return its number; None where another one was quicker.

    `before` is the one that was found dead, as it was when it was looked at.
    """
    at = now()
    with store.write() as connection:
        found = latest(store)
        known = (found.id, found.beat) if found else None
        if known != ((before.id, before.beat) if before else None):
            return None
        connection.execute("UPDATE watchers SET ended_at = heard_at WHERE ended_at = ''")
        cursor = connection.execute(
            """INSERT INTO watchers (host, boot, pid, since, heard_at, doing, doing_since)
            VALUES (?, ?, ?, ?, ?, 'starting', ?)""",
            (clean(host, 120), boot, pid, at, at, at),
        )
        return cursor.lastrowid


def beat(store: Store, number: int) -> bool:
    """Say that a watcher lives; False where another one has taken its place.

    Nobody needs to look at the fleet anew for it, so the store's version stays.
    """
    with store.write(is_shown=False) as connection:
        done = connection.execute(
            "UPDATE watchers SET beat = beat + 1, heard_at = ? WHERE id = ? AND ended_at = ''",
            (now(), number),
        )
        return done.rowcount == 1


def end(store: Store, number: int) -> None:
    """Say that a watcher has ended."""
    with store.write() as connection:
        connection.execute(
            "UPDATE watchers SET ended_at = ?, doing = '' WHERE id = ? AND ended_at = ''",
            (now(), number),
        )


def say(store: Store, number: int, doing: str, next_sweep_at: str, next_round_at: str) -> None:
    """Say what a watcher does now, and when the next sweep and round are due."""
    with store.write() as connection:
        connection.execute(
            """UPDATE watchers SET doing = ?1, next_sweep_at = ?2, next_round_at = ?3,
                doing_since = CASE WHEN doing = ?1 THEN doing_since ELSE ?4 END
            WHERE id = ?5""",
            (clean(doing, 80), next_sweep_at, next_round_at, now(), number),
        )


def missed(store: Store, number: int, kind: Literal["sweep", "canary"], count: int) -> None:
    """Count what was missed."""
    column = "missed_sweeps" if kind == "sweep" else "missed_rounds"
    with store.write() as connection:
        connection.execute(
            f"UPDATE watchers SET {column} = {column} + ? WHERE id = ?", (count, number)
        )


def failed(store: Store, number: int, error: str) -> None:
    """Say what went wrong in a round; empty: nothing does any more."""
    with store.write() as connection:
        connection.execute(
            "UPDATE watchers SET error = ?1, error_at = ?2 WHERE id = ?3 AND error <> ?1",
            (clean(error, 400), now() if error else "", number),
        )


def rest(store: Store, number: int, rests: Sequence[Rest]) -> None:
    """Say whom maintenance windows leave alone just now."""
    text = json.dumps([asdict(one) for one in rests])
    with store.write() as connection:
        connection.execute(
            "UPDATE watchers SET rests = ?1 WHERE id = ?2 AND rests <> ?1", (text, number)
        )


def taken(store: Store) -> dict[str, float]:
    """Return by kind the time of the grid that was taken last, in seconds since 1970."""
    return {row["kind"]: row["at"] for row in store.rows("SELECT kind, at FROM watch_times")}


def take(store: Store, kind: str, at: float) -> None:
    """Say that a time of the grid was taken."""
    with store.write(is_shown=False) as connection:
        connection.execute("INSERT OR REPLACE INTO watch_times VALUES (?, ?)", (kind, at))


def _watcher(row: sqlite3.Row) -> WatcherRow:
    kept = dict(row)
    rests = [Rest(**{**one, "devices": tuple(one["devices"])}) for one in json.loads(row["rests"])]
    return WatcherRow(**{**kept, "rests": tuple(rests)})
