"""Devices: which there are, how they are, and what runs on them."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from hdap_tui.store.database import Store, StoreError
from hdap_tui.store.held import NOTHING, Held, held
from hdap_tui.store.models import model_id
from hdap_tui.store.records import DeviceRow, DeviceState, Watched
from hdap_tui.store.values import from_micros, known, now
from hdap_tui.text import clean

if TYPE_CHECKING:
    from hdap_tui.config import Device

NO_DATA_ROUNDS = 3
"""Rounds in a row without a value after which nothing is known of a device's latency."""


def sync(store: Store, devices: Sequence[Device]) -> None:
    """Take over the devices of the settings; those no longer named keep their history, unseen."""
    wanted = {
        device.name: (position, json.dumps(list(device.tags)), int(device.emulated))
        for position, device in enumerate(devices)
    }
    known_rows = store.rows("SELECT name, position, tags, emulated FROM devices")
    if wanted == {r["name"]: tuple(r)[1:] for r in known_rows if r["position"] is not None}:
        return  # the usual case takes no lock
    with store.write() as connection:
        gone = [(row["name"],) for row in known_rows if row["name"] not in wanted]
        connection.executemany("UPDATE devices SET position = NULL WHERE name = ?", gone)
        connection.executemany(
            """INSERT INTO devices (name, position, tags, emulated) VALUES (?, ?, ?, ?)
            ON CONFLICT (name) DO UPDATE SET
                position = excluded.position, tags = excluded.tags, emulated = excluded.emulated""",
            [(name, *values) for name, values in wanted.items()],
        )


def set_state(
    store: Store, name: str, state: DeviceState, error: str = "", detail: str = ""
) -> None:
    """Say how a device is; "ok" counts as seen, and whatever ends clears the stage."""
    seen = now() if state == "ok" else None
    with store.write() as connection:
        connection.execute(
            """UPDATE devices SET state = ?1, error = ?2, detail = ?3,
                stage = CASE WHEN ?1 = 'busy' THEN stage ELSE '' END,
                stage_since = CASE WHEN ?1 = 'busy' THEN stage_since ELSE '' END,
                seen_at = coalesce(?4, seen_at)
            WHERE id = ?5""",
            (state, clean(error, 40), clean(detail, 500), seen, device_id(store, name)),
        )


def set_stage(store: Store, name: str, stage: str, since: str = "") -> None:
    """Say what is being done on a device right now, and since when; empty for nothing."""
    with store.write() as connection:
        connection.execute(
            """UPDATE devices SET stage = ?1, stage_since = ?2
            WHERE id = ?3 AND (stage <> ?1 OR stage_since <> ?2)""",
            (clean(stage, 40), since if stage else "", device_id(store, name)),
        )


def stages(store: Store) -> dict[str, tuple[str, str]]:
    """Return what is being done on each device right now, and since when."""
    found = store.rows("SELECT name, stage, stage_since FROM devices WHERE stage <> ''")
    return {row["name"]: (row["stage"], row["stage_since"]) for row in found}


def clear_stages(store: Store, names: Iterable[str] | None = None) -> None:
    """Forget what was being done, for one when a process was killed while it did it."""
    names = None if names is None else set(names)
    with store.write() as connection:
        for row in store.rows("SELECT id, name FROM devices WHERE stage <> '' OR state = 'busy'"):
            if names is None or row["name"] in names:
                connection.execute(
                    """UPDATE devices SET stage = '', stage_since = '',
                        state = CASE WHEN state = 'busy' AND error <> 'skipped'
                            THEN 'unknown' ELSE state END
                    WHERE id = ?""",
                    (row["id"],),
                )


def set_model(store: Store, name: str, digest: str) -> None:
    """Say which model runs on a device; the one before becomes its previous."""
    with store.write() as connection:
        found = store.row("SELECT id FROM models WHERE digest = ?", (digest,))
        if found is None:
            raise StoreError(f"the store knows no model {digest[:12]}; add it first.")
        connection.execute(
            """UPDATE devices SET previous_model_id = model_id, model_id = ?1
            WHERE id = ?2 AND model_id IS NOT ?1""",
            (found["id"], device_id(store, name)),
        )


def take_over(store: Store, name: str, digest: str, previous: str) -> None:
    """Say what a device was found to run, and what a roll-back would bring; empty for none."""
    with store.write() as connection:
        found = [model_id(store, one) if one else None for one in (digest, previous)]
        connection.execute(
            "UPDATE devices SET model_id = ?, previous_model_id = ? WHERE id = ?",
            (*found, device_id(store, name)),
        )


def model_on(store: Store, name: str) -> str:
    """Return the digest of what one device runs, empty for none."""
    row = store.row(
        """SELECT m.digest FROM devices d JOIN models m ON m.id = d.model_id
        WHERE d.name = ? AND d.position IS NOT NULL""",
        (name,),
    )
    return str(row["digest"]) if row else ""


def models_on(store: Store) -> dict[str, tuple[str, str]]:
    """Return digests of the present and the previous model of each device, empty for none."""
    rows = store.rows(
        """SELECT d.name, m.digest AS now, p.digest AS before FROM devices d
        LEFT JOIN models m ON m.id = d.model_id LEFT JOIN models p ON p.id = d.previous_model_id
        WHERE d.position IS NOT NULL ORDER BY d.position"""
    )
    return {row["name"]: (row["now"] or "", row["before"] or "") for row in rows}


def device_id(store: Store, name: str) -> int:
    """Return a device's number.

    Raises:
        StoreError: the store has never heard of it.
    """
    found = store.row("SELECT id FROM devices WHERE name = ?", (name,))
    if found is None:
        raise StoreError(f'the store knows no device "{clean(name, 63)}"; is it in the settings?')
    return int(found["id"])


def host_key(store: Store, name: str) -> str:
    """Return the fingerprint by which a device was last trusted; empty where nobody noted it."""
    found = store.row("SELECT host_key FROM devices WHERE name = ?", (name,))
    return str(found["host_key"]) if found else ""


def set_host_key(store: Store, name: str, fingerprint: str) -> None:
    """Note the host key of a device."""
    with store.write() as connection:
        connection.execute(
            "UPDATE devices SET host_key = ? WHERE id = ?", (fingerprint, device_id(store, name))
        )


def is_recorded(store: Store, name: str) -> bool:
    """Say whether anything was measured on a device or deployed to it."""
    number = device_id(store, name)
    tables = ("samples", "rollups", "deployment_devices", "deployment_steps")
    return any(
        store.row(f"SELECT 1 FROM {table} WHERE device_id = ? LIMIT 1", (number,))
        for table in tables
    )


def replace(store: Store, name: str, archived: str, fingerprint: str) -> str:
    """Put a new device in the place of one, which keeps all that was recorded of it.

    Returns:
        What the old one is called from now on: `archived`, with a number where that is taken.
    """
    with store.write() as connection:
        number, called, count = device_id(store, name), archived, 2
        while store.row("SELECT 1 FROM devices WHERE name = ?", (called,)):
            called, count = f"{archived}-{count}", count + 1
        place = store.row("SELECT position, tags, emulated FROM devices WHERE id = ?", (number,))
        assert place is not None
        connection.execute(
            "UPDATE devices SET name = ?, position = NULL, stage = '' WHERE id = ?",
            (called, number),
        )
        connection.execute(
            "INSERT INTO devices (name, position, tags, emulated, host_key) VALUES (?, ?, ?, ?, ?)",
            (name, *place, fingerprint),
        )
    return called


def rename(store: Store, old: str, new: str) -> None:
    """Give a device another name; the device that has it, and of which nothing is known, goes."""
    with store.write() as connection:
        number, gone = device_id(store, old), device_id(store, new)
        for table in ("device_log", "device_facts", "device_facts_latest", "device_places",
                      "device_latest"):  # fmt: skip
            connection.execute(f"DELETE FROM {table} WHERE device_id = ?", (gone,))
        connection.execute("DELETE FROM devices WHERE id = ?", (gone,))
        connection.execute("UPDATE devices SET name = ? WHERE id = ?", (new, number))


def unlisted(store: Store, name: str) -> DeviceRow | None:
    """Return the line of a device that the settings do not name any more."""
    found = store.row(f"{_SELECT_ROWS} WHERE d.position IS NULL AND d.name = ?", (name,))
    if found is None:
        return None
    with store.read():
        own = held(store, {} if found["stamp"] is None else {found["id"]: found["stamp"]})
    return _row(tuple(found), None, False, own.get(found["id"], NOTHING))


def earlier(store: Store, name: str) -> list[str]:
    """Return what the devices are called now that had this name before, oldest first."""
    found = store.rows(
        """SELECT name FROM devices WHERE position IS NULL AND substr(name, 1, ?) = ?
        ORDER BY id""",
        (len(name) + 1, f"{name}@"),
    )
    return [row["name"] for row in found]


def name_at(store: Store, name: str, at: int) -> str:
    """Return what the device is called now that had a name at a moment, in microseconds."""
    found = store.row(
        """SELECT d.name FROM device_log l JOIN devices d ON d.id = l.device_id
        WHERE l.name = ? AND l.at <= ? ORDER BY l.at DESC LIMIT 1""",
        (name, at),
    )
    return str(found["name"]) if found else name


def name_of(store: Store, number: int) -> str:
    """Return what the device of a number is called now."""
    found = store.row("SELECT name FROM devices WHERE id = ?", (number,))
    assert found is not None
    return str(found["name"])


def rows(
    store: Store,
    labels: Mapping[str, int] | None = None,
    representatives: Iterable[str] = (),
) -> tuple[DeviceRow, ...]:
    """Return the fleet in the order of the settings.

    `labels` and `representatives` are those of the latest clustering.
    """
    labels = labels or {}
    representatives = frozenset(representatives)
    with store.read():
        found = store.rows(_ROWS)
        stamps = {row["id"]: row["stamp"] for row in found if row["stamp"] is not None}
        facts = held(store, stamps)
    return tuple(
        _row(
            tuple(row),
            labels.get(row["name"]),
            row["name"] in representatives,
            facts.get(row["id"], NOTHING),
        )
        for row in found
    )


def _watched(missed: int | None, baseline: float | None) -> Watched:
    """Say how a device's latency is watched, from what the detectors remember of it."""
    if missed is None:
        return ""
    if missed >= NO_DATA_ROUNDS:
        return "no data"
    return "learning" if baseline is None else "ok"


_COLUMNS = {
    "id": "d.id",
    "name": "d.name",
    "tags": "d.tags",
    "emulated": "d.emulated",
    "state": "d.state",
    "error": "d.error",
    "detail": "d.detail",
    "stage": "d.stage",
    "stage_since": "d.stage_since",
    "seen_at": "d.seen_at",
    "model": "m.name",
    "digest": "m.digest",
    "baseline_ms": "s.baseline_ms",
    "missed": "s.missed",
    "alert": "a.state",
    "at": "l.at",
    "median_ms": "l.median_ms",
    "low_ms": "l.low_ms",
    "high_ms": "l.high_ms",
    "contended": "l.contended",
    "recent": "l.recent",
    "stamp": "f.stamp",
}
_SELECT_ROWS = f"""
SELECT {", ".join(f"{column} AS {name}" for name, column in _COLUMNS.items())}
FROM devices d
LEFT JOIN models m ON m.id = d.model_id
LEFT JOIN device_facts_latest f ON f.device_id = d.id
LEFT JOIN device_latest l ON l.device_id = d.id AND l.model_id = d.model_id
LEFT JOIN drift_states s
    ON s.scope = 'device' AND s.subject = d.name AND s.model_id = d.model_id
LEFT JOIN (
    -- the state of the most urgent one
    SELECT subject, state, min(CASE state WHEN 'firing' THEN 0 WHEN 'acknowledged' THEN 1
        WHEN 'recovering' THEN 2 ELSE 3 END) FROM alerts
    WHERE scope = 'device' AND state <> 'resolved' GROUP BY subject
) a ON a.subject = d.name
"""
_ROWS = f"{_SELECT_ROWS} WHERE d.position IS NOT NULL ORDER BY d.position"


@lru_cache(maxsize=16_384)
def _row(
    values: tuple[Any, ...], cluster: int | None, representative: bool, own: Held
) -> DeviceRow:
    """Return a device's line; one that has not changed is the same object as before.

    That makes a fleet of ten thousand cheap to read again, and cheap to compare.
    """
    row = dict(zip(_COLUMNS, values, strict=True))
    latency, baseline = known(row["median_ms"]), known(row["baseline_ms"])
    return DeviceRow(
        id=row["id"],
        name=row["name"],
        tags=tuple(json.loads(row["tags"])),
        emulated=bool(row["emulated"]),
        state=row["state"],
        error=row["error"],
        detail=row["detail"],
        stage=row["stage"],
        stage_since=row["stage_since"],
        seen_at=row["seen_at"],
        model=row["model"] or (row["digest"] or "")[:12],
        model_digest=row["digest"] or "",
        latency_ms=latency,
        low_ms=known(row["low_ms"]),
        high_ms=known(row["high_ms"]),
        contended=row["contended"] or 0.0,
        measured_at=from_micros(row["at"]) if row["at"] is not None else "",
        baseline_ms=baseline,
        change_percent=100 * (latency / baseline - 1) if latency and baseline else None,
        cluster=cluster,
        representative=representative,
        alert=row["alert"],
        watched=_watched(row["missed"], baseline),
        recent_ms=tuple(array("f", row["recent"] or b"")),
        facts=own.facts,
    )
