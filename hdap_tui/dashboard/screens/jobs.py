"""The jobs, and everything that the selected one tells about itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from textual import on, work
from textual.containers import Container
from textual.timer import Timer
from textual.widget import Widget

from hdap_tui.dashboard.filters import Words
from hdap_tui.dashboard.follow import Follower
from hdap_tui.dashboard.formats import JOB_LETTERS, Clock, age, bar
from hdap_tui.dashboard.grammar import Selection
from hdap_tui.dashboard.messages import JobRead
from hdap_tui.dashboard.screens.base import Hint, TableView, hint
from hdap_tui.dashboard.widgets.job import LIVE, JobPane
from hdap_tui.dashboard.widgets.table import Cell, Column, Table
from hdap_tui.progress import duration
from hdap_tui.store.records import FleetSnapshot, JobRow
from hdap_tui.text import clean

READ_S = 0.5


class JobsScreen(TableView):
    """Table of jobs above the pane of one; follows that one while the screen is open."""

    view = "jobs"
    hints = (
        hint("jobs cancel", "cancel"),
        hint("jobs resume", "resume"),
        hint("compress", "recompress"),
        hint("models list", "models"),
        Hint("enter", "details", "app.enter"),
        Hint("/", "filter", "screen.filter"),
    )

    def __init__(self) -> None:
        super().__init__()
        self._follower: Follower | None = None
        self._timer: Timer | None = None

    def body(self) -> Iterable[Widget]:
        """Return table and pane."""
        yield Container(*self.filtered(), id="upper")
        self._pane = JobPane(self.palette, id="lower")
        yield self._pane

    def table(self) -> Table[JobRow]:
        """Return the table of jobs."""
        return Table(
            job_columns(self.dash.now),
            key=lambda row: row.id,
            filter=Words(lambda row: f"{row.id} {row.kind} {row.state}"),
            empty="No job yet: press r to search a smaller network for this fleet.",
            palette=self.palette,
            id="main",
        )

    def apply(self, snapshot: FleetSnapshot) -> None:
        """Show the jobs."""
        self.main.show(snapshot.jobs)

    def selection(self) -> Selection:
        """Return the job."""
        row: JobRow | None = self.main.current
        return Selection(job=row.id if row else "")

    def open_job(self, job: str) -> None:
        """Select a job."""
        if job:
            self.main.select(job)

    def on_screen_resume(self) -> None:
        """Follow on."""
        super().on_screen_resume()
        self._read_on()

    @on(Table.Highlighted, "#main")
    def _highlighted(self) -> None:
        row: JobRow | None = self.main.current
        self._pane.show_row(row)
        if row is None:
            self._follower = None
        elif self._follower is None or self._follower.job != row.id:
            self._follower = Follower(self.dash.source, row.id)
            self._pane.show_view(None)
            self._read_on()
        elif row.state in LIVE and self._timer is None:
            self._read_on()

    def _read_on(self) -> None:
        row: JobRow | None = self.main.current
        if self._timer is not None:
            self._timer.stop()
            self._timer = None
        if self._follower is not None and row is not None and self.is_current:
            self._read(self._follower, row)

    @work(thread=True, exclusive=True, group="job", exit_on_error=False)
    def _read(self, follower: Follower, row: JobRow) -> None:
        with follower.lock:
            view = follower.read(row)
        self.post_message(JobRead(follower.job, view))

    @on(JobRead)
    def _show_read(self, message: JobRead) -> None:
        row: JobRow | None = self.main.current
        if self._follower is None or message.job != self._follower.job or row is None:
            return
        if message.view is not None:
            self._pane.show_view(message.view)
        # Once more after its end, for the last events.
        if row.state in LIVE or message.view is not None:
            self._timer = self.set_timer(READ_S, self._read_on)


def job_columns(now: Clock) -> Sequence[Column[JobRow]]:
    """Return the columns of the jobs' table."""
    return (
        Column("state", "state", _state, 13, sort=lambda r: r.state),
        Column("id", "job", lambda r: Cell(clean(r.id, 80), "strong"), 14, most=40,
               text=lambda r: r.id,
               sort=lambda r: r.id),
        Column("step", "step", lambda r: Cell(clean(r.step, 40)), 10, most=24),
        Column("progress", "progress", _progress, 16),
        Column("left", "left", _left, 11, align="right"),
        Column("age", "started", lambda r: Cell(age(r.created_at, now()), "muted"), 7,
               sort=lambda r: r.created_at),
        Column("error", "", lambda r: Cell(clean(r.error, 120), "failed"), 4, most=60, above=90),
    )  # fmt: skip


def _state(row: JobRow) -> Cell:
    return Cell(f"{JOB_LETTERS[row.state]} {row.state}", row.state)


def _progress(row: JobRow) -> Cell:
    done, rest = bar(row.progress, 10)
    return Cell(f"{done}{rest} {row.progress:4.0%}", row.state)


def _left(row: JobRow) -> Cell:
    return Cell(duration(row.left_s) if row.left_s is not None else "", "muted")
