"""Old measurements become one row an hour, later one a day; old clusterings are thinned.

Each step is one small transaction in which rows are read, their roll-up is written and they are
deleted, so that whoever is killed in the middle has neither lost nor doubled anything. Days are
those on which something was measured, not those of the calendar: a fleet that rests loses nothing,
and a clock that was set wrong for an hour costs one day at most.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from hdap_tui.store import rollups
from hdap_tui.store.database import Store
from hdap_tui.store.rollups import DAY, HOUR, MICROS, Pair, Rolled
from hdap_tui.store.values import from_micros, to_micros

TOGETHER = 500
"""Rows that one transaction takes, about: a writer waits for no more than that."""
_CLUSTERINGS = 20
_PAGES = 256
"""Pages that one transaction gives back."""
FREE_SHARE = 0.1
"""Share of the file that may lie free for what is measured next; the rest is given back."""


@dataclass(frozen=True)
class Cuts:
    """Moments before which measurements are rolled up, in microseconds since 1970."""

    hours: int = 0
    """Before it one row an hour; 0: nothing is."""
    days: int = 0
    """Before it one row a day."""


@dataclass(frozen=True)
class Step:
    """What one transaction did."""

    measurements: int = 0
    """Measurements that went into hours."""
    hours: int = 0
    """Hours written, or gone into days."""
    days: int = 0
    clusterings: int = 0
    """Clusterings deleted."""
    pages: int = 0
    """Pages of the file given back."""
    seconds: float = 0.0
    """How long nobody else could write."""


def cuts(store: Store, full_days: int, hourly_days: int) -> Cuts:
    """Return what is old, by the days on which something was measured; 0 days: for ever."""
    hours = _first_of(store, full_days) if full_days else 0
    days = _first_of(store, max(hourly_days, full_days)) if hourly_days else 0
    return Cuts(hours, min(hours, days))


def compact(
    store: Store,
    cut: Cuts,
    cancelled: Callable[[], bool] = lambda: False,
    pause: Callable[[float], None] = time.sleep,
) -> Iterator[Step]:
    """Roll up what is old, one short transaction a step, each followed by a pause as long.

    The newest measurement of each device and model stays, whatever its age, with its hour.

    Raises:
        DiskFullError: there is no room to write even a step; nothing is lost by it.
    """
    for work in (
        _into(store, HOUR, cut.hours),
        _into(store, DAY, cut.days),
        _thinned(store, cut),
        _given_back(store),
    ):
        for step in work:
            yield step
            if cancelled():
                return
            pause(max(0.005, step.seconds))
    store.shrink()


def plan(store: Store, cut: Cuts) -> dict[str, int]:
    """Return what `compact` would make of what: rows by kind. Reads all that is old."""
    measurements = hours = 0
    for pair, _ in _pairs(store, "samples", cut.hours):
        row = store.row(
            """SELECT count(*) AS n, count(DISTINCT at / ?4 || ' ' || configuration) AS hours
            FROM samples WHERE device_id = ?1 AND model_id = ?2 AND at < ?3
                AND NOT (at >= ?5 AND at < ?5 + ?4)""",
            (*pair, cut.hours, HOUR * MICROS, _kept_hour(store, pair)),
        )
        assert row is not None
        measurements, hours = measurements + row["n"], hours + row["hours"]
    old = store.row(
        """SELECT count(*) AS n, count(DISTINCT device_id || ' ' || model_id || ' ' || at / ?2
            || ' ' || configuration) AS days FROM rollups WHERE span = ?3 AND at < ?1""",
        (cut.days, DAY * MICROS, HOUR),
    )
    assert old is not None
    return {
        "measurements": measurements,
        "into_hours": hours,
        "hours": old["n"],
        "into_days": old["days"],
        "clusterings": len(_superfluous(store, cut)),
    }


def _first_of(store: Store, days: int) -> int:
    """Return where the first of the last so many measured days begins; 0 where there are fewer."""
    before = "9"
    for _ in range(days):
        found = store.row(
            "SELECT max(started_at) AS at FROM sweeps WHERE started_at < ?", (before,)
        )
        if found is None or found["at"] is None:
            return 0
        before = found["at"][:10]
    earlier = store.row("SELECT 1 FROM sweeps WHERE started_at < ? LIMIT 1", (before,))
    return to_micros(before) if earlier else 0


def _into(store: Store, span: int, cut: int) -> Iterator[Step]:
    """Roll measurements up to hours, or hours to days: day by day, some devices at a time.

    Neighbours of one day share pages of the index by sweeps; one device after the other would
    write each of these pages once more for every device.
    """
    source = _Samples(store) if span == HOUR else _Hours(store)
    oldest = dict(_pairs(store, "samples" if span == HOUR else "rollups", cut))
    while oldest:
        day = rollups.start_of(min(oldest.values()), DAY)
        end = min(day + DAY * MICROS, cut)
        for batch in _batches(sorted(pair for pair, at in oldest.items() if at < end)):
            while batch:
                began = time.perf_counter()
                taken = written = 0
                with store.write(is_shown=False):
                    began = time.perf_counter()
                    while batch and taken < TOGETHER:
                        pair = batch[0]
                        stop, rows = source.take(pair, oldest[pair], end)
                        written += rollups.merge(store, pair, span, rows)
                        taken += len(rows)
                        following = source.oldest(pair, stop)
                        if following is None or following >= cut:
                            del oldest[pair]
                        else:
                            oldest[pair] = following
                        if following is None or following >= end:
                            batch.pop(0)
                seconds = time.perf_counter() - began
                if span == HOUR:
                    yield Step(measurements=taken, hours=written, seconds=seconds)
                else:
                    yield Step(hours=taken, days=written, seconds=seconds)


def _batches(pairs: Sequence[Pair]) -> Iterator[list[Pair]]:
    for start in range(0, len(pairs), TOGETHER):
        yield list(pairs[start : start + TOGETHER])


class _Samples:
    """Measurements, to be taken out of the store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def oldest(self, pair: Pair, since: int) -> int | None:
        """Return when the first one was taken from a moment on."""
        return _first(self._store, "samples", pair, since)

    def take(self, pair: Pair, start: int, end: int) -> tuple[int, list[Rolled]]:
        """Delete whole hours from `start` on, at most to `end`; return where they end, and them."""
        store, connection = self._store, self._store.connection
        found = store.rows(_SAMPLES, (*pair, start, end, TOGETHER))
        if len(found) == TOGETHER:  # there may be more: only hours that are whole
            end = rollups.start_of(found[-1]["at"], HOUR)
            if end <= start:  # one hour alone has that many
                end = end + HOUR * MICROS
                found = store.rows(_SAMPLES, (*pair, start, end, -1))
            found = [row for row in found if row["at"] < end]
        kept = _kept_hour(store, pair)
        rows = [_single(row) for row in found if not kept <= row["at"] < kept + HOUR * MICROS]
        if rows:
            for table in ("sample_details", "samples"):
                connection.execute(
                    f"""DELETE FROM {table} WHERE device_id = ?1 AND model_id = ?2
                    AND at >= ?3 AND at < ?4 AND NOT (at >= ?5 AND at < ?5 + ?6)""",
                    (*pair, start, end, kept, HOUR * MICROS),
                )
        return end, rows


class _Hours:
    """Rows an hour, to be taken out of the store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def oldest(self, pair: Pair, since: int) -> int | None:
        """Return where the first one begins from a moment on."""
        return _first(self._store, "rollups", pair, since)

    def take(self, pair: Pair, start: int, end: int) -> tuple[int, list[Rolled]]:
        """Delete the hours from `start` to `end`; return where they end, and them."""
        found = self._store.rows(
            f"""SELECT {rollups.COLUMNS} FROM rollups
            WHERE device_id = ? AND model_id = ? AND span = ? AND at >= ? AND at < ?""",
            (*pair, HOUR, start, end),
        )
        self._store.connection.execute(
            """DELETE FROM rollups
            WHERE device_id = ? AND model_id = ? AND span = ? AND at >= ? AND at < ?""",
            (*pair, HOUR, start, end),
        )
        return end, [rollups.of_row(row) for row in found]


_SAMPLES = """
SELECT s.at, s.configuration, s.median_ms, s.contended, s.error,
    json_extract(x.rest, '$.energy_mj') AS energy_mj,
    json_extract(x.rest, '$.conditions.dirty') AS remarks
FROM samples s LEFT JOIN sample_details x USING (device_id, model_id, at)
WHERE s.device_id = ? AND s.model_id = ? AND s.at >= ? AND s.at < ?
ORDER BY s.at LIMIT ?
"""


def _single(row: sqlite3.Row) -> Rolled:
    """Return one measurement as a row that stands for itself."""
    median = row["median_ms"]
    remarks = json.loads(row["remarks"]) if row["remarks"] else ()
    return Rolled(
        at=row["at"],
        configuration=row["configuration"],
        count=int(median is not None),
        median_ms=median,
        low_ms=median,
        high_ms=median,
        contended=row["contended"],
        energy_mj=row["energy_mj"],
        errors={} if median is not None else {row["error"] or "failed": 1},
        remarks={str(remark): 1 for remark in remarks},
    )


def _kept_hour(store: Store, pair: Pair) -> int:
    """Return where the hour of the newest good measurement begins, which stays as it is."""
    found = store.row("SELECT at FROM device_latest WHERE device_id = ? AND model_id = ?", pair)
    return rollups.start_of(found["at"], HOUR) if found and found["at"] is not None else -1 << 60


def _pairs(store: Store, table: str, cut: int) -> Iterator[tuple[Pair, int]]:
    """Yield devices and models with something older than a moment, and when that began."""
    pair: Pair = (-1, -1)
    while cut:
        found = store.row(
            f"""SELECT device_id, model_id FROM {table} WHERE (device_id, model_id) > (?, ?)
            ORDER BY device_id, model_id LIMIT 1""",
            pair,
        )
        if found is None:
            return
        pair = (found["device_id"], found["model_id"])
        oldest = _first(store, table, pair, 0)
        if oldest is not None and oldest < cut:
            yield pair, oldest


def _first(store: Store, table: str, pair: Pair, since: int) -> int | None:
    span = f"AND span = {HOUR}" if table == "rollups" else ""
    found = store.row(
        f"""SELECT at FROM {table} WHERE device_id = ? AND model_id = ? {span} AND at >= ?
        ORDER BY at LIMIT 1""",
        (*pair, since),
    )
    return int(found["at"]) if found else None


def _superfluous(store: Store, cut: Cuts) -> list[int]:
    """Return the clusterings that are not kept: of old days and months only the last one is."""
    if not cut.hours:
        return []
    found = store.rows(
        """SELECT id, at FROM clusterings WHERE at < ?
            AND id <> (SELECT max(id) FROM clusterings) ORDER BY at, id""",
        (from_micros(cut.hours),),
    )
    last = {row["at"][: 7 if row["at"] < from_micros(cut.days) else 10]: row["id"] for row in found}
    kept = set(last.values())
    return [row["id"] for row in found if row["id"] not in kept]


def _thinned(store: Store, cut: Cuts) -> Iterator[Step]:
    gone = _superfluous(store, cut)
    for start in range(0, len(gone), _CLUSTERINGS):
        some = gone[start : start + _CLUSTERINGS]
        with store.write(is_shown=False) as connection:
            began = time.perf_counter()
            connection.executemany("DELETE FROM clusterings WHERE id = ?", [(one,) for one in some])
        yield Step(clusterings=len(some), seconds=time.perf_counter() - began)


def _given_back(store: Store) -> Iterator[Step]:
    """Give the disk back what lies free beyond a share of the file; the rest is used again."""
    while True:
        free, pages = store.free_pages()
        wanted = min(_PAGES, free - round(FREE_SHARE * pages))
        if wanted <= 0:
            return
        began = time.perf_counter()
        given = store.give_back(wanted)
        if not given:
            return  # made before files could become smaller: all of it is used again
        yield Step(pages=given, seconds=time.perf_counter() - began)
