"""What follows from the rounds: others are told, decisions are made, old measurements shrink."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from hdap_tui.alerting import policy
from hdap_tui.context import Context
from hdap_tui.notify import messages
from hdap_tui.notify.sender import Sender
from hdap_tui.store import retention
from hdap_tui.store.retention import Cuts
from hdap_tui.text import clean


class After:
    """What a watcher does between its rounds."""

    def __init__(self, context: Context) -> None:
        self._context, self._store = context, context.store
        self._sender = Sender(context.settings, context.store)
        self._tidied = Cuts()
        """Up to where all was rolled up that is old."""
        self._is_tidy = False

    def __enter__(self) -> Self:
        self._sender.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._sender.__exit__(kind, error, trace)

    def take_up(self) -> None:
        """Send by the settings that are in force now."""
        old, self._sender = self._sender, Sender(self._context.settings, self._store).__enter__()
        old.__exit__(None, None, None)
        self._tidied = Cuts()

    def round_done(self) -> None:
        """Decide what follows from a round, and tell others of it.

        Raises:
            UserError: the store, or a job's folder, cannot be written.
        """
        self._is_tidy = False
        for decision in policy.decide(self._context):
            self._context.reporter.noted(
                "watch", clean(policy.sentence(self._store, decision), 600)
            )
        self.tell()

    def tell(self) -> None:
        """Write down what others are to be told; it is sent meanwhile, by other threads."""
        if messages.gather(self._context.settings, self._store):
            self._sender.wake()

    def tidy(self, is_over: Callable[[], bool]) -> None:
        """Roll old measurements up while nothing is measured; what is left is for the next time.

        Raises:
            UserError: the disk is full, or another process holds the store.
        """
        if self._is_tidy:
            return
        self._is_tidy = True  # until the next round, whatever comes of it
        own = self._context.settings.retention
        cut = retention.cuts(self._store, own.full_days, own.hourly_days)
        if cut == self._tidied:
            return
        for _ in retention.compact(self._store, cut, is_over):
            pass
        if not is_over():
            self._tidied = cut
