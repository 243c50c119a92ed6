"""Alerts: list, show, explain, acknowledge, accept, export."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta

from hdap_tui.actions.past import UNKNOWN, moment_of
from hdap_tui.alerting.drifting import accept as accept_level
from hdap_tui.alerting.explaining import explain as explained
from hdap_tui.alerting.words import document, is_quiet_now, open_until, postable, stands_for
from hdap_tui.context import Context, Outcome, Table
from hdap_tui.errors import RefusedError
from hdap_tui.names import own_name, with_letters
from hdap_tui.store import alerts, devices
from hdap_tui.store.records import NO_DATA, AlertRow

_RESOLVED_FOR = timedelta(days=1)
"""How long Alertmanager is told of an alert that has resolved."""


def list_alerts(context: Context, all: bool = False, at: str | None = None) -> Outcome:
    """Show the open alerts, then the latest resolved ones; those beneath others where asked.

    With a moment as they were then.
    """
    moment = None if at is None else moment_of(context, at)
    if moment is None:
        rows, now = alerts.rows(context.store), datetime.now(UTC)
    else:
        rows, now = alerts.rows_at(context.store, moment.utc), datetime.fromisoformat(moment.utc)
    listed = [row for row in rows if all or row.inhibited_by is None or row.state == "resolved"]
    shown = Table(
        ("alert", "state", "about", "kind", "size", "baseline", "now", "since", "model"),
        tuple(
            (
                str(r.id),
                _state(r, now),
                _about(r),
                r.kind if r.kind in ("migration", NO_DATA) else f"{r.kind} {r.direction}",
                _known(r.size_percent, "{:+.1f} %"),
                _known(r.baseline_ms, "{:.3f} ms"),
                _known(r.now_ms, "{:.3f} ms"),
                r.onset_at[:19],
                r.model,
            )
            for r in listed
        ),
    )
    said = [moment.sentence if moment else "", "" if listed else "No alerts."]
    watched: dict[str, list[str]] = {}
    if moment is None:
        every = devices.rows(context.store)
        for word in ("learning", "no data"):
            names = [device.name for device in every if device.watched == word]
            watched[word.replace(" ", "_")] = names
            said += [f"{word}: {len(names)} of {len(every)} devices"] if names else []
    return Outcome(
        # For a program all of them, whatever stands for them.
        data={
            **({"as_of": moment.document} if moment else watched),
            "alerts": [document(r) for r in rows],
        },
        table=shown if listed else None,
        text="\n".join(filter(None, said)),
    )


def show(context: Context, alert: int) -> Outcome:
    """Show one alert and its whole history."""
    row = alerts.row(context.store, alert)
    events = alerts.events(context.store, alert)
    beneath = [a for a in alerts.open_rows(context.store) if a.inhibited_by == alert]
    named = ", ".join(f"{a.id} ({a.subject})" for a in beneath)
    size = "" if row.kind == NO_DATA else f" {_known(row.size_percent, '{:+.1f} %')}"
    return Outcome(
        data={
            **document(row),
            "stands_for": [a.id for a in beneath],
            "history": [{"at": e.at, "what": e.what, "text": e.text, "who": e.who} for e in events],
        },
        table=Table(
            ("when", "what", "who", ""),
            tuple((e.at[:19], e.what, e.who or "hdap", e.text) for e in events),
            title=f"{_about(row)}: {row.kind}{size}, {_state(row, datetime.now(UTC))}",
        ),
        text=f"Stands for: {named}" if beneath else "",
    )


def explain(context: Context, alert: int) -> Outcome:
    """Say in words what an alert says, and what else changed at that time."""
    row = alerts.row(context.store, alert)
    lines = explained(context.settings, context.store, row)
    return Outcome(
        data={**document(row), "explanation": [{"about": a, "text": t} for a, t in lines]},
        table=Table(("", ""), tuple(lines), title=f"alert {row.id}: {_about(row)}, {row.state}"),
    )


def acknowledge(context: Context, alert: int, reason: str | None = None) -> Outcome:
    """Say that somebody looks after an alert."""
    row = alerts.acknowledge(context.store, alert, reason or "", own_name())
    return Outcome(data=document(row), text=f"Alert {row.id} ({_about(row)}) is acknowledged.")


def accept(context: Context, alert: int, reason: str | None = None, yes: bool = False) -> Outcome:
    """Take the present latency as normal: forget the baseline, which resolves the alert."""
    row = alerts.row(context.store, alert)
    if row.state == "resolved":
        raise RefusedError(f"Alert {alert} has resolved already, at {row.resolved_at[:19]}.")
    if row.kind == NO_DATA:
        raise RefusedError(
            f"Alert {alert} resolves when {_about(row)} answers; silence it until then, or take "
            "what is gone for good out of the settings."
        )
    about = f"{_about(row)}: {row.baseline_ms:.3f} ms becomes {row.now_ms:.3f} ms"
    if row.kind == "migration":
        about = f"{_about(row)}: at home in its cluster"
    if not yes and not context.confirm("Take the present as normal?", [about]):
        raise RefusedError(f"Alert {alert} stays as it is.")
    why = reason or "accepted as normal"
    row = accept_level(context.settings, context.store, row, why, own_name())
    then = "is at home where it is" if row.kind == "migration" else "learns a new baseline"
    return Outcome(data=document(row), text=f"Alert {row.id} is resolved; {_about(row)} {then}.")


def export(context: Context, alertmanager: bool = True) -> Outcome:
    """Print the alerts that somebody is to be told of, as Alertmanager takes them.

    Silenced ones and those beneath others are left out; resolved ones are there for a day, so
    that whoever knows of them learns that they are over.
    """
    now, name = datetime.now(UTC), context.settings.name
    until = open_until(now, context.settings.watch.canary_every_s)
    told = [
        postable(row, name, until)
        for row in alerts.open_rows(context.store)
        if row.state != "pending" and row.inhibited_by is None and not is_quiet_now(row, now)
    ]
    since = (now - _RESOLVED_FOR).isoformat(timespec="milliseconds")
    over = [
        postable(row, name, row.resolved_at) for row in alerts.resolved_since(context.store, since)
    ]
    return Outcome(data={"alerts": [*told, *over]}, text=json.dumps([*told, *over], indent=1))


def _state(row: AlertRow, now: datetime) -> str:
    """Return how an alert stands, and what keeps it quiet."""
    quiet = [f"silenced until {row.silenced_until[:16]}"] if is_quiet_now(row, now) else []
    quiet += [f"beneath {row.inhibited_by}"] if row.inhibited_by is not None else []
    return row.state if row.state == "resolved" else ", ".join([row.state, *quiet])


def _known(value: float, form: str) -> str:
    return form.format(value) if math.isfinite(value) else UNKNOWN


def _about(row: AlertRow) -> str:
    return with_letters(row.subject) + stands_for(row) + (" (emulated)" if row.emulated else "")
