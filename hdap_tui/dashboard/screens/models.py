"""The models: what was made from what, what it is good for, and what deploying it brought."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.text import Text
from textual import on
from textual.containers import Container, Vertical, VerticalScroll
from textual.widget import Widget
from textual.widgets import Static

from hdap_tui.dashboard.facts import metric, model_facts
from hdap_tui.dashboard.filters import Words
from hdap_tui.dashboard.formats import Clock, age, count, proof, size
from hdap_tui.dashboard.grammar import Selection
from hdap_tui.dashboard.screens.base import NARROW, Hint, TableView, hint
from hdap_tui.dashboard.widgets.table import Cell, Column, Table
from hdap_tui.store.records import DeploymentRow, FleetSnapshot, ModelRow
from hdap_tui.text import clean


class ModelsScreen(TableView):
    """Table of models, the details of one, and the deployments."""

    view = "models"
    hints = (
        hint("deploy", "deploy"),
        hint("rollback", "roll back"),
        hint("bench", "bench"),
        Hint("enter", "all about it", "app.enter"),
        hint("compress", "recompress"),
        Hint("/", "filter", "screen.filter"),
    )

    def body(self) -> Iterable[Widget]:
        """Return models, details and deployments."""
        yield Container(*self.filtered(), id="upper")
        self._details = Static(id="details")
        self._deployments = self._deployment_table()
        title = Static(Text("deployments", style=self.palette["title"]), id="deployments-title")
        yield Container(
            VerticalScroll(self._details, id="model-details", can_focus=False),
            Vertical(title, self._deployments, id="deployments-box"),
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
    return Cell(metric(name, row.metrics[name])) if name in row.metrics else Cell("")


def _value(row: ModelRow, name: str) -> float | None:
    value = row.metrics.get(name)
    return float(value) if isinstance(value, int | float) else None


def _runs_on(row: ModelRow) -> Cell:
    return Cell(count(row.deployed_on, "device") if row.deployed_on else "", "good")


def _proof(row: DeploymentRow) -> Cell:
    style = {"faster": "good", "slower": "bad"}.get(row.verdict, "")
    return Cell(proof(row), style)
