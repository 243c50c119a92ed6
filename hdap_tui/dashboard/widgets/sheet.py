"""A sheet of characters with a style each, drawn line by line."""

from __future__ import annotations

from collections.abc import Iterable

from rich.segment import Segment
from textual.strip import Strip

from hdap_tui.dashboard.theme import Palette


class Sheet:
    """Characters of one cell each; what falls beside the sheet is dropped."""

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.rows = max(0, columns), max(0, rows)
        self._chars = [[" "] * self.columns for _ in range(self.rows)]
        self._styles = [[""] * self.columns for _ in range(self.rows)]

    def put(self, x: int, y: int, text: str, style: str = "") -> None:
        """Write text from (x, y) to the right."""
        if not 0 <= y < self.rows:
            return
        for i, char in enumerate(text, start=x):
            if 0 <= i < self.columns:
                self._chars[y][i] = char
                self._styles[y][i] = style

    def overlay(self, x: int, y: int, lines: Iterable[str], style: str) -> None:
        """Write lines of which the blanks let through what is there."""
        for row, text in enumerate(lines, start=y):
            if 0 <= row < self.rows:
                chars, styles = self._chars[row], self._styles[row]
                for i, char in enumerate(text, start=x):
                    if char != " " and 0 <= i < self.columns:
                        chars[i] = char
                        styles[i] = style

    def down(self, x: int, y0: int, y1: int, char: str, style: str) -> None:
        """Write a character into every row from y0 to before y1, where nothing stands yet."""
        for y in range(max(0, y0), min(self.rows, y1)):
            if 0 <= x < self.columns and self._chars[y][x] == " ":
                self.put(x, y, char, style)

    def text(self, y: int) -> str:
        """Return what stands in a row."""
        return "".join(self._chars[y])

    def strip(self, y: int, palette: Palette) -> Strip:
        """Return a row for drawing; a style may be two names, the second laid over the first."""
        if not 0 <= y < self.rows or not self.columns:
            return Strip([])
        segments: list[Segment] = []
        chars, styles = self._chars[y], self._styles[y]
        start = 0
        for x in range(1, self.columns + 1):
            if x == self.columns or styles[x] != styles[start]:
                name, _, over = styles[start].partition("+")
                style = palette[name] + palette[over] if over else palette[name]
                segments.append(Segment("".join(chars[start:x]), style))
                start = x
        return Strip(segments, self.columns)
