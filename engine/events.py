"""What a long step tells whoever listens.

The progress pane, the progress bar of the command line and the log all read this one stream.
An event is a plain dataclass that goes to one line of JSON and comes back, so a stream that was
written to a file can be followed, replayed, and read after the writer has died.

    >>> event = Advanced(job="j1", step="search", n=40, sequence=7)
    >>> from_json(to_json(event)) == event
    True
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True, kw_only=True)
class Event:
    """Common to all events."""

    job: str
    """Which job speaks."""
    step: str
    """Which of its steps."""
    sequence: int = 0
    """Counts the events of one job from 1, over all its runs."""
    at: str = field(default_factory=_now)
    """UTC, ISO 8601."""


@dataclass(frozen=True, kw_only=True)
class Started(Event):
    """A step began."""

    total: int | None = None
    """How many units of work it has; None where nobody can know."""
    weight: float = 1.0
    """Expected seconds of the whole step, so that steps add up to one honest bar."""


@dataclass(frozen=True, kw_only=True)
class Advanced(Event):
    """A step got on."""

    n: int
    """Units done so far (the count, not the increment)."""


@dataclass(frozen=True, kw_only=True)
class Scored(Event):
    """One point of a curve."""

    name: str
    """The curve: "best predicted latency (ms)", "accuracy"."""
    x: float
    y: float


@dataclass(frozen=True, kw_only=True)
class Noted(Event):
    """A sentence for the log."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Finished(Event):
    """A step ended well."""

    result: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Failed(Event):
    """A step could not be done."""

    error: str


AnyEvent = Started | Advanced | Scored | Noted | Finished | Failed
Listener = Callable[[AnyEvent], None]

_KINDS: dict[str, type[Event]] = {
    kind.__name__.lower(): kind for kind in (Started, Advanced, Scored, Noted, Finished, Failed)
}


def to_json(event: AnyEvent) -> str:
    """Return the event as one line of JSON, without the line's end."""
    return json.dumps({"event": type(event).__name__.lower(), **asdict(event)})


def from_json(line: str) -> AnyEvent:
    """Return the event that `to_json` wrote; fields of a newer version are left out.

    Raises:
        ValueError: the line is no event.
    """
    data = json.loads(line)
    kind = _KINDS.get(data.pop("event", "")) if isinstance(data, dict) else None
    if kind is None:
        raise ValueError(f"not an event: {line[:80]!r}")
    known = {f.name for f in fields(kind)}
    try:
        return kind(**{k: v for k, v in data.items() if k in known})  # type: ignore[return-value]
    except TypeError as error:
        raise ValueError(f"not a whole event: {line[:80]!r}") from error


class Reporter:
    """Speaks for one job: stamps job, sequence and time on what its steps emit.

    Safe to use from several threads.
    """

    def __init__(self, job: str, listen: Listener, sequence: int = 0) -> None:
        self._job = job
        self._listen = listen
        self._sequence = sequence
        self._lock = threading.Lock()

    def emit(self, event: AnyEvent) -> None:
        """Stamp an event and pass it on."""
        with self._lock:
            self._sequence += 1
            self._listen(replace(event, job=self._job, sequence=self._sequence))

    def started(self, step: str, total: int | None = None, weight: float = 1.0) -> None:
        """A step began; `weight` is its expected length in seconds."""
        self.emit(Started(job="", step=step, total=total, weight=weight))

    def advanced(self, step: str, n: int) -> None:
        """`n` units of the step are done."""
        self.emit(Advanced(job="", step=step, n=n))

    def scored(self, step: str, name: str, x: float, y: float) -> None:
        """A point (x, y) of the curve `name`."""
        self.emit(Scored(job="", step=step, name=name, x=x, y=y))

    def noted(self, step: str, text: str) -> None:
        """A sentence for the log."""
        self.emit(Noted(job="", step=step, text=text))

    def finished(self, step: str, **result: Any) -> None:
        """The step ended well, with what came out of it."""
        self.emit(Finished(job="", step=step, result=result))

    def failed(self, step: str, error: str) -> None:
        """The step could not be done, and why."""
        self.emit(Failed(job="", step=step, error=error))


def silent(job: str = "") -> Reporter:
    """Return a reporter that nobody listens to."""
    return Reporter(job, lambda _event: None)
