"""Model files: their names, where they came from, and what was measured when they were made."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from hdap_tui.store.database import Store, StoreError, UnknownError
from hdap_tui.store.records import ModelRow
from hdap_tui.store.values import now
from hdap_tui.text import clean

Kind = Literal["probe", "model", "artifact"]


def add(
    store: Store,
    *,
    name: str,
    digest: str,
    path: Path | str,
    kind: Kind,
    size: int,
    parent: str = "",
    job: str = "",
    metrics: Mapping[str, Any] | None = None,
) -> ModelRow:
    """Register a model file under a name, and return its row.

    A file is known by its content: a digest that has a name already keeps its row, which takes
    the new path; what was measured without a name before gets this one. A name that another
    content had moves to the new one, and the old is called by name and digest from then on.

    Args:
        parent: Digest of the model it was made from.
        metrics: What was measured: accuracy, parameters, macs, precision, …

    Raises:
        StoreError: the store has never heard of the parent.
    """
    with store.write() as connection:
        parent_id = _id(store, parent) if parent else None
        existing = by_digest(store, digest)
        if existing is not None:
            connection.execute(
                "UPDATE models SET path = ?1 WHERE digest = ?2 AND path <> ?1", (str(path), digest)
            )
            return _need(store, digest)
        connection.execute(
            "UPDATE models SET name = name || '@' || substr(digest, 1, 8) WHERE name = ?", (name,)
        )
        connection.execute(
            """INSERT INTO models
                (digest, name, kind, path, bytes, created_at, parent_id, job, metrics)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
            ON CONFLICT (digest) DO UPDATE SET
                name = excluded.name, kind = excluded.kind, path = excluded.path,
                bytes = excluded.bytes, parent_id = excluded.parent_id, job = excluded.job,
                metrics = excluded.metrics""",
            (
                digest, name, kind, str(path), size, now(), parent_id, job,
                json.dumps(dict(metrics or {})),
            ),
        )  # fmt: skip
        return _need(store, digest)


def set_metrics(store: Store, digest: str, metrics: Mapping[str, Any]) -> None:
    """Add to what was measured of a model; a metric of the same name is replaced."""
    with store.write() as connection:
        merged = {**_need(store, digest).metrics, **metrics}
        connection.execute(
            "UPDATE models SET metrics = ? WHERE digest = ?", (json.dumps(merged), digest)
        )


def rows(store: Store) -> tuple[ModelRow, ...]:
    """Return all models that have a name, newest first, the probes last."""
    found = store.rows(f"{_SELECT} WHERE m.name IS NOT NULL ORDER BY m.kind = 'probe', m.id DESC")
    return tuple(_row(row) for row in found)


def by_digest(store: Store, digest: str) -> ModelRow | None:
    """Return the named model of a content, if there is one."""
    return _one(store, "m.digest = ? AND m.name IS NOT NULL", digest)


def by_name(store: Store, name: str) -> ModelRow | None:
    """Return the model of a name, if there is one."""
    return _one(store, "m.name = ?", name)


def find(store: Store, word: str) -> ModelRow:
    """Return the model that a person means by a name, or by a digest or its beginning.

    Raises:
        UnknownError: there is none, or the beginning fits several.
    """
    named = by_name(store, word)
    if named is not None:
        return named
    if len(word) >= 4 and all(char in "0123456789abcdef" for char in word.lower()):
        fitting = [row for row in rows(store) if row.digest.startswith(word.lower())]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            several = ", ".join(row.name for row in fitting)
            raise UnknownError(f'"{word}" is the beginning of several digests: {several}.')
    names = [row.name for row in rows(store)]
    close = get_close_matches(word, names, n=1)
    if close:
        hint = f'did you mean "{close[0]}"?'
    else:
        hint = f"known: {', '.join(names[:12])}." if names else "there is none yet."
    raise UnknownError(f'no model is called "{clean(word, 80)}"; {hint}')


def lineage(store: Store, digest: str) -> tuple[ModelRow, ...]:
    """Return a model, what it was made from, what that was made from, and so on."""
    found = store.rows(
        f"""WITH RECURSIVE line (id, step) AS (
            SELECT id, 0 FROM models WHERE digest = ?
            UNION SELECT m.parent_id, step + 1 FROM line JOIN models m ON m.id = line.id
                WHERE m.parent_id IS NOT NULL AND step < 100
        ) {_SELECT} JOIN line ON line.id = m.id WHERE m.name IS NOT NULL ORDER BY line.step""",
        (digest,),
    )
    return tuple(_row(row) for row in found)


def model_id(store: Store, digest: str) -> int:
    """Return a content's number; one that was never seen is taken in without a name.

    To be called inside a write.
    """
    found = store.row("SELECT id FROM models WHERE digest = ?", (digest,))
    if found is not None:
        return int(found["id"])
    cursor = store.connection.execute(
        "INSERT INTO models (digest, created_at) VALUES (?, ?)", (digest, now())
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


_SELECT = """
SELECT m.*, p.name AS parent,
    (SELECT count(*) FROM devices d WHERE d.model_id = m.id AND d.position IS NOT NULL) AS deployed
FROM models m LEFT JOIN models p ON p.id = m.parent_id
"""


def _one(store: Store, where: str, value: str) -> ModelRow | None:
    found = store.row(f"{_SELECT} WHERE {where}", (value,))
    return None if found is None else _row(found)


def _need(store: Store, digest: str) -> ModelRow:
    found = by_digest(store, digest)
    if found is None:
        raise StoreError(f"the store knows no model {clean(digest, 12)}; add it first.")
    return found


def _id(store: Store, digest: str) -> int:
    return _need(store, digest).id


def _row(row: sqlite3.Row) -> ModelRow:
    return ModelRow(
        id=row["id"],
        name=row["name"],
        digest=row["digest"],
        path=row["path"],
        kind=row["kind"],
        bytes=row["bytes"],
        created_at=row["created_at"],
        parent=row["parent"] or "",
        job=row["job"],
        metrics=json.loads(row["metrics"]),
        deployed_on=row["deployed"],
    )
