"""Alerts: list, show, acknowledge, accept."""

from __future__ import annotations

import math
from typing import Any

from hdap_tui.actions.past import UNKNOWN, moment_of
from hdap_tui.context import Context, Outcome, Table
from hdap_tui.drifting import forget_baseline
from hdap_tui.errors import RefusedError
from hdap_tui.store import alerts
from hdap_tui.store.records import AlertRow


def list_alerts(context: Context, at: str | None = None) -> Outcome:
    """Show the open alerts, then the latest resolved ones; or as they were at a moment."""
    moment = None if at is None else moment_of(context, at)
    rows = (
        alerts.rows(context.store) if moment is None else alerts.rows_at(context.store, moment.utc)
    )
    shown = Table(
        ("alert", "state", "about", "kind", "size", "baseline", "now", "since", "model"),
        tuple(
            (
                str(r.id),
                r.state,
                _about(r),
                f"{r.kind} {r.direction}",
                _known(r.size_percent, "{:+.1f} %"),
                _known(r.baseline_ms, "{:.3f} ms"),
                _known(r.now_ms, "{:.3f} ms"),
                r.onset_at[:19],
                r.model,
            )
            for r in rows
        ),
    )
    return Outcome(
        data={
            **({} if moment is None else {"as_of": moment.document}),
            "alerts": [document(r) for r in rows],
        },
        table=shown if rows else None,
        text="\n".join(
            filter(None, (moment.sentence if moment else "", "" if rows else "No alerts."))
        ),
    )


def show(context: Context, alert: int) -> Outcome:
    """Show one alert and its whole history."""
    row = alerts.row(context.store, alert)
    events = alerts.events(context.store, alert)
    return Outcome(
        data={
            **document(row),
            "history": [{"at": e.at, "what": e.what, "text": e.text} for e in events],
        },
        table=Table(
            ("when", "what", ""),
            tuple((e.at[:19], e.what, e.text) for e in events),
            title=f"{_about(row)}: {row.kind} {row.size_percent:+.1f} %, {row.state}",
        ),
    )


def acknowledge(context: Context, alert: int, reason: str | None = None) -> Outcome:
    """Say that somebody looks after an alert."""
    row = alerts.acknowledge(context.store, alert, reason or "")
    return Outcome(data=document(row), text=f"Alert {row.id} ({_about(row)}) is acknowledged.")


def accept(context: Context, alert: int, reason: str | None = None, yes: bool = False) -> Outcome:
    """Take the present latency as normal: forget the baseline, which resolves the alert."""
    row = alerts.row(context.store, alert)
    if row.state == "resolved":
        raise RefusedError(f"Alert {alert} has resolved already, at {row.resolved_at[:19]}.")
    about = f"{_about(row)}: {row.baseline_ms:.3f} ms becomes {row.now_ms:.3f} ms"
    if not yes and not context.confirm("Take the present latency as the new baseline?", [about]):
        raise RefusedError(f"Alert {alert} stays as it is.")
    with context.store.write():
        forget_baseline(context.settings, context.store, row)
        row = alerts.resolve(context.store, alert, reason or "accepted as the new baseline")
    return Outcome(
        data=document(row), text=f"Alert {row.id} is resolved; {_about(row)} learns a new baseline."
    )


def document(row: AlertRow) -> dict[str, Any]:
    """Return an alert as the JSON that the command line prints."""
    return {
        "alert": row.id,
        "state": row.state,
        "scope": row.scope,
        "subject": row.subject,
        "kind": row.kind,
        "direction": row.direction,
        "size_percent": row.size_percent,
        "baseline_ms": row.baseline_ms,
        "now_ms": row.now_ms,
        "model": row.model,
        "onset_at": row.onset_at,
        "opened_at": row.opened_at,
        "acknowledged_at": row.acknowledged_at,
        "resolved_at": row.resolved_at,
        "reason": row.reason,
        "inhibited": row.inhibited,
        "emulated": row.emulated,
    }


def _known(value: float, form: str) -> str:
    return form.format(value) if math.isfinite(value) else UNKNOWN


def _about(row: AlertRow) -> str:
    more = f" (+{row.inhibited} devices)" if row.inhibited else ""
    return row.subject + more + (" (emulated)" if row.emulated else "")
