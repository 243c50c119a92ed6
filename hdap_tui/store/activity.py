"""What the watcher is doing now, for the line at the bottom of the screen."""

from __future__ import annotations

import json
import time

from hdap_tui.store.database import Store
from hdap_tui.text import clean


def set_activity(store: Store, text: str, valid_s: float = 60.0) -> None:
    """Say what is going on; unless it is said again, it is forgotten after `valid_s`.

    A watcher that was killed cannot take its words back, so they expire by themselves.
    """
    value = json.dumps(
        {"text": clean(text, 120), "until": time.time() + valid_s, "valid_s": valid_s}
    )
    with store.write() as connection:
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('activity', ?)", (value,))


def activity(store: Store) -> str:
    """Return what is going on; empty when nobody has said anything for a while."""
    found = store.row("SELECT value FROM meta WHERE key = 'activity'")
    if found is None:
        return ""
    said = json.loads(found["value"])
    left = said["until"] - time.time()
    # More is left than it was to last: the clock has gone back since.
    return str(said["text"]) if 0 < left <= said.get("valid_s", left) else ""
