"""Notifications: try the channels, and show what was sent and what waits."""

from __future__ import annotations

import json
from typing import Any

from hdap_tui.context import Context, Outcome, Table
from hdap_tui.errors import ExitCode, SettingsError
from hdap_tui.notify import messages
from hdap_tui.notify.sending import NotTakenError, send
from hdap_tui.store import outbox
from hdap_tui.store.outbox import Notification


def test_notification(context: Context) -> Outcome:
    """Send a message that says it is a trial to the webhook and the command of the settings."""
    settings = context.settings
    named = list(messages.channels(settings))
    if not named:
        raise SettingsError(
            f"{settings.path}: nobody is told of alerts: set url under [alerts.webhook], or argv "
            "under [alerts.command]."
        )
    body = messages.trial(settings)
    key, rows, results = json.loads(body)["id"], [], []
    for channel in named:
        try:
            problem, said, taker = "", "", send(settings, channel, body, key)
        except NotTakenError as error:
            problem, said, taker = str(error), error.said, ""
        words = f"{problem}: {said}" if said else problem
        rows.append((channel, "failed" if problem else "taken", words or taker))
        results.append({"channel": channel, "ok": not problem, "error": problem})
    failed = sum(not one["ok"] for one in results)
    code = (
        ExitCode.DONE
        if not failed
        else (ExitCode.PARTLY if failed < len(results) else ExitCode.FAILED)
    )
    return Outcome(
        data={"channels": results}, table=Table(("channel", "", ""), tuple(rows)), exit_code=code
    )


def list_notifications(context: Context) -> Outcome:
    """Show what was sent, what waits for its next attempt, and what nobody took."""
    rows = outbox.rows(context.store)
    table = Table(
        ("no", "channel", "is", "attempts", "when", "says", "error"),
        tuple(
            (
                str(r.id),
                r.channel,
                r.state,
                str(r.attempts),
                (r.finished_at or r.created_at)[:19],
                str(json.loads(r.body)["text"]),
                r.error,
            )
            for r in rows
        ),
    )
    return Outcome(
        data={"notifications": [_document(r) for r in rows]},
        table=table if rows else None,
        text="" if rows else "Nothing has been sent yet.",
    )


def _document(row: Notification) -> dict[str, Any]:
    return {
        "notification": row.id,
        "channel": row.channel,
        "state": row.state,
        "attempts": row.attempts,
        "created_at": row.created_at,
        "finished_at": row.finished_at,
        "error": row.error,
        "message": json.loads(row.body),
    }
