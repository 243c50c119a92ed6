"""Where in time the screens are: live, or at a moment of the past. No widgets and no disk in here.

Keys move the moment at once. What was there then is read in a worker, one reading at a time and
always of the moment that is wanted by then, so that a key that is held down waits for nothing.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from datetime import UTC, datetime

from hdap_tui import moments
from hdap_tui.dashboard.formats import ASCII, age
from hdap_tui.dashboard.widgets.line import Piece
from hdap_tui.store.records import FleetSnapshot
from hdap_tui.store.values import from_micros

_SLIDER = 24
_WIDE = 100
"""Columns from which on every key has its word."""
_KEYS = (
    ("[ ]", "round", ""),
    ("{ }", "hour", ""),
    ("backspace", "live", "app.live"),
)


class Travel:
    """The moment that is wanted, and the fleet as it was at the one that was read last."""

    def __init__(self) -> None:
        self.wanted: int | None = None
        """Microseconds since 1970; None: live."""
        self.seen: FleetSnapshot | None = None
        """What the screens show; None: what is live."""
        self.seen_at: int | None = None
        self.rounds: Sequence[int] | None = None
        """When rounds ended, oldest first; None while they were not read."""
        self.reading = False
        self._steps = 0

    @property
    def is_live(self) -> bool:
        """Whether nothing of the past is wanted."""
        return self.wanted is None and not self._steps

    @property
    def is_behind(self) -> bool:
        """Whether something is wanted that was not read yet."""
        return not self.is_live and (self.rounds is None or self.wanted != self.seen_at)

    def step(self, count: int) -> None:
        """Go so many rounds on, or back, at most to the first; after the last one it is live."""
        if self.rounds is None:
            self._steps = min(0, self._steps + count)  # there is nothing after what is live
            return
        if self.wanted is None:
            place = len(self.rounds) + count
        elif count < 0:
            place = bisect_left(self.rounds, self.wanted) + count
        else:
            place = bisect_right(self.rounds, self.wanted) + count - 1
        if place >= len(self.rounds):
            self.live()
        else:
            self.wanted = self.rounds[max(0, place)]

    def jump(self, seconds: float, now: datetime) -> None:
        """Go on or back by some time, at most to the first round or to what is live."""
        present = round(now.timestamp() * 1e6)
        wanted = (present if self.wanted is None else self.wanted) + round(seconds * 1e6)
        if wanted >= present:
            self.live()
        else:
            self.wanted = max(wanted, self.rounds[0]) if self.rounds else wanted

    def live(self) -> None:
        """Come back to what is live."""
        self.wanted, self.seen, self.seen_at, self.rounds = None, None, None, None
        self._steps = 0

    def take_rounds(self, rounds: Sequence[int]) -> None:
        """Take in when rounds ended, and go the steps that were waiting for it."""
        self.rounds = rounds
        steps, self._steps = self._steps, 0
        if steps and rounds:
            self.step(steps)

    def take(self, at: int, snapshot: FleetSnapshot) -> None:
        """Take in the fleet as it was at a moment."""
        if self.wanted is not None:
            self.seen, self.seen_at = snapshot, at

    def give_up(self) -> None:
        """Stay where one was: the wanted moment cannot be read."""
        if self.seen_at is None:
            self.live()
        else:
            self.wanted = self.seen_at

    def pieces(self, now: datetime, travels: bool, width: int) -> list[Piece]:
        """Return the line that says which moment is shown; empty where all is live.

        `travels` says whether the screen shows the past, or is live all the same.
        """
        if self.is_live:
            return []
        if self.seen is None:
            goal = f"{_clock(self.wanted)} …" if self.wanted is not None else "the rounds …"
            return [Piece(f" still live, reading {goal} ", "badge")]
        at = datetime.fromisoformat(self.seen.at)
        if not travels:
            said = "This view is live; fleet, map and alerts are as of"
            return [Piece(f" {said} {moments.said(at)} ", "muted"), *_keys(_KEYS[2:])]
        found = [Piece(f" AS OF {moments.said(at)} ", "badge")]
        found.append(Piece(f" {age(self.seen.at, now)} ago, not live ", "warn"))
        if self.is_behind:
            found.append(Piece(f"→ {_clock(self.wanted)} … ", "accent"))
        elif self.rounds and self.rounds[0] == self.wanted:
            found.append(Piece("first round ", "muted"))
        keys = _keys([(key, label if action or width >= _WIDE else "", action)
                      for key, label, action in _KEYS])  # fmt: skip
        room = width - sum(len(piece.text) for piece in (*found, *keys))
        if room >= 12:
            found.append(Piece(f" {self._slider(min(_SLIDER, room - 2))} ", "trend"))
        return [*found, *keys]

    def _slider(self, width: int) -> str:
        """Return where among the rounds the wanted moment lies."""
        rounds = self.rounds or ()
        knob, rail = ("o", "-") if ASCII else ("●", "─")
        place = bisect_left(rounds, self.wanted or 0) / max(1, len(rounds) - 1)
        at = round(min(1.0, place) * (width - 1))
        return rail * at + knob + rail * (width - 1 - at)


def _keys(keys: Sequence[tuple[str, str, str]]) -> list[Piece]:
    found = []
    for key, label, action in keys:
        found.append(Piece(f" {key} ", "key", action))
        found.append(Piece(label, "muted", action))
    return found


def _clock(at: int | None) -> str:
    """Return a moment as day and time of this machine's zone."""
    if at is None:
        return ""
    return f"{datetime.fromisoformat(from_micros(at)).astimezone(UTC).astimezone():%m-%d %H:%M:%S}"
