"""Alerts: pending, firing, acknowledged, recovering, resolved, and every step written down."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal

from hdap_tui.store.database import Store, StoreError, UnknownError
from hdap_tui.store.records import NO_DATA, AlertEvent, AlertRow, AlertState, Scope
from hdap_tui.store.values import now, placeholders
from hdap_tui.text import clean

NOTABLE_PERCENT = 5.0
"""An open alert's size that moves by so many points is worth a line in its history."""
LEVEL = ("step", "ramp")
"""Kinds that are one sort of change: which of both it is may show later."""
TOLD = (
    "kind", "state", "direction", "baseline_ms", "now_ms", "size_percent", "devices", "inhibited",
    "inhibited_by", "silence_id",
)  # fmt: skip
"""What each line of its history keeps of how an alert stood after it."""
OPEN_LIMIT = 2000
"""Open alerts that are shown at a glance, those that stand for others before all."""


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
    devices: int = 1,
    inhibited: int = 0,
    evidence: Mapping[str, Any] | None = None,
    text: str = "",
    pending: bool = False,
) -> tuple[AlertRow, bool]:
    """Open an alert, or bring the open one of the same subject, model and sort up to date.

    An acknowledged alert stays acknowledged, and one that was pending begins to fire. With
    `pending` it has not lasted yet.

    Returns:
        The alert, and whether it is new; one that was pending is new when it fires.
    """
    values: dict[str, Any] = {
        "kind": kind,
        "direction": direction,
        "baseline_ms": baseline_ms,
        "now_ms": now_ms,
        "size_percent": size_percent,
        "onset_at": onset_at,
        "emulated": int(emulated),
        "devices": devices,
        "inhibited": inhibited,
        "evidence": json.dumps(dict(evidence or {}), sort_keys=True),
    }
    key = {"scope": scope, "subject": subject, "model": model}
    with store.write() as connection:
        known = find(store, scope, subject, model, kind)
        if known is None:
            at = now()
            first = {
                "state": "pending" if pending else "firing",
                "opened_at": at,
                "fired_at": "" if pending else at,
                "told_percent": size_percent,
            }
            names = [*key, *values, *first]
            cursor = connection.execute(
                f"""INSERT INTO alerts ({", ".join(names)})
                VALUES ({", ".join(f":{name}" for name in names)})""",
                {**key, **values, **first},
            )
            assert cursor.lastrowid is not None
            _note(store, cursor.lastrowid, "pending" if pending else "opened", text, figures=True)
            return row(store, cursor.lastrowid), True
        if known.state == "pending" and not pending:
            firing = {"state": "firing", "fired_at": now(), "told_percent": size_percent}
            change(store, known, **firing, **_plain(values))
            _note(store, known.id, "opened", text, figures=True)
            return row(store, known.id), True
        # It began when it first began, and was told by what it was told by, whatever a later look
        # says.
        values |= {"onset_at": known.onset_at, "evidence": json.dumps(dict(known.evidence))}
        if not evidence:
            values["devices"] = known.devices
        return grow(store, known, text, **_plain(values)), False


def grow(store: Store, alert: AlertRow, text: str = "", **values: Any) -> AlertRow:
    """Bring an open alert's figures up to date; its history hears of it where they moved far."""
    size = values.get("size_percent", alert.size_percent)
    turned = values.get("direction", alert.direction) != alert.direction
    is_notable = turned or abs(size - alert.told_percent) >= NOTABLE_PERCENT
    if not is_notable or alert.state == "pending":
        return change(store, alert, **values)
    with store.write():
        found = change(store, alert, **values, told_percent=size)
        if found != alert:
            _note(store, alert.id, "changed", text, figures=True)
        return found


def change(store: Store, alert: AlertRow, **values: Any) -> AlertRow:
    """Set columns of an alert, without a line in its history; equal values write nothing."""
    different = {
        name: value
        for name, value in values.items()
        if getattr(alert, _FIELDS.get(name, name)) != value
    }
    if not different:
        return alert
    kept = dict(different)
    if "evidence" in kept:
        kept["evidence"] = json.dumps(dict(kept["evidence"]), sort_keys=True)
    with store.write() as connection:
        connection.execute(
            f"UPDATE alerts SET {', '.join(f'{name} = :{name}' for name in kept)} WHERE id = :id",
            {**kept, "id": alert.id},
        )
    # A thousand devices change at once at times: the row is read again only where it must be.
    return row(store, alert.id) if "silence_id" in different else replace(alert, **different)


def turn(store: Store, alert: AlertRow, state: Literal["recovering", "firing"]) -> AlertRow:
    """Let a firing alert recover, or a recovering one fire again; whoever looked after it does."""
    back: AlertState = "acknowledged" if alert.acknowledged_at else "firing"
    with store.write():
        found = change(store, alert, state=state if state == "recovering" else back)
        if found != alert:
            _note(store, alert.id, "recovering" if state == "recovering" else "fires again", "")
        return found


def inhibit(store: Store, alert: AlertRow, wider: AlertRow | None) -> AlertRow:
    """Let a wider alert stand for this one, or let this one come up again."""
    with store.write():
        found = change(store, alert, inhibited_by=wider.id if wider else None)
        if found == alert:
            return found
        if wider is not None:
            _note(store, alert.id, "inhibited", f"alert {wider.id} ({wider.subject}) stands for it")
            return found
        _note(store, alert.id, "came up", f"alert {alert.inhibited_by} no longer stands for it")
        # Somebody may have heard that the wider one is over: this one is told once more.
        return change(store, found, told="")


def quieten(
    store: Store, alert: AlertRow, silence: int | None, text: str = "", who: str = ""
) -> AlertRow:
    """Put an alert under a silence, or take it from under one, and say why."""
    with store.write():
        found = change(store, alert, silence_id=silence)
        if found != alert:
            what = "silenced" if silence is not None else "no longer silenced"
            _note(store, alert.id, what, text, who=who)
        return found


def acknowledge(store: Store, number: int, text: str = "", who: str = "") -> AlertRow:
    """Say that somebody looks after an alert.

    Raises:
        UnknownError: there is none of that number.
        StoreError: it has resolved.
    """
    with store.write():
        alert = row(store, number)
        if alert.state == "resolved":
            raise StoreError(f"alert {number} has resolved already, at {alert.resolved_at}.")
        if not alert.acknowledged_at and alert.state != "pending":
            state = "acknowledged" if alert.state == "firing" else alert.state
            change(store, alert, state=state, acknowledged_at=now(), acknowledged_by=who)
            _note(store, number, "acknowledged", text, who=who)
        elif text:
            _note(store, number, "note", text, who=who)
        return row(store, number)


def resolve(store: Store, number: int, reason: str, who: str = "") -> AlertRow:
    """Close an alert, and say why; one that has resolved already stays as it is.

    Its figures become those of the line of its history at which it was furthest off: how it stood
    at its end says little.

    Raises:
        UnknownError: there is none of that number.
    """
    with store.write():
        alert = row(store, number)
        if alert.state != "resolved":
            values = {"state": "resolved", "resolved_at": now(), "reason": clean(reason, 500)}
            change(store, alert, **values, **_furthest(store, alert))
            _note(store, number, "resolved" if alert.fired_at else "went away", reason, who=who)
        return row(store, number)


def note(store: Store, number: int, what: str, text: str = "", who: str = "") -> None:
    """Write a line into an alert's history: "job started", "sent", …

    Raises:
        UnknownError: there is none of that number.
    """
    with store.write():
        row(store, number)
        _note(store, number, what, text, who=who)


def row(store: Store, number: int) -> AlertRow:
    """Return one alert.

    Raises:
        UnknownError: there is none of that number.
    """
    found = store.row(f"{_SELECT} WHERE a.id = ?", (number,))
    if found is None:
        raise UnknownError(f'There is no alert {number}; "hdap alerts" lists them.')
    return _row(tuple(found))


def find(store: Store, scope: Scope, subject: str, model: str, kind: str) -> AlertRow | None:
    """Return the open alert of a subject, model and sort of change."""
    kinds = LEVEL if kind in LEVEL else (kind, kind)
    found = store.row(
        f"""{_SELECT} WHERE a.scope = ? AND a.subject = ? AND a.model = ? AND a.kind IN (?, ?)
        AND a.state <> 'resolved'""",
        (scope, subject, model, *kinds),
    )
    return _row(tuple(found)) if found else None


def open_rows(store: Store, limit: int = -1) -> tuple[AlertRow, ...]:
    """Return the alerts that have not resolved: firing ones first, newest first.

    Those that others stand for come last.
    """
    found = store.rows(
        f"""{_SELECT} WHERE a.state <> 'resolved' ORDER BY a.inhibited_by IS NOT NULL,
        CASE a.state WHEN 'firing' THEN 0 WHEN 'acknowledged' THEN 1 WHEN 'recovering' THEN 2
        ELSE 3 END, a.id DESC LIMIT ?""",
        (limit,),
    )
    return tuple(_row(tuple(one)) for one in found)


def rows(store: Store, resolved: int = 50) -> tuple[AlertRow, ...]:
    """Return the open alerts, then as many of those that resolved last."""
    closed = store.rows(
        f"""{_SELECT} WHERE a.state = 'resolved' AND a.fired_at <> ''
        ORDER BY a.resolved_at DESC, a.id DESC LIMIT ?""",
        (resolved,),
    )
    return (*open_rows(store, OPEN_LIMIT), *(_row(tuple(one)) for one in closed))


def resolved_since(store: Store, at: str) -> tuple[AlertRow, ...]:
    """Return the alerts that have resolved since a time, the latest first."""
    found = store.rows(
        f"""{_SELECT} WHERE a.state = 'resolved' AND a.fired_at <> '' AND a.resolved_at >= ?
        ORDER BY a.resolved_at DESC""",
        (at,),
    )
    return tuple(_row(tuple(one)) for one in found)


def untold(store: Store) -> tuple[AlertRow, ...]:
    """Return the alerts whose state the world outside has not been told, quiet ones left out.

    Whoever heard that an alert fires is told that it is over, whatever keeps it quiet meanwhile.
    """
    found = store.rows(
        f"""{_SELECT} WHERE (a.state = 'firing' AND a.told = '' AND a.inhibited_by IS NULL
            AND a.silence_id IS NULL) OR (a.state = 'resolved' AND a.told = 'firing')
        ORDER BY a.id"""
    )
    return tuple(_row(tuple(one)) for one in found)


def rows_at(store: Store, at: str, resolved: int = 50) -> tuple[AlertRow, ...]:
    """Return the alerts as `rows` would have done at a moment.

    How an open one stood is what its history had told last; NaN where it did not say.
    """
    with store.read():
        still_open = store.rows(
            f"""{_SELECT} WHERE a.opened_at <= ?1 AND (a.resolved_at = '' OR a.resolved_at > ?1)
            ORDER BY a.id DESC LIMIT ?2""",
            (at, OPEN_LIMIT),
        )
        closed = store.rows(
            f"""{_SELECT} WHERE a.state = 'resolved' AND a.fired_at <> '' AND a.resolved_at <= ?
            ORDER BY a.resolved_at DESC, a.id DESC LIMIT ?""",
            (at, resolved),
        )
        then = [_open_then(store, one, at) for one in still_open]
    then.sort(key=lambda one: (one.inhibited_by is not None, _ORDER.index(one.state)))
    return (*then, *(_row(tuple(one)) for one in closed))


def events(store: Store, number: int, until: str = "") -> list[AlertEvent]:
    """Return an alert's history, oldest first; with a moment what was written up to then."""
    found = store.rows(
        """SELECT alert_id, at, what, text, who FROM alert_events
        WHERE alert_id = ?1 AND (?2 = '' OR at <= ?2) ORDER BY id""",
        (number, until),
    )
    return [
        AlertEvent(
            alert=one["alert_id"], at=one["at"], what=one["what"], text=one["text"], who=one["who"]
        )
        for one in found
    ]


_NAMES = (
    "id", "scope", "subject", "kind", "state", "direction", "model", "baseline_ms", "now_ms",
    "size_percent", "told_percent", "onset_at", "opened_at", "fired_at", "acknowledged_at",
    "acknowledged_by", "resolved_at", "devices", "inhibited", "inhibited_by", "silence",
    "silenced_until", "emulated", "reason", "evidence", "told",
)  # fmt: skip
_COLUMNS = {"silence": "a.silence_id", "silenced_until": "coalesce(q.until, '')"}
_FIELDS = {"silence_id": "silence"}
_SELECT = (
    "SELECT "
    + ", ".join(f"{_COLUMNS.get(name, f'a.{name}')} AS {name}" for name in _NAMES)
    + " FROM alerts a LEFT JOIN silences q ON q.id = a.silence_id"
)


_ORDER: tuple[AlertState, ...] = ("firing", "acknowledged", "recovering", "pending")


def _open_then(store: Store, found: sqlite3.Row, at: str) -> AlertRow:
    """Return an alert as its history tells that it stood; what it does not tell is not known."""
    told = store.row(
        f"""SELECT {", ".join(f"e.{name}" for name in TOLD)}, coalesce(q.until, '') AS until
        FROM alert_events e LEFT JOIN silences q ON q.id = e.silence_id
        WHERE e.alert_id = ? AND e.at <= ? AND e.state IS NOT NULL ORDER BY e.id DESC LIMIT 1""",
        (found["id"], at),
    )
    acknowledged = "" < found["acknowledged_at"] <= at
    values: dict[str, Any] = {**dict(found), "resolved_at": "", "reason": "", "told": ""}
    if not acknowledged:
        values |= {"acknowledged_at": "", "acknowledged_by": ""}
    if found["fired_at"] > at:
        values["fired_at"] = ""
    if told is None:
        state = "acknowledged" if acknowledged else "firing"
        values |= {"state": state, "inhibited": 0, "inhibited_by": None, "silence": None}
        values |= dict.fromkeys(("baseline_ms", "now_ms", "size_percent"), math.nan)
    else:
        values |= {_FIELDS.get(name, name): told[name] for name in TOLD}
        values["silenced_until"] = told["until"]
    return _row(tuple(values[name] for name in _NAMES))


def _furthest(store: Store, alert: AlertRow) -> dict[str, float]:
    """Return the figures with which an alert was furthest off, as far as its history told them."""
    if alert.kind == NO_DATA:
        return {}
    names = ("baseline_ms", "now_ms", "size_percent")
    told = store.rows(
        f"SELECT {', '.join(names)} FROM alert_events WHERE alert_id = ? AND direction = ?",
        (alert.id, alert.direction),
    )
    way = -1 if alert.direction == "down" else 1
    stood = [{name: getattr(alert, name) for name in names}, *map(dict, told)]
    return max(stood, key=lambda figures: way * figures["size_percent"])


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return columns as an alert's row has them."""
    return {
        **values,
        "emulated": bool(values["emulated"]),
        "evidence": json.loads(values["evidence"]),
    }


def _sentence(values: AlertRow) -> str:
    return f"{values.size_percent:+.1f} %: {values.baseline_ms:.3g} ms -> {values.now_ms:.3g} ms"


def _note(
    store: Store, number: int, what: str, text: str, who: str = "", figures: bool = False
) -> None:
    """Write a line of history; with `figures`, and without words, the figures are the words."""
    stands = row(store, number)
    if figures and not text:
        text = _sentence(stands)
    names = ["alert_id", "at", "what", "text", "who", *TOLD]
    store.connection.execute(
        f"INSERT INTO alert_events ({', '.join(names)}) VALUES ({placeholders(len(names))})",
        (number, now(), what, clean(text, 500), clean(who, 63),
         *(getattr(stands, _FIELDS.get(name, name)) for name in TOLD)),
    )  # fmt: skip


@lru_cache(maxsize=16_384)
def _row(values: tuple[Any, ...]) -> AlertRow:
    """Return an alert; one that has not changed is the same object as before."""
    named = dict(zip(_NAMES, values, strict=True))
    if named["kind"] == NO_DATA:  # SQLite has no NaN
        named |= dict.fromkeys(("baseline_ms", "now_ms", "size_percent"), math.nan)
    return AlertRow(
        **{
            **named,
            "emulated": bool(named["emulated"]),
            "evidence": json.loads(named["evidence"]),
        }
    )
