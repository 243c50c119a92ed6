"""The deployments: their stages, and what is done or was done on every device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.text import Text
from textual import on, work
from textual.containers import Container
from textual.widget import Widget
from textual.widgets import Static

from hdap_tui.dashboard.filters import Words
from hdap_tui.dashboard.formats import Clock, age, proof
from hdap_tui.dashboard.grammar import Selection
from hdap_tui.dashboard.messages import DeploymentRead
from hdap_tui.dashboard.screens.base import Hint, TableView, hint
from hdap_tui.dashboard.widgets.table import Cell, Column, Table
from hdap_tui.store.records import DeploymentDevice, DeploymentRow, FleetSnapshot
from hdap_tui.text import clean

_OUTCOMES = {"kept": "good", "back": "partly", "going back": "partly", "failed": "failed"}


class DeploymentsScreen(TableView):
    """Table of deployments above the devices of one, live while it goes on."""

    view = "deployments"
    hints = (
        hint("deployments resume", "resume"),
        hint("deployments abort", "take back"),
        hint("deployments show", "all about it"),
        hint("rollback", "roll back"),
        hint("deployments check", "ask the devices"),
        Hint("/", "filter", "screen.filter"),
    )

    def body(self) -> Iterable[Widget]:
        """Return deployments, and the devices of one."""
        yield Container(*self.filtered(), id="upper")
        self._title = Static(id="deployment-title")
        self._devices: Table[DeploymentDevice] = Table(
            device_columns(),
            key=lambda row: row.device,
            empty="",
            palette=self.palette,
            id="deployment-devices",
        )
        yield Container(self._title, self._devices, id="lower")

    def table(self) -> Table[DeploymentRow]:
        """Return the table of deployments."""
        return Table(
            deployment_columns(self.dash.now),
            key=lambda row: str(row.id),
            filter=Words(lambda row: f"{row.id} {row.model} {row.previous} {row.state}"),
            empty="Nothing has been deployed yet: press 5 for the models, then p.",
            palette=self.palette,
            id="main",
        )

    def apply(self, snapshot: FleetSnapshot) -> None:
        """Show the deployments, and read anew what was done on the devices."""
        self.main.show(snapshot.deployments)
        self._highlighted()

    def selection(self) -> Selection:
        """Return the deployment, and the device under the lower table's cursor."""
        row: DeploymentRow | None = self.main.current
        device: DeploymentDevice | None = self._devices.current if self._devices.has_focus else None
        return Selection(deployment=row.id if row else None, device=device.device if device else "")

    @on(Table.Highlighted, "#main")
    def _highlighted(self) -> None:
        row: DeploymentRow | None = self.main.current
        if row is None:
            self._title.update("")
            self._devices.show(())
            return
        title = Text(f"deployment {row.id}", style=self.palette["title"])
        if row.stages:
            title.append(f"  stage {max(row.stage, 1)} of {row.stages}", self.palette["muted"])
        if row.stopped:
            title.append(f"  {clean(row.stopped, 160)}", self.palette["partly"])
        if row.state == "interrupted":
            title.append("  interrupted: R goes on, Z takes it back", self.palette["partly"])
        self._title.update(title)
        self._read(row.id)

    @work(thread=True, exclusive=True, group="deployment", exit_on_error=False)
    def _read(self, number: int) -> None:
        self.post_message(DeploymentRead(number, self.dash.source.deployment(number)))

    @on(DeploymentRead)
    def _show_read(self, message: DeploymentRead) -> None:
        row: DeploymentRow | None = self.main.current
        if row is not None and row.id == message.deployment:
            self._devices.show(message.devices)


def deployment_columns(now: Clock) -> Sequence[Column[DeploymentRow]]:
    """Return the columns of the deployments' table."""
    return (
        Column("id", "no", lambda r: Cell(str(r.id), "muted"), 3, align="right",
               sort=lambda r: r.id),
        Column("state", "state", lambda r: Cell(r.state, r.state), 11, text=lambda r: r.state,
               sort=lambda r: r.state),
        Column("stage", "stage", lambda r: Cell(f"{r.stage}/{r.stages}" if r.stage else ""), 5),
        Column("model", "model", lambda r: Cell(clean(r.model, 80), "strong"), 17, most=30,
               text=lambda r: r.model, sort=lambda r: r.model),
        Column("proof", "what it brought", lambda r: Cell(proof(r)), 20, most=56),
        Column("switched", "switched", lambda r: Cell(f"{r.switched}/{r.devices}"), 8,
               align="right", above=90),
        Column("previous", "before", lambda r: Cell(clean(r.previous, 80), "muted"), 12, most=26,
               above=110),
        Column("age", "when", lambda r: Cell(age(r.started_at, now()), "muted"), 6, above=76),
    )  # fmt: skip


def device_columns() -> Sequence[Column[DeploymentDevice]]:
    """Return the columns of one deployment's devices."""
    return (
        Column("stage", "stage", lambda r: Cell(str(r.stage), "muted"), 5, align="right",
               sort=lambda r: r.stage),
        Column("device", "device", lambda r: Cell(clean(r.device, 80), "strong"), 14, most=30,
               text=lambda r: r.device, sort=lambda r: r.device),
        Column("outcome", "outcome", _outcome, 10, sort=lambda r: r.outcome),
        Column("step", "step", lambda r: Cell(clean(r.step, 40), "muted"), 20, most=28),
        Column("speedup", "speed-up", _speedup, 20, above=86, sort=lambda r: r.speedup),
        Column("detail", "", lambda r: Cell(clean(r.detail or r.error, 200), "failed"), 10,
               most=90, above=100),
    )  # fmt: skip


def _outcome(row: DeploymentDevice) -> Cell:
    return Cell(row.outcome or "undecided", _OUTCOMES.get(row.outcome, "muted"))


def _speedup(row: DeploymentDevice) -> Cell:
    style = {"faster": "good", "slower": "bad"}.get(row.verdict, "")
    return Cell(f"{row.speedup:.2f}× {row.verdict}" if row.speedup else "", style)
