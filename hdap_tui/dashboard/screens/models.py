"""The models: what was made from what, what it is good for, and what deploying it brought."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.text import Text
from textual import on, work
from textual.containers import Container, Vertical, VerticalScroll
from textual.widget import Widget
from textual.widgets import Static

from hdap_tui.dashboard.facts import metric, model_facts
from hdap_tui.dashboard.filters import Words
from hdap_tui.dashboard.formats import Clock, age, proof, size
from hdap_tui.dashboard.front import front_plot, left_out
from hdap_tui.dashboard.grammar import Selection
from hdap_tui.dashboard.messages import ComparisonRead
from hdap_tui.dashboard.screens.base import NARROW, Hint, TableView, hint
from hdap_tui.dashboard.widgets.chart import LineChart
from hdap_tui.dashboard.widgets.table import Cell, Column, Table
from hdap_tui.figures import count
from hdap_tui.profiles import Comparison
from hdap_tui.store.records import DeploymentRow, FleetSnapshot, ModelRow
from hdap_tui.text import clean

TALL = 40
"""Screens of fewer lines have no room for the plot beside everything else."""


class ModelsScreen(TableView):
    """Table of models, the details of one, the deployments, and a plot of all models."""

    view = "models"
    hints = (
        hint("deploy", "deploy"),
        hint("models compare", "plot"),
        hint("rollback", "roll back"),
        hint("bench", "bench"),
        Hint("enter", "all about it", "app.enter"),
        hint("compress", "recompress"),
        Hint("/", "filter", "screen.filter"),
    )

    def __init__(self) -> None:
        super().__init__()
        self._comparison = Comparison()
        self._wanted: bool | None = None
        """Whether the operator wants the plot; None: where there is room for it."""

    def body(self) -> Iterable[Widget]:
        """Return models, details, plot and deployments."""
        yield Container(*self.filtered(), id="upper")
        self._details = Static(id="details")
        self._deployments = self._deployment_table()
        self._front = LineChart(self.palette, id="front-plot")
        self._left_out = Static(id="left-out")
        title = Static(Text("deployments", style=self.palette["title"]), id="deployments-title")
        yield Container(
            VerticalScroll(self._details, id="model-details", can_focus=False),
            Vertical(
                Vertical(self._front, self._left_out, id="front"),
                Vertical(title, self._deployments, id="deployments-box"),
                id="beside",
            ),
            id="lower",
        )

    def table(self) -> Table[ModelRow]:
        """Return the table of models."""
        return Table(
            model_columns(self.dash.now),
            key=lambda row: row.digest,
            filter=Words(lambda row: f"{row.name} {row.kind} {row.parent} {row.job}"),
            empty="No model is known yet: press s for a sweep, or r to make a smaller one.",
            palette=self.palette,
            id="main",
        )

    def _deployment_table(self) -> Table[DeploymentRow]:
        return Table(
            deployment_columns(self.dash.now),
            key=lambda row: str(row.id),
            empty="Nothing has been deployed yet.",
            palette=self.palette,
            id="deployments",
        )

    def apply(self, snapshot: FleetSnapshot) -> None:
        """Show models and deployments."""
        self.main.show(snapshot.models)
        self._deployments.show(snapshot.deployments)
        self._read()

    def on_resize(self) -> None:
        """Show the plot where there is room for it."""
        super().on_resize()
        self._make_room()
        if self.ready:
            self._show_plot()

    def compare(self, toggle: bool) -> None:
        """Show the plot; where it is shown already, and `toggle` is set, hide it."""
        self._wanted = not (toggle and self.plotted)
        self._make_room()

    @property
    def plotted(self) -> bool:
        """Whether the plot is shown."""
        return self._roomy if self._wanted is None else self._wanted

    def step_back(self) -> bool:
        """Clear the filter first, then hide a plot that covers the rest."""
        if super().step_back():
            return True
        covered = self.plotted and not self._roomy
        if covered:
            self._wanted = False
            self._make_room()
        return covered

    @property
    def _roomy(self) -> bool:
        return self.size.width >= NARROW and self.size.height >= TALL

    @property
    def _front_room(self) -> int:
        """Cells of a line under the plot, as the layout has it in `dashboard.tcss`."""
        if self._roomy:
            return self.size.width * 3 // 5 - 3
        return self.size.width - 2

    def _make_room(self) -> None:
        self.set_class(self.plotted, "-plotted")
        self.set_class(not self._roomy, "-tight")

    @work(thread=True, exclusive=True, group="comparison", exit_on_error=False)
    def _read(self) -> None:
        self.post_message(ComparisonRead(self.dash.source.comparison()))

    @on(ComparisonRead)
    def _show_read(self, message: ComparisonRead) -> None:
        self._comparison = message.comparison
        self._show_plot()

    def _show_plot(self) -> None:
        row: ModelRow | None = self.main.current
        self._front.show(front_plot(self._comparison, row.digest if row else ""))
        text = left_out(self._comparison, self._front_room)
        self._left_out.display = bool(text)
        self._left_out.update(Text(text, style=self.palette["muted"]))

    def selection(self) -> Selection:
        """Return the model, and the devices that are marked in the fleet."""
        row: ModelRow | None = self.main.current
        marks = self.dash.marks
        devices = self.dash.snapshot.devices if self.dash.snapshot else ()
        marked = tuple(d.name for d in devices if d.name in marks)
        return Selection(model=row.name if row else "", marked=marked)

    @on(Table.Highlighted, "#main")
    def _highlighted(self) -> None:
        row: ModelRow | None = self.main.current
        snapshot = self.dash.snapshot
        text = Text()
        room = int(self.size.width * (0.4 if self.size.width >= NARROW else 1)) - 3
        if row is not None and snapshot is not None:
            text = model_facts(row, snapshot.models, self.palette, room)
        self._details.update(text)
        self._show_plot()


def model_columns(now: Clock) -> Sequence[Column[ModelRow]]:
    """Return the columns of the models' table."""
    return (
        Column("name", "model", lambda r: Cell(clean(r.name, 80), "strong"), 18, most=40,
               text=lambda r: r.name, sort=lambda r: r.name.lower()),
        Column("kind", "kind", _kind, 8, sort=lambda r: r.kind),
        Column("parent", "made from", lambda r: Cell(clean(r.parent, 80), "muted"), 14, most=30,
               text=lambda r: r.parent, above=100, sort=lambda r: r.parent or None),
        Column("accuracy", "accuracy", lambda r: _metric(r, "test_accuracy"), 9, align="right",
               sort=lambda r: _value(r, "test_accuracy")),
        Column("parameters", "parameters", lambda r: _metric(r, "parameters"), 10, align="right",
               above=110, sort=lambda r: _value(r, "parameters")),
        Column("macs", "mult-adds", lambda r: _metric(r, "macs"), 12, align="right", above=120,
               sort=lambda r: _value(r, "macs")),
        Column("precision", "precision", lambda r: _metric(r, "precision"), 9, above=96),
        Column("bytes", "size", lambda r: Cell(size(r.bytes)), 8, align="right",
               sort=lambda r: r.bytes),
        Column("on", "runs on", _runs_on, 10, align="right", sort=lambda r: r.deployed_on),
        Column("age", "made", lambda r: Cell(age(r.created_at, now()), "muted"), 7,
               sort=lambda r: r.created_at),
    )  # fmt: skip


def deployment_columns(now: Clock) -> Sequence[Column[DeploymentRow]]:
    """Return the columns of the deployments' table."""
    return (
        Column("state", "state", lambda r: Cell(r.state, r.state), 8, most=11,
               text=lambda r: r.state),
        Column("model", "model", lambda r: Cell(clean(r.model, 80), "strong"), 17, most=26,
               text=lambda r: r.model, above=76),
        Column("proof", "what it brought", _proof, 49, most=56),
        Column("age", "when", lambda r: Cell(age(r.started_at, now()), "muted"), 6, above=86),
        Column("previous", "before", lambda r: Cell(clean(r.previous, 80), "muted"), 12, most=26,
               above=100),
        Column("switched", "switched", lambda r: Cell(f"{r.switched}/{r.devices}"), 8,
               align="right", above=112),
    )  # fmt: skip


def _kind(row: ModelRow) -> Cell:
    return Cell(row.kind, "accent" if row.kind == "artifact" else "muted")


def _metric(row: ModelRow, name: str) -> Cell:
    value = _known(row, name)
    return Cell("" if value is None else metric(name, value))


def _known(row: ModelRow, name: str) -> Any:
    """Return a metric from when the model was made, else as its file was counted later."""
    return row.metrics.get(name, row.metrics.get("profile", {}).get(name))


def _value(row: ModelRow, name: str) -> float | None:
    value = _known(row, name)
    return float(value) if isinstance(value, int | float) else None


def _runs_on(row: ModelRow) -> Cell:
    return Cell(count(row.deployed_on, "device") if row.deployed_on else "", "good")


def _proof(row: DeploymentRow) -> Cell:
    style = {"faster": "good", "slower": "bad"}.get(row.verdict, "")
    return Cell(proof(row), style)
