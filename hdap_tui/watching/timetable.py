"""When sweeps and canary rounds are due: arithmetic on the wall clock, and nobody waits in here.

Each kind has a grid of times, one interval apart, that goes on over restarts: the time of the
grid that was taken last is all there is to remember. Times that pass while a round takes long, or
while the machine sleeps, are missed and never made up for.

    >>> hourly = Rhythm(3600.0)
    >>> hourly.due_at(7200.0), hourly.passed(7200.0, now=7200.0 + 3 * 3600 + 5)
    (10800.0, 3)
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["sweep", "canary"]
_LONGEST_PAUSE_S = 600.0


@dataclass(frozen=True)
class Rhythm:
    """A grid of times."""

    every_s: float
    jitter: float = 0.0
    """Share of the interval by which each time is moved at most, always to later."""
    salt: str = ""
    """Makes one fleet's moves other than another's; the same grid is always moved the same."""

    def held(self, last: float, now: float) -> float:
        """Return the time taken last, but never one to come: then the clock was set back.

        What would be due after a time to come could be due in an hour; so the grid begins anew.
        """
        return min(last, now)

    def due_at(self, last: float) -> float:
        """Return when the next round is due."""
        return self._moved(last + self.every_s)

    def passed(self, last: float, now: float) -> int:
        """Return how many rounds have become due since the last one."""
        count = max(0, int((now - last) // self.every_s))
        return count - 1 if count and now < self._moved(last + count * self.every_s) else count

    def _moved(self, at: float) -> float:
        if not self.jitter:
            return at
        share = random.Random(f"{self.salt} {at:.3f}").random()
        return at + share * self.jitter * self.every_s


@dataclass(frozen=True)
class Taken:
    """What was done last, in seconds since 1970."""

    sweep: float | None = None
    """Time of the sweeps' grid that was taken last; None where there never was a sweep."""
    canary: float | None = None
    half: float | None = None
    """When the latest sweep began, where it is not whole."""
    latest: Kind | None = None
    """What was done last of all."""


@dataclass(frozen=True)
class Step:
    """What is to be done now."""

    do: Literal["sweep", "canary", "wait"]
    taken: float = 0.0
    """The time of the grid that this takes."""
    missed: int = 0
    """Times of the grid before it that nobody took."""
    half: Literal["", "take up", "leave"] = ""
    """What becomes of a sweep that was broken off."""


def decide(
    now: float,
    sweep: Rhythm,
    canary: Rhythm,
    last: Taken,
    young_s: float,
    blocked: Collection[Kind] = (),
) -> Step:
    """Return what is to be done at a time.

    A sweep goes before a canary round, but two sweeps do not follow each other where a round is
    due: a sweep that takes longer than its interval leaves room for rounds.

    Args:
        now: seconds since 1970, by the wall clock.
        sweep: when sweeps are wanted.
        canary: when canary rounds are wanted.
        last: what was done last, held against the clock.
        young_s: a sweep that was broken off is taken up where it is no older than this.
        blocked: what failed just now and is not tried again yet.
    """
    steps = [
        step
        for kind, step in (
            ("sweep", _sweep(now, sweep, last, young_s)),
            ("canary", _due("canary", now, canary, last.canary)),
        )
        if step is not None and kind not in blocked
    ]
    if last.latest == "sweep":
        steps.reverse()
    return steps[0] if steps else Step("wait")


def pause_after(failures: int) -> float:
    """Return the seconds after which something that failed so many times in a row is tried again.

    >>> [pause_after(n) for n in (1, 2, 3, 20)]
    [5.0, 10.0, 20.0, 600.0]
    """
    return float(min(5.0 * 2 ** min(failures - 1, 30), _LONGEST_PAUSE_S))


def _sweep(now: float, rhythm: Rhythm, last: Taken, young_s: float) -> Step | None:
    due = _due("sweep", now, rhythm, last.sweep)
    if last.half is None:
        return due
    # What was begun did not become whole: it is due, whatever the grid says.
    is_young = 0 <= now - last.half <= young_s
    step = due or Step("sweep", now if last.sweep is None else last.sweep)
    return replace(step, half="take up" if is_young else "leave")


def _due(kind: Kind, now: float, rhythm: Rhythm, last: float | None) -> Step | None:
    if last is None:
        return Step(kind, now)
    count = rhythm.passed(last, now)
    return Step(kind, last + count * rhythm.every_s, count - 1) if count else None
