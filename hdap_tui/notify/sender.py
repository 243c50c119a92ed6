"""Sends what waits in the outbox, each channel in a thread of its own.

Nobody waits for it: a webhook that hangs delays its own messages, and no round.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from hdap_tui.config import Settings
from hdap_tui.notify import messages
from hdap_tui.notify.sending import NotTakenError, send
from hdap_tui.store import alerts, outbox
from hdap_tui.store.database import Store, StoreError
from hdap_tui.store.outbox import Channel, Notification

log = logging.getLogger("hdap_tui.notify")

TICK_S = 1.0
LAST_S = 3.0
"""Seconds that the end waits for a message that is just being sent."""
TRIES_OF_A_MESSAGE = 5
"""Attempts at a message that the receiver says is wrong, so that the others get through."""


class Sender:
    """Sends for as long as it lasts; what is left then is sent by the next one."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings, self._store = settings, store
        self._stop = threading.Event()
        self._wake = {channel: threading.Event() for channel in messages.channels(settings)}
        self._threads = [
            threading.Thread(target=self._run, args=(channel,), name=channel, daemon=True)
            for channel in self._wake
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self.wake()
        end = time.monotonic() + LAST_S
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def wake(self) -> None:
        """Look into the outbox now."""
        for event in self._wake.values():
            event.set()

    def _run(self, channel: Channel) -> None:
        while True:
            stopping = self._stop.is_set()
            try:
                while self._send_first(channel):
                    pass
            except StoreError:
                return  # closed under it: what waits is there for the next one
            except Exception:
                log.exception("sending to the %s failed", channel)
            if stopping:
                return
            self._wake[channel].wait(TICK_S)
            self._wake[channel].clear()

    def _send_first(self, channel: Channel) -> bool:
        """Send a channel's eldest message if it is due; say whether it is out of the way."""
        found = outbox.first(self._store, channel)
        if found is None or found.next_at > time.time():
            return False
        return deliver(self._settings, self._store, found)


def deliver(settings: Settings, store: Store, found: Notification) -> bool:
    """Try to send one message, and write down what came of it; say whether it is over with it."""
    try:
        taker = send(settings, found.channel, found.body, json.loads(found.body)["id"])
    except NotTakenError as error:
        limits, tried = settings.alerts, found.attempts + 1
        too_old = _age_s(found) > limits.give_up_h * 3600
        if too_old or (error.of_the_message and tried >= TRIES_OF_A_MESSAGE):
            outbox.given_up(store, found.id, str(error))
            _note(store, found, "not told", f"{found.channel}: given up, {error}")
            return True
        wait = min(limits.retry_s * 2 ** min(tried - 1, 30), limits.retry_most_s)
        outbox.failed(store, found.id, str(error), wait)
        return False
    outbox.sent(store, found.id)
    _note(store, found, "told", f"{found.channel}: {taker}")
    return True


def _age_s(found: Notification) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(found.created_at)).total_seconds()


def _note(store: Store, found: Notification, what: str, text: str) -> None:
    body = json.loads(found.body)
    with store.write():
        for alert in (*body["firing"], *body["resolved"]):
            alerts.note(store, alert["alert"], what, text)
