"""Numbers, times and names as short text for the screens; no Textual in here."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from rich.cells import cell_len, set_cell_size

from hdap_tui.figures import count
from hdap_tui.names import cluster_letter
from hdap_tui.progress import duration
from hdap_tui.store.records import DeploymentRow
from hdap_tui.store.values import moment
from hdap_tui.text import clean

Clock = Callable[[], datetime]

ASCII = bool(os.environ.get("HDAP_ASCII")) or os.environ.get("TERM") == "linux"
"""Whether to draw without block and braille characters."""

STATE_LETTERS = {"ok": "O", "busy": "B", "failed": "F", "off": "X", "unknown": "?"}
ALERT_LETTERS = {
    "pending": "P",
    "firing": "!",
    "acknowledged": "A",
    "recovering": "<",
    "silenced": "S",
    "resolved": "R",
}
WATCHED_LETTERS = {"learning": "L", "no data": "-"}
JOB_LETTERS = {
    "queued": "Q",
    "running": "R",
    "finished": "D",
    "failed": "F",
    "cancelled": "C",
    "interrupted": "I",
}
NOISE = "." if ASCII else "·"
DASH = "-" if ASCII else "–"
_BLOCKS = "_.-=*#" if ASCII else "▁▂▃▄▅▆▇"


def utc_now() -> datetime:
    """Return the time now."""
    return datetime.now(UTC)


def fit(text: str, width: int, align: Literal["left", "right"] = "left") -> str:
    """Return text that takes exactly `width` cells, cut with an ellipsis where it is too long."""
    length = cell_len(text)
    if length > width:
        return set_cell_size(text, width - 1) + "…" if width > 1 else set_cell_size(text, width)
    blanks = " " * (width - length)
    return blanks + text if align == "right" else text + blanks


def ms(value: float | None) -> str:
    """Return milliseconds with three decimals, fewer where the number is large."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.0f}"


def interval_ms(low: float | None, high: float | None) -> str:
    """Return an interval of milliseconds; nothing where it has no end."""
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f"{ms(low)}–{ms(high)}"


def change(percent: float | None, unit: str = "%") -> str:
    """Return a change in per cent with its sign."""
    if percent is None or not math.isfinite(percent):
        return DASH
    return f"{percent:+.1f}{unit}" if abs(percent) < 1000 else f"{percent:+.0f}{unit}"


def number(value: Any) -> str:
    """Return any value of a record as short text: grouped thousands, few decimals."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: DASH}[value]
    if isinstance(value, int):
        return f"{value:,}".replace(",", " ")
    if isinstance(value, float):
        return number(round(value)) if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{clean(k, 40)} {number(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(number(v) for v in value)
    return clean(value, 120)


def size(count: int) -> str:
    """Return a number of bytes as a person says it."""
    value, unit = float(count), "B"
    for bigger in ("kB", "MB", "GB"):
        if value < 1000:
            break
        value, unit = value / 1000, bigger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def age(at: str, now: datetime) -> str:
    """Return how long ago that was: "<1 min", "5 min", "3 h", "4 d".

    No finer than a minute: a table whose every row counts seconds is never at rest.
    """
    when = moment(at)
    if when is None:
        return ""
    seconds = max(0, int((now - when).total_seconds()))
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= (length if unit == "min" else 2 * length):
            return f"{seconds // length} {unit}"
    return "<1 min"


def lasting(since: str, now: datetime) -> str:
    """Return for how long something has gone on: "3 s", "1 min 05 s"; nothing where not known."""
    when = moment(since)
    return "" if when is None else duration((now - when).total_seconds())


def clock_time(at: str, now: datetime | None = None) -> str:
    """Return the time of day in UTC, with the date where that is another day."""
    when = moment(at)
    if when is None:
        return ""
    text = f"{when:%H:%M:%S}"
    return text if now is None or when.date() == now.date() else f"{when:%Y-%m-%d} {text}"


def letter(cluster: int | None) -> str:
    """Return the letter of a cluster; a dot for noise, nothing where there is none yet."""
    if cluster is None:
        return ""
    if cluster < 0:
        return NOISE
    return cluster_letter(cluster)


def sparkline(values: Sequence[float], width: int) -> str:
    """Return the last values as a row of blocks.

    The scale spans five per cent at least, so that noise looks like noise.
    """
    last = [v for v in values[-width:] if math.isfinite(v)] if width > 0 else []
    if not last:
        return ""
    low, high = min(last), max(last)
    missing = 0.05 * abs(high) - (high - low)
    if missing > 0:
        low, high = low - missing / 2, high + missing / 2
    top = len(_BLOCKS) - 1
    return "".join(_BLOCKS[round(top * (v - low) / (high - low or 1.0))] for v in last)


def bar(fraction: float, width: int) -> tuple[str, str]:
    """Return the done and the open part of a progress bar."""
    done = round(max(0.0, min(1.0, fraction)) * width)
    return ("#" if ASCII else "━") * done, ("." if ASCII else "─") * (width - done)


def listed(names: Iterable[str], limit: int = 3) -> str:
    """Return a few names, and how many more there are."""
    all_names = [clean(name, 60) for name in names]
    if len(all_names) <= limit:
        return ", ".join(all_names)
    return f"{', '.join(all_names[:limit])} and {len(all_names) - limit} more"


def proof(deployment: DeploymentRow) -> str:
    """Return what a deployment was measured to bring, with everything that qualifies it."""
    devices = count(deployment.devices, "device")
    if deployment.speedup is None:
        return f"{devices}, {'under way' if deployment.state == 'running' else 'not measured'}"
    low, high = deployment.low, deployment.high
    known = low is not None and high is not None and math.isfinite(low) and math.isfinite(high)
    parts = [
        f"{deployment.speedup:.2f}×" + (f" ({low:.2f}–{high:.2f})" if known else ""),
        count(deployment.measured, "device") if deployment.measured else devices,
        "measured",
    ]
    return ", ".join([*parts, "emulated"] if deployment.emulated else parts)
