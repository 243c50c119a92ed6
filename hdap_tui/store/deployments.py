"""Deployments: what was put where, what ran there before, and what it was proven to bring."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from hdap_tui.store.database import Store, StoreError
from hdap_tui.store.devices import device_id
from hdap_tui.store.records import DeploymentDevice, DeploymentRow
from hdap_tui.store.values import known, now
from hdap_tui.text import clean

if TYPE_CHECKING:
    from engine.latency import Comparison, FleetComparison

State = Literal["running", "finished", "partly", "failed", "rolled back"]


def begin(store: Store, digest: str, devices: Sequence[str]) -> int:
    """Open a deployment, note what runs on each device now, and return its number.

    Raises:
        StoreError: the store has never heard of the model or of a device.
    """
    with store.write() as connection:
        model = store.row("SELECT id FROM models WHERE digest = ?", (digest,))
        if model is None:
            raise StoreError(f"the store knows no model {clean(digest, 12)}; add it first.")
        cursor = connection.execute(
            "INSERT INTO deployments (model_id, state, started_at) VALUES (?, 'running', ?)",
            (model["id"], now()),
        )
        assert cursor.lastrowid is not None
        connection.executemany(
            """INSERT INTO deployment_devices (deployment_id, device_id, previous_id)
            SELECT ?, id, model_id FROM devices WHERE id = ?""",
            [(cursor.lastrowid, device_id(store, name)) for name in devices],
        )
        return cursor.lastrowid


def record_device(
    store: Store,
    number: int,
    device: str,
    *,
    switched: bool,
    comparison: Comparison | None = None,
    error: str = "",
    detail: str = "",
) -> None:
    """Say what a deployment did on one of its devices."""
    found = comparison
    with store.write() as connection:
        changed = connection.execute(
            """UPDATE deployment_devices SET switched = ?, speedup = ?, low = ?, high = ?,
                verdict = ?, error = ?, detail = ?, at = ?
            WHERE deployment_id = ? AND device_id = ?""",
            (
                int(switched),
                known(found.speedup) if found else None,
                known(found.low) if found else None,
                known(found.high) if found else None,
                found.verdict if found else "",
                clean(error, 40),
                clean(detail, 500),
                now(),
                number,
                device_id(store, device),
            ),
        ).rowcount
        if not changed:
            raise StoreError(f'deployment {number} has no device "{device}".')


def finish(
    store: Store, number: int, state: State, result: FleetComparison | None = None
) -> DeploymentRow:
    """Close a deployment, or change how it ended; what was proven stays without a new result.

    Raises:
        StoreError: there is none of that number.
    """
    with store.write() as connection:
        connection.execute(
            "UPDATE deployments SET state = ?, finished_at = ? WHERE id = ?", (state, now(), number)
        )
        if result is not None:
            connection.execute(
                "UPDATE deployments SET speedup = ?, low = ?, high = ?, verdict = ? WHERE id = ?",
                (
                    known(result.speedup),
                    known(result.low),
                    known(result.high),
                    result.verdict,
                    number,
                ),
            )
        return row(store, number)


def row(store: Store, number: int) -> DeploymentRow:
    """Return one deployment.

    Raises:
        StoreError: there is none of that number.
    """
    found = store.row(f"{_SELECT} WHERE p.id = ?", (number,))
    if found is None:
        raise StoreError(f"there is no deployment {number}.")
    return _row(found)


def rows(store: Store, limit: int = 20) -> tuple[DeploymentRow, ...]:
    """Return the latest deployments, newest first."""
    found = store.rows(f"{_SELECT} ORDER BY p.id DESC LIMIT ?", (limit,))
    return tuple(_row(one) for one in found)


def last(store: Store, state: State | None = None) -> DeploymentRow | None:
    """Return the latest deployment, or the latest in that state."""
    found = store.row(f"{_SELECT} WHERE ?1 IS NULL OR p.state = ?1 ORDER BY p.id DESC", (state,))
    return _row(found) if found else None


def devices(store: Store, number: int) -> tuple[DeploymentDevice, ...]:
    """Return what a deployment did on each of its devices, in the order of the settings."""
    found = store.rows(
        """SELECT d.name AS device, coalesce(m.digest, '') AS previous, x.switched, x.speedup,
            x.low, x.high, x.verdict, x.error, x.detail, x.at
        FROM deployment_devices x JOIN devices d ON d.id = x.device_id
        LEFT JOIN models m ON m.id = x.previous_id
        WHERE x.deployment_id = ? ORDER BY d.position IS NULL, d.position, d.id""",
        (number,),
    )
    return tuple(
        DeploymentDevice(**{**dict(one), "switched": bool(one["switched"])}) for one in found
    )


_NAME = "coalesce(m.name, substr(m.digest, 1, 12))"
_SELECT = f"""
SELECT p.id, p.state, p.started_at, p.finished_at, p.speedup, p.low, p.high, p.verdict,
    (SELECT {_NAME} FROM models m WHERE m.id = p.model_id) AS model,
    -- devices may have run different models before: the one most of them did
    (SELECT {_NAME} FROM deployment_devices x JOIN models m ON m.id = x.previous_id
        WHERE x.deployment_id = p.id GROUP BY m.id ORDER BY count(*) DESC, m.id LIMIT 1
    ) AS previous,
    (SELECT count(*) FROM deployment_devices x WHERE x.deployment_id = p.id) AS devices,
    (SELECT count(*) FROM deployment_devices x WHERE x.deployment_id = p.id AND x.switched
    ) AS switched,
    EXISTS (SELECT 1 FROM deployment_devices x JOIN devices d ON d.id = x.device_id
        WHERE x.deployment_id = p.id AND d.emulated) AS emulated
FROM deployments p
"""


def _row(found: sqlite3.Row) -> DeploymentRow:
    values = dict(found)
    return DeploymentRow(
        **{
            **values,
            "previous": values["previous"] or "",
            "emulated": bool(values["emulated"]),
        }
    )
