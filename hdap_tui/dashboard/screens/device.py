"""One device: what is known about it, and how its latency went."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from rich.text import Text
from textual import on, work
from textual.containers import Container, Vertical
from textual.widget import Widget
from textual.widgets import Static

from hdap_tui.dashboard.facts import device_facts, known_facts
from hdap_tui.dashboard.formats import Clock, clock_time, interval_ms, ms
from hdap_tui.dashboard.grammar import Selection
from hdap_tui.dashboard.history import history_plot
from hdap_tui.dashboard.messages import HistoryRead
from hdap_tui.dashboard.screens.base import NARROW, HdapScreen, Hint, hint
from hdap_tui.dashboard.widgets.chart import LineChart
from hdap_tui.dashboard.widgets.table import Cell, Column, Table
from hdap_tui.figures import count
from hdap_tui.store.facts import Moment
from hdap_tui.store.records import DeviceRow, FleetSnapshot, Point
from hdap_tui.store.values import moment
from hdap_tui.text import clean


class DeviceScreen(HdapScreen):
    """Opens on top of a view; follows its device while it is open."""

    view = "device"
    travels = True
    hints = (
        Hint("esc", "back", "app.back"),
        hint("bench", "bench"),
        hint("devices check", "check"),
        hint("devices trust", "trust"),
        hint("lab drift", "slow down"),
        hint("lab fault", "fault"),
    )

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self._points: Sequence[Point] = ()
        self._moments: Sequence[Moment] = ()

    def body(self) -> Iterable[Widget]:
        """Return facts, chart and table."""
        self._facts = Static(id="facts")
        self._chart = LineChart(self.palette, id="history")
        yield Container(Vertical(self._facts, id="facts-box"), self._chart, id="device-top")
        self._table: Table[Point] = Table(
            _columns(self.clock),
            key=lambda p: f"{p.at} {p.model}",
            empty="Nothing has been measured on this device yet: press b to time its model.",
            palette=self.palette,
            id="main",
        )
        yield self._table

    def selection(self) -> Selection:
        """Return the device."""
        return Selection(device=self.device)

    def apply(self, snapshot: FleetSnapshot) -> None:
        """Show what is known now, and read the history anew."""
        row = self._row(snapshot)
        if row is None:
            self._facts.update(Text(f"No device is called {clean(self.device, 60)}: press 1."))
            return
        self._tell(snapshot, row)
        self._read(self.until)

    def _tell(self, snapshot: FleetSnapshot, row: DeviceRow | None) -> None:
        if row is not None:
            now, room = self.clock(), self._room
            text = device_facts(row, snapshot, now, self.palette, room)
            is_wide = self.size.width >= NARROW
            known = known_facts(row, self._moments, now, self.palette, room, brief=not is_wide)
            self._facts.update(Text("\n").join([text, known]) if known else text)

    @work(thread=True, exclusive=True, group="history", exit_on_error=False)
    def _read(self, until: int | None) -> None:
        source = self.dash.source
        points, moments = source.history(self.device, until), source.moments(self.device, until)
        self.post_message(HistoryRead(self.device, points, moments))

    @on(HistoryRead)
    def _show_history(self, message: HistoryRead) -> None:
        self._points, self._moments = message.points, message.moments
        snapshot = self.snapshot
        self._table.show(list(reversed(self._points)))
        if snapshot is not None:
            row = self._row(snapshot)
            self._tell(snapshot, row)
            baseline = row.baseline_ms if row else None
            plot = history_plot(self._points, snapshot, baseline, self.clock())
            self._chart.show(plot)

    @property
    def _room(self) -> int:
        return (47 if self.size.width >= NARROW else self.size.width) - 4

    def _row(self, snapshot: FleetSnapshot) -> DeviceRow | None:
        return next((d for d in snapshot.devices if d.name == self.device), None)


def _when(at: str, now: datetime) -> str:
    """Return the time of day; on another day than now the date as well, without the seconds."""
    when = moment(at)
    if when is None or when.date() == now.date():
        return clock_time(at)
    return f"{when:%m-%d %H:%M}" if when.year == now.year else f"{when:%Y-%m-%d}"


def _range(point: Point) -> str:
    """Return the interval; of what was rolled up the lowest and the highest, told by its form."""
    found = interval_ms(point.low_ms, point.high_ms)
    return found.replace("–", " … ") if point.span else found


def note(point: Point) -> Cell:
    """Return what went wrong, or the energy and what was off, or what was rolled up."""
    if point.span:
        failed = f", {point.failed} failed" if point.failed else ""
        some = f"1 {point.span}, {count(point.count, 'measurement')}{failed}"
        return Cell(clean("; ".join((some, *point.remarks)), 200), "muted")
    if point.error:
        return Cell(clean(point.error, 80), "failed")
    energy = [] if point.energy_mj is None else [f"{point.energy_mj:.3g} mJ"]
    said = "; ".join((*energy, *point.remarks))
    return Cell(clean(said, 200), "warn" if point.remarks else "muted")


def _columns(now: Clock) -> Sequence[Column[Point]]:
    return (
        Column("at", "time (UTC)", lambda p: Cell(_when(p.at, now()), "muted"), 10, most=12),
        Column("model", "model", lambda p: Cell(clean(p.model, 80)), 14, most=30),
        Column(
            "ms", "ms", lambda p: Cell(ms(None if p.error else p.median_ms)), 8, align="right",
            sort=lambda p: None if p.error else p.median_ms,
        ),
        Column(
            "interval", "95 % interval",
            lambda p: Cell("" if p.error else _range(p), "muted"), 15,
        ),
        Column(
            "contended", "contended",
            lambda p: Cell(f"{p.contended:.0%}" if p.contended and not p.error else ""), 9,
            align="right",
        ),
        Column("note", "", note, 8, most=90),
    )  # fmt: skip
