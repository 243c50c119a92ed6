"""The newest latencies of several models: on one device, and over the fleet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from hdap_tui.store.database import Store
from hdap_tui.store.values import from_micros, placeholders


@dataclass(frozen=True, kw_only=True)
class Timed:
    """The newest good measurement of a model on a device, as the settings say it is run."""

    at: str
    median_ms: float
    low_ms: float | None
    """Lower end of the median's 95 % interval; None where it has none."""
    high_ms: float | None
    p90_ms: float | None
    energy_mj: float | None
    """Energy of one inference, idle power included; None where no sensor told it."""
    emulated: bool

    def overlaps(self, other: Timed) -> bool:
        """Say whether the two intervals have a latency in common."""
        (low, high), (least, most) = self._interval, other._interval
        return low <= most and least <= high

    @property
    def _interval(self) -> tuple[float, float]:
        if self.low_ms is None or self.high_ms is None:
            return self.median_ms, self.median_ms
        return self.low_ms, self.high_ms


def most_measured(store: Store, digests: Sequence[str]) -> str:
    """Return the device of the fleet on which most of the models were measured.

    Of several, that with the newest measurement; empty where there is no measurement.
    """
    found = store.row(
        f"""SELECT d.name FROM (
            SELECT device_id, count(*) AS models, max(at) AS newest FROM device_latest
            WHERE model_id IN ({_ids(digests)}) GROUP BY device_id
        ) l JOIN devices d ON d.id = l.device_id WHERE d.position IS NOT NULL
        ORDER BY l.models DESC, l.newest DESC, d.position LIMIT 1""",
        list(digests),
    )
    return str(found["name"]) if found else ""


def on_device(store: Store, device: str, digests: Sequence[str]) -> dict[str, Timed]:
    """Return the newest measurements of these models on a device, by digest."""
    found = store.rows(
        f"""SELECT m.digest, l.*, d.emulated, x.rest FROM device_latest l
        JOIN devices d ON d.id = l.device_id JOIN models m ON m.id = l.model_id
        LEFT JOIN sample_details x USING (device_id, model_id, at)
        WHERE d.name = ? AND m.digest IN ({placeholders(len(digests))})""",
        [device, *digests],
    )
    timed = {}
    for row in found:
        rest = json.loads(row["rest"] or "{}")
        timed[row["digest"]] = Timed(
            at=from_micros(row["at"]),
            median_ms=row["median_ms"],
            low_ms=row["low_ms"],
            high_ms=row["high_ms"],
            p90_ms=rest.get("p90_ms"),
            energy_mj=rest.get("energy_mj"),
            emulated=bool(row["emulated"]),
        )
    return timed


def fleet_means(store: Store, digests: Sequence[str]) -> tuple[int, dict[str, float]]:
    """Return each model's newest median in ms, on average over the devices that measured all.

    A model that no device has measured keeps the others from nothing: it is left out.

    Returns:
        How many devices measured all of the others, and the means by digest.
    """
    found = store.rows(
        f"""WITH chosen AS (
            SELECT device_id, model_id, median_ms FROM device_latest
            WHERE model_id IN ({_ids(digests)})
                AND device_id IN (SELECT id FROM devices WHERE position IS NOT NULL)
        ), complete AS (
            SELECT device_id FROM chosen GROUP BY device_id
            HAVING count(*) = (SELECT count(DISTINCT model_id) FROM chosen)
        )
        SELECT m.digest, l.mean, l.devices FROM (
            SELECT model_id, avg(median_ms) AS mean, count(*) AS devices FROM chosen
            WHERE device_id IN complete GROUP BY model_id
        ) l JOIN models m ON m.id = l.model_id""",
        list(digests),
    )
    return max((row["devices"] for row in found), default=0), {
        row["digest"]: row["mean"] for row in found
    }


def _ids(digests: Sequence[str]) -> str:
    return f"SELECT id FROM models WHERE digest IN ({placeholders(len(digests))})"
