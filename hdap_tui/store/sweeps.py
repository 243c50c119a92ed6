"""Sweeps and canary rounds as wholes: what was measured in one, and what is missing from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hdap_tui.store.database import Store
from hdap_tui.store.measurements import SweepKind
from hdap_tui.store.records import ModelRow


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """One sweep or round."""

    id: int
    kind: str
    started_at: str
    finished_at: str
    """Empty: it is half."""
    devices: int
    """Devices of which something is saved."""
    failed: int
    """Devices on which at least one model could not be timed."""


def last(store: Store, kind: SweepKind) -> SweepRow | None:
    """Return the latest whole sweep of a kind."""
    return _one(store, "kind = ? AND finished_at IS NOT NULL", (kind,))


def half(store: Store) -> SweepRow | None:
    """Return the sweep that a watcher began last, where it is half and no whole one came after."""
    found = _one(store, "kind = 'sweep' AND (watcher_id OR finished_at IS NOT NULL)", ())
    return None if found is None or found.finished_at else found


def missing(
    store: Store, sweep: int, visits: Mapping[str, Sequence[ModelRow]]
) -> dict[str, Sequence[ModelRow]]:
    """Return those visits of which something is not saved in a sweep, each as a whole."""
    found = store.rows(
        """SELECT DISTINCT d.name, m.digest FROM samples s JOIN devices d ON d.id = s.device_id
        JOIN models m ON m.id = s.model_id WHERE s.sweep_id = ? AND s.configuration = ''""",
        (sweep,),
    )
    saved = {(row["name"], row["digest"]) for row in found}
    return {
        name: models
        for name, models in visits.items()
        if any((name, model.digest) not in saved for model in models)
    }


def failed(store: Store, sweep: int) -> dict[str, str]:
    """Return the devices on which a model could not be timed, with the class of what went wrong."""
    found = store.rows(
        """SELECT d.name, s.error FROM samples s JOIN devices d ON d.id = s.device_id
        WHERE s.sweep_id = ? AND s.error <> '' ORDER BY s.at""",
        (sweep,),
    )
    return {row["name"]: row["error"] for row in found}


def row(store: Store, sweep: int) -> SweepRow:
    """Return one sweep."""
    found = _one(store, "id = ?", (sweep,))
    assert found is not None, "sweeps are never removed"
    return found


def _one(store: Store, condition: str, parameters: Sequence[str | int]) -> SweepRow | None:
    with store.read():
        found = store.row(
            f"SELECT * FROM sweeps WHERE {condition} ORDER BY id DESC LIMIT 1", parameters
        )
        if found is None:
            return None
        counts = store.row(
            """SELECT count(DISTINCT device_id) AS devices,
                count(DISTINCT CASE WHEN error <> '' THEN device_id END) AS failed
            FROM samples WHERE sweep_id = ?""",
            (found["id"],),
        )
    assert counts is not None
    return SweepRow(
        id=found["id"],
        kind=found["kind"],
        started_at=found["started_at"],
        finished_at=found["finished_at"] or "",
        devices=counts["devices"],
        failed=counts["failed"],
    )
