"""What the drift detectors remember between rounds, one JSON document a series.

A series is a scope, a subject and a model: ("device", "edge-01", digest).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hdap_tui.store import models
from hdap_tui.store.database import Store
from hdap_tui.store.records import Scope
from hdap_tui.store.values import known, now

Series = tuple[Scope, str]
"""Scope and subject: ("device", "edge-01"), ("cluster", "cluster 2"), ("fleet", "fleet")."""


@dataclass(frozen=True, kw_only=True)
class DriftState:
    """What a detector knows about one series."""

    state: Mapping[str, Any] = field(default_factory=dict)
    """The detector's own, as JSON carries it."""
    baseline_ms: float | None = None
    """What the series is told against; None while it is being learned."""
    updated_at: str = ""
    missed: int = 0
    """Rounds in a row in which it had no value."""


def save_states(store: Store, digest: str, states: Mapping[Series, DriftState]) -> None:
    """Keep the states of a model's series, all of a round in one transaction."""
    at = now()
    with store.write() as connection:
        model = models.model_id(store, digest)
        connection.executemany(
            """INSERT OR REPLACE INTO drift_states (
                scope, subject, model_id, state, baseline_ms, updated_at, missed
            ) VALUES (?, ?, ?, ?, ?, ?, ?)""",
            [
                (scope, subject, model, *_values(one), at, one.missed)
                for (scope, subject), one in states.items()
            ],
        )


def load_states(store: Store, digest: str) -> dict[Series, DriftState]:
    """Return the states of all series of a model."""
    found = store.rows(
        """SELECT scope, subject, state, baseline_ms, updated_at, missed FROM drift_states
        WHERE model_id = (SELECT id FROM models WHERE digest = ?)""",
        (digest,),
    )
    return {
        (row["scope"], row["subject"]): DriftState(
            state=json.loads(row["state"]),
            baseline_ms=row["baseline_ms"],
            updated_at=row["updated_at"],
            missed=row["missed"],
        )
        for row in found
    }


def load_missed(store: Store, digest: str) -> dict[str, int]:
    """Return by device for how many rounds in a row a model had no value on it."""
    found = store.rows(
        """SELECT subject, missed FROM drift_states WHERE scope = 'device'
        AND model_id = (SELECT id FROM models WHERE digest = ?)""",
        (digest,),
    )
    return {row["subject"]: row["missed"] for row in found}


def models_of(store: Store, device: str) -> list[str]:
    """Return the models of which something is remembered about a device."""
    found = store.rows(
        """SELECT DISTINCT m.digest FROM drift_states s JOIN models m ON m.id = s.model_id
        WHERE s.scope = 'device' AND s.subject = ?""",
        (device,),
    )
    return [row["digest"] for row in found]


def forget(store: Store, scope: Scope, subject: str) -> None:
    """Forget a series for every model, so that its baseline is learned anew."""
    with store.write() as connection:
        connection.execute(
            "DELETE FROM drift_states WHERE scope = ? AND subject = ?", (scope, subject)
        )


def _values(state: DriftState) -> tuple[str, float | None]:
    return json.dumps(dict(state.state)), known(state.baseline_ms)
