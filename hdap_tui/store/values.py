"""How times and numbers are kept."""

from __future__ import annotations

import math
from datetime import UTC, datetime

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def now() -> str:
    """Return the time, UTC, ISO 8601 to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def to_micros(at: str) -> int:
    """Return an ISO 8601 time (UTC where it names no zone) as microseconds since 1970."""
    moment = datetime.fromisoformat(at)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def from_micros(at: int) -> str:
    """Return microseconds since 1970 as ISO 8601, UTC, to the millisecond."""
    return datetime.fromtimestamp(at / 1e6, UTC).isoformat(timespec="milliseconds")


def known(value: float | None) -> float | None:
    """Return a number that can be shown; None for NaN and infinity."""
    return None if value is None or not math.isfinite(value) else value


def placeholders(count: int) -> str:
    """Return that many question marks for an SQL list."""
    return ", ".join("?" * count)
