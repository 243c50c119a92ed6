"""Jobs, mirrored from their folders for the screens. The folder is the truth."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import asdict
from typing import Any

from hdap_tui.store.database import Store
from hdap_tui.store.records import JobRow


def upsert(store: Store, job: JobRow) -> None:
    """Take over how a job stands; one that stands as before costs no write."""
    if row(store, job.id) == job:
        return
    values = {**asdict(job), "result": json.dumps(dict(job.result))}
    with store.write():
        store.db.table("jobs").upsert(values, pk="id")


def row(store: Store, name: str) -> JobRow | None:
    """Return one job, if there is one of that name."""
    found = store.row("SELECT * FROM jobs WHERE id = ?", (name,))
    return _row(found) if found else None


def rows(store: Store, limit: int = 50) -> tuple[JobRow, ...]:
    """Return the latest jobs, newest first."""
    found = store.rows("SELECT * FROM jobs ORDER BY created_at DESC, id DESC LIMIT ?", (limit,))
    return tuple(_row(one) for one in found)


def _row(found: sqlite3.Row) -> JobRow:
    values: dict[str, Any] = dict(found)
    return JobRow(**{**values, "result": json.loads(values["result"])})
