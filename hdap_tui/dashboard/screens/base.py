"""What all screens share: the lines around the body, live data, and the selection."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Input, Label

from hdap_tui.commands import BY_NAME
from hdap_tui.dashboard.grammar import Selection
from hdap_tui.dashboard.theme import Palette
from hdap_tui.dashboard.widgets.header import fleet_line, tab_line
from hdap_tui.dashboard.widgets.line import Line, Piece
from hdap_tui.dashboard.widgets.table import Table
from hdap_tui.store.records import FleetSnapshot
from hdap_tui.text import clean

if TYPE_CHECKING:
    from hdap_tui.dashboard.application import HdapApp

NARROW = 100
"""Screens of fewer columns put their parts below each other."""


class Hint(NamedTuple):
    """A key at the foot of the screen."""

    key: str
    label: str
    action: str


def hint(command: str, label: str) -> Hint:
    """Return the hint of a command of the registry."""
    return Hint(BY_NAME[command].key, label, f"app.command({command!r})")


COMMON = (
    Hint(":", "command", "app.prompt"),
    Hint("?", "help", "app.help"),
    Hint("q", "quit", "app.quit"),
)


class HdapScreen(Screen[Any]):
    """A screen with the fleet on top and its keys at the foot."""

    view: ClassVar[str] = ""
    """Name of the view, as the registry has it."""
    hints: ClassVar[tuple[Hint, ...]] = ()
    travels: ClassVar[bool] = False
    """Whether it shows the past where one has gone there; the others are always live."""
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (NARROW, "-wide")]  # noqa: RUF012
    AUTO_FOCUS = "#main"

    def __init__(self) -> None:
        super().__init__()
        self._shown_version: int | None = None

    @property
    def dash(self) -> HdapApp:
        """The application."""
        return cast("HdapApp", self.app)

    @property
    def snapshot(self) -> FleetSnapshot | None:
        """What the screen shows: the latest snapshot, or that of the past."""
        past = self.dash.travel.seen if self.travels else None
        return self.dash.snapshot if past is None else past

    @property
    def until(self) -> int | None:
        """The moment of the past that it shows, in microseconds since 1970; None: live."""
        travel = self.dash.travel
        return travel.seen_at if self.travels and travel.seen is not None else None

    def clock(self) -> datetime:
        """Return the time that ages count from: now, or the moment that is shown."""
        past = self.dash.travel.seen if self.travels else None
        return self.dash.now() if past is None else datetime.fromisoformat(past.at)

    @property
    def palette(self) -> Palette:
        """The styles in force."""
        return self.dash.palette

    def compose(self) -> ComposeResult:
        """Lay the screen out.

        Parts are kept as attributes: a message may come after the screen was closed, when its
        parts are found by nobody any more.
        """
        self._lines = {
            name: Line(self.palette, id=name) for name in ("fleet", "tabs", "past", "tasks", "keys")
        }
        yield self._lines["fleet"]
        yield self._lines["tabs"]
        yield self._lines["past"]
        yield from self.body()
        yield self._lines["tasks"]
        yield self._lines["keys"]

    def body(self) -> Iterable[Widget]:
        """Return what stands between the header and the keys."""
        return ()

    def apply(self, snapshot: FleetSnapshot) -> None:
        """Show a snapshot; only called while the screen is the one that is open."""

    def tick(self) -> None:
        """Show that time has passed."""

    def second(self) -> None:
        """Show that a second has passed, where seconds are counted."""

    def selection(self) -> Selection:
        """Return what is selected."""
        return Selection()

    def step_back(self) -> bool:
        """Undo what escape undoes first (a filter, marks); say whether there was anything."""
        return False

    # ------------------------------------------------------------------------------ inner workings

    def on_mount(self) -> None:
        """Show what is known already."""
        self.refresh_frame()

    def on_screen_resume(self) -> None:
        """Catch up with what happened while the screen was hidden."""
        self.refresh_frame()
        self.refresh_data()

    def on_resize(self) -> None:
        """Fit the lines to the new width."""
        self.refresh_frame()

    @property
    def ready(self) -> bool:
        """Whether its parts stand, and show the data that there are."""
        return self.is_mounted and (self._shown_version is not None or self.dash.snapshot is None)

    def refresh_data(self) -> None:
        """Show the latest snapshot, unless it is on the screen already."""
        snapshot = self.snapshot if self.is_mounted else None
        if snapshot is not None and snapshot.version != self._shown_version:
            self._shown_version = snapshot.version
            self.apply(snapshot)

    def refresh_frame(self) -> None:
        """Show header, running commands and keys as they are now."""
        if not self.is_mounted:
            return
        dash, width = self.dash, self.size.width
        self._lines["fleet"].show(*fleet_line(self.snapshot, dash.read_only, width))
        marks = len(dash.marks)
        self._lines["tabs"].show(
            *tab_line(self.snapshot, self.view, dash.watching, dash.activity, marks, width)
        )
        moment = dash.travel.pieces(dash.now(), self.travels, width)
        self._lines["past"].display = bool(moment)
        self._lines["past"].show(moment)
        tasks = self._lines["tasks"]
        pieces = dash.desk.pieces()
        tasks.display = bool(pieces[0])
        tasks.show(*pieces)
        common = keys_line(COMMON, width)
        room = width - sum(len(piece.text) for piece in common)
        self._lines["keys"].show(keys_line(self.hints, room), common)


def keys_line(hints: tuple[Hint, ...], room: int) -> list[Piece]:
    """Return as many keys with their labels as there is room for."""
    pieces: list[Piece] = []
    for key, label, action in hints:
        room -= len(key) + len(label) + 3
        if room < 0:
            break
        pieces.append(Piece(f" {key} ", "key", action))
        pieces.append(Piece(f"{label} ", "muted", action))
    return pieces


class TableView(HdapScreen):
    """A view around a table, with a filter."""

    main: Table[Any]
    filter_hint = "words to look for, !word to leave out"

    def body(self) -> Iterable[Widget]:
        """Return the table and its filter."""
        yield from self.filtered()

    def filtered(self) -> Iterable[Widget]:
        """Return the main table, and the hidden line of its filter."""
        self.main = self.table()
        self._box = Input(placeholder=self.filter_hint, id="filter", compact=True)
        self._found = Label(id="filter-count")
        mark = Label(" / ", id="filter-mark")
        self._filter_line = Horizontal(mark, self._box, self._found, id="filter-line")
        self._filter_line.display = False
        return self.main, self._filter_line

    def table(self) -> Table[Any]:
        """Return a new main table, its id `main`."""
        raise NotImplementedError

    def action_filter(self) -> None:
        """Open the filter."""
        self._filter_line.display = True
        self._box.focus()

    @on(Input.Changed, "#filter")
    def _changed(self, event: Input.Changed) -> None:
        if event.value != self.main.wanted or self.main.problem is not None:
            self.main.filter(event.value, typing=True)
        self._count()

    @on(Table.Arranged, "#main")
    def _count(self) -> None:
        table, problem = self.main, self.main.problem
        text = f"{len(table.rows)} of {table.total}" if table.wanted else ""
        if problem is not None:
            text = f"{problem.problem}  {text}".rstrip()
        self._found.set_class(problem is not None and not problem.unfinished, "-wrong")
        self._found.update(Text(clean(text, 200)))

    @on(Input.Submitted, "#filter")
    def _keep_filter(self) -> None:
        self.main.filter(self._box.value)
        self._count()
        if self.main.problem is None:
            self._filter_line.display = bool(self.main.wanted)
            self.main.focus()

    def step_back(self) -> bool:
        """Clear the filter first, then the marks."""
        if self._filter_line.display or self.main.wanted:
            self._filter_line.display = False
            self._box.value = ""
            self.main.filter("")
            self.main.focus()
            return True
        if self.main.marks:
            self.main.clear_marks()
            return True
        return False

    def tick(self) -> None:
        """Let ages grow."""
        if self.ready:
            self.main.refresh_ages()

    @on(Table.Activated)
    def _open(self) -> None:
        self.dash.action_enter()
