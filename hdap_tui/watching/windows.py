"""Maintenance windows: hours of the week, by the clock on the wall of where they are meant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_LONGEST_S = 8 * 86400


@dataclass(frozen=True)
class Window:
    """Some hours on some days of every week.

    A time that the change to summer time leaves out never comes, and one that the change back
    brings twice is in the window twice: what counts is what a clock there shows.
    """

    days: frozenset[int]
    """Days on which it begins, Monday is 0; none: every day."""
    start: int
    """Minute of the day."""
    end: int
    """Minute of the day up to which it lasts; no later than `start`: on the next day."""
    zone: str = ""
    """Time zone; empty: that of this machine."""

    def covers(self, now: float) -> bool:
        """Say whether a time (seconds since 1970) lies in it."""
        local = datetime.fromtimestamp(now, zone(self.zone) if self.zone else None)
        minute, today = local.hour * 60 + local.minute, local.weekday()
        if self.start < self.end:
            return self._begins(today) and self.start <= minute < self.end
        return (self._begins(today) and minute >= self.start) or (
            self._begins((today - 1) % 7) and minute < self.end
        )

    def ends(self, now: float) -> float:
        """Return when it ends, for a time in it; at most about a week later."""
        return next((at for at in _minutes(now) if not self.covers(at)), now + _LONGEST_S)

    def _begins(self, day: int) -> bool:
        return not self.days or day in self.days


def minute_of(text: str) -> int:
    """Return the minute of the day that "HH:MM" means; "24:00" is the end of the day."""
    hour, _, minute = text.partition(":")
    return int(hour) * 60 + int(minute)


@lru_cache(maxsize=32)
def zone(name: str) -> ZoneInfo:
    """Return a time zone.

    Raises:
        ValueError: there is none of that name on this machine.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f'there is no time zone "{name}" on this machine') from error


def _minutes(now: float) -> Iterator[float]:
    """Yield the full minutes after a time, as long as any window may last."""
    first = int(now // 60 + 1) * 60
    return (float(first + step) for step in range(0, _LONGEST_S, 60))
