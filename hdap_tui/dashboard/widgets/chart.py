"""A chart: a device's latencies, a search's convergence, models by accuracy and latency."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from rich.cells import cell_len
from textual.strip import Strip
from textual.widget import Widget

from hdap_tui.dashboard import canvas
from hdap_tui.dashboard.formats import ASCII, fit
from hdap_tui.dashboard.theme import Palette
from hdap_tui.dashboard.widgets.sheet import Sheet

TickText = Callable[[float], str]


@dataclass(frozen=True)
class Series:
    """One line; a y of NaN is a gap. x grows."""

    xs: Sequence[float]
    ys: Sequence[float]
    style: str = "accent"


@dataclass(frozen=True)
class Dot:
    """One point that has a name."""

    x: float
    y: float
    char: str
    label: str
    style: str = ""


@dataclass(frozen=True)
class Plot:
    """Everything a chart shows."""

    title: str = ""
    series: tuple[Series, ...] = ()
    marks: tuple[tuple[float, str], ...] = ()
    """Vertical lines: where, and the letter at their top."""
    crosses: tuple[float, ...] = ()
    """Where something failed: a cross at the foot."""
    levels: tuple[tuple[float, str], ...] = ()
    """Horizontal lines: how high, and what they are."""
    dots: tuple[Dot, ...] = ()
    """Points over the lines, the most important first: they keep their names longest."""
    x_text: TickText | None = None
    y_text: TickText | None = None
    notes: tuple[str, ...] = ()
    """At the right end of the title: the first of them that has room there."""
    empty: str = "Nothing has been measured yet."
    least: float = field(default=1e-9)
    """The y axis spans this much at least."""


class LineChart(Widget):
    """Draws a plot into whatever room there is."""

    def __init__(self, palette: Palette, id: str | None = None) -> None:
        super().__init__(id=id)
        self._palette = palette
        self._plot = Plot()
        self._sheet: Sheet | None = None

    def show(self, plot: Plot) -> None:
        """Show this plot from now on."""
        if plot != self._plot:
            self._plot, self._sheet = plot, None
            self.refresh()

    def on_resize(self) -> None:
        """Draw anew."""
        self._sheet = None

    def render_line(self, y: int) -> Strip:
        """Draw one line."""
        if self._sheet is None or self._sheet.columns != self.size.width:
            self._sheet = draw(self._plot, self.size.width, self.size.height)
        base = self.rich_style
        strip = self._sheet.strip(y, self._palette)
        return strip.apply_style(base).adjust_cell_length(self.size.width, base)


def draw(plot: Plot, columns: int, rows: int) -> Sheet:
    """Return a plot as characters."""
    sheet = Sheet(columns, rows)
    top = 1 if plot.title else 0
    if plot.title:
        room = columns - len(plot.title) - 2
        note = next((note for note in plot.notes if len(note) <= room), "")
        sheet.put(0, 0, fit(plot.title, max(0, columns - len(note) - 1)), "title")
        sheet.put(columns - len(note), 0, note, "muted")
    xs = np.array([*(x for s in plot.series for x in s.xs), *(d.x for d in plot.dots)], dtype=float)
    ys = np.array([*(y for s in plot.series for y in s.ys), *(d.y for d in plot.dots)], dtype=float)
    height = rows - top - 2
    if height < 2 or columns < 20:
        return sheet
    if not np.isfinite(ys).any() and not plot.crosses:
        sheet.put(1, top + height // 2, fit(plot.empty, columns - 2), "muted")
        return sheet
    xs = np.concatenate([xs, np.array(plot.crosses, dtype=float)])
    ys = np.concatenate([ys, [level for level, _ in plot.levels]])
    frame = canvas.around(xs, ys, margin=0.08, least=plot.least)
    finite = xs[np.isfinite(xs)]
    x0, x1 = float(finite.min()), float(finite.max())
    if plot.dots:
        spare = 0.06 * (x1 - x0) or 0.5 * abs(x1)
        x0, x1 = x0 - spare, x1 + spare
    if x1 - x0 < 1e-9:
        x0, x1 = x0 - 1, x1 + 1
    frame = canvas.Frame(x0, x1, frame.y0, frame.y1)
    left = _y_axis(sheet, frame, top, height, plot.y_text)
    width = columns - left - 1
    _x_axis(sheet, frame, left, width, top + height, plot.x_text)
    for level, name in plot.levels:
        y = top + _row(level, frame, height)
        sheet.put(left, y, ("." if ASCII else "┈") * width, "faint")
        sheet.put(left + width - len(name) - 1, y, f" {name}", "muted")
    for series in plot.series:
        grid = canvas.line(
            np.asarray(series.xs, float), np.asarray(series.ys, float), frame, width, height
        )
        sheet.overlay(left, top, (canvas.stars if ASCII else canvas.braille)(grid), series.style)
    for x in plot.crosses:
        sheet.put(left + _column(x, frame, width), top + height - 1, "x", "bad")
    for x, letter in plot.marks:
        column = left + _column(x, frame, width)
        sheet.down(column, top + 1, top + height, ":" if ASCII else "┊", "muted")
        sheet.put(column, top, letter, "mark")
    _dots(sheet, plot.dots, frame, left, top, width, height)
    return sheet


def _dots(
    sheet: Sheet,
    dots: Sequence[Dot],
    frame: canvas.Frame,
    left: int,
    top: int,
    width: int,
    height: int,
) -> None:
    places = [
        (left + _column(dot.x, frame, width), top + _row(dot.y, frame, height)) for dot in dots
    ]
    taken = set(places)
    for dot, (x, y) in reversed([*zip(dots, places, strict=True)]):
        sheet.put(x, y, dot.char, dot.style)
    for dot, (x, y) in zip(dots, places, strict=True):
        text = _single(dot.label)
        text = fit(text, min(len(text), max(8, width // 3)))
        # Beside the point, else a line above or below; where it hides least of the lines.
        starts = [(x + 2, y), (x - 1 - len(text), y)]
        starts += [(column, y + step) for step in (-1, 1) for column in (x + 1, x - len(text))]
        free = [
            (sum(char != " " for char in sheet.text(row)[start : start + len(text)]), order)
            for order, (start, row) in enumerate(starts)
            if left <= start <= left + width - len(text)
            and top <= row < top + height
            and not taken & {(column, row) for column in range(start - 1, start + len(text) + 1)}
        ]
        if free:
            start, row = starts[min(free)[1]]
            sheet.put(start, row, text, dot.style)
            taken |= {(column, row) for column in range(start, start + len(text))}


def _single(text: str) -> str:
    """Return a name of which every character takes one cell."""
    return "".join(char if cell_len(char) == 1 else "?" * (cell_len(char) > 1) for char in text)


def _row(y: float, frame: canvas.Frame, height: int) -> int:
    share = (frame.y1 - y) / (frame.y1 - frame.y0)
    return max(0, min(height - 1, int(share * height)))


def _column(x: float, frame: canvas.Frame, width: int) -> int:
    return max(0, min(width - 1, int((x - frame.x0) / (frame.x1 - frame.x0) * width)))


def _y_axis(sheet: Sheet, frame: canvas.Frame, top: int, height: int, text: TickText | None) -> int:
    labels = canvas.labelled(frame.y0, frame.y1, max(3, height // 3), text)
    wide = max((len(label) for _, label in labels), default=1)
    for y in range(top, top + height):
        sheet.put(wide + 1, y, "|" if ASCII else "│", "faint")
    for value, label in labels:
        y = top + _row(value, frame, height)
        sheet.put(0, y, label.rjust(wide), "muted")
        sheet.put(wide + 1, y, "+" if ASCII else "┤", "faint")
    return wide + 2


def _x_axis(
    sheet: Sheet, frame: canvas.Frame, left: int, width: int, y: int, text: TickText | None
) -> None:
    sheet.put(left - 1, y, ("+" if ASCII else "└") + ("-" if ASCII else "─") * width, "faint")
    room = 12 if text is None else 16
    taken = -1
    for value, label in canvas.labelled(frame.x0, frame.x1, max(2, width // room), text):
        column = left + _column(value, frame, width)
        start = min(max(left, column - len(label) // 2), left + width - len(label))
        if start > taken:
            sheet.put(column, y, "+" if ASCII else "┴", "faint")
            sheet.put(start, y + 1, label, "muted")
            taken = start + len(label)
