"""The whole job on a fresh emulated lab, without a screen: measure, watch, recompress, prove.

Everything here goes the way that a real fleet goes: the same SSH, the same runner, the same job in
a process of its own. Only the devices' speed is emulated.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.events import AnyEvent, Reporter
from engine.latency import FleetComparison, compare_fleet
from hdap_tui.actions.compress import compress
from hdap_tui.actions.deploying import meant_for
from hdap_tui.actions.jobs import pass_on
from hdap_tui.context import Context
from hdap_tui.deploy import Report, Rollout, plan
from hdap_tui.errors import RefusedError, SettingsError, UserError
from hdap_tui.jobs import control as jobs
from hdap_tui.jobs.folder import JobFolder
from hdap_tui.lab import control
from hdap_tui.lab.control import LabInfo
from hdap_tui.lab.profiles import Plan
from hdap_tui.measuring import Measuring
from hdap_tui.progress import WHOLE
from hdap_tui.store import clusters
from hdap_tui.store import models as table
from hdap_tui.store.alerts import LEVEL
from hdap_tui.store.records import AlertRow, ClusterMap, JobRow
from hdap_tui.watching.watcher import Watcher

_LEAST = 6
"""Devices below which the lab's groups have too few members."""
_ROUNDS_TO_NOTICE = 24
"""Canary rounds after which the step would have to be noticed."""
_JOB_S, _PROVE_S, _ROUND_S = 110.0, 25.0, 3.0


@dataclass
class Findings:
    """What the demonstration found, in its order."""

    lab: LabInfo
    map: ClusterMap = field(default_factory=ClusterMap)
    agreement: float = 0.0
    """Adjusted Rand index between the clusters found and the groups that the lab made."""
    stepped: str = ""
    step_percent: float = 0.0
    alert: AlertRow | None = None
    rounds_to_alert: int = 0
    job: JobRow | None = None
    reports: list[Report] = field(default_factory=list)
    """One for each model that was made."""
    result: FleetComparison | None = None
    """Old against new over all devices that measured both."""
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def faster(self) -> bool:
        """Whether the new models were measured faster, and stayed."""
        faster = self.result is not None and self.result.verdict == "faster"
        return faster and all(report.row.switched for report in self.reports)


def fresh_state(context: Context) -> Path:
    """Return an empty state folder of the demonstration's own.

    Raises:
        RefusedError: the settings name real devices, or another demonstration runs.
    """
    if not all(device.emulated for device in context.settings.devices):
        raise RefusedError(
            f"{context.settings.path}: the demonstration is for the emulated lab, and this file "
            "names real devices; run it with the fleet.toml that comes along."
        )
    folder = context.settings.path.parent / ".hdap" / "demo"
    busy = any(job.state == "running" for job in jobs.every(folder / "jobs"))
    if busy or control.status(folder) is not None:
        raise RefusedError(f"Another demonstration runs in {folder}; wait for it to end.")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    return folder


def run(context: Context, devices: int) -> Findings:
    """Do the whole job on a fresh lab of so many devices.

    Raises:
        SettingsError: too few or too many devices.
    """
    if devices < _LEAST:
        raise SettingsError(f"--devices: {devices} make no fleet with groups; at least {_LEAST}.")
    settings = context.settings.in_state(fresh_state(context))
    own = Context(
        reporter=context.reporter,
        cancelled=context.cancelled,
        settings=_only(settings, devices),
        on_stage=context.on_stage,
    )
    lab = control.up(
        own.settings.state_dir,
        devices,
        plan=Plan(seed=settings.lab.seed, step_at_s=None),
        end_with=os.getpid(),
    )
    try:
        return _Demo(own, lab).run()
    finally:
        own.close()
        control.down(own.settings.state_dir)


class _Demo:
    def __init__(self, context: Context, lab: LabInfo) -> None:
        self.context, self.lab = context, lab
        self.reporter: Reporter = context.reporter
        self.found = Findings(lab)
        self._clock = time.monotonic()

    def run(self) -> Findings:
        rounds = self.context.settings.drift.baseline + 4
        watcher = Watcher(self.context)
        with watcher.measuring as measuring:
            whole = 20.0 + rounds * _ROUND_S + _JOB_S + _PROVE_S
            self.reporter.started(WHOLE, weight=whole)
            watcher.sweep()
            self._look()
            self._lap("sweep and clusters")
            self._drift(watcher)
            self._lap("canary rounds and alert")
            self.found.job = self._compress()
            self._lap("compression job")
            self._deploy(measuring, self.found.job)
            self._lap("deployment and proof")
        self.reporter.finished(WHOLE)
        return self.found

    def _look(self) -> None:
        from sklearn.metrics import adjusted_rand_score

        self.found.map = clusters.latest(self.context.store)
        truth = {device.name: device.group for device in self.lab.devices}
        made = [truth[name] for name in self.found.map.devices]
        self.found.agreement = float(adjusted_rand_score(made, self.found.map.labels))

    def _drift(self, watcher: Watcher) -> None:
        """Learn baselines, make one device slower, and wait for the alert."""
        settings = self.context.settings
        baseline = settings.drift.baseline
        for _ in range(baseline):
            if _drifted(watcher):
                raise UserError("An alert opened before anything had drifted.")
        self.found.stepped = self._victim()
        self.found.step_percent = settings.lab.drift_percent
        control.drift(settings.state_dir, self.found.stepped, self.found.step_percent)
        self.reporter.noted(
            "lab", f"{self.found.stepped} (emulated) is {self.found.step_percent:g} % slower now"
        )
        for number in range(1, _ROUNDS_TO_NOTICE + 1):
            opened = _drifted(watcher)
            if opened:
                self.found.alert, self.found.rounds_to_alert = opened[0], number
                self.reporter.noted(
                    "alert",
                    f"{opened[0].subject}: {opened[0].kind} {opened[0].size_percent:+.1f} %",
                )
                return
        raise UserError(f"The step was not noticed within {_ROUNDS_TO_NOTICE} rounds.")

    def _victim(self) -> str:
        """Return a device of the largest group that nothing else happens to."""
        largest = max((c.size, -c.id) for c in self.found.map.clusters)
        quiet = [d.name for d in self.lab.devices if _is_steady(d.profile)]
        labels = dict(zip(self.found.map.devices, self.found.map.labels, strict=True))
        return next(name for name in quiet if labels.get(name) == -largest[1])

    def _compress(self) -> JobRow:
        started = compress(self.context, per_cluster="never", detach=True)
        folder = JobFolder(Path(str(started.data["folder"])))

        def listen(event: AnyEvent) -> None:
            if event.step != WHOLE:
                self.reporter.emit(event)

        try:
            pass_on(self.context, folder, listen)
        except BaseException:
            folder.cancel()  # its lab goes with this process
            raise
        row = folder.row()
        if row.state != "finished":
            raise UserError(f"{row.id} is {row.state}: {row.error} (log: {row.folder}/log.txt)")
        return row

    def _deploy(self, measuring: Measuring, job: JobRow) -> None:
        """Put each model on the devices that it was made for, and prove it there."""
        names = [device.name for device in self.context.settings.devices]
        for made in job.result["models"]:
            row = table.find(self.context.store, str(made["model"]))
            todo = plan(measuring, row, meant_for(self.context, row, names))
            self.found.reports.append(Rollout(measuring, todo).run())
        pairs = [pair for report in self.found.reports for pair in report.latencies.values()]
        margin = self.context.settings.deploy.margin_percent / 100
        self.found.result = compare_fleet(pairs, margin) if pairs else None

    def _lap(self, name: str) -> None:
        now = time.monotonic()
        self.found.seconds[name] = now - self._clock
        self._clock = now


def _only(settings: Any, count: int) -> Any:
    """Return the settings with the first so many devices."""
    other = settings.in_state(settings.state_dir)
    if count > len(settings.devices):
        raise UserError(
            f"{settings.path} names {len(settings.devices)} devices; ask for no more than that."
        )
    other.__dict__["devices"] = settings.devices[:count]
    return other


def _drifted(watcher: Watcher) -> list[AlertRow]:
    """Return the alerts of one round that tell of a latency."""
    return [alert for alert in watcher.canary() if alert.kind in LEVEL]


def _is_steady(profile: Path) -> bool:
    import json

    schedule: list[Mapping[str, Any]] = json.loads(profile.read_text())["schedule"]
    return all(one["kind"] == "steady" for one in schedule)
