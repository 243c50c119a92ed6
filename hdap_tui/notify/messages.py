"""What is told of a round of alerts, and to whom; written together with the alerts themselves."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from hdap_tui.alerting import silencing
from hdap_tui.alerting.words import document, round_sentence
from hdap_tui.config import Settings
from hdap_tui.store import alerts, outbox, silences
from hdap_tui.store.database import Store
from hdap_tui.store.outbox import Channel
from hdap_tui.store.records import AlertRow
from hdap_tui.store.values import now

SCHEMA_VERSION = 1
LISTED = 100
"""Alerts that one message holds in full; of more it holds the number."""


def channels(settings: Settings) -> Iterator[Channel]:
    """Yield the channels that the settings name."""
    if settings.alerts.webhook.url:
        yield "webhook"
    if settings.alerts.command.argv:
        yield "command"


def gather(settings: Settings, store: Store) -> bool:
    """Write down what is to be told by now, one message for all of it; say whether there was any.

    What a silence kept quiet is told once that is over.
    """
    named = list(channels(settings))
    if silences.any_over(store):
        silencing.apply(settings, store)
    if not named or not alerts.untold(store):
        return False
    with store.write():
        rows = alerts.untold(store)
        if not rows:
            return False
        body = message(settings, rows)
        for channel in named:
            outbox.put(store, channel, body)
        for row in rows:
            alerts.change(store, row, told=row.state)
    return True


def message(settings: Settings, rows: Sequence[AlertRow]) -> str:
    """Return the message about alerts that fire or have resolved, as JSON."""
    firing = [row for row in rows if row.state != "resolved"]
    resolved = [row for row in rows if row.state == "resolved"]
    return _encoded(
        settings,
        round_sentence(firing, resolved),
        firing=[document(row) for row in firing[:LISTED]],
        resolved=[document(row) for row in resolved[:LISTED]],
        left_out=max(len(firing) - LISTED, 0) + max(len(resolved) - LISTED, 0),
        emulated=any(row.emulated for row in rows),
    )


def trial(settings: Settings) -> str:
    """Return a message that only tries a channel."""
    text = "This only tries whether notifications arrive; no alert fires."
    nothing: list[Any] = []
    return _encoded(
        settings, text, firing=nothing, resolved=nothing, left_out=0, emulated=False, test=True
    )


def _encoded(settings: Settings, text: str, *, emulated: bool, **more: Any) -> str:
    fleet = f"{settings.name} (emulated)" if emulated else settings.name
    return json.dumps(
        {
            "schema_version": SCHEMA_VERSION,
            "id": uuid.uuid4().hex,
            "fleet": settings.name,
            "at": now(),
            "text": f"{fleet}: {text}",
            "test": False,
            "emulated": emulated,
            **more,
        }
    )
