"""The fleet: one line a device, live."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import on, work
from textual.binding import Binding, BindingType

from hdap_tui.dashboard.filters import Selector
from hdap_tui.dashboard.formats import (
    ALERT_LETTERS,
    STATE_LETTERS,
    WATCHED_LETTERS,
    Clock,
    age,
    change,
    interval_ms,
    lasting,
    letter,
    ms,
    sparkline,
)
from hdap_tui.dashboard.grammar import Selection
from hdap_tui.dashboard.screens.base import Hint, TableView, hint
from hdap_tui.dashboard.widgets.table import Cell, Column, Table
from hdap_tui.fact_names import BY_NAME, NAMES, Fact, shown
from hdap_tui.store.records import DeviceRow, FleetSnapshot
from hdap_tui.text import clean

_STATE_ORDER = {"failed": 0, "off": 1, "unknown": 2, "busy": 3, "ok": 4}
_ALERT_ORDER = {"firing": 0, "acknowledged": 1, "recovering": 2, "pending": 3}
_WIDE = {"pythons", "boot_id", "runner"}
"""Facts that say nothing as a column."""
UNKNOWN = Cell("?", "muted")
"""What nobody recorded."""
TREND = 12
"""Latencies in a sparkline."""


class FleetScreen(TableView):
    """The fleet table."""

    view = "fleet"
    travels = True
    filter_hint = "words, or what --select takes: tag=kitchen and not state=off"
    hints = (
        Hint("enter", "details", "app.enter"),
        Hint("space", "mark", "screen.mark"),
        Hint("/", "filter", "screen.filter"),
        Hint(">", "sort", "screen.sort"),
        Hint("t", "columns", "screen.columns"),
        hint("sweep", "sweep"),
        hint("bench", "bench"),
        hint("devices check", "check"),
        hint("watch", "watch"),
        hint("compress", "recompress"),
        hint("rollback", "roll back"),
    )

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("t", "columns", "show the next fact as a column", show=False)
    ]

    def __init__(self) -> None:
        super().__init__()
        self._chosen: tuple[str, ...] | None = None

    def table(self) -> Table[DeviceRow]:
        """Return the table of devices."""
        return Table(
            fleet_columns(self.clock),
            key=lambda row: row.name,
            filter=Selector(searched, lambda: self.dash.source.devices),
            empty="No devices yet: press I to import them, or U for an emulated lab.",
            palette=self.palette,
            markable=True,
            id="main",
        )

    def apply(self, snapshot: FleetSnapshot) -> None:
        """Show the devices, at first with the columns that were chosen another time."""
        if self._chosen is None:
            self._chosen = snapshot.columns
            if self._chosen:
                self.main.set_columns(fleet_columns(self.clock, self._chosen))
        self.main.show(snapshot.devices)

    def second(self) -> None:
        """Let the seconds of the stages grow; the other rows are not even looked at."""
        if self.ready:
            self.main.refresh_ages(lambda row: bool(row.stage))

    def action_columns(self) -> None:
        """Show the next fact as a column; after the last one none."""
        rows = self.snapshot.devices if self.snapshot is not None else ()
        there = {name for row in rows for name in row.facts}
        names = [name.name for name in NAMES if name.name in there and name.name not in _WIDE]
        if not names:
            self.dash.say("Nothing is known of the devices yet: press c to look at them.")
            return
        now = self._chosen[0] if self._chosen else ""
        following = names.index(now) + 1 if now in names else 0
        self.choose_columns(tuple(names[following : following + 1]))

    def choose_columns(self, names: tuple[str, ...]) -> None:
        """Show these facts as columns, and remember them."""
        self._chosen = names
        self.main.set_columns(fleet_columns(self.clock, names))
        self._keep(names)

    @work(thread=True, exclusive=True, group="columns", exit_on_error=False)
    def _keep(self, names: tuple[str, ...]) -> None:
        self.dash.source.keep_columns(names)

    def selection(self) -> Selection:
        """Return the marked devices and the one under the cursor."""
        row = self.main.current
        return Selection(
            device=row.name if row else "",
            marked=self.main.marked,
            hidden=len(self.main.marks) - len(self.main.marked),
        )

    def action_mark(self) -> None:
        """Mark the device under the cursor."""
        self.main.action_mark()

    def action_sort(self) -> None:
        """Sort by the next column."""
        self.main.action_sort(1)

    @on(Table.Marked)
    def _marked(self) -> None:
        self.dash.marks = frozenset(self.main.marks)
        self.refresh_frame()


def searched(row: DeviceRow) -> str:
    """Return the text that the filter looks into."""
    parts = [row.name, *row.tags, *(f"tag={tag}" for tag in row.tags)]
    parts += [f"state={row.state}", f"model={row.model}", row.error, row.stage]
    parts += [f"cluster={letter(row.cluster)}"] if row.cluster is not None else []
    parts += [f"alert={row.alert}"] if row.alert else []
    parts += ["emulated"] if row.emulated else []
    return " ".join(parts)


def fleet_columns(now: Clock, facts: Sequence[str] = ()) -> Sequence[Column[DeviceRow]]:
    """Return the columns of the fleet table, some facts among them."""
    return (
        Column(
            "state", "", lambda r: Cell(STATE_LETTERS[r.state], r.state), 1, below=100,
            sort=lambda r: _STATE_ORDER[r.state],
        ),
        Column(
            "state", "state", _state, 9, above=100, sort=lambda r: _STATE_ORDER[r.state]
        ),
        Column(
            "name", "device", lambda r: Cell(clean(r.name, 80), "strong"), 12, most=40,
            text=lambda r: r.name, sort=lambda r: r.name.lower(),
        ),
        Column("emulated", "", _emulated, 3, below=128),
        Column("emulated", "", _emulated_word, 8, above=128),
        Column(
            "tags", "tags", lambda r: Cell(clean(", ".join(r.tags), 80), "muted"), 8, most=24,
            above=110, text=lambda r: ", ".join(r.tags), sort=lambda r: r.tags or None,
            spare=3,
        ),
        Column(
            "model", "model", _model, 12, most=32,
            text=lambda r: r.model, sort=lambda r: r.model or None,
            above=96 if facts else 0, spare=2 if facts else 0,
        ),
        *map(fact_column, facts),
        Column(
            "latency", "ms", lambda r: Cell(ms(r.latency_ms)), 7, align="right",
            sort=lambda r: r.latency_ms,
        ),
        Column("interval", "95 % interval", _interval, 15, above=120, spare=5),
        Column("change", "change", _change, 7, align="right", sort=lambda r: r.change_percent),
        Column(
            "trend", "trend",
            lambda r: Cell(sparkline(r.recent_ms, TREND), "trend"), TREND, above=88, spare=4,
        ),
        Column(
            "trend", "trend", lambda r: Cell(sparkline(r.recent_ms, 6), "trend"), 6, below=88,
            spare=4,
        ),
        Column("cluster", "cl", _cluster, 2, sort=lambda r: _noise_last(r.cluster)),
        Column("alert", "al", _alert, 2, below=120, sort=_alert_order),
        Column("alert", "alert", _alert_word, 10, above=120, sort=_alert_order),
        Column("now", "now", lambda r: _now(r, now), 12, most=60, sort=lambda r: r.measured_at),
    )  # fmt: skip


def fact_column(name: str) -> Column[DeviceRow]:
    """Return the column of a fact."""

    def words(row: DeviceRow) -> str:
        return clean(shown(name, row.facts.get(name)), 80)

    def order(row: DeviceRow) -> Fact | None:
        value = row.facts.get(name)
        return value.lower() if isinstance(value, str) else value

    return Column(
        f"fact-{name}", BY_NAME[name].title, lambda r: Cell(words(r), "muted"), 8, most=28,
        text=words, sort=order, spare=1,
    )  # fmt: skip


def _state(row: DeviceRow) -> Cell:
    return Cell(f"{STATE_LETTERS[row.state]} {row.state}", row.state)


def _emulated(row: DeviceRow) -> Cell:
    return Cell("emu" if row.emulated else "", "emulated")


def _emulated_word(row: DeviceRow) -> Cell:
    return Cell("emulated" if row.emulated else "", "emulated")


def _interval(row: DeviceRow) -> Cell:
    if row.span:  # its ends are no interval of the median
        return Cell(f"over 1 {row.span}", "muted")
    noisy = " contended" if row.contended > 0.5 else ""
    return Cell(interval_ms(row.low_ms, row.high_ms) + noisy, "muted")


def _model(row: DeviceRow) -> Cell:
    return Cell(clean(row.model, 80)) if row.model or not row.past else UNKNOWN


def _change(row: DeviceRow) -> Cell:
    percent = row.change_percent
    if percent is None and row.past:
        return UNKNOWN
    if percent is None:
        return Cell("new" if row.latency_ms is not None else "", "muted")
    style = "warn" if percent >= 3 else "good" if percent <= -3 else "muted"
    return Cell(change(percent), "bad" if percent >= 10 else style)


def _cluster(row: DeviceRow) -> Cell:
    if row.cluster is None:
        return Cell("")
    return Cell(letter(row.cluster) + ("*" if row.representative else ""), f"cluster{row.cluster}")


def _noise_last(cluster: int | None) -> int | None:
    return None if cluster is None or cluster < 0 else cluster


def _alert(row: DeviceRow) -> Cell:
    stands = row.standing
    if stands in ALERT_LETTERS:
        return Cell(ALERT_LETTERS[stands], stands)
    return Cell(WATCHED_LETTERS.get(stands, ""), "muted")


def _alert_word(row: DeviceRow) -> Cell:
    stands = row.standing
    if stands in ALERT_LETTERS:
        short = {"acknowledged": "ack'd", "recovering": "recov."}.get(stands, stands)
        return Cell(f"{ALERT_LETTERS[stands]} {short}", stands)
    letter = WATCHED_LETTERS.get(stands, "")
    return Cell(f"{letter} {stands}" if letter else "", "muted")


def _alert_order(row: DeviceRow) -> int | None:
    return _ALERT_ORDER[row.alert] if row.alert else None


def _now(row: DeviceRow, now: Clock) -> Cell:
    if row.stage:
        since = lasting(row.stage_since, now())
        return Cell(clean(row.stage, 60), "busy", f" · {since}" if since else "")
    if row.state in {"failed", "off"}:
        text = f"{row.error}: {row.detail}" if row.detail else row.error
        return Cell(clean(text or row.state, 120), row.state)
    return Cell(age(row.measured_at, now()), "muted")
