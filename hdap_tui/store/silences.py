"""Silences: which alerts nobody is told of, until when, and why."""

from __future__ import annotations

from typing import Any

from hdap_tui.store.database import Store, StoreError, UnknownError
from hdap_tui.store.records import Silence
from hdap_tui.store.values import now
from hdap_tui.text import clean


def add(store: Store, selector: str, until: str, reason: str, who: str = "") -> Silence:
    """Begin a silence."""
    with store.write() as connection:
        cursor = connection.execute(
            """INSERT INTO silences (selector, reason, who, created_at, until)
            VALUES (?, ?, ?, ?, ?)""",
            (selector, clean(reason, 500), clean(who, 63), now(), until),
        )
        assert cursor.lastrowid is not None
        return row(store, cursor.lastrowid)


def end(store: Store, number: int, who: str = "") -> Silence:
    """End a silence before its time.

    Raises:
        UnknownError: there is none of that number.
        StoreError: it is over already.
    """
    with store.write() as connection:
        found = row(store, number)
        if not is_on(found):
            raise StoreError(f"silence {number} is over already, since {over_at(found)[:19]}.")
        connection.execute(
            "UPDATE silences SET ended_at = ?, ended_by = ? WHERE id = ?",
            (now(), clean(who, 63), number),
        )
        return row(store, number)


def row(store: Store, number: int) -> Silence:
    """Return one silence.

    Raises:
        UnknownError: there is none of that number.
    """
    found = store.row("SELECT * FROM silences WHERE id = ?", (number,))
    if found is None:
        raise UnknownError(f'There is no silence {number}; "hdap alerts silences" lists them.')
    values: dict[str, Any] = dict(found)
    return Silence(**values)


def rows(store: Store, limit: int = 50) -> tuple[Silence, ...]:
    """Return the silences that are on, then the latest that are over."""
    found = store.rows(
        """SELECT * FROM silences ORDER BY (ended_at = '' AND until > ?) DESC, id DESC LIMIT ?""",
        (now(), limit),
    )
    return tuple(Silence(**dict(one)) for one in found)


def on(store: Store) -> tuple[Silence, ...]:
    """Return the silences that are on, the one that ends last first."""
    found = store.rows(
        "SELECT * FROM silences WHERE ended_at = '' AND until > ? ORDER BY until DESC, id", (now(),)
    )
    return tuple(Silence(**dict(one)) for one in found)


def is_on(silence: Silence) -> bool:
    """Say whether it still keeps anything quiet."""
    return not silence.ended_at and silence.until > now()


def over_at(silence: Silence) -> str:
    """Return when it ends, or ended."""
    return silence.ended_at or silence.until


def any_over(store: Store) -> bool:
    """Say whether an open alert is still under a silence that is over."""
    return (
        store.row(
            """SELECT 1 FROM alerts a JOIN silences q ON q.id = a.silence_id
            WHERE a.state <> 'resolved' AND (q.ended_at <> '' OR q.until <= ?) LIMIT 1""",
            (now(),),
        )
        is not None
    )
