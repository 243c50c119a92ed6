"""The alerts: what drifted, by how much, since when; recompression starts from here."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import ClassVar

from rich.text import Text
from textual import on, work
from textual.binding import Binding, BindingType
from textual.containers import Container, VerticalScroll
from textual.widget import Widget
from textual.widgets import Static

from hdap_tui.alerting.silencing import selector_of
from hdap_tui.alerting.words import is_quiet_now
from hdap_tui.commands import BY_NAME
from hdap_tui.dashboard.facts import alert_facts
from hdap_tui.dashboard.filters import Words
from hdap_tui.dashboard.formats import ALERT_LETTERS, ASCII, Clock, age, change, ms
from hdap_tui.dashboard.grammar import Selection
from hdap_tui.dashboard.history import history_plot
from hdap_tui.dashboard.messages import AlertEventsRead, HistoryRead
from hdap_tui.dashboard.screens.base import NARROW, Hint, TableView, hint
from hdap_tui.dashboard.widgets.chart import LineChart
from hdap_tui.dashboard.widgets.table import Cell, Column, Table
from hdap_tui.figures import count
from hdap_tui.names import with_letters
from hdap_tui.store.records import NO_DATA, AlertEvent, AlertRow, FleetSnapshot
from hdap_tui.text import clean

_ORDER = {"firing": 0, "acknowledged": 1, "recovering": 2, "pending": 3, "resolved": 4}


class AlertsScreen(TableView):
    """Table of alerts above the details of one."""

    view = "alerts"
    travels = True
    hints = (
        hint("alerts acknowledge", "acknowledge"),
        hint("alerts silence", "silence"),
        hint("alerts explain", "explain"),
        hint("alerts accept", "accept"),
        hint("compress", "recompress"),
        Hint("+", "group", "screen.unfold"),
        hint("alerts show", "history"),
        Hint("enter", "device", "app.enter"),
        Hint("/", "filter", "screen.filter"),
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("plus,minus", "unfold", "open or close a group", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._events: Sequence[AlertEvent] = ()
        self._explanation: Sequence[tuple[str, str]] = ()
        self._events_of = -1
        self._stale = False
        self._unfolded: set[int] = set()

    def body(self) -> Iterable[Widget]:
        """Return table and details."""
        self._suggested = Static(id="suggested")
        self._suggested.display = False
        yield Container(*self.filtered(), self._suggested, id="upper")
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
        """Show the alerts, those of a group beneath the one that stands for them."""
        self.main.show(grouped(snapshot.alerts, self._unfolded))
        self._show_suggested(snapshot)
        self._stale = True  # an alert's history may have grown

    def action_unfold(self) -> None:
        """Open the group of the selected alert, or close it."""
        row: AlertRow | None = self.main.current
        snapshot = self.dash.snapshot
        if row is None or snapshot is None:
            return
        group = row.inhibited_by if row.inhibited_by is not None else row.id
        if not any(alert.inhibited_by == group for alert in snapshot.alerts):
            self.dash.say("This alert stands for no others.")
            return
        self._unfolded ^= {group}
        self.main.show(grouped(snapshot.alerts, self._unfolded))
        self.main.select(str(row.id if group in self._unfolded else group))

    def selection(self) -> Selection:
        """Return the alert, what it is about, and what keeps it quiet."""
        row: AlertRow | None = self.main.current
        if row is None:
            return Selection()
        return Selection(
            alert=row.id,
            device=row.subject if row.scope == "device" else "",
            matter=selector_of(row),
            silence=row.silence,
            decision=self._decision(row),
        )

    def _decision(self, row: AlertRow) -> int | None:
        """Return what should follow from an alert, else what is suggested otherwise."""
        snapshot = self.dash.snapshot
        made = snapshot.decisions if snapshot is not None else ()
        own = [d.id for d in made if d.alert == row.id and d.state in ("suggested", "started")]
        return next(iter([*own, *(d.id for d in made if d.state == "suggested")]), None)

    def _show_suggested(self, snapshot: FleetSnapshot) -> None:
        """Show what is suggested, and the keys that start or withdraw it."""
        open_ones = [d for d in snapshot.decisions if d.state == "suggested"]
        self._suggested.display = bool(open_ones)
        if open_ones:
            one = open_ones[0]
            start, undo = (BY_NAME[name].key for name in ("policy start", "policy undo"))
            text = Text(f" {start} ", style=self.palette["key"])
            text.append("recompress ", self.palette["strong"])
            text.append(f" {undo} ", self.palette["key"]).append("withdraw  ")
            more = f" (+{len(open_ones) - 1} more)" if len(open_ones) > 1 else ""
            text.append(f"suggested: {clean(one.reason, 160)}{more}", self.palette["warn"])
            self._suggested.update(text)

    @on(Table.Highlighted)
    def _highlighted(self) -> None:
        row: AlertRow | None = self.main.current
        if row is not None and (row.id != self._events_of or self._stale):
            if row.id != self._events_of:
                self._events, self._explanation = (), ()
            self._events_of, self._stale = row.id, False
            self._lower.set_class(row.scope == "device", "-charted")
            self._read(row, self.until)
        self._show_details()

    @work(thread=True, exclusive=True, group="alert", exit_on_error=False)
    def _read(self, row: AlertRow, until: int | None) -> None:
        source = self.dash.source
        events = source.alert_events(row.id, until)
        if until is not None or not self._explanation:  # what takes longer comes after
            self.post_message(AlertEventsRead(row.id, events))
        if until is None:  # what explains an alert is told from what is known today
            self.post_message(AlertEventsRead(row.id, events, source.explanation(row.id)))
        if row.scope == "device":
            self.post_message(HistoryRead(row.subject, source.history(row.subject, until)))

    @on(AlertEventsRead)
    def _show_events(self, message: AlertEventsRead) -> None:
        if message.alert == self._events_of:
            self._events, self._explanation = message.events, message.explanation
            self._show_details()

    @on(HistoryRead)
    def _show_history(self, message: HistoryRead) -> None:
        row: AlertRow | None = self.main.current
        snapshot = self.snapshot
        if row is not None and snapshot is not None and row.subject == message.device:
            baseline = None if row.kind == NO_DATA else row.baseline_ms
            plot = history_plot(message.points, snapshot, baseline, self.clock())
            self._chart.show(plot)

    def _show_details(self) -> None:
        row: AlertRow | None = self.main.current
        text = Text()
        room = self.size.width // (2 if self.size.width >= NARROW else 1) - 3
        if row is not None:
            now = self.clock()
            text = alert_facts(row, self._events, self._explanation, now, self.palette, room)
        self._details.update(text)


def grouped(rows: Sequence[AlertRow], unfolded: Collection[int]) -> list[AlertRow]:
    """Return the alerts that are to be seen: those beneath another only where it is unfolded."""
    beneath: dict[int, list[AlertRow]] = {}
    there = {row.id for row in rows}
    for row in rows:
        if row.inhibited_by in there and row.state != "resolved":
            beneath.setdefault(row.inhibited_by or 0, []).append(row)
    hidden = {row.id for group in beneath.values() for row in group}
    found: list[AlertRow] = []
    for row in rows:
        if row.id not in hidden:
            found.append(row)
            found += beneath.get(row.id, []) if row.id in unfolded else []
    return found


def alert_columns(now: Clock) -> Sequence[Column[AlertRow]]:
    """Return the columns of the alerts' table."""
    return (
        Column(
            "state", "", lambda r: _state(r, now(), word=False), 1, below=100,
            sort=lambda r: _ORDER[r.state],
        ),
        Column(
            "state", "state", lambda r: _state(r, now()), 14,
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
        Column("kind", "kind", _kind, 6, above=96),
        Column("size", "change", _size, 8, align="right", sort=_by_size),
        Column("latency", "baseline → now ms", _latency, 17, align="right"),
        Column("age", "since", lambda r: Cell(age(r.onset_at, now()), "muted"), 7,
               sort=lambda r: r.onset_at),
        Column("model", "model", lambda r: Cell(clean(r.model, 80), "muted"), 8, most=40, above=84),
    )  # fmt: skip


def _state(row: AlertRow, now: datetime, word: bool = True) -> Cell:
    """Return how an alert stands; one that is kept quiet says so in place of firing."""
    shown: str = row.state
    if row.state in ("firing", "acknowledged") and is_quiet_now(row, now):
        shown = "silenced"
    return Cell(f"{ALERT_LETTERS[shown]} {shown}" if word else ALERT_LETTERS[shown], shown)


def _subject(row: AlertRow) -> Cell:
    more = f" +{count(row.inhibited, 'device')}" if row.inhibited else ""
    beneath = ("- " if ASCII else "└ ") if row.inhibited_by is not None else ""
    return Cell(beneath + with_letters(clean(row.subject, 80)) + more, "strong")


def _kind(row: AlertRow) -> Cell:
    short = {"migration": "move", NO_DATA: "silent"}
    return Cell(short.get(row.kind) or clean(row.kind, 20))


def _by_size(row: AlertRow) -> float | None:
    return abs(row.size_percent) if math.isfinite(row.size_percent) else None


def _size(row: AlertRow) -> Cell:
    if row.kind == "spread":
        return Cell("uneven", "warn")
    if row.kind == "migration":
        return Cell("moved", "warn")
    if row.kind == NO_DATA:
        return Cell(NO_DATA, "warn")
    slower = row.direction == "up"
    arrow = "▲" if slower else "▼"
    style = "muted" if row.state == "resolved" else "bad" if slower else "good"
    return Cell(f"{arrow} {change(row.size_percent)}", style)


def _latency(row: AlertRow) -> Cell:
    return Cell("" if row.kind == NO_DATA else f"{ms(row.baseline_ms)} → {ms(row.now_ms)}")
