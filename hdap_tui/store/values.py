"""How times and numbers are kept."""

from __future__ import annotations

import math
from datetime import UTC, datetime

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def now() -> str:
    """Return the time, UTC, ISO 8601 to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def moment(at: str) -> datetime | None:
    """Return the time that a text means, UTC where it names no zone; None where it means none."""
    try:
        when = datetime.fromisoformat(at)
    except ValueError:
        return None
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def to_micros(at: str) -> int:
    """Return an ISO 8601 time (UTC where it names no zone) as microseconds since 1970."""
    when = datetime.fromisoformat(at)
    since = (when if when.tzinfo else when.replace(tzinfo=UTC)) - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def from_micros(at: int) -> str:
    """Return microseconds since 1970 as ISO 8601, UTC, to the millisecond."""
    return datetime.fromtimestamp(at / 1e6, UTC).isoformat(timespec="milliseconds")


def to_seconds(at: str) -> float:
    """Return an ISO 8601 time (UTC where it names no zone) as seconds since 1970."""
    return to_micros(at) / 1e6


def from_seconds(at: float) -> str:
    """Return seconds since 1970 as ISO 8601, UTC, to the millisecond."""
    return from_micros(int(at * 1e6))


def known(value: float | None) -> float | None:
    """Return a number that can be shown; None for NaN and infinity."""
    return None if value is None or not math.isfinite(value) else value


def placeholders(count: int) -> str:
    """Return that many question marks for an SQL list."""
    return ", ".join("?" * count)
