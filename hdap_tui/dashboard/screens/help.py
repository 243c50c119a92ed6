"""All keys and commands, from the registry."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from rich.text import Text
from textual import on
from textual.widget import Widget
from textual.widgets import Static

from hdap_tui.commands import COMMANDS
from hdap_tui.dashboard.filters import Words
from hdap_tui.dashboard.screens.base import Hint, TableView
from hdap_tui.dashboard.widgets.table import Cell, Column, Table

GENERAL = (
    ("enter", "open", "Open what is under the cursor."),
    ("esc", "back", "One step back: clear the filter, the marks, close what is on top."),
    (":", "prompt", "Type a command, as on the command line; tab completes, up recalls."),
    ("ctrl+p", "palette", "Search all commands."),
    ("?", "help", "Open or close this list."),
    ("/", "filter", "Show rows with these words; the fleet also by tag=orin and not state=off."),
    ("space", "mark", "Mark a device; commands on devices take the marked ones."),
    ("*", "mark all", "Mark all devices that are shown, or none."),
    ("< >", "sort", "Sort by the column before or after; a click on a title does the same."),
    ("z", "reverse", "Turn the order round."),
    ("+ - 0", "zoom", "On the map: nearer, farther, all of it."),
    ("arrows", "select", "On the map: go to the next device in that direction."),
    ("n N", "walk", "On the map: go through the devices, cluster by cluster."),
    ("shift+arrows", "pan", "On the map: move what is shown; dragging does the same."),
    ("m", "marks", "On the map: letters or dots."),
    ("[ ]", "past", "Fleet, map, alerts: as they were after the round before, or after the next."),
    ("{ }", "past", "The same, an hour back or on; :fleet --at yesterday goes anywhere."),
    ("backspace", "live", "Back to what is live."),
    ("v", "result", "Show the latest result again."),
    ("C", "stop", "Stop the commands that run in the dashboard."),
    ("q", "quit", "Quit. Jobs are processes of their own and go on."),
    ("shift+drag", "copy", "Select text with the terminal's own mouse (HDAP_MOUSE=0: always)."),
)


class Entry(NamedTuple):
    """One line of the help."""

    key: str
    name: str
    help: str
    note: str = ""


class HelpScreen(TableView):
    """One line a key."""

    view = "help"
    hints = (
        Hint("esc", "back", "app.back"),
        Hint("/", "filter", "screen.filter"),
        Hint("↑↓", "scroll", ""),
    )

    def table(self) -> Table[Entry]:
        """Return the table of keys."""
        columns: tuple[Column[Entry], ...] = (
            Column("key", "key", lambda e: Cell(e.key, "key"), 12),
            Column("name", "command", lambda e: Cell(e.name, "strong"), 17, most=20),
            Column("note", "", lambda e: Cell(e.note, "warn"), 4, most=5),
            Column("help", "what it does", lambda e: Cell(e.help), 30, most=120),
        )
        return Table(
            columns,
            key=lambda e: f"{e.key} {e.name}",
            filter=Words(lambda e: " ".join(e)),
            palette=self.palette,
            id="main",
        )

    def on_mount(self) -> None:
        """Fill the table."""
        super().on_mount()
        self.main.show(entries(self.dash.read_only))

    def body(self) -> Iterable[Widget]:
        """Return the table, its filter, and the whole sentence of the line one is on."""
        yield from super().body()
        self._sentence = Static(id="sentence")
        yield self._sentence

    @on(Table.Highlighted)
    def _highlighted(self) -> None:
        entry: Entry | None = self.main.current
        self._sentence.update(Text(entry.help if entry else ""))


def entries(read_only: bool) -> list[Entry]:
    """Return the registry's commands and the screens' own keys."""
    commands = [
        Entry(c.key, c.name, c.help, "asks" if c.dangerous else "")
        for c in COMMANDS
        if not (c.dangerous and read_only)
    ]
    return [*commands, *(Entry(*entry) for entry in GENERAL)]
