"""The fleet as it was at any moment, from what was recorded by then.

What nobody recorded is unknown, never as it is today: what is being done on a device, what drift
is told against, and of a time before `device_log` was kept a device's state and model.
"""

from __future__ import annotations

import json
import sqlite3
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from operator import itemgetter
from typing import Any

from hdap_tui import moments
from hdap_tui.fact_names import Facts
from hdap_tui.moments import NothingYetError
from hdap_tui.store import alerts, clusters, facts, models, rollups
from hdap_tui.store.database import Store
from hdap_tui.store.records import AlertRow, ClusterMap, DeviceRow, FleetSnapshot, ModelRow
from hdap_tui.store.values import from_micros, known, now, to_micros

RECENT = 12
"""Latencies of a device that its line of the past shows as a trend."""
STEPS = 200_000
"""The latest rounds that one can step through; earlier ones are reached by their time."""
AFTER_S = 60
"""Seconds after a round in which alerts and clusters that follow from it are written."""


def snapshot(store: Store, fleet: str, at: int) -> FleetSnapshot:
    """Return the fleet as it was at a moment, in microseconds since 1970.

    Its version is told by the moment alone, and is no version of the store.
    """
    moment = from_micros(at)
    with store.read():
        found = clusters.at(store, moment)
        fired = alerts.rows_at(store, moment)
        return FleetSnapshot(
            version=-at,
            at=moment,
            fleet=fleet,
            devices=_devices(store, at, found, fired, facts.at(store, moment)),
            map=found,
            alerts=fired,
            models=_models(store, moment),
        )


def first(store: Store) -> str:
    """Return when the first round began, or a device first told its facts; empty: never."""
    found = store.row(
        """SELECT min(at) AS at FROM (
            SELECT min(started_at) AS at FROM sweeps UNION ALL SELECT min(at) FROM device_facts
        )"""
    )
    return str(found["at"] or "") if found else ""


def check(store: Store, at: int) -> None:
    """Check that something had been recorded by a moment.

    Raises:
        NothingYetError: nothing had.
    """
    began = first(store)
    if began and at >= to_micros(began):
        return
    more = '"hdap sweep" begins the record.'
    if began:
        more = f"the record begins at {moments.said(datetime.fromisoformat(began))}."
    when = moments.said(datetime.fromisoformat(from_micros(at)))
    raise NothingYetError(f"Nothing had been recorded of this fleet by {when}; {more}")


def rounds(store: Store) -> array[int]:
    """Return a moment after each of the latest rounds, in the order of time.

    By then what followed from the round was written, and the next one had not begun.
    """
    rows = store.rows(
        """SELECT started_at, finished_at FROM sweeps WHERE finished_at IS NOT NULL
        ORDER BY finished_at DESC LIMIT ?""",
        (STEPS,),
    )
    found, following = array("q"), to_micros(now())
    for row in rows:
        ended = to_micros(row["finished_at"])
        found.append(max(ended, min(ended + AFTER_S * 1_000_000, following - 1000)))
        following = to_micros(row["started_at"])
    found.reverse()
    return array("q", sorted(found))


_LOG = """
SELECT d.id, l.name, l.tags, l.emulated, l.state, l.error, l.detail, l.model_id,
    m.name AS model, m.digest
FROM devices d
JOIN device_log l ON l.device_id = d.id
    AND l.at = (SELECT max(at) FROM device_log WHERE device_id = d.id AND at <= ?1)
LEFT JOIN models m ON m.id = l.model_id
WHERE l.listed
ORDER BY d.position IS NULL, d.position, l.name
"""
_BEFORE = """
SELECT d.id, d.name, d.tags, d.emulated, 'unknown' AS state, '' AS error, '' AS detail,
    NULL AS model_id, NULL AS model, NULL AS digest
FROM devices d
WHERE NOT EXISTS (SELECT 1 FROM device_log WHERE device_id = d.id AND at <= ?1)
    AND EXISTS (
        SELECT 1 FROM device_latest l WHERE l.device_id = d.id AND (
            EXISTS (SELECT 1 FROM samples s
                WHERE s.device_id = d.id AND s.model_id = l.model_id AND s.at <= ?1)
            OR EXISTS (SELECT 1 FROM rollups r
                WHERE r.device_id = d.id AND r.model_id = l.model_id AND r.at <= ?1)))
ORDER BY d.position IS NULL, d.position, d.name
"""
"""Devices that were measured before anybody kept a log of them."""


def _devices(
    store: Store,
    at: int,
    found: ClusterMap,
    fired: Sequence[AlertRow],
    told: Mapping[int, Facts],
) -> tuple[DeviceRow, ...]:
    labels = dict(zip(found.devices, found.labels, strict=True))
    representatives = {cluster.representative for cluster in found.clusters}
    open_ones: dict[str, str] = {}
    for alert in fired:  # firing ones come first, and go before the others
        if alert.scope == "device" and alert.state != "resolved":
            open_ones.setdefault(alert.subject, alert.state)
    rows = []
    for row in (*store.rows(_LOG, (at,)), *store.rows(_BEFORE, (at,))):
        name = row["name"]
        rows.append(
            DeviceRow(
                id=row["id"],
                name=name,
                tags=tuple(json.loads(row["tags"])),
                emulated=bool(row["emulated"]),
                state=row["state"],
                error=row["error"],
                detail=row["detail"],
                model=row["model"] or (row["digest"] or "")[:12],
                model_digest=row["digest"] or "",
                cluster=labels.get(name),
                representative=name in representatives,
                alert=open_ones.get(name),  # type: ignore[arg-type]
                facts=told.get(row["id"], {}),
                past=True,
                **_latency(store, row, at),
            )
        )
    return tuple(rows)


def _latency(store: Store, device: sqlite3.Row, at: int) -> dict[str, Any]:
    """Return the latest latencies of the model that a device ran, as fields of its line."""
    if device["model_id"] is None:
        return {}
    pair = (device["id"], device["model_id"])
    # Newest first. In a transaction already, this is the cheapest way to ask thousands of times.
    recent: list[tuple[int, Any, Any, Any, float, int]] = store.connection.execute(
        """SELECT at, median_ms, low_ms, high_ms, contended, 0 FROM samples
        WHERE device_id = ? AND model_id = ? AND at <= ? AND configuration = ''
            AND median_ms IS NOT NULL ORDER BY at DESC LIMIT ?""",
        (*pair, at, RECENT),
    ).fetchall()
    if len(recent) < RECENT:
        recent += [
            (row.at, row.median_ms, row.low_ms, row.high_ms, row.contended, span)
            for span, row in rollups.last(store, pair, RECENT, until=at)
            if row.median_ms is not None
        ]
        recent.sort(key=itemgetter(0), reverse=True)
    if not recent:
        return {}
    newest, median, low, high, contended, span = recent[0]
    return {
        "latency_ms": median,
        "low_ms": known(low),
        "high_ms": known(high),
        "contended": contended,
        "measured_at": from_micros(newest),
        "recent_ms": tuple(one[1] for one in reversed(recent[:RECENT])),
        "span": rollups.SPANS[span],
    }


def _models(store: Store, moment: str) -> tuple[ModelRow, ...]:
    """Return the models that there were; on how many devices each ran, their lines tell."""
    there = (model for model in models.rows(store) if model.created_at <= moment)
    return tuple(replace(model, deployed_on=0) for model in there)
