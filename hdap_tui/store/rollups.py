"""What old measurements are rolled up to: one row an hour, later one a day.

A row holds how many measurements it stands for, their median, lowest and highest median, the mean
of their energy, and how often each error and each remark was there.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from hdap_tui.store.database import Store
from hdap_tui.store.records import Point, Span
from hdap_tui.store.values import from_micros

HOUR, DAY = 3600, 86_400
"""The spans of rows, in seconds."""
MICROS = 1_000_000
SPANS: Mapping[int, Span] = {0: "", HOUR: "hour", DAY: "day"}
SECONDS: Mapping[Span, int] = {span: seconds for seconds, span in SPANS.items()}
REMARKS = 8
"""Different remarks that a row keeps, the most frequent; the conditions of devices are theirs."""

COLUMNS = (
    "at, configuration, count, median_ms, low_ms, high_ms, contended, energy_mj, errors, remarks"
)
"""Columns of the table that make a `Rolled`."""

Pair = tuple[int, int]
"""Numbers of a device and a model."""


@dataclass(frozen=True, kw_only=True)
class Rolled:
    """Some measurements of one device, model and configuration as one."""

    at: int
    """Where the hour or day begins; of a single measurement, when it was taken. Microseconds."""
    configuration: str = ""
    count: int = 1
    """Good measurements."""
    median_ms: float | None = None
    """Median of their medians; None where there is no good one."""
    low_ms: float | None = None
    """The lowest of their medians."""
    high_ms: float | None = None
    contended: float = 0.0
    """Mean share of contended samples."""
    energy_mj: float | None = None
    """Mean energy of one inference; None where no sensor told it."""
    errors: Mapping[str, int] = field(default_factory=dict)
    """How many failed, by the class of what went wrong."""
    remarks: Mapping[str, int] = field(default_factory=dict)
    """What was off, and how many times."""


def combined(parts: Sequence[Rolled], at: int) -> Rolled:
    """Return several rows of one configuration as one that begins at `at`.

    The median is exact over single measurements. Over rows that were rolled up already it is the
    median of their medians, each counted as often as it stands for measurements.
    """
    if len(parts) == 1:
        return replace(parts[0], at=at)
    good = [part for part in parts if part.median_ms is not None]
    count = sum(part.count for part in good)
    with_energy = [part for part in good if part.energy_mj is not None]
    errors: Counter[str] = Counter()
    remarks: Counter[str] = Counter()
    for part in parts:
        errors.update(part.errors)
        remarks.update(part.remarks)
    return Rolled(
        at=at,
        configuration=parts[0].configuration,
        count=count,
        median_ms=_median([(part.median_ms or 0.0, part.count) for part in good]),
        low_ms=min((p.low_ms for p in good if p.low_ms is not None), default=None),
        high_ms=max((p.high_ms for p in good if p.high_ms is not None), default=None),
        contended=_mean([(part.contended, part.count) for part in good]) or 0.0,
        energy_mj=_mean([(part.energy_mj or 0.0, part.count) for part in with_energy]),
        errors=dict(errors),
        remarks=dict(remarks.most_common(REMARKS)),
    )


def merge(store: Store, pair: Pair, span: int, rows: Sequence[Rolled]) -> int:
    """Put rows into the hours or days that they belong to; return how many of these there are.

    What an hour or day holds already stays in it: a result that came in late is added.
    """
    buckets: dict[tuple[int, str], list[Rolled]] = {}
    for row in rows:
        buckets.setdefault((start_of(row.at, span), row.configuration), []).append(row)
    if not buckets:
        return 0
    with store.write() as connection:
        for there in store.rows(
            f"""SELECT {COLUMNS} FROM rollups
            WHERE device_id = ? AND model_id = ? AND span = ? AND at BETWEEN ? AND ?""",
            (*pair, span, min(buckets)[0], max(buckets)[0]),
        ):
            key = (there["at"], there["configuration"])
            if key in buckets:
                buckets[key].append(of_row(there))
        connection.executemany(
            "INSERT OR REPLACE INTO rollups VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (*pair, at, span, *_values(combined(parts, at)))
                for (at, _), parts in buckets.items()
            ],
        )
    return len(buckets)


def _values(row: Rolled) -> tuple[object, ...]:
    errors, remarks = (json.dumps(one) if one else "{}" for one in (row.errors, row.remarks))
    return (
        row.configuration, row.count, row.median_ms, row.low_ms, row.high_ms, row.contended,
        row.energy_mj, errors, remarks,
    )  # fmt: skip


def start_of(at: int, span: int) -> int:
    """Return where the hour or day of a moment begins, UTC."""
    return at - at % (span * MICROS)


def last(
    store: Store,
    pair: Pair,
    limit: int,
    every: bool = False,
    until: int | None = None,
    since: int = 0,
) -> list[tuple[int, Rolled]]:
    """Return the last rows of a device and model with their spans, newest first.

    Args:
        every: Those of other configurations than the standard one, too.
        until: Only hours and days that had begun by then, in microseconds.
        since: Only those that began no earlier.
    """
    found: list[tuple[int, Rolled]] = []
    for span in (HOUR, DAY):
        rows = store.rows(
            f"""SELECT {COLUMNS} FROM rollups WHERE device_id = ? AND model_id = ? AND span = ?
                AND at BETWEEN ? AND ? {"" if every else "AND configuration = ''"}
            ORDER BY at DESC LIMIT ?""",
            (*pair, span, since, _EVER if until is None else until, limit),
        )
        found += [(span, of_row(row)) for row in rows]
    return sorted(found, key=lambda one: one[1].at, reverse=True)[:limit]


def of_row(row: sqlite3.Row) -> Rolled:
    """Return a row of the table."""
    values = {**dict(row), "errors": json.loads(row["errors"])}
    return Rolled(**{**values, "remarks": json.loads(row["remarks"])})


def point(rolled: Rolled, span: int, model: str) -> Point:
    """Return a row as a point of a device's history."""
    failed = sum(rolled.errors.values())
    return Point(
        at=from_micros(rolled.at),
        model=model,
        median_ms=_number(rolled.median_ms),
        low_ms=_number(rolled.low_ms),
        high_ms=_number(rolled.high_ms),
        contended=rolled.contended,
        error=max(rolled.errors, key=rolled.errors.__getitem__) if not rolled.count else "",
        configuration=rolled.configuration,
        energy_mj=rolled.energy_mj,
        remarks=tuple(rolled.remarks),
        span=SPANS[span],
        count=rolled.count,
        failed=failed,
    )


_EVER = 2**62


def _median(values: Sequence[tuple[float, int]]) -> float | None:
    """Return the median of values that count several times each."""
    total = sum(weight for _, weight in values)
    seen, lower = 0, None
    for value, weight in sorted(values):
        if lower is not None:
            return (lower + value) / 2
        seen += weight
        if 2 * seen > total:
            return value
        if 2 * seen == total:
            lower = value  # half of them are not above it: the middle lies between it and the next
    return lower


def _mean(values: Sequence[tuple[float, int]]) -> float | None:
    total = sum(weight for _, weight in values)
    return sum(value * weight for value, weight in values) / total if total else None


def _number(value: float | None) -> float:
    return math.nan if value is None else value
