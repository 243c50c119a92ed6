"""What came out of a command: its table and its text."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text
from textual.containers import VerticalScroll
from textual.widget import Widget
from textual.widgets import Static

from hdap_tui.context import Outcome
from hdap_tui.context import Table as Rows
from hdap_tui.dashboard.filters import Words
from hdap_tui.dashboard.screens.base import HdapScreen, Hint
from hdap_tui.dashboard.widgets.table import Cell, Column, Table
from hdap_tui.text import clean

Line = tuple[int, tuple[str, ...]]
_TEXT_LIMIT = 100_000


class ResultScreen(HdapScreen):
    """Scrolls through an outcome."""

    hints = (Hint("esc", "back", "app.back"), Hint("↑↓", "scroll", ""))

    def __init__(self, title: str, outcome: Outcome) -> None:
        super().__init__()
        self._title = clean(title, 200)
        self._outcome = outcome

    def body(self) -> Iterable[Widget]:
        """Return the table, and the text under it."""
        rows = self._outcome.table
        heading = Text(f" {self._title}", style=self.palette["title"])
        if rows is not None and rows.title:
            heading.append(f"  {clean(rows.title)}", self.palette["muted"])
        yield Static(heading, id="heading")
        if rows is not None:
            table: Table[Line] = Table(
                _columns(rows),
                key=lambda line: str(line[0]),
                filter=Words(lambda line: " ".join(line[1])),
                empty="It is empty.",
                palette=self.palette,
                id="main",
            )
            self._table = table
            yield table
        text = self._outcome.text.strip()
        if text or rows is None:
            # Line by line, so that the line ends survive what makes it safe.
            safe = "\n".join(clean(line, 2000) for line in text[:_TEXT_LIMIT].splitlines())
            area = VerticalScroll(Static(Text(safe)), id="text" if rows is not None else "main")
            area.can_focus = True
            yield area

    def on_mount(self) -> None:
        """Fill the table."""
        super().on_mount()
        if self._outcome.table is not None:
            self._table.show(list(enumerate(self._outcome.table.rows)))


def _columns(rows: Rows) -> list[Column[Line]]:
    def column(index: int, title: str) -> Column[Line]:
        texts = [clean(row[index], 200) for row in rows.rows if index < len(row)]
        longest = max([len(title), *(len(text) for text in texts)])
        numbers = bool(texts) and all(_is_number(text) for text in texts)

        def cell(line: Line) -> Cell:
            return Cell(clean(line[1][index], 200) if index < len(line[1]) else "")

        return Column(
            f"{index}", clean(title, 60), cell, min(longest, 16), most=longest,
            align="right" if numbers else "left", sort=lambda line: _order(line[1][index]),
        )  # fmt: skip

    return [column(index, title) for index, title in enumerate(rows.columns)]


def _is_number(text: str) -> bool:
    return not text or text[0].isdigit() or (text[0] in "+-−" and text[1:2].isdigit())


def _order(text: str) -> tuple[int, float, str]:
    try:
        return 0, float(text.split()[0].rstrip("%")), text
    except (ValueError, IndexError):
        return 1, 0.0, text
