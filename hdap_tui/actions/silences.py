"""Silences: begin, list, end early."""

from __future__ import annotations

from typing import Any

from hdap_tui import moments
from hdap_tui.alerting import silencing
from hdap_tui.context import Context, Outcome, Table
from hdap_tui.errors import SettingsError
from hdap_tui.names import own_name
from hdap_tui.store import silences
from hdap_tui.store.records import Silence


def silence(context: Context, selector: str, for_: str, reason: str) -> Outcome:
    """Tell nobody of some alerts for a while; they are recorded and shown all the same."""
    if not reason.strip():
        raise SettingsError("a silence needs a reason: somebody will ask.")
    length = moments.length(for_)
    made, quiet = silencing.begin(
        context.settings, context.store, selector, length, reason, own_name()
    )
    now = ", ".join(f"{a.id} ({a.subject})" for a in quiet)
    return Outcome(
        data={**document(made), "alerts": [a.id for a in quiet]},
        text=f"Silence {made.id} lasts until {made.until[:19]} UTC; "
        + (f"it keeps quiet: {now}." if quiet else "no open alert is under it yet."),
    )


def list_silences(context: Context) -> Outcome:
    """Show the silences that are on, then the latest that are over."""
    rows = silences.rows(context.store)
    table = Table(
        ("silence", "is", "alerts", "until", "who", "reason"),
        tuple(
            (
                str(r.id),
                "on" if silences.is_on(r) else "over",
                r.selector,
                silences.over_at(r)[:19],
                r.who,
                r.reason,
            )
            for r in rows
        ),
    )
    return Outcome(
        data={"silences": [document(r) for r in rows]},
        table=table if rows else None,
        text="" if rows else 'No silences; "hdap alerts silence" begins one.',
    )


def end_silence(context: Context, silence: int | None = None) -> Outcome:
    """End a silence before its time; the only one where its number is left out."""
    if silence is None:
        on = silences.on(context.store)
        if len(on) != 1:
            numbers = ", ".join(str(one.id) for one in on)
            raise SettingsError(
                f"several silences are on: name one of {numbers}." if on else "no silence is on."
            )
        silence = on[0].id
    with context.store.write():
        found = silences.end(context.store, silence, own_name())
        silencing.apply(context.settings, context.store)
    return Outcome(data=document(found), text=f"Silence {found.id} ({found.selector}) is over.")


def document(row: Silence) -> dict[str, Any]:
    """Return a silence as the JSON that the command line prints."""
    return {
        "silence": row.id,
        "on": silences.is_on(row),
        "selector": row.selector,
        "reason": row.reason,
        "who": row.who,
        "created_at": row.created_at,
        "until": row.until,
        "ended_at": row.ended_at,
        "ended_by": row.ended_by,
    }
