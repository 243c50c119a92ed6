"""Facts that the operator wants to see as columns of the fleet table."""

from __future__ import annotations

import json
from collections.abc import Iterable

from hdap_tui.fact_names import BY_NAME
from hdap_tui.store.database import Store

_KEY = "columns"


def columns(store: Store) -> tuple[str, ...]:
    """Return the names of the facts, in their order."""
    found = store.row("SELECT value FROM meta WHERE key = ?", (_KEY,))
    return tuple(name for name in json.loads(found["value"]) if name in BY_NAME) if found else ()


def keep_columns(store: Store, names: Iterable[str]) -> None:
    """Remember them for the next start."""
    with store.write() as connection:
        connection.execute(
            "INSERT OR REPLACE INTO meta VALUES (?, ?)", (_KEY, json.dumps(list(names)))
        )
