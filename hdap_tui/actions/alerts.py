"""Alerts: list, show, acknowledge, accept."""

from __future__ import annotations

from typing import Any

from hdap_tui.context import Context, Outcome, Table
from hdap_tui.drifting import forget_baseline
from hdap_tui.errors import RefusedError
from hdap_tui.names import with_letters
from hdap_tui.store import alerts
from hdap_tui.store.records import AlertRow


def list_alerts(context: Context) -> Outcome:
    """Show the open alerts, then the latest resolved ones."""
    rows = alerts.rows(context.store)
    shown = Table(
        ("alert", "state", "about", "kind", "size", "baseline", "now", "since", "model"),
        tuple(
            (
                str(r.id),
                r.state,
                _about(r),
                r.kind if r.kind == "migration" else f"{r.kind} {r.direction}",
                f"{r.size_percent:+.1f} %",
                f"{r.baseline_ms:.3f} ms",
                f"{r.now_ms:.3f} ms",
                r.onset_at[:19],
                r.model,
            )
            for r in rows
        ),
    )
    return Outcome(
        data={"alerts": [document(r) for r in rows]},
        table=shown if rows else None,
        text="" if rows else "No alerts.",
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
    if row.kind == "migration":
        about = f"{_about(row)}: at home in its cluster"
    if not yes and not context.confirm("Take the present as normal?", [about]):
        raise RefusedError(f"Alert {alert} stays as it is.")
    with context.store.write():
        forget_baseline(context.settings, context.store, row)
        row = alerts.resolve(context.store, alert, reason or "accepted as normal")
    then = "is at home where it is" if row.kind == "migration" else "learns a new baseline"
    return Outcome(data=document(row), text=f"Alert {row.id} is resolved; {_about(row)} {then}.")


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


def _about(row: AlertRow) -> str:
    more = f" (+{row.inhibited} devices)" if row.inhibited else ""
    return with_letters(row.subject) + more + (" (emulated)" if row.emulated else "")
