"""A table that draws only the rows one can see, and of those only the ones that changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from hdap_tui.config.selector import SelectorError
from hdap_tui.dashboard.filters import Filter, Words
from hdap_tui.dashboard.formats import fit
from hdap_tui.dashboard.theme import Palette
from hdap_tui.dashboard.widgets.columns import (
    Cell,
    Column,
    Placed,
    arranged,
    layout,
    longest,
)
from hdap_tui.text import clean

Row = TypeVar("Row")


class Table(ScrollView, Generic[Row], can_focus=True):
    """Rows of records under a fixed header: cursor, marks, sorting and a filter.

    The cursor and the marks belong to rows, not to lines: they stay with their row when the
    rows move.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", "up", show=False),
        Binding("down", "move(1)", "down", show=False),
        Binding("pageup", "page(-1)", "page up", show=False),
        Binding("pagedown", "page(1)", "page down", show=False),
        Binding("home", "move(-1000000000)", "first", show=False),
        Binding("end", "move(1000000000)", "last", show=False),
        Binding("space", "mark", "mark", show=False),
        Binding("asterisk", "mark_all", "mark all", show=False),
        Binding("less_than_sign,comma", "sort(-1)", "sort by the column before", show=False),
        Binding("greater_than_sign,full_stop", "sort(1)", "sort by the next column", show=False),
        Binding("z", "reverse", "reverse the order", show=False),
    ]

    class Highlighted(Message):
        """The cursor is on another row, or that row changed."""

        def __init__(self, table: Table[Row]) -> None:
            self.table = table
            super().__init__()

        @property
        def control(self) -> Table[Row]:
            """The table, for selectors."""
            return self.table  # type: ignore[return-value]

    class Arranged(Message):
        """Other rows are shown, or in another order."""

        def __init__(self, table: Table[Row]) -> None:
            self.table = table
            super().__init__()

        @property
        def control(self) -> Table[Row]:
            """The table, for selectors."""
            return self.table  # type: ignore[return-value]

    class Activated(Message):
        """A row was clicked twice."""

    @dataclass
    class Marked(Message):
        """The marks changed."""

        count: int

    def __init__(
        self,
        columns: Sequence[Column[Row]],
        key: Callable[[Row], str],
        filter: Filter[Row] | None = None,
        empty: str = "",
        *,
        palette: Palette,
        markable: bool = False,
        id: str | None = None,
    ) -> None:
        super().__init__(id=id)
        self.columns = tuple(columns)
        self._key = key
        self._filter: Filter[Row] = filter or Words(str)
        self._empty = empty
        self._palette = palette
        self._markable = markable
        self._all: Sequence[Row] | None = None
        self.rows: list[Row] = []
        """The rows as shown: filtered and in order."""
        self.cursor = 0
        self.marks: set[str] = set()
        self.wanted = ""
        """The filter in force."""
        self.typing = False
        """Whether the operator may still go on with it."""
        self.problem: SelectorError | None = None
        """Why what was typed last is not in force."""
        self.order = ""
        self.reversed = False
        self.drawn = 0
        """Lines drawn so far; for tests and measurements."""
        self._longest: dict[str, int] = {}
        self._placed: list[Placed[Row]] = []
        self._lines: dict[int, tuple[object, ...]] = {}

    # ----------------------------------------------------------------- what others do with it

    def show(self, rows: Sequence[Row]) -> None:
        """Show these rows from now on; only what changed is drawn again."""
        self._all = rows
        found = longest(self.columns, rows)
        widened = found != self._longest
        if widened:
            self._longest = found
            self._place()
        self._arrange(header=widened)

    def filter(self, wanted: str, typing: bool = False) -> None:
        """Show only the rows that a text asks for; one that means nothing changes nothing.

        `typing` says that the text may not be finished.
        """
        before = self.wanted, self.typing
        self.wanted, self.typing = wanted, typing
        try:
            self._arrange()
        except SelectorError as error:
            self.problem = error
            self.wanted, self.typing = before
        else:
            self.problem = None

    def set_columns(self, columns: Sequence[Column[Row]]) -> None:
        """Show these columns from now on."""
        self.columns = tuple(columns)
        self._longest = longest(self.columns, self._all or ())
        self._place()
        self._arrange(header=True)

    @property
    def current(self) -> Row | None:
        """The row under the cursor."""
        return self.rows[self.cursor] if 0 <= self.cursor < len(self.rows) else None

    @property
    def total(self) -> int:
        """How many rows there are without the filter."""
        return len(self._all or ())

    @property
    def marked(self) -> tuple[str, ...]:
        """Keys of the marked rows that the filter shows, in their order."""
        return tuple(k for k in map(self._key, self.rows) if k in self.marks) if self.marks else ()

    def select(self, key: str) -> bool:
        """Put the cursor on a row; say whether it is there."""
        for index, row in enumerate(self.rows):
            if self._key(row) == key:
                self._go(index)
                return True
        return False

    def refresh_ages(self, only: Callable[[Row], bool] = lambda _row: True) -> None:
        """Draw the rows whose text changed by the passing of time; of some rows only, if asked."""
        self._refresh_dirty(only)

    def clear_marks(self) -> None:
        """Take all marks away."""
        self.marks.clear()
        self._refresh_dirty()
        self.post_message(self.Marked(0))

    # ----------------------------------------------------------------- keys and mouse

    def action_move(self, by: int) -> None:
        """Move the cursor by so many rows."""
        self._go(self.cursor + by)

    def action_page(self, by: int) -> None:
        """Move the cursor by a screenful."""
        self._go(self.cursor + by * max(1, self.size.height - 2))

    def action_mark(self) -> None:
        """Mark the row, or take its mark away, and go on to the next."""
        if self._markable and self.current is not None:
            self.marks ^= {self._key(self.current)}
            self.post_message(self.Marked(len(self.marks)))
            self._go(self.cursor + 1)
            self._refresh_dirty()

    def action_mark_all(self) -> None:
        """Mark all rows that are shown, or none where all are marked."""
        if self._markable:
            shown = {self._key(row) for row in self.rows}
            self.marks = self.marks - shown if shown <= self.marks else self.marks | shown
            self.post_message(self.Marked(len(self.marks)))
            self._refresh_dirty()

    def action_sort(self, by: int) -> None:
        """Sort by the column before or after the present one."""
        keys = ["", *(p.column.key for p in self._placed if p.column.sort)]
        now = keys.index(self.order) if self.order in keys else 0
        self.sort(keys[(now + by) % len(keys)])

    def action_reverse(self) -> None:
        """Turn the order round."""
        self.sort(self.order, not self.reversed)

    def sort(self, key: str, reverse: bool = False) -> None:
        """Sort by a column; "" is the order in which the rows come."""
        self.order, self.reversed = key, reverse
        self._arrange(header=True)

    def on_click(self, event: events.Click) -> None:
        """Move to the row, sort by the column, or open the row at the second click."""
        if event.y == 0:
            for place in self._placed:
                if place.x <= event.x - 2 < place.x + place.width and place.column.sort:
                    same = self.order == place.column.key
                    self.sort(place.column.key, same and not self.reversed)
            return
        index = self.scroll_offset.y + event.y - 1
        if index < len(self.rows):
            self._go(index)
            if event.chain == 2:
                self.post_message(self.Activated())

    # ----------------------------------------------------------------- drawing

    def on_resize(self) -> None:
        """Place the columns anew."""
        self._place()
        self._measure()
        self._keep_visible()

    def render_line(self, y: int) -> Strip:
        """Draw the header, or the row that is on this line."""
        self.drawn += 1
        width = self.size.width
        if not self._placed:
            self._place()
        base = self.rich_style
        if y == 0:
            strip = self._header(width)
        else:
            index = self.scroll_offset.y + y - 1
            if index < len(self.rows):
                content = self._content(index)
                self._lines[y] = content
                strip = self._row(content, width)
            elif not self.rows and y == 2:
                strip = Strip([Segment(fit("  " + self._message(), width), self._palette["muted"])])
            else:
                self._lines.pop(y, None)
                strip = Strip.blank(width)
        return strip.apply_style(base).adjust_cell_length(width, base)

    def _message(self) -> str:
        if self._all is None:
            return "Reading …"
        if self.wanted and self._all:
            return f"Nothing matches “{clean(self.wanted, 60)}”; escape clears the filter."
        return self._empty

    def _header(self, width: int) -> Strip:
        segments = [Segment("  ")]
        x = 0
        for place in self._placed:
            column = place.column
            is_order = column.key == self.order
            arrow = ("▲", "▼")[self.reversed] if is_order else ""
            title = fit(column.title + arrow, place.width, column.align)
            segments.append(Segment(" " * (place.x - x)))
            segments.append(Segment(title, self._palette["sorted" if is_order else "header"]))
            x = place.x + place.width
        return Strip(segments)

    def _content(self, index: int) -> tuple[object, ...]:
        """Return all that a row's line is made of; equal content is an equal line."""
        row = self.rows[index]
        cells = tuple(_fitted(place.column.cell(row), place.width) for place in self._placed)
        return (index == self.cursor, bool(self.marks) and self._key(row) in self.marks, cells)

    def _row(self, content: tuple[object, ...], width: int) -> Strip:
        is_cursor, is_marked, cells = content
        mark = Segment("*" if is_marked else " ", self._palette["mark"])
        segments = [Segment("▌" if is_cursor else " ", self._palette["accent"]), mark]
        x = 0
        for place, cell in zip(self._placed, cells, strict=True):  # type: ignore[call-overload]
            text, style, _ = cell
            if place.x > x:
                segments.append(Segment(" " * (place.x - x)))
            segments.append(
                Segment(fit(text, place.width, place.column.align), self._palette[style])
            )
            x = place.x + place.width
        strip = Strip(segments).adjust_cell_length(width)
        return strip.apply_style(self._cursor_style) if is_cursor else strip

    @property
    def _cursor_style(self) -> Style:
        return self._palette["cursor"] if self.has_focus else Style()

    def on_focus(self) -> None:
        """Show the cursor."""
        self._refresh_line(self.cursor)

    def on_blur(self) -> None:
        """Show that the cursor is elsewhere."""
        self._refresh_line(self.cursor)

    # ----------------------------------------------------------------- inner workings

    def _arrange(self, header: bool = False) -> None:
        before = self.current
        key = self._key(before) if before is not None else None
        offset = self.cursor - self.scroll_offset.y
        column = next((c for c in self.columns if c.key == self.order), None)
        shown = self._filter(self.wanted, self._all or (), self.typing)
        self.rows = arranged(shown, column, self.reversed)
        self._measure()
        if key is not None:
            self.cursor = self._find(key)
            if 0 <= offset < self.size.height - 1:
                self.scroll_to(y=self.cursor - offset, animate=False)
        if header or not (self.rows and self._lines):
            self.refresh()
        else:
            self._refresh_dirty()
        self.post_message(self.Arranged(self))
        self.post_message(self.Highlighted(self))

    def _place(self) -> None:
        self._placed = layout(self.columns, max(10, self.size.width - 3), self._longest)
        self._lines.clear()

    def _find(self, key: str) -> int:
        if self.cursor < len(self.rows) and self._key(self.rows[self.cursor]) == key:
            return self.cursor
        for index, row in enumerate(self.rows):
            if self._key(row) == key:
                return index
        return max(0, min(self.cursor, len(self.rows) - 1))

    def _measure(self) -> None:
        size = Size(self.size.width, len(self.rows) + 1)
        if size != self.virtual_size:
            self.virtual_size = size

    def _go(self, index: int) -> None:
        index = max(0, min(index, len(self.rows) - 1))
        if index == self.cursor:
            return
        before, self.cursor = self.cursor, index
        self._refresh_line(before)
        self._refresh_line(index)
        self._keep_visible()
        self.post_message(self.Highlighted(self))

    def _keep_visible(self) -> None:
        height = self.size.height - 1
        top = self.scroll_offset.y
        if height > 0 and not top <= self.cursor < top + height:
            y = self.cursor if self.cursor < top else self.cursor - height + 1
            self.scroll_to(y=y, animate=False)

    def _refresh_line(self, index: int) -> None:
        y = index - self.scroll_offset.y + 1
        if 1 <= y < self.size.height:
            self.refresh(Region(0, y, self.size.width, 1))

    def _refresh_dirty(self, only: Callable[[Row], bool] = lambda _row: True) -> None:
        """Draw the visible lines whose content is not what stands there."""
        top = self.scroll_offset.y
        for y in range(1, self.size.height):
            index = top + y - 1
            if index < len(self.rows) and not only(self.rows[index]):
                continue
            content = self._content(index) if index < len(self.rows) else None
            if self._lines.get(y) != content:
                self.refresh(Region(0, y, self.size.width, 1))


def _fitted(cell: Cell, width: int) -> Cell:
    """Return the cell with all that has room; what is not seen must not make a line a new one."""
    if not cell.more:
        return cell
    whole = cell.text + cell.more
    return Cell(whole if cell_len(whole) <= width else cell.text, cell.style)


__all__ = ["Cell", "Column", "Table"]
