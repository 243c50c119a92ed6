"""Deployments: what was put where, what ran there before, and what it was proven to bring.

Every step of every device is written down before and after it is done, so that a process which
was killed leaves all that another one needs to go on.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hdap_tui.store.database import Store, StoreError, UnknownError
from hdap_tui.store.devices import device_id
from hdap_tui.store.records import (
    DeploymentDevice,
    DeploymentRow,
    DeploymentState,
    DeploymentStep,
    Outcome,
)
from hdap_tui.store.values import known, now
from hdap_tui.text import clean

if TYPE_CHECKING:
    from engine.latency import Comparison, FleetComparison


def begin(
    store: Store,
    digest: str,
    devices: Sequence[str],
    *,
    stages: Mapping[str, int] | None = None,
    token: str = "",
    options: Mapping[str, Any] | None = None,
) -> int:
    """Open a deployment, note what runs on each device now, and return its number.

    `stages` says in which stage each device is, from 1; `token` is what its locks say.

    Raises:
        StoreError: the store has never heard of the model or of a device.
    """
    with store.write() as connection:
        model = store.row("SELECT id FROM models WHERE digest = ?", (digest,))
        if model is None:
            raise StoreError(f"the store knows no model {clean(digest, 12)}; add it first.")
        cursor = connection.execute(
            """INSERT INTO deployments (model_id, state, started_at, token, options)
            VALUES (?, 'running', ?, ?, ?)""",
            (model["id"], now(), token, json.dumps(dict(options or {}))),
        )
        assert cursor.lastrowid is not None
        connection.executemany(
            """INSERT INTO deployment_devices
                (deployment_id, device_id, previous_id, stage, place)
            SELECT ?, id, model_id, ?, ? FROM devices WHERE id = ?""",
            [
                (cursor.lastrowid, (stages or {}).get(name, 1), place, device_id(store, name))
                for place, name in enumerate(devices)
            ],
        )
        return cursor.lastrowid


def journal(
    store: Store, number: int, device: str, step: str, phase: str = "begun", text: str = ""
) -> None:
    """Write down that a step of a device begins, is done, or has failed."""
    with store.write() as connection:
        device_number = device_id(store, device)
        connection.execute(
            """INSERT INTO deployment_steps (deployment_id, device_id, at, step, phase, text)
            VALUES (?, ?, ?, ?, ?, ?)""",
            (number, device_number, now(), clean(step, 40), phase, clean(text, 500)),
        )
        connection.execute(
            "UPDATE deployment_devices SET step = ? WHERE deployment_id = ? AND device_id = ?",
            (clean(step if phase == "begun" else f"{step} {phase}", 40), number, device_number),
        )


def enter_stage(store: Store, number: int, stage: int) -> None:
    """Say which stage is worked on, from 1."""
    with store.write() as connection:
        connection.execute("UPDATE deployments SET stage = ? WHERE id = ?", (stage, number))


def decide(
    store: Store, number: int, outcomes: Mapping[str, Outcome], stopped: str | None = None
) -> None:
    """Say what is to become of devices, all in one step; and why the rest is left out."""
    with store.write() as connection:
        connection.executemany(
            """UPDATE deployment_devices SET outcome = ?
            WHERE deployment_id = ? AND device_id = ?""",
            [(what, number, device_id(store, name)) for name, what in outcomes.items()],
        )
        if stopped is not None:
            connection.execute(
                "UPDATE deployments SET stopped = ? WHERE id = ?", (clean(stopped, 300), number)
            )


def set_state(store: Store, number: int, state: DeploymentState) -> None:
    """Say that a deployment runs again, or was interrupted."""
    with store.write() as connection:
        connection.execute("UPDATE deployments SET state = ? WHERE id = ?", (state, number))


def unfinished(store: Store) -> DeploymentRow | None:
    """Return the deployment that runs or was interrupted; there is at most one."""
    found = store.row(f"{_SELECT} WHERE p.state IN ('running', 'interrupted') ORDER BY p.id DESC")
    return _row(found) if found else None


def kept_plan(store: Store, number: int) -> tuple[str, str, dict[str, Any]]:
    """Return what a later process needs to go on: the model's digest, the token, the options.

    Raises:
        UnknownError: there is none of that number.
    """
    found = store.row(
        """SELECT m.digest, p.token, p.options FROM deployments p
        JOIN models m ON m.id = p.model_id WHERE p.id = ?""",
        (number,),
    )
    if found is None:
        raise UnknownError(f'There is no deployment {number}; "hdap deployments" lists them.')
    return found["digest"], found["token"], json.loads(found["options"])


def steps(store: Store, number: int, device: str | None = None) -> tuple[DeploymentStep, ...]:
    """Return a deployment's journal, oldest first."""
    found = store.rows(
        """SELECT s.at, d.name AS device, s.step, s.phase, s.text FROM deployment_steps s
        JOIN devices d ON d.id = s.device_id
        WHERE s.deployment_id = ?1 AND (?2 IS NULL OR d.name = ?2) ORDER BY s.id""",
        (number, device),
    )
    return tuple(DeploymentStep(**dict(one)) for one in found)


def proofs(store: Store, number: int) -> dict[str, Mapping[str, Any]]:
    """Return what was measured on each device, as `record_device` was given it."""
    found = store.rows(
        """SELECT d.name, x.proof FROM deployment_devices x JOIN devices d ON d.id = x.device_id
        WHERE x.deployment_id = ? AND x.proof <> ''""",
        (number,),
    )
    return {one["name"]: json.loads(one["proof"]) for one in found}


def releases(store: Store, device: str, limit: int) -> tuple[str, ...]:
    """Return the digests of the last models that a device ran, the latest first."""
    found = store.rows(
        """SELECT m.digest FROM (
            SELECT p.model_id AS model, p.id * 2 + 1 AS age FROM deployments p
                JOIN deployment_devices x ON x.deployment_id = p.id
                WHERE x.device_id = ?1 AND x.outcome = 'kept'
            UNION ALL
            SELECT x.previous_id, x.deployment_id * 2 FROM deployment_devices x
                WHERE x.device_id = ?1
        ) JOIN models m ON m.id = model GROUP BY m.id ORDER BY max(age) DESC LIMIT ?2""",
        (device_id(store, device), limit),
    )
    return tuple(one["digest"] for one in found)


def record_device(
    store: Store,
    number: int,
    device: str,
    *,
    switched: bool,
    comparison: Comparison | None = None,
    error: str = "",
    detail: str = "",
    outcome: Outcome | None = None,
    proof: Mapping[str, Any] | None = None,
) -> None:
    """Say what a deployment did on one of its devices; outcome and proof stay without new ones."""
    found = comparison
    with store.write() as connection:
        changed = connection.execute(
            """UPDATE deployment_devices SET outcome = coalesce(?, outcome),
                proof = coalesce(?, proof), switched = ?, speedup = ?, low = ?, high = ?,
                verdict = ?, error = ?, detail = ?, at = ?
            WHERE deployment_id = ? AND device_id = ?""",
            (
                outcome,
                json.dumps(dict(proof)) if proof else None,
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
    store: Store, number: int, state: DeploymentState, result: FleetComparison | None = None
) -> DeploymentRow:
    """Close a deployment, or change how it ended; what was proven stays without a new result.

    Raises:
        UnknownError: there is none of that number.
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
        UnknownError: there is none of that number.
    """
    found = store.row(f"{_SELECT} WHERE p.id = ?", (number,))
    if found is None:
        raise UnknownError(f'There is no deployment {number}; "hdap deployments" lists them.')
    return _row(found)


def rows(store: Store, limit: int = 20) -> tuple[DeploymentRow, ...]:
    """Return the latest deployments, newest first."""
    found = store.rows(f"{_SELECT} ORDER BY p.id DESC LIMIT ?", (limit,))
    return tuple(_row(one) for one in found)


def last(store: Store, state: DeploymentState | None = None) -> DeploymentRow | None:
    """Return the latest deployment, or the latest in that state."""
    found = store.row(f"{_SELECT} WHERE ?1 IS NULL OR p.state = ?1 ORDER BY p.id DESC", (state,))
    return _row(found) if found else None


def devices(store: Store, number: int) -> tuple[DeploymentDevice, ...]:
    """Return what a deployment did on each of its devices, in the order of the plan."""
    found = store.rows(
        """SELECT d.name AS device, coalesce(m.digest, '') AS previous, x.stage, x.step, x.outcome,
            x.switched, x.speedup, x.low, x.high, x.verdict, x.error, x.detail, x.at
        FROM deployment_devices x JOIN devices d ON d.id = x.device_id
        LEFT JOIN models m ON m.id = x.previous_id
        WHERE x.deployment_id = ? ORDER BY x.stage, x.place, d.position, d.id""",
        (number,),
    )
    return tuple(
        DeploymentDevice(**{**dict(one), "switched": bool(one["switched"])}) for one in found
    )


_NAME = "coalesce(m.name, substr(m.digest, 1, 12))"
_SELECT = f"""
SELECT p.id, p.state, p.started_at, p.finished_at, p.speedup, p.low, p.high, p.verdict,
    p.stage, p.stopped,
    (SELECT max(x.stage) FROM deployment_devices x WHERE x.deployment_id = p.id) AS stages,
    (SELECT count(*) FROM deployment_devices x WHERE x.deployment_id = p.id AND x.error <> ''
    ) AS failed,
    (SELECT {_NAME} FROM models m WHERE m.id = p.model_id) AS model,
    -- devices may have run different models before: the one most of them did
    (SELECT {_NAME} FROM deployment_devices x JOIN models m ON m.id = x.previous_id
        WHERE x.deployment_id = p.id GROUP BY m.id ORDER BY count(*) DESC, m.id LIMIT 1
    ) AS previous,
    (SELECT count(*) FROM deployment_devices x WHERE x.deployment_id = p.id) AS devices,
    (SELECT count(*) FROM deployment_devices x WHERE x.deployment_id = p.id AND x.switched
    ) AS switched,
    (SELECT count(*) FROM deployment_devices x WHERE x.deployment_id = p.id
        AND x.speedup IS NOT NULL) AS measured,
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
            "stages": values["stages"] or 0,
            "emulated": bool(values["emulated"]),
        }
    )
