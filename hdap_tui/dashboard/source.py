"""Where the screens get everything from, and what runs a command for them.

The screens know only the protocol. `FleetSource` answers it from the settings, the store and the
actions; the tests answer it from a made-up fleet. All of it is called from worker threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hdap_tui.context import Context, Outcome
from hdap_tui.dashboard.watcher import ChildWatcher
from hdap_tui.errors import RefusedError
from hdap_tui.store.records import AlertEvent, DeploymentDevice, FleetSnapshot, JobRow, Point
from hdap_tui.store.values import from_micros

if TYPE_CHECKING:
    from engine.events import AnyEvent, Reporter
    from hdap_tui.commands import Command
    from hdap_tui.config.settings import Device
    from hdap_tui.dashboard.jobwatch import JobWatch
    from hdap_tui.profiles import Comparison
    from hdap_tui.store.database import Store
    from hdap_tui.store.facts import Moment


Confirm = Callable[[str, Sequence[str]], bool]
Cancelled = Callable[[], bool]
Secret = Callable[[str], str | None]

HISTORY_LIMIT = 2000
"""Measurements of one device that its chart is drawn from."""
MOMENTS_LIMIT = 10
"""Changes of a device's facts that are shown."""


class Source(Protocol):
    """A fleet, as the dashboard needs it."""

    @property
    def read_only(self) -> bool:
        """Whether dangerous commands are refused."""

    @property
    def devices(self) -> Mapping[str, Device]:
        """The settings' devices by name."""

    @property
    def log_file(self) -> Path | None:
        """Where the dashboard writes what went wrong."""

    def version(self) -> int:
        """Return a number that grows with every change."""

    def snapshot(self) -> FleetSnapshot:
        """Read everything that the screens show at a glance."""

    def past(self, at: int) -> FleetSnapshot:
        """Read the fleet as it was at a moment, in microseconds since 1970.

        Raises:
            UserError: nothing had been recorded by then.
        """

    def rounds(self) -> Sequence[int]:
        """Read a moment after each round, in microseconds since 1970, oldest first."""

    def history(self, device: str, until: int | None = None) -> Sequence[Point]:
        """Read a device's measurements, oldest first; with a moment those up to then."""

    def moments(self, device: str, until: int | None = None) -> Sequence[Moment]:
        """Read when a device's facts changed, oldest first."""

    def keep_columns(self, names: Sequence[str]) -> None:
        """Remember which facts are columns of the fleet table."""

    def alert_events(self, alert: int, until: int | None = None) -> Sequence[AlertEvent]:
        """Read the history of an alert, oldest first; with a moment that up to then."""

    def explanation(self, alert: int) -> Sequence[tuple[str, str]]:
        """Read an alert's explanation: what each line is about, and what it says."""

    def deployment(self, number: int) -> Sequence[DeploymentDevice]:
        """Read what was done on the devices of a deployment."""

    def comparison(self) -> Comparison:
        """Read all models but the probes with what was measured of them last."""

    def job_events(self, job: JobRow, offset: int) -> tuple[Sequence[AnyEvent], int]:
        """Read a job's events from an offset on; return them and the offset to go on from."""

    def run(
        self,
        command: Command,
        arguments: Mapping[str, Any],
        reporter: Reporter,
        confirm: Confirm,
        cancelled: Cancelled,
        secret: Secret,
    ) -> Outcome:
        """Run a command to its end.

        Raises:
            UserError: it could not be done; the text is for the operator.
        """

    def start_watcher(self) -> None:
        """Start to watch the fleet beside this process, unless that runs already.

        Raises:
            UserError: it cannot be started.
        """

    def stop_watcher(self) -> None:
        """Ask the watcher of this process to stop, and return at once."""

    @property
    def watching(self) -> bool:
        """Whether this process watches the fleet."""

    def activity(self) -> str:
        """Say what a watcher of this or another process does now, or nothing."""

    @property
    def elsewhere(self) -> str:
        """Which other process watched the fleet when `activity` was asked; empty for none."""

    @property
    def said(self) -> str:
        """Why the watcher of this process stopped, where it did so by itself."""

    def close(self) -> None:
        """Stop the watcher, wait a moment for it, and close what was opened."""


class FleetSource:
    """The fleet that the settings describe."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._opened: Store | None = None
        self._jobs: JobWatch | None = None
        self._watcher = ChildWatcher(context.settings)
        self._elsewhere = ""

    @property
    def read_only(self) -> bool:
        """Whether the settings refuse every command that changes devices."""
        return self._context.settings.fleet.read_only

    @cached_property
    def devices(self) -> Mapping[str, Device]:
        """The settings' devices by name."""
        return {device.name: device for device in self._context.settings.devices}

    @property
    def log_file(self) -> Path | None:
        """The dashboard's log, in the fleet's state folder."""
        return self._context.settings.state_dir / "dashboard.log"

    def version(self) -> int:
        """Return the versions of the store and of the jobs' folders, added: both only grow."""
        jobs = self._look_at_jobs()
        return self._store.version() + jobs.version

    def snapshot(self) -> FleetSnapshot:
        """Read the fleet from the store, and the jobs from their folders, which are the truth."""
        from hdap_tui.store.snapshot import snapshot

        jobs = self._look_at_jobs()
        read = snapshot(self._store, self._context.settings.name)
        return replace(read, jobs=jobs.rows, version=read.version + jobs.version)

    def past(self, at: int) -> FleetSnapshot:
        """Read the fleet of then from the store."""
        from hdap_tui.store import past

        past.check(self._store, at)
        return past.snapshot(self._store, self._context.settings.name, at)

    def rounds(self) -> Sequence[int]:
        """Read the moments from the store."""
        from hdap_tui.store.past import rounds

        return rounds(self._store)

    def history(self, device: str, until: int | None = None) -> Sequence[Point]:
        """Read a device's measurements from the store."""
        from hdap_tui.store.measurements import history

        return history(self._store, self._now(device, until), limit=HISTORY_LIMIT, until=until)

    def moments(self, device: str, until: int | None = None) -> Sequence[Moment]:
        """Read the history of a device's facts from the store."""
        from hdap_tui.store.facts import history

        name, moment = self._now(device, until), _text(until)
        return history(self._store, name, limit=MOMENTS_LIMIT, until=moment)

    def keep_columns(self, names: Sequence[str]) -> None:
        """Remember them in the store."""
        from hdap_tui.store.columns import keep_columns

        keep_columns(self._store, names)

    def alert_events(self, alert: int, until: int | None = None) -> Sequence[AlertEvent]:
        """Read an alert's history from the store."""
        from hdap_tui.store.alerts import events

        return events(self._store, alert, _text(until))

    def explanation(self, alert: int) -> Sequence[tuple[str, str]]:
        """Explain an alert from the store."""
        from hdap_tui.alerting.explaining import explain
        from hdap_tui.store.alerts import row

        return explain(self._context.settings, self._store, row(self._store, alert))

    def deployment(self, number: int) -> Sequence[DeploymentDevice]:
        """Read the devices of a deployment from the store."""
        from hdap_tui.store.deployments import devices

        return devices(self._store, number)

    def comparison(self) -> Comparison:
        """Read models and latencies from the store."""
        from hdap_tui.profiles import compare
        from hdap_tui.store.models import rows

        return compare(self._store, [row for row in rows(self._store) if row.kind != "probe"])

    def job_events(self, job: JobRow, offset: int) -> tuple[Sequence[AnyEvent], int]:
        """Read a job's events from its folder."""
        from hdap_tui.jobs.folder import JobFolder

        return JobFolder(Path(job.folder)).events(offset)

    def run(
        self,
        command: Command,
        arguments: Mapping[str, Any],
        reporter: Reporter,
        confirm: Confirm,
        cancelled: Cancelled,
        secret: Secret,
    ) -> Outcome:
        """Run the command's action with a context of its own."""
        context = self._fresh(
            reporter=reporter, confirm=confirm, cancelled=cancelled, secret=secret
        )
        try:
            return command.load()(context, **arguments)
        finally:
            context.close()

    def start_watcher(self) -> None:
        """Start `hdap watch` as a child of this process.

        Raises:
            RefusedError: another process watches the fleet, as it was when last asked.
        """
        if self._elsewhere:
            raise RefusedError(f"{self._elsewhere} watches this fleet already.")
        with self._lock:
            self._watcher.start()

    def stop_watcher(self) -> None:
        """Ask the child to stop."""
        self._watcher.stop()

    @property
    def watching(self) -> bool:
        """Whether the child runs."""
        return self._watcher.running

    def activity(self) -> str:
        """Say what the store knows about the watcher of this or any other process, and pauses."""
        from hdap_tui.store import pauses
        from hdap_tui.watching import owner, words

        row = owner.running(self._store)
        others = row is not None and row.pid != self._watcher.pid
        self._elsewhere = owner.where(row) if row is not None and others else ""
        return words.activity(row, pauses.rows(self._store), self.devices, datetime.now(UTC))

    @property
    def elsewhere(self) -> str:
        """Which other process watched the fleet when `activity` was asked; empty for none."""
        return self._elsewhere

    @property
    def said(self) -> str:
        """Why the watcher of this process stopped, where it did so by itself."""
        return self._watcher.said

    def close(self) -> None:
        """Stop the watcher and close the connections to the store."""
        self._watcher.stop()
        self._watcher.wait(3)
        if self._opened is not None:
            self._opened.close()

    def _now(self, device: str, until: int | None) -> str:
        """Return what a device is called now that had a name at a moment."""
        from hdap_tui.store.devices import name_at

        return device if until is None else name_at(self._store, device, until)

    def _fresh(self, **given: Any) -> Context:
        return Context(config=self._context.config, settings=self._context.settings, **given)

    @property
    def _store(self) -> Store:
        """The store; it gives every thread a connection of its own."""
        with self._lock:
            if self._opened is None:
                from hdap_tui.deploy.owning import notice
                from hdap_tui.store.database import open_store
                from hdap_tui.store.devices import sync

                settings = self._context.settings
                store = open_store(settings.database)
                sync(store, settings.devices)
                notice(store, settings.state_dir)
                self._opened = store
            return self._opened

    def _look_at_jobs(self) -> JobWatch:
        with self._lock:
            if self._jobs is None:
                from hdap_tui.dashboard.jobwatch import JobWatch

                self._jobs = JobWatch(self._context.settings.state_dir / "jobs")
            self._jobs.look()
            return self._jobs


def _text(at: int | None) -> str:
    """Return a moment as the store writes times; empty for none."""
    return "" if at is None else from_micros(at)
