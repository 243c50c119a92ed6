"""The fleet as it was: what `--at` means, for every command that takes it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from hdap_tui import moments
from hdap_tui.context import Context
from hdap_tui.store import past
from hdap_tui.store.records import FleetSnapshot
from hdap_tui.store.values import to_micros

UNKNOWN = "unknown"
"""What a table shows where nobody recorded it."""


@dataclass(frozen=True)
class Moment:
    """A moment of the past of which something was recorded."""

    when: datetime

    @property
    def micros(self) -> int:
        """The moment in microseconds since 1970, as the store counts."""
        return to_micros(self.when.isoformat())

    @property
    def utc(self) -> str:
        """The moment as the store writes times."""
        return self.when.astimezone(UTC).isoformat(timespec="milliseconds")

    @property
    def document(self) -> str:
        """The moment for programs, with its offset from UTC."""
        return self.when.isoformat(timespec="seconds")

    @property
    def sentence(self) -> str:
        """The moment for people."""
        return f"As of {moments.said(self.when)}, not live."


def moment_of(context: Context, at: str) -> Moment:
    """Return the moment that `--at` names.

    Raises:
        SettingsError: it is no time, or lies in the future.
        NothingYetError: nothing had been recorded by then.
    """
    moment = Moment(moments.parse(at))
    past.check(context.store, moment.micros)
    return moment


def fleet_at(context: Context, moment: Moment) -> FleetSnapshot:
    """Return the fleet as it was at a moment."""
    return past.snapshot(context.store, context.settings.name, moment.micros)
