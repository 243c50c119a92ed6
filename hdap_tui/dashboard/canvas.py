"""Points and lines as characters, two by four dots a cell; arrays in, arrays out, no widgets.

A frame is the part of the plane that is shown: x grows to the right, y upwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_BRAILLE = 0x2800
# Bit of each dot of a braille cell, by row (from the top) and column.
_BITS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]], dtype=np.int64)


@dataclass(frozen=True)
class Frame:
    """What part of the plane is shown."""

    x0: float
    x1: float
    y0: float
    y1: float

    def zoomed(self, factor: float, x: float, y: float) -> Frame:
        """Return a frame `factor` times as large, with (x, y) in the same place."""
        return Frame(
            x + (self.x0 - x) * factor,
            x + (self.x1 - x) * factor,
            y + (self.y0 - y) * factor,
            y + (self.y1 - y) * factor,
        )

    def moved(self, right: float, up: float) -> Frame:
        """Return the frame moved by shares of its width and height."""
        dx, dy = right * (self.x1 - self.x0), up * (self.y1 - self.y0)
        return Frame(self.x0 + dx, self.x1 + dx, self.y0 + dy, self.y1 + dy)


def around(xs: Floats, ys: Floats, margin: float = 0.06, least: float = 1.0) -> Frame:
    """Return a frame that holds all finite points, at least `least` wide and high."""

    def span(values: Floats) -> tuple[float, float]:
        finite = values[np.isfinite(values)]
        if not len(finite):
            return -least / 2, least / 2
        low, high = float(finite.min()), float(finite.max())
        spare = max(margin * (high - low), (least - (high - low)) / 2)
        return low - spare, high + spare

    return Frame(*span(xs), *span(ys))


@dataclass(frozen=True)
class Cells:
    """Where each point falls on a grid of characters."""

    columns: int
    rows: int
    inside: NDArray[np.bool_]
    """Which points are in the frame."""
    cell: Ints
    """Index of each point's cell, row by row from the top; -1 outside."""
    order: Ints
    """Points inside, sorted by their cell."""

    def at(self, column: int, row: int) -> Ints:
        """Return the points in a cell."""
        wanted = row * self.columns + column
        sorted_cells = self.cell[self.order]
        first = int(np.searchsorted(sorted_cells, wanted, "left"))
        last = int(np.searchsorted(sorted_cells, wanted, "right"))
        return self.order[first:last]

    def near(self, column: int, row: int, reach: int = 1) -> int | None:
        """Return the point in or nearest to a cell, at most `reach` cells away."""
        best: tuple[int, int] | None = None
        for r in range(max(0, row - reach), min(self.rows, row + reach + 1)):
            for c in range(max(0, column - reach), min(self.columns, column + reach + 1)):
                points = self.at(c, r)
                distance = (c - column) ** 2 + (2 * (r - row)) ** 2
                if len(points) and (best is None or distance < best[0]):
                    best = (distance, int(points[0]))
        return None if best is None else best[1]


def place(xs: Floats, ys: Floats, frame: Frame, columns: int, rows: int) -> Cells:
    """Return the cell of every point."""
    column, row, inside = _scaled(xs, ys, frame, columns, rows)
    cell = np.where(inside, row * columns + column, -1)
    order = np.flatnonzero(inside)
    order = order[np.argsort(cell[order], kind="stable")]
    return Cells(columns, rows, inside, cell, order)


def majority(cells: Cells, labels: Ints) -> Ints:
    """Return the commonest label in each cell, shape (rows, columns); -2 where nothing is."""
    grid = np.full(cells.rows * cells.columns, -2, dtype=np.int64)
    where, what = cells.cell[cells.inside], labels[cells.inside]
    if len(where):
        kinds = int(labels.max()) + 2
        counts = np.bincount(where * kinds + what + 1, minlength=len(grid) * kinds)
        table = counts.reshape(len(grid), kinds)
        filled = table.any(axis=1)
        grid[filled] = table[filled].argmax(axis=1) - 1
    return grid.reshape(cells.rows, cells.columns)


def dots(xs: Floats, ys: Floats, frame: Frame, columns: int, rows: int) -> list[str]:
    """Return lines of braille with a dot for every point."""
    grid = np.zeros((rows * 4, columns * 2), dtype=bool)
    column, row, inside = _scaled(xs, ys, frame, columns * 2, rows * 4)
    grid[row[inside], column[inside]] = True
    return braille(grid)


def line(xs: Floats, ys: Floats, frame: Frame, columns: int, rows: int) -> NDArray[np.bool_]:
    """Return the dots, shape (4 rows, 2 columns), of a line through points sorted by x.

    A value that is not finite breaks the line. Every column of dots spans the smallest to the
    largest of its values, so that no spike is lost however many points there are.
    """
    width, height = columns * 2, rows * 4
    grid = np.zeros((height, width), dtype=bool)
    finite = np.isfinite(ys) & np.isfinite(xs)
    if not finite.any():
        return grid
    breaks = np.flatnonzero(~finite)
    for part in np.split(np.arange(len(xs)), breaks):
        index = part[finite[part]]
        if len(index):
            _draw(grid, xs[index], ys[index], frame)
    return grid


def braille(grid: NDArray[np.bool_]) -> list[str]:
    """Return a grid of dots as lines of characters, blanks where a cell is empty."""
    rows, columns = grid.shape[0] // 4, grid.shape[1] // 2
    cells = grid.reshape(rows, 4, columns, 2).transpose(0, 2, 1, 3)
    codes = (cells * _BITS).sum(axis=(2, 3))
    return ["".join(chr(_BRAILLE + c) if c else " " for c in row) for row in codes.tolist()]


def stars(grid: NDArray[np.bool_]) -> list[str]:
    """Return a grid of dots as lines of plain ASCII."""
    rows, columns = grid.shape[0] // 4, grid.shape[1] // 2
    cells: NDArray[np.bool_] = np.logical_or.reduce(grid.reshape(rows, 4, columns, 2), axis=(1, 3))
    return ["".join("*" if c else " " for c in row) for row in cells.tolist()]


def ticks(low: float, high: float, most: int) -> list[float]:
    """Return about `most` round numbers between two, a step of 1, 2 or 5 times a power apart."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low or most < 1:
        return []
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10, 20) if power * m >= rough * 0.8)
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def tick_text(value: float, step: float) -> str:
    """Return a tick's number with as many decimals as its step needs."""
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 0
    return f"{value + 0.0:.{min(decimals, 6)}f}"


def labelled(
    low: float, high: float, most: int, text: Callable[[float], str] | None = None
) -> list[tuple[float, str]]:
    """Return round numbers between two with their text, as a list of pairs."""
    found = ticks(low, high, most)
    step = found[1] - found[0] if len(found) > 1 else abs(high - low) or 1.0
    return [(v, text(v) if text else tick_text(v, step)) for v in found]


def _scaled(
    xs: Floats, ys: Floats, frame: Frame, width: int, height: int
) -> tuple[Ints, Ints, NDArray[np.bool_]]:
    """Return column and row (from the top) of every point, and which of them are inside."""
    with np.errstate(invalid="ignore", over="ignore"):
        across = (xs - frame.x0) / (frame.x1 - frame.x0) * width
        down = (frame.y1 - ys) / (frame.y1 - frame.y0) * height
    inside = (across >= 0) & (across <= width) & (down >= 0) & (down <= height)
    column = np.where(inside, np.minimum(np.nan_to_num(across), width - 1), 0).astype(np.int64)
    row = np.where(inside, np.minimum(np.nan_to_num(down), height - 1), 0).astype(np.int64)
    return column, row, inside


def _draw(grid: NDArray[np.bool_], xs: Floats, ys: Floats, frame: Frame) -> None:
    height, width = grid.shape
    across = (xs - frame.x0) / (frame.x1 - frame.x0) * width
    down = np.clip((frame.y1 - ys) / (frame.y1 - frame.y0) * height, 0, height - 1e-6)
    first = max(0, int(np.floor(across[0])))
    last = min(width - 1, int(np.floor(across[-1])))
    if last < 0 or first > width - 1 or last < first:
        return
    columns = np.arange(first, last + 1)
    middle = np.interp(columns + 0.5, across, down)
    top, bottom = middle.copy(), middle.copy()
    place_of = np.floor(across).astype(np.int64) - first
    seen = (place_of >= 0) & (place_of < len(columns))
    filled = np.zeros(len(columns), dtype=bool)
    filled[place_of[seen]] = True
    # Where a column has points of its own, they count and not what lies between.
    top[filled], bottom[filled] = np.inf, -np.inf
    np.minimum.at(top, place_of[seen], down[seen])
    np.maximum.at(bottom, place_of[seen], down[seen])
    # Columns touch: each reaches to where the one before ended.
    before_top, before_bottom = top[:-1].copy(), bottom[:-1].copy()
    top[1:] = np.minimum(top[1:], np.where(before_bottom < top[1:], before_bottom + 1, np.inf))
    bottom[1:] = np.maximum(bottom[1:], np.where(before_top > bottom[1:], before_top - 1, -np.inf))
    rows = np.arange(height)[:, None]
    spans = (rows >= np.floor(top)) & (rows <= np.floor(bottom))
    grid[:, columns] |= spans
