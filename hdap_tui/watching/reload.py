"""Takes up a settings file that was changed, once it is whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from hdap_tui.config import Settings, load
from hdap_tui.errors import SettingsError
from hdap_tui.figures import count


class SettingsFile:
    """A settings file that somebody may edit meanwhile."""

    def __init__(self, settings: Settings, tell: Callable[[str], None]) -> None:
        """`tell` gets a sentence wherever a change cannot be taken up."""
        self._path, self._tell = settings.path, tell
        self._named = (settings.fleet.name, settings.fleet.state)
        # It may have been edited since it was read, so that the first look reads it anew.
        self._known: tuple[int, ...] = ()
        self._seen: tuple[int, ...] = ()

    def look(self, now: Settings) -> Settings | None:
        """Return the new settings where the file has changed; None where it has not.

        A file that is still being written is left alone until two looks find the same. One that is
        wrong is told of once, and `now` stays in force.
        """
        found = stamp(self._path)
        before, self._seen = self._seen, found
        if found == self._known or found != before:
            return None
        self._known = found
        try:
            new = load(self._path)
        except SettingsError as error:
            self._tell(f"the settings are wrong, and those from before stay in force: {error}")
            return None
        if (new.fleet.name, new.fleet.state) != self._named:
            self._tell(
                "fleet.name or fleet.state is another now, which would be another database: the "
                "settings from before stay in force until the watcher is started anew."
            )
            return None
        new = new.in_state(now.state_dir)
        return None if new == now else new


def stamp(path: Path) -> tuple[int, ...]:
    """Return what is another whenever a file is; empty where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


def difference(before: Settings, after: Settings) -> str:
    """Return in words what is other in the new settings."""
    old, new = ({d.name for d in s.devices} for s in (before, after))
    parts = [
        f"{len(names)} {word} ({', '.join(sorted(names)[:3])}{', …' if len(names) > 3 else ''})"
        for word, names in (("added", new - old), ("removed", old - new))
        if names
    ]
    for name, unit in (("sweep_every_s", "a sweep every"), ("canary_every_s", "a round every")):
        if getattr(before.watch, name) != getattr(after.watch, name):
            parts.append(f"{unit} {getattr(after.watch, name):g} s")
    return "; ".join([count(len(after.devices), "device"), *parts])
