"""Figures as the command line and messages write them."""

from __future__ import annotations

import math


def ms(value: float | None) -> str:
    """Return milliseconds; nothing where they are not known."""
    return "" if value is None else f"{value:.3f} ms"


def interval(low: float | None, high: float | None) -> str:
    """Return the ends of an interval; nothing where it has none, as that of a single block.

    >>> interval(0.5, 0.75), interval(0.0, math.inf)
    ('0.500 to 0.750', '')
    """
    if low is None or high is None or not math.isfinite(high - low):
        return ""
    return f"{low:.3f} to {high:.3f}"


def count(n: int, thing: str) -> str:
    """Return "1 device", "2 devices"."""
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"
