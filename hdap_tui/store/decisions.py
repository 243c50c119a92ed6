"""What should follow from an alert or a latency: suggested, started, withdrawn, undone; and why."""

from __future__ import annotations

from typing import Any

from hdap_tui.store.database import Store, UnknownError
from hdap_tui.store.records import Decision, DecisionState, DecisionStep
from hdap_tui.store.values import now
from hdap_tui.text import clean

OPEN = ("suggested", "starting")


def add(
    store: Store,
    *,
    cause: str,
    alert: int | None,
    state: DecisionState,
    reason: str,
    recipe: str = "",
    who: str = "",
) -> Decision:
    """Write down a new decision, and why it was made."""
    with store.write() as connection:
        cursor = connection.execute(
            """INSERT INTO decisions (cause, alert_id, state, at, reason, recipe)
            VALUES (?, ?, ?, ?, ?, ?)""",
            (cause, alert, state, now(), clean(reason, 500), recipe),
        )
        assert cursor.lastrowid is not None
        _step(store, cursor.lastrowid, state, reason, who)
        return row(store, cursor.lastrowid)


def turn(
    store: Store, number: int, state: DecisionState, text: str, who: str = "", job: str = ""
) -> Decision:
    """Let a decision go on to another state, and write down why."""
    with store.write() as connection:
        connection.execute(
            "UPDATE decisions SET state = ?, job = CASE ? WHEN '' THEN job ELSE ? END WHERE id = ?",
            (state, job, job, number),
        )
        _step(store, number, state, text, who)
        return row(store, number)


def row(store: Store, number: int) -> Decision:
    """Return one decision.

    Raises:
        UnknownError: there is none of that number.
    """
    found = store.row(f"{_SELECT} WHERE id = ?", (number,))
    if found is None:
        raise UnknownError(f'There is no decision {number}; "hdap policy log" lists them.')
    return Decision(**dict(found))


def rows(store: Store, limit: int = 50) -> tuple[Decision, ...]:
    """Return the latest decisions, the newest first."""
    found = store.rows(f"{_SELECT} ORDER BY id DESC LIMIT ?", (limit,))
    return tuple(Decision(**dict(one)) for one in found)


def pending(store: Store) -> tuple[Decision, ...]:
    """Return what is suggested or just being started, the newest first."""
    found = store.rows(f"{_SELECT} WHERE state IN (?, ?) ORDER BY id DESC", OPEN)
    return tuple(Decision(**dict(one)) for one in found)


def of_cause(store: Store, cause: str) -> Decision | None:
    """Return the latest decision about something."""
    found = store.row(f"{_SELECT} WHERE cause = ? ORDER BY id DESC LIMIT 1", (cause,))
    return Decision(**dict(found)) if found else None


def steps(store: Store, number: int) -> tuple[DecisionStep, ...]:
    """Return what became of a decision, oldest first."""
    found = store.rows(
        "SELECT at, who, what, text FROM decision_steps WHERE decision_id = ? ORDER BY id",
        (number,),
    )
    return tuple(DecisionStep(**dict(one)) for one in found)


_SELECT = "SELECT id, cause, alert_id AS alert, state, at, reason, recipe, job FROM decisions"


def _step(store: Store, number: int, what: str, text: str, who: str) -> None:
    values: tuple[Any, ...] = (number, now(), clean(who, 63), what, clean(text, 500))
    store.connection.execute(
        "INSERT INTO decision_steps (decision_id, at, who, what, text) VALUES (?, ?, ?, ?, ?)",
        values,
    )
