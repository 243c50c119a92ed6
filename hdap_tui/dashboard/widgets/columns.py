"""The columns of a table: what a cell says, and how wide each column is on this screen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, TypeVar

Row = TypeVar("Row")

GAP = 2
"""Blank cells between two columns; one where the screen is narrow."""
MEASURED = 300
"""Rows whose texts say how wide a column may grow."""


class Cell(NamedTuple):
    """What stands in a cell."""

    text: str
    style: str = ""
    """Name of a style of the palette."""
    more: str = ""
    """What follows where there is room for all of it."""


@dataclass(frozen=True)
class Column(Generic[Row]):
    """One column."""

    key: str
    title: str
    cell: Callable[[Row], Cell]
    width: int
    """Cells that it takes at least."""
    most: int = 0
    """Cells that it may grow to; 0: it does not grow."""
    text: Callable[[Row], str] | None = None
    """What it need not grow beyond; None: it may take all there is."""
    align: Literal["left", "right"] = "left"
    sort: Callable[[Row], Any] | None = None
    """What rows are sorted by; None as a value sorts last, both ways."""
    above: int = 0
    """Width of the table from which it is shown."""
    below: int = 10_000
    """Width of the table from which it is not shown any more."""
    spare: int = 0
    """What is left out first where not all have room: the highest, then the rightmost."""


@dataclass(frozen=True)
class Placed(Generic[Row]):
    """A column in its place."""

    column: Column[Row]
    x: int
    width: int


def layout(
    columns: Sequence[Column[Row]], width: int, longest: Mapping[str, int] | None = None
) -> list[Placed[Row]]:
    """Return the columns that fit, each with its place; what is left over goes round.

    `longest` says how long the longest text of a column is, by its key.
    """
    gap = GAP if width >= 96 else 1
    known = longest or {}
    shown = [c for c in columns if c.above <= width < c.below]
    while shown and sum(c.width + gap for c in shown) > width + gap and len(shown) > 2:
        least = max(range(len(shown)), key=lambda i: (shown[i].spare, i))
        shown.pop(least)
    widths = [c.width for c in shown]
    left = width - sum(widths) - gap * max(0, len(shown) - 1)
    # Texts that are known grow first, to their length; then those that take what there is.
    for measured in (True, False):
        while left > 0:
            growing = [
                i
                for i, c in enumerate(shown)
                if (c.key in known) is measured
                and widths[i] < min(c.most, known.get(c.key, c.most))
            ]
            if not growing:
                break
            for i in growing[:left]:
                widths[i] += 1
            left -= len(growing[:left])
    placed, x = [], 0
    for column, taken in zip(shown, widths, strict=True):
        placed.append(Placed(column, x, max(1, min(taken, width - x))))
        x += taken + gap
    return placed


def longest(columns: Sequence[Column[Row]], rows: Sequence[Row]) -> dict[str, int]:
    """Return the length of the longest text of each column that has one, over the first rows."""
    return {
        column.key: max((len(column.text(row)) for row in rows[:MEASURED]), default=0)
        for column in columns
        if column.text is not None
    }


def arranged(rows: Sequence[Row], column: Column[Row] | None, reverse: bool) -> list[Row]:
    """Return the rows sorted by a column, those without a value last."""
    if column is None or column.sort is None:
        return list(rows)
    keyed = [(column.sort(row), row) for row in rows]
    known = [pair for pair in keyed if pair[0] is not None]
    known.sort(key=lambda pair: pair[0], reverse=reverse)
    return [row for _, row in known] + [row for value, row in keyed if value is None]
