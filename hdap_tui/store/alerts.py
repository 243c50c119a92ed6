"""Alerts: they open, are acknowledged and resolve, and every step is written down."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Mapping
from typing import Any

from hdap_tui.store.database import Store, StoreError, UnknownError
from hdap_tui.store.records import AlertEvent, AlertRow, Scope
from hdap_tui.store.values import now, placeholders
from hdap_tui.text import clean

NOTABLE_PERCENT = 5.0
"""An open alert's size that moves by so many points is worth a line in its history."""
TOLD = ("direction", "baseline_ms", "now_ms", "size_percent", "inhibited")
"""What such a line keeps of how the alert stood."""


def fire(
    store: Store,
    *,
    scope: Scope,
    subject: str,
    kind: str,
    direction: str,
    model: str,
    baseline_ms: float,
    now_ms: float,
    size_percent: float,
    onset_at: str,
    emulated: bool = False,
    inhibited: int = 0,
    text: str = "",
) -> tuple[AlertRow, bool]:
    """Open an alert, or bring the open one of the same subject and kind up to date.

    An acknowledged alert stays acknowledged.

    Returns:
        The alert, and whether it is new.
    """
    values: dict[str, Any] = {
        "direction": direction,
        "model": model,
        "baseline_ms": baseline_ms,
        "now_ms": now_ms,
        "size_percent": size_percent,
        "onset_at": onset_at,
        "emulated": int(emulated),
        "inhibited": inhibited,
    }
    key = {"scope": scope, "subject": subject, "kind": kind}
    with store.write() as connection:
        open_one = store.row(
            """SELECT * FROM alerts WHERE scope = :scope AND subject = :subject AND kind = :kind
            AND state <> 'resolved'""",
            key,
        )
        if open_one is None:
            first = {"state": "firing", "opened_at": now(), "told_percent": size_percent}
            names = [*key, *values, *first]
            cursor = connection.execute(
                f"""INSERT INTO alerts ({", ".join(names)})
                VALUES ({", ".join(f":{name}" for name in names)})""",
                {**key, **values, **first},
            )
            assert cursor.lastrowid is not None
            _note(store, cursor.lastrowid, "opened", text or _sentence(values), values)
            return row(store, cursor.lastrowid), True
        number = int(open_one["id"])
        # It began when it first began, whatever a later look says.
        values["onset_at"] = open_one["onset_at"]
        if any(open_one[name] != value for name, value in values.items()):
            connection.execute(
                f"UPDATE alerts SET {', '.join(f'{name} = :{name}' for name in values)} "
                "WHERE id = :id",
                {**values, "id": number},
            )
            if _is_notable(open_one, values):
                connection.execute(
                    "UPDATE alerts SET told_percent = size_percent WHERE id = ?", (number,)
                )
                _note(store, number, "changed", text or _sentence(values), values)
        return row(store, number), False


def acknowledge(store: Store, number: int, text: str = "") -> AlertRow:
    """Say that somebody looks after an alert.

    Raises:
        UnknownError: there is none of that number, or it has resolved.
    """
    with store.write() as connection:
        alert = row(store, number)
        if alert.state == "resolved":
            raise StoreError(f"alert {number} has resolved already, at {alert.resolved_at}.")
        if alert.state == "firing":
            connection.execute(
                "UPDATE alerts SET state = 'acknowledged', acknowledged_at = ? WHERE id = ?",
                (now(), number),
            )
            _note(store, number, "acknowledged", text)
        elif text:
            _note(store, number, "note", text)
        return row(store, number)


def resolve(store: Store, number: int, reason: str) -> AlertRow:
    """Close an alert, and say why; one that has resolved already stays as it is.

    Raises:
        UnknownError: there is none of that number.
    """
    with store.write() as connection:
        if row(store, number).state != "resolved":
            connection.execute(
                "UPDATE alerts SET state = 'resolved', resolved_at = ?, reason = ? WHERE id = ?",
                (now(), clean(reason, 500), number),
            )
            _note(store, number, "resolved", reason)
        return row(store, number)


def note(store: Store, number: int, what: str, text: str = "") -> None:
    """Write a line into an alert's history: "job started", "sent", …

    Raises:
        UnknownError: there is none of that number.
    """
    with store.write():
        row(store, number)
        _note(store, number, what, text)


def row(store: Store, number: int) -> AlertRow:
    """Return one alert.

    Raises:
        UnknownError: there is none of that number.
    """
    found = store.row("SELECT * FROM alerts WHERE id = ?", (number,))
    if found is None:
        raise UnknownError(f'There is no alert {number}; "hdap alerts" lists them.')
    return _row(found)


def open_rows(store: Store) -> tuple[AlertRow, ...]:
    """Return the alerts that have not resolved: firing before acknowledged, newest first."""
    found = store.rows(
        "SELECT * FROM alerts WHERE state <> 'resolved' ORDER BY state DESC, id DESC"
    )
    return tuple(_row(one) for one in found)


def rows(store: Store, resolved: int = 50) -> tuple[AlertRow, ...]:
    """Return the open alerts, then as many of those that resolved last."""
    closed = store.rows(
        """SELECT * FROM alerts WHERE state = 'resolved'
        ORDER BY resolved_at DESC, id DESC LIMIT ?""",
        (resolved,),
    )
    return (*open_rows(store), *(_row(one) for one in closed))


def rows_at(store: Store, at: str, resolved: int = 50) -> tuple[AlertRow, ...]:
    """Return the alerts as `rows` would have done at a moment.

    How large an open one was is what its history had told last; NaN where it did not say.
    """
    with store.read():
        still_open = store.rows(
            """SELECT * FROM alerts WHERE opened_at <= ?1 AND (resolved_at = '' OR resolved_at > ?1)
            ORDER BY (acknowledged_at <> '' AND acknowledged_at <= ?1), id DESC""",
            (at,),
        )
        closed = store.rows(
            """SELECT * FROM alerts WHERE state = 'resolved' AND resolved_at <= ?
            ORDER BY resolved_at DESC, id DESC LIMIT ?""",
            (at, resolved),
        )
        return (*(_open_then(store, one, at) for one in still_open), *map(_row, closed))


def events(store: Store, number: int, until: str = "") -> list[AlertEvent]:
    """Return an alert's history, oldest first; with a moment what was written up to then."""
    found = store.rows(
        """SELECT alert_id, at, what, text FROM alert_events
        WHERE alert_id = ?1 AND (?2 = '' OR at <= ?2) ORDER BY id""",
        (number, until),
    )
    return [
        AlertEvent(alert=one["alert_id"], at=one["at"], what=one["what"], text=one["text"])
        for one in found
    ]


def _open_then(store: Store, found: sqlite3.Row, at: str) -> AlertRow:
    """Return an alert as its history tells that it stood; what it does not tell is not known."""
    told = store.row(
        f"""SELECT {", ".join(TOLD)} FROM alert_events
        WHERE alert_id = ? AND at <= ? AND size_percent IS NOT NULL ORDER BY id DESC LIMIT 1""",
        (found["id"], at),
    )
    acknowledged = found["acknowledged_at"] if "" < found["acknowledged_at"] <= at else ""
    unknown = {"baseline_ms": math.nan, "now_ms": math.nan, "size_percent": math.nan,
               "inhibited": 0}  # fmt: skip
    values = {
        **dict(found),
        **(dict(told) if told else unknown),
        "state": "acknowledged" if acknowledged else "firing",
        "acknowledged_at": acknowledged,
        "resolved_at": "",
        "reason": "",
    }
    return _row(values)


def _is_notable(before: sqlite3.Row, values: dict[str, Any]) -> bool:
    """Say whether an open alert has moved far since its history last told of it."""
    moved = abs(values["size_percent"] - before["told_percent"])
    return bool(before["direction"] != values["direction"] or moved >= NOTABLE_PERCENT)


def _sentence(values: dict[str, Any]) -> str:
    return (
        f"{values['size_percent']:+.1f} %: {values['baseline_ms']:.3g} ms -> "
        f"{values['now_ms']:.3g} ms"
    )


def _note(
    store: Store, number: int, what: str, text: str, values: Mapping[str, Any] | None = None
) -> None:
    told = {name: values[name] for name in TOLD} if values else {}
    names = ["alert_id", "at", "what", "text", *told]
    store.connection.execute(
        f"INSERT INTO alert_events ({', '.join(names)}) VALUES ({placeholders(len(names))})",
        (number, now(), what, clean(text, 500), *told.values()),
    )


def _row(found: sqlite3.Row | Mapping[str, Any]) -> AlertRow:
    values: dict[str, Any] = dict(found)
    del values["told_percent"]
    return AlertRow(**{**values, "emulated": bool(values["emulated"])})
