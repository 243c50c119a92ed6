"""The alerts: what drifted, by how much, since when; recompression starts from here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.text import Text
from textual import on, work
from textual.containers import Container, VerticalScroll
from textual.widget import Widget
from textual.widgets import Static

from hdap_tui.dashboard.facts import alert_facts
from hdap_tui.dashboard.filters import Words
from hdap_tui.dashboard.formats import ALERT_LETTERS, Clock, age, change, ms
from hdap_tui.dashboard.grammar import Selection
from hdap_tui.dashboard.history import history_plot
from hdap_tui.dashboard.messages import AlertEventsRead, HistoryRead
from hdap_tui.dashboard.screens.base import NARROW, Hint, TableView, hint
from hdap_tui.dashboard.widgets.chart import LineChart
from hdap_tui.dashboard.widgets.table import Cell, Column, Table
from hdap_tui.store.records import AlertEvent, AlertRow, FleetSnapshot
from hdap_tui.text import clean

_ORDER = {"firing": 0, "acknowledged": 1, "resolved": 2}


class AlertsScreen(TableView):
    """Table of alerts above the details of one."""

    view = "alerts"
    travels = True
    hints = (
        hint("alerts acknowledge", "acknowledge"),
        hint("compress", "recompress"),
        hint("alerts accept", "accept as normal"),
        Hint("enter", "device", "app.enter"),
        hint("alerts show", "whole history"),
        Hint("/", "filter", "screen.filter"),
    )

    def __init__(self) -> None:
        super().__init__()
        self._events: Sequence[AlertEvent] = ()
        self._events_of = -1

    def body(self) -> Iterable[Widget]:
        """Return table and details."""
        yield Container(*self.filtered(), id="upper")
        self._details = Static(id="details")
        self._chart = LineChart(self.palette, id="history")
        details = VerticalScroll(self._details, id="details-box", can_focus=False)
        self._lower = Container(details, self._chart, id="lower")
        yield self._lower

    def table(self) -> Table[AlertRow]:
        """Return the table of alerts."""
        return Table(
            alert_columns(self.clock),
            key=lambda row: str(row.id),
            filter=Words(
                lambda row: f"{row.subject} {row.state} {row.scope} {row.kind} {row.model}"
            ),
            empty="No alert: the fleet is as its baseline says, or no baseline is learned yet.",
            palette=self.palette,
            id="main",
        )

    def apply(self, snapshot: FleetSnapshot) -> None:
        """Show the alerts."""
        self.main.show(snapshot.alerts)
        self._events_of = -1  # an alert's history may have grown

    def selection(self) -> Selection:
        """Return the alert, and the device that it is about."""
        row: AlertRow | None = self.main.current
        if row is None:
            return Selection()
        return Selection(alert=row.id, device=row.subject if row.scope == "device" else "")

    @on(Table.Highlighted)
    def _highlighted(self) -> None:
        row: AlertRow | None = self.main.current
        if row is not None and row.id != self._events_of:
            self._events, self._events_of = (), row.id
            self._lower.set_class(row.scope == "device", "-charted")
            self._read(row, self.until)
        self._show_details()

    @work(thread=True, exclusive=True, group="alert", exit_on_error=False)
    def _read(self, row: AlertRow, until: int | None) -> None:
        source = self.dash.source
        self.post_message(AlertEventsRead(row.id, source.alert_events(row.id, until)))
        if row.scope == "device":
            self.post_message(HistoryRead(row.subject, source.history(row.subject, until)))

    @on(AlertEventsRead)
    def _show_events(self, message: AlertEventsRead) -> None:
        if message.alert == self._events_of:
            self._events = message.events
            self._show_details()

    @on(HistoryRead)
    def _show_history(self, message: HistoryRead) -> None:
        row: AlertRow | None = self.main.current
        snapshot = self.snapshot
        if row is not None and snapshot is not None and row.subject == message.device:
            plot = history_plot(message.points, snapshot, row.baseline_ms, self.clock())
            self._chart.show(plot)

    def _show_details(self) -> None:
        row: AlertRow | None = self.main.current
        text = Text()
        room = self.size.width // (2 if self.size.width >= NARROW else 1) - 3
        if row is not None:
            text = alert_facts(row, self._events, self.clock(), self.palette, room)
        self._details.update(text)


def alert_columns(now: Clock) -> Sequence[Column[AlertRow]]:
    """Return the columns of the alerts' table."""
    return (
        Column(
            "state", "", lambda r: Cell(ALERT_LETTERS[r.state], r.state), 1, below=100,
            sort=lambda r: _ORDER[r.state],
        ),
        Column(
            "state", "state", lambda r: Cell(f"{ALERT_LETTERS[r.state]} {r.state}", r.state), 14,
            above=100, sort=lambda r: _ORDER[r.state],
        ),
        Column("id", "no", lambda r: Cell(str(r.id), "muted"), 3, align="right",
               sort=lambda r: r.id),
        Column("scope", "scope", lambda r: Cell(r.scope, "muted"), 7, sort=lambda r: r.scope),
        Column("subject", "subject", _subject, 12, most=40, text=lambda r: _subject(r).text,
               sort=lambda r: r.subject.lower()),
        Column("emulated", "", lambda r: Cell("emu" if r.emulated else "", "emulated"), 3,
               below=110),
        Column("emulated", "", lambda r: Cell("emulated" if r.emulated else "", "emulated"), 8,
               above=110),
        Column("kind", "kind", lambda r: Cell(clean(r.kind, 20)), 6, above=96),
        Column("size", "change", _size, 8, align="right", sort=lambda r: abs(r.size_percent)),
        Column("latency", "baseline → now ms", _latency, 17, align="right"),
        Column("age", "since", lambda r: Cell(age(r.onset_at, now()), "muted"), 7,
               sort=lambda r: r.onset_at),
        Column("model", "model", lambda r: Cell(clean(r.model, 80), "muted"), 8, most=40),
    )  # fmt: skip


def _subject(row: AlertRow) -> Cell:
    more = f" +{row.inhibited}" if row.inhibited else ""
    return Cell(clean(row.subject, 80) + more, "strong")


def _size(row: AlertRow) -> Cell:
    if row.kind == "spread":
        return Cell("uneven", "warn")
    if row.kind == "migration":
        return Cell("moved", "warn")
    slower = row.direction == "up"
    arrow = "▲" if slower else "▼"
    style = "muted" if row.state == "resolved" else "bad" if slower else "good"
    return Cell(f"{arrow} {change(row.size_percent)}", style)


def _latency(row: AlertRow) -> Cell:
    return Cell(f"{ms(row.baseline_ms)} → {ms(row.now_ms)}")
