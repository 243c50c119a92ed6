"""Notifications that are to be sent: written with what they tell, kept until somebody took them.

A process that dies between writing and sending loses nothing, and one that dies between sending
and writing that down sends once more: each is delivered at least once.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

from hdap_tui.store.database import Store
from hdap_tui.store.values import now
from hdap_tui.text import clean

Channel = Literal["webhook", "command"]
KEPT = 1000
"""Notifications that are over and still listed."""


@dataclass(frozen=True, kw_only=True)
class Notification:
    """One message to one channel."""

    id: int
    channel: Channel
    body: str
    """JSON."""
    created_at: str
    state: Literal["waiting", "sent", "given up"]
    attempts: int
    next_at: float
    """When it may be tried again, in seconds since 1970."""
    finished_at: str
    error: str
    """Why the last attempt failed."""


def put(store: Store, channel: Channel, body: str) -> None:
    """Add a notification; inside a transaction it is there only if that one is."""
    with store.write() as connection:
        connection.execute(
            "INSERT INTO outbox (channel, body, created_at) VALUES (?, ?, ?)",
            (channel, body, now()),
        )
        connection.execute(
            """DELETE FROM outbox WHERE state <> 'waiting' AND id <= (
                SELECT max(id) FROM outbox) - ?""",
            (KEPT,),
        )


def first(store: Store, channel: Channel) -> Notification | None:
    """Return a channel's eldest notification that waits, due or not: they keep their order."""
    found = store.row(
        "SELECT * FROM outbox WHERE channel = ? AND state = 'waiting' ORDER BY id LIMIT 1",
        (channel,),
    )
    return None if found is None else Notification(**dict(found))


def sent(store: Store, number: int) -> None:
    """Write down that somebody took it."""
    _finish(store, number, "sent", "")


def given_up(store: Store, number: int, error: str) -> None:
    """Write down that nobody will get it."""
    _finish(store, number, "given up", error)


def failed(store: Store, number: int, error: str, wait_s: float) -> None:
    """Write down that an attempt failed, and when the next one is due."""
    with store.write() as connection:
        connection.execute(
            "UPDATE outbox SET attempts = attempts + 1, error = ?, next_at = ? WHERE id = ?",
            (clean(error, 300), time.time() + wait_s, number),
        )


def rows(store: Store, limit: int = 50) -> tuple[Notification, ...]:
    """Return the latest notifications, the newest first."""
    found = store.rows("SELECT * FROM outbox ORDER BY id DESC LIMIT ?", (limit,))
    return tuple(Notification(**dict(one)) for one in found)


def _finish(store: Store, number: int, state: str, error: str) -> None:
    values: tuple[Any, ...] = (state, clean(error, 300), now(), number)
    with store.write() as connection:
        connection.execute(
            """UPDATE outbox SET state = ?, error = ?, finished_at = ?, attempts = attempts + 1
            WHERE id = ?""",
            values,
        )
