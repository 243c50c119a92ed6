"""One line of text in pieces, some of which can be clicked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.cells import cell_len
from rich.segment import Segment
from textual import events
from textual.strip import Strip
from textual.widget import Widget

from hdap_tui.dashboard.formats import fit
from hdap_tui.dashboard.theme import Palette


class Piece(NamedTuple):
    """A piece of a line."""

    text: str
    style: str = ""
    action: str = ""
    """What a click does; empty: nothing."""


class Line(Widget):
    """Pieces from the left, and pieces from the right; where both do not fit, the left is cut."""

    def __init__(self, palette: Palette, id: str | None = None) -> None:
        super().__init__(id=id)
        self._palette = palette
        self._left: Sequence[Piece] = ()
        self._right: Sequence[Piece] = ()

    def show(self, left: Sequence[Piece], right: Sequence[Piece] = ()) -> None:
        """Show these pieces from now on."""
        if (left, right) != (self._left, self._right):
            self._left, self._right = left, right
            self.refresh()

    def render_line(self, y: int) -> Strip:
        """Draw the line."""
        base = self.rich_style
        if y > 0:
            return Strip.blank(self.size.width, base)
        segments = [
            Segment(text, self._palette[piece.style]) for text, piece in self._placed() if text
        ]
        return Strip(segments).apply_style(base).adjust_cell_length(self.size.width, base)

    async def on_click(self, event: events.Click) -> None:
        """Do what the piece under the mouse stands for."""
        x = 0
        for text, piece in self._placed():
            width = cell_len(text)
            if x <= event.x < x + width and piece.action:
                await self.run_action(piece.action)
                return
            x += width

    def _placed(self) -> list[tuple[str, Piece]]:
        width = self.size.width
        right = [(piece.text, piece) for piece in self._right]
        room = width - sum(cell_len(text) for text, _ in right)
        if room < 0:
            right, room = [], width
        placed: list[tuple[str, Piece]] = []
        for piece in self._left:
            length = cell_len(piece.text)
            if length > room:
                if room > 3 and not piece.action:
                    placed.append((fit(piece.text, room), piece))
                    room = 0
                break
            placed.append((piece.text, piece))
            room -= length
        return [*placed, (" " * room, Piece("")), *right]
