"""Measured latencies: saved as they arrive, read as history, rounds and tables."""

from __future__ import annotations

import bisect
import json
import math
import sqlite3
from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from hdap_tui.store import models, rollups
from hdap_tui.store.database import Store
from hdap_tui.store.devices import device_id
from hdap_tui.store.records import Point
from hdap_tui.store.values import from_micros, known, now, placeholders, to_micros
from hdap_tui.text import clean

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from engine.latency import Latency

SweepKind = Literal["sweep", "canary", "bench", "deploy", "job", "estimate"]

RECENT = 32
"""Latencies of a device and model kept at hand for its sparkline."""
CONDITIONS_LIMIT = 32_768
"""Characters that the conditions of one measurement may take; a device wrote them."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """One whole round of one model over the fleet."""

    sweep: int
    started_at: str
    values: Mapping[str, float]
    """Median latency in ms by device; devices that failed are not in it."""


def begin(store: Store, kind: SweepKind, watcher: int | None = None) -> int:
    """Open a sweep and return its number; until it is finished it counts as half.

    One that a `watcher` began, and did not finish, may be taken up.
    """
    with store.write() as connection:
        cursor = connection.execute(
            "INSERT INTO sweeps (kind, started_at, watcher_id) VALUES (?, ?, ?)",
            (kind, now(), watcher),
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid


def finish(store: Store, sweep: int) -> None:
    """Say that a sweep is whole: every device has answered, or failed."""
    with store.write() as connection:
        connection.execute(
            "UPDATE sweeps SET finished_at = ? WHERE id = ? AND finished_at IS NULL", (now(), sweep)
        )


def last_finished(store: Store, kind: SweepKind) -> tuple[int, str] | None:
    """Return number and time of the latest whole sweep of a kind."""
    found = store.row(
        """SELECT id, finished_at FROM sweeps WHERE kind = ? AND finished_at IS NOT NULL
        ORDER BY id DESC LIMIT 1""",
        (kind,),
    )
    return (found["id"], found["finished_at"]) if found else None


def add(store: Store, sweep: int, latency: Latency, configuration: str = "") -> None:
    """Save one measurement, failed ones too. Nothing that was saved is ever overwritten.

    The same result of the same instant and round is saved once, however often it comes. One that
    comes late goes into the history where it belongs.

    `configuration` says in words how the model was run where that was not the standard way; such
    a sample is history, and nothing that watches the fleet looks at it.

    Raises:
        StoreError: the store has never heard of the device.
    """
    with store.write() as connection:
        device = device_id(store, latency.device)
        model = models.model_id(store, latency.model)
        at = to_micros(latency.at or now())
        sample = (
            sweep,
            known(latency.median_ms),
            # An interval may be infinite (a single block), and says so; NaN is no number.
            None if math.isnan(latency.low_ms) else latency.low_ms,
            None if math.isnan(latency.high_ms) else latency.high_ms,
            latency.contended,
            clean(latency.error, 40),
            clean(configuration, 120),
        )
        # Two results in the same microsecond: the later is moved on to the next free one.
        while not connection.execute(
            "INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (device, model, at, *sample),
        ).rowcount:
            if _is_there(store, (device, model, at), sample, latency):
                return
            at += 1
        connection.execute(
            "INSERT INTO sample_details VALUES (?, ?, ?, ?)", (device, model, at, _rest(latency))
        )
        if latency.ok and not configuration:
            _keep_latest(store, device, model, at, latency)


def latest(store: Store, device: str, digest: str) -> Point | None:
    """Return the newest good measurement of a model on a device."""
    found = store.row(
        f"""SELECT l.*, '' AS error, '' AS configuration, {_MODEL_NAME} FROM device_latest l
        JOIN models m ON m.id = l.model_id JOIN devices d ON d.id = l.device_id
        WHERE d.name = ? AND m.digest = ?""",
        (device, digest),
    )
    return _point(found) if found else None


def history(
    store: Store,
    device: str,
    model: str | None = None,
    limit: int = 200,
    every: bool = False,
    until: int | None = None,
) -> list[Point]:
    """Return the last measurements of a device, oldest first; old ones as they were rolled up.

    Args:
        model: Digest; without it all models that have a name.
        every: Those of other batches, thread counts and providers too, not the standard alone.
        until: Only what was there at this moment, in microseconds since 1970.
    """
    with store.read():
        samples = _last(store, device, model, limit, every, until)
        points = [_point(sample, _loaded(sample)) for sample in samples]
        since = samples[0]["at"] if len(samples) == limit else 0
        for pair, name in _pairs(store, device, model, "rollups"):
            rolled = rollups.last(store, pair, limit, every, until, since)
            points += [rollups.point(row, span, name) for span, row in rolled]
    return sorted(points, key=lambda point: point.at)[-limit:]


def details(
    store: Store, device: str, model: str | None = None, limit: int = 1, every: bool = False
) -> list[dict[str, Any]]:
    """Return all there is about the last measurements of a device, oldest first.

    Besides the numbers of a `Point`: percentiles, blocks, energy, clock offset, conditions. What
    was rolled up has no more of these, and is left out.
    """
    found = [(sample, _loaded(sample)) for sample in _last(store, device, model, limit, every)]
    return [{**asdict(_point(sample, rest)), **rest} for sample, rest in found]


def _loaded(sample: sqlite3.Row) -> dict[str, Any]:
    rest: dict[str, Any] = json.loads(sample["rest"] or "{}")
    return rest


def _last(
    store: Store,
    device: str,
    model: str | None,
    limit: int,
    every: bool,
    until: int | None = None,
) -> list[sqlite3.Row]:
    standard = "" if every else "AND s.configuration = ''"
    before = "" if until is None else "AND s.at <= ?"
    found: list[sqlite3.Row] = []
    with store.read():
        # One short walk along the key for each model, in place of a sort of the whole history.
        for pair, _ in _pairs(store, device, model, "samples"):
            found += store.rows(
                f"""SELECT s.*, {_MODEL_NAME}, x.rest FROM samples s
                JOIN models m ON m.id = s.model_id
                LEFT JOIN sample_details x USING (device_id, model_id, at)
                WHERE s.device_id = ? AND s.model_id = ? {standard} {before}
                ORDER BY s.at DESC LIMIT ?""",
                (*pair, *(() if until is None else (until,)), limit),
            )
    return sorted(found, key=lambda sample: sample["at"])[-limit:]


def _pairs(
    store: Store, device: str, model: str | None, table: Literal["samples", "rollups"]
) -> list[tuple[rollups.Pair, str]]:
    """Return which models of a device a table holds something of, and their names."""
    which = "m.digest = ?" if model else "m.name IS NOT NULL AND ?"
    rows = store.rows(
        f"""SELECT d.id AS device, m.id AS number, {_MODEL_NAME} FROM devices d, models m
        WHERE {which} AND d.name = ? AND EXISTS (
            SELECT 1 FROM {table} s WHERE s.device_id = d.id AND s.model_id = m.id)""",
        (model or 1, device),
    )
    return [((row["device"], row["number"]), row["model"]) for row in rows]


def matrix(
    store: Store, digests: Sequence[str], sweep: int | None = None
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Return the fleet's names and its newest median latencies, as a table.

    Args:
        digests: The models, one a column.
        sweep: Only what this sweep measured; without it the newest of each pair, however old.

    Returns:
        Names of the devices in the order of the settings, and an array (devices, models) in ms,
        NaN where nothing was measured.
    """
    return _table(store, digests, sweep, "median_ms")


def relative_sigma(
    store: Store, digests: Sequence[str], sweep: int, one_block: bool = False
) -> NDArray[np.float64]:
    """Return how well each model's median repeats: its standard error over its value.

    Told from how the medians of the blocks scatter on each device, the middle one of all devices;
    NaN where no device has two blocks. `one_block` asks how well a single block would repeat.
    """
    import numpy as np

    found = store.rows(
        f"""SELECT m.digest, x.rest FROM samples s
        JOIN sample_details x USING (device_id, model_id, at) JOIN models m ON m.id = s.model_id
        WHERE s.sweep_id = ? AND s.median_ms IS NOT NULL AND s.configuration = ''
            AND m.digest IN ({placeholders(len(digests))})""",
        [sweep, *digests],
    )
    errors: dict[str, list[float]] = {}
    for row in found:
        blocks = np.log(json.loads(row["rest"])["block_medians_ms"])
        if len(blocks) > 1:
            free = len(blocks) - 1
            # The middle of many variances lies below their mean (Wilson and Hilferty 1931), and
            # a median of n normal values scatters sqrt(pi / 2) times as much as their mean.
            variance = blocks.var(ddof=1) / (1 - 2 / (9 * free)) ** 3
            share = 1.0 if one_block else math.pi / 2 / len(blocks)
            errors.setdefault(row["digest"], []).append(variance * share)
    return np.array([math.sqrt(np.median(errors.get(digest, [np.nan]))) for digest in digests])


def rounds(store: Store, digest: str, kind: SweepKind = "canary", limit: int = 60) -> list[Round]:
    """Return the last whole rounds of a kind that timed a model, oldest first."""
    sweeps = store.rows(
        """SELECT id, started_at FROM sweeps WHERE kind = ? AND finished_at IS NOT NULL
        ORDER BY id DESC LIMIT ?""",
        (kind, limit),
    )
    found = [
        Round(
            sweep=row["id"],
            started_at=row["started_at"],
            values=round_values(store, row["id"], digest),
        )
        for row in reversed(sweeps)
    ]
    return [one for one in found if one.values]


def round_start(store: Store, digest: str, ago: int) -> str:
    """Return when the whole canary round began that timed a model so many rounds before the last.

    The eldest where there are not so many; empty where there is none.
    """
    found = store.rows(
        """SELECT started_at FROM sweeps w WHERE kind = 'canary' AND finished_at IS NOT NULL
            AND EXISTS (SELECT 1 FROM samples s WHERE s.sweep_id = w.id AND s.configuration = ''
                AND s.median_ms IS NOT NULL
                AND s.model_id = (SELECT id FROM models WHERE digest = ?))
        ORDER BY id DESC LIMIT ?""",
        (digest, ago + 1),
    )
    return str(found[-1]["started_at"]) if found else ""


def silent_since(store: Store, names: Collection[str], rounds: int) -> dict[str, str]:
    """Return by device when the first canary round began after its last latency.

    Of one that never had any it is the eldest of the last so many rounds.
    """
    with store.read():
        found = store.rows(
            "SELECT started_at FROM sweeps WHERE kind = 'canary' ORDER BY id DESC LIMIT 10000"
        )
        starts = sorted(str(row["started_at"]) for row in found)
        last = {
            row["name"]: from_micros(row["at"])
            for row in store.rows(
                """SELECT d.name, max(l.at) AS at FROM device_latest l
                JOIN devices d ON d.id = l.device_id GROUP BY d.id"""
            )
        }
    eldest = starts[-rounds:][0] if starts else now()
    later = {name: bisect.bisect_right(starts, last[name]) for name in names if name in last}
    return {
        name: starts[later[name]] if later.get(name, len(starts)) < len(starts) else eldest
        for name in names
    }


def rounds_since(store: Store, at: str) -> int:
    """Count the whole canary rounds that began at that time or later."""
    found = store.row(
        """SELECT count(*) AS n FROM sweeps WHERE kind = 'canary' AND finished_at IS NOT NULL
        AND started_at >= ?""",
        (at,),
    )
    return int(found["n"]) if found else 0


def deployed_rounds(store: Store, limit: int) -> list[dict[str, float]]:
    """Return what the last whole canary rounds measured of the models in use, oldest first.

    By device the median latency in ms of the model that it runs now.
    """
    sweeps = store.rows(
        """SELECT id FROM sweeps WHERE kind = 'canary' AND finished_at IS NOT NULL
        ORDER BY id DESC LIMIT ?""",
        (limit,),
    )
    return [_of_deployed(store, row["id"]) for row in reversed(sweeps)]


def round_values(store: Store, sweep: int, digest: str) -> dict[str, float]:
    """Return what one sweep measured for a model: median latency in ms by device."""
    found = store.rows(
        """SELECT d.name, s.median_ms FROM samples s JOIN devices d ON d.id = s.device_id
        WHERE s.sweep_id = ? AND s.median_ms IS NOT NULL AND s.configuration = ''
            AND s.model_id = (SELECT id FROM models WHERE digest = ?)
        ORDER BY s.at""",
        (sweep, digest),
    )
    return {row["name"]: row["median_ms"] for row in found}


def last_of_deployed(store: Store, sweep: int | None = None) -> tuple[int, dict[str, float]] | None:
    """Return the latest whole round that timed what devices run, with the latency of each in ms.

    A round that a device went through with another model than it has by now does not count for it.
    `sweep` asks for that round alone.
    """
    with store.read():
        for row in store.rows(
            """SELECT id FROM sweeps WHERE finished_at IS NOT NULL AND coalesce(id = ?, 1)
                AND kind IN ('sweep', 'canary', 'estimate') ORDER BY id DESC LIMIT ?""",
            (sweep, _LOOKED_BACK),
        ):
            found = _of_deployed(store, row["id"])
            if found:
                return row["id"], found
    return None


def _of_deployed(store: Store, sweep: int) -> dict[str, float]:
    found = store.rows(
        """SELECT d.name, s.median_ms FROM samples s JOIN devices d ON d.id = s.device_id
        WHERE s.sweep_id = ? AND s.model_id = d.model_id AND s.median_ms IS NOT NULL
            AND s.configuration = '' AND d.position IS NOT NULL ORDER BY s.at""",
        (sweep,),
    )
    return {one["name"]: one["median_ms"] for one in found}


_LOOKED_BACK = 20
"""Rounds among which one of the models in use is sought."""
_MODEL_NAME = "coalesce(m.name, substr(m.digest, 1, 12)) AS model"


def _rest(latency: Latency) -> str:
    """Return as JSON what is not in a sample's own columns."""
    conditions = json.dumps(dict(latency.conditions), default=str)
    if len(conditions) > CONDITIONS_LIMIT:
        conditions = json.dumps({"left_out": f"{len(conditions)} characters of conditions"})
    rest = {
        "batch": latency.batch,
        "threads": latency.threads,
        "provider": clean(latency.provider, 80),
        "p90_ms": known(latency.p90_ms),
        "p95_ms": known(latency.p95_ms),
        "mean_ms": known(latency.mean_ms),
        "cpu_ms": known(latency.cpu_ms),
        "n": latency.n,
        "block_medians_ms": list(latency.block_medians_ms),
        "energy_mj": latency.energy_mj,
        "emulated": latency.emulated,
        "clock_offset_s": latency.clock_offset_s,
        "detail": clean(latency.detail, 500),
        "conditions": json.loads(conditions),
    }
    return json.dumps(rest)


def _is_there(
    store: Store, key: tuple[int, int, int], sample: tuple[Any, ...], latency: Latency
) -> bool:
    """Say whether just this result was saved already."""
    there = store.row(
        """SELECT sweep_id, median_ms, low_ms, high_ms, contended, error, configuration, rest
        FROM samples JOIN sample_details USING (device_id, model_id, at)
        WHERE device_id = ? AND model_id = ? AND at = ?""",
        key,
    )
    return there is not None and tuple(there) == (*sample, _rest(latency))


def _keep_latest(store: Store, device: int, model: int, at: int, latency: Latency) -> None:
    found = store.row(
        "SELECT at, recent FROM device_latest WHERE device_id = ? AND model_id = ?", (device, model)
    )
    if found is not None and at < found["at"] <= to_micros(now()):
        return  # it came in late; a newest one in the future was told by a wrong clock
    recent = array("f", found["recent"] if found else b"")
    recent.append(latency.median_ms)
    store.connection.execute(
        "INSERT OR REPLACE INTO device_latest VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            device, model, at, latency.median_ms, latency.low_ms, latency.high_ms,
            latency.contended, recent[-RECENT:].tobytes(),
        ),
    )  # fmt: skip


def _table(
    store: Store, digests: Sequence[str], sweep: int | None, column: str
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    import numpy as np

    source, condition = (
        ("device_latest", "")
        if sweep is None
        else ("samples", "AND s.configuration = '' AND s.sweep_id = ?")
    )
    with store.read():
        names = [
            row["name"]
            for row in store.rows(
                "SELECT name FROM devices WHERE position IS NOT NULL ORDER BY position"
            )
        ]
        values = store.rows(
            f"""SELECT d.name, m.digest, s.{column} AS value FROM {source} s
            JOIN models m ON m.id = s.model_id JOIN devices d ON d.id = s.device_id
            WHERE m.digest IN ({placeholders(len(digests))}) AND d.position IS NOT NULL
                AND s.median_ms IS NOT NULL {condition}
            ORDER BY s.at""",
            [*digests, *([] if sweep is None else [sweep])],
        )
    line = {name: index for index, name in enumerate(names)}
    columns = {digest: [i for i, d in enumerate(digests) if d == digest] for digest in digests}
    table = np.full((len(names), len(digests)), np.nan)
    for row in values:
        if row["value"] is not None:
            table[line[row["name"]], columns[row["digest"]]] = row["value"]
    return tuple(names), table


def _point(row: sqlite3.Row, rest: Mapping[str, Any] = MappingProxyType({})) -> Point:
    return Point(
        at=from_micros(row["at"]),
        model=row["model"],
        median_ms=_number(row["median_ms"]),
        low_ms=_number(row["low_ms"]),
        high_ms=_number(row["high_ms"]),
        contended=row["contended"],
        error=row["error"],
        configuration=row["configuration"],
        energy_mj=rest.get("energy_mj"),
        remarks=tuple(rest.get("conditions", {}).get("dirty", ())),
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value
