"""Which devices the watcher leaves alone just now: pauses by command, and maintenance windows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from hdap_tui.config.schema import Maintenance
from hdap_tui.config.settings import Settings
from hdap_tui.errors import UserError
from hdap_tui.selection import select
from hdap_tui.store import pauses
from hdap_tui.store.database import Store
from hdap_tui.store.pauses import Pause, paused_names
from hdap_tui.store.values import from_seconds
from hdap_tui.store.watchers import Rest
from hdap_tui.watching.windows import DAYS, Window, minute_of

_CHOOSE_S = 60.0


@dataclass
class _Open:
    """A window that is open: whom it concerns, and until when."""

    names: tuple[str, ...]
    until: float
    chosen: float


class Away:
    """Who is left alone; one thread at a time looks, any may ask."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings, self._store = settings, store
        self._windows = [(window_of(one), one) for one in settings.watch.maintenance]
        self._open: dict[int, _Open] = {}
        self.pauses: tuple[Pause, ...] = ()
        self.rests: tuple[Rest, ...] = ()
        self.names: frozenset[str] = frozenset()
        """The devices, some of which the settings may not name any more."""

    @property
    def everybody(self) -> bool:
        """Whether nobody is left to be measured."""
        return all(device.name in self.names for device in self._settings.devices)

    def __call__(self) -> frozenset[str]:
        """Return the devices, as they were at the last look."""
        return self.names

    def look(self, now: float | None = None) -> None:
        """Look who is left alone now."""
        everybody = [device.name for device in self._settings.devices]
        self.rests = tuple(self._rests(time.time() if now is None else now))
        self.pauses = pauses.rows(self._store)
        paused = paused_names(self.pauses, everybody)
        self.names = paused.union(*(rest.devices for rest in self.rests))

    def _rests(self, now: float) -> Sequence[Rest]:
        found = []
        for number, (window, entry) in enumerate(self._windows):
            if not window.covers(now):
                self._open.pop(number, None)
                continue
            known = self._open.get(number)
            if known is None or not now < known.until or abs(now - known.chosen) > _CHOOSE_S:
                known = self._open[number] = _Open(self._chosen(entry), window.ends(now), now)
            if known.names:
                found.append(
                    Rest(
                        devices=known.names,
                        until=from_seconds(known.until),
                        reason=entry.reason,
                        whole=len(known.names) == len(self._settings.devices),
                    )
                )
        return found

    def _chosen(self, entry: Maintenance) -> tuple[str, ...]:
        try:
            chosen = select(self._settings.devices, entry.select, lambda: self._store)
        except UserError:
            return ()  # it names nobody just now
        return tuple(device.name for device in chosen)


def window_of(entry: Maintenance) -> Window:
    """Return the window that the settings mean."""
    days = frozenset(DAYS.index(day) for day in entry.days)
    return Window(days, minute_of(entry.start), minute_of(entry.end), entry.timezone)
