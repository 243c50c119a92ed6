"""What is being done on each device, in as few lines as a terminal has room for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hdap_tui.progress import duration, kind_of
from hdap_tui.text import clean

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_ENDED = ("done", "failed", "cancelled")
_WAITING = "waiting"  # for a turn: nothing of the device's own keeps it
_MOST_LINES = 10
_MOST_FAILED = 3
_NAME_WIDTH = 40


@dataclass(frozen=True)
class Line:
    """How one device is."""

    device: str
    stage: str
    began: float
    """When the device was taken up, by the board's clock, in seconds."""
    since: float
    """When this kind of stage began."""

    @property
    def kind(self) -> str:
        """The kind of the stage."""
        return kind_of(self.stage)


class Board:
    """The latest stage of every device: how many are in each, and those worth a line.

    Safe to use from several threads.
    """

    def __init__(
        self,
        shown: Callable[[str], str] = str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`shown` says what to call a device where people read it."""
        self._shown, self._clock = shown, clock
        self._lines: dict[str, Line] = {}
        self._kinds: dict[str, None] = dict.fromkeys(_ENDED)
        self._lock = threading.Lock()

    def say(self, device: str, stage: str, since_s: float | None = None) -> None:
        """Take in what is being done on a device now; empty: nothing that anybody should see.

        `since_s` says for how many seconds already, where somebody knows better than the board.
        """
        now = self._clock() - (since_s or 0.0)
        with self._lock:
            before = self._lines.pop(device, None)
            if not stage:
                return
            kind = kind_of(stage)
            self._kinds.setdefault(kind)
            if before is None or before.kind in _ENDED:
                before = Line(device, "", now, now)
            goes_on = since_s is None and before.kind == kind
            since = before.since if goes_on else now
            self._lines[device] = Line(device, stage, before.began, since)

    def counts(self) -> dict[str, int]:
        """Return how many devices are in each kind of stage, in their order, the ended last."""
        with self._lock:
            found = dict.fromkeys([*(k for k in self._kinds if k not in _ENDED), *_ENDED], 0)
            for line in self._lines.values():
                found[line.kind] += 1
        return {kind: count for kind, count in found.items() if count}

    def lines(self, most: int) -> list[Line]:
        """Return up to `most` devices: those longest at work, then the latest that failed.

        Those that wait for their turn come only where there is room.
        """
        with self._lock:
            every = list(self._lines.values())
        failed = [line for line in every if line.kind == "failed"]
        work = [line for line in every if line.kind not in _ENDED]
        work.sort(key=lambda line: (line.kind == _WAITING, line.began, line.device))
        kept = min(len(failed), max(_MOST_FAILED, most - len(work)), most)
        return work[: most - kept] + failed[len(failed) - kept :]

    def picture(self, console: Console, height: int) -> RenderableType | None:
        """Return the counts and below them single devices, in at most `height` rows."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        counts = self.counts()
        if not counts or height < 1:
            return None
        said = Text(", ".join(f"{clean(kind, 40)} {count}" for kind, count in counts.items()))
        rows = said.wrap(console, console.width)[:height]
        lines = self.lines(max(0, min(_MOST_LINES, height - len(rows))))
        grid = Table.grid(padding=(0, 2, 0, 0))
        width = min(_NAME_WIDTH, 2 * console.width // 5)
        grid.add_column(no_wrap=True, max_width=width)
        grid.add_column(
            no_wrap=True, overflow="ellipsis", max_width=max(1, console.width - width - 15)
        )
        grid.add_column(no_wrap=True, justify="right")
        now = self._clock()
        for line in lines:
            ended = line.kind in _ENDED
            grid.add_row(
                Text(self._name(line.device, width)),
                Text(clean(line.stage, 80)),
                "" if ended else duration(now - line.since),
                style="red" if ended else "",
            )
        return Group(*rows, grid) if lines else Group(*rows)

    def _name(self, device: str, width: int) -> str:
        """Return what to call a device; of a long one the name is cut, and not what it is."""
        shown = clean(self._shown(device), 200)
        if len(shown) <= width or not shown.startswith(device):
            return shown[:width]
        what = shown[len(device) :]
        return f"{device[: max(0, width - len(what) - 1)]}…{what}"
