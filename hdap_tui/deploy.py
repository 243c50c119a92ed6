"""Put a model on the devices, prove on them that it is faster, and put the old one back.

A few devices go first, one of every cluster among them; the others follow only where the new model
was measured faster on those. Old and new are timed in the same blocks on every device, so the
proof is a paired comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import engine.runner
from engine.latency import Comparison, FleetComparison, Latency, compare, compare_fleet
from hdap_tui.context import Context
from hdap_tui.drifting import restart
from hdap_tui.errors import RefusedError, UserError
from hdap_tui.facts import ask_runner
from hdap_tui.fanout import on_each
from hdap_tui.library import interface
from hdap_tui.measuring import Measuring
from hdap_tui.ssh import release
from hdap_tui.ssh.connection import Connection
from hdap_tui.ssh.errors import DeviceError, ErrorKind
from hdap_tui.ssh.scripts import ROOT
from hdap_tui.ssh.transfer import Payload, upload
from hdap_tui.store import alerts, clusters, deployments, devices
from hdap_tui.store import models as table
from hdap_tui.store.deployments import State
from hdap_tui.store.records import DeploymentRow, ModelRow


@dataclass(frozen=True)
class Plan:
    """Who gets the model, in which order."""

    model: ModelRow
    stages: tuple[tuple[str, ...], ...]
    before: dict[str, ModelRow]
    """What each device runs now."""

    @property
    def names(self) -> tuple[str, ...]:
        """All devices, in the order of the stages."""
        return tuple(name for stage in self.stages for name in stage)


@dataclass
class Report:
    """What came of a deployment."""

    row: DeploymentRow
    result: FleetComparison | None
    comparisons: dict[str, Comparison] = field(default_factory=dict)
    latencies: dict[str, tuple[Latency, Latency]] = field(default_factory=dict)
    """Old and new of each device."""
    errors: dict[str, DeviceError] = field(default_factory=dict)
    taken_back: list[str] = field(default_factory=list)
    """Devices that run their old model again."""
    stopped: str = ""
    """Why the later stages were left out."""


def plan(measuring: Measuring, model: ModelRow, names: Sequence[str]) -> Plan:
    """Return the stages: one device of every cluster first, and at least as many as are set.

    Raises:
        RefusedError: it is a probe, or cannot take the place of what the devices run.
        UserError: every device runs the model already.
    """
    if model.kind == "probe":
        raise RefusedError(f"{model.name} is a probe for measuring, not a model to deploy.")
    before = {name: measuring.deployed(name) for name in names}
    for old in {row.digest: row for row in before.values()}.values():
        if interface(Path(old.path)) != interface(Path(model.path)):
            raise RefusedError(
                f"{model.name} cannot take the place of {old.name}: its inputs or outputs are "
                "others."
            )
    todo = [name for name in names if before[name].digest != model.digest]
    if not todo:
        raise UserError(f"{model.name} runs on every one of these devices already.")
    heads = [c.representative for c in clusters.latest(measuring.store).clusters]
    first = [name for name in heads if name in todo]
    first += [name for name in todo if name not in first]
    count = max(measuring.settings.deploy.first, sum(name in todo for name in heads))
    stages = (tuple(first[:count]), tuple(name for name in todo if name not in first[:count]))
    return Plan(model, tuple(stage for stage in stages if stage), before)


class Rollout:
    """Carries a plan out."""

    def __init__(self, measuring: Measuring, chosen: Plan) -> None:
        self.measuring, self.plan = measuring, chosen
        self.context: Context = measuring.context
        self.store = measuring.store
        self.margin = measuring.settings.deploy.margin_percent / 100
        self._runner = Payload.of(Path(engine.runner.__file__), "runner")

    def run(self) -> Report:
        """Deploy stage by stage; return what was measured.

        A stage where most devices are not faster gets the old model back, and is the last; where
        most are, only those that became slower get it back.
        """
        number = deployments.begin(self.store, self.plan.model.digest, self.plan.names)
        report = Report(deployments.row(self.store, number), None)
        try:
            for stage in self.plan.stages:
                if not self._stage(number, stage, report) or self.context.cancelled():
                    break
        finally:
            report.row = self._finish(number, report)
        return report

    def _stage(self, number: int, stage: tuple[str, ...], report: Report) -> bool:
        """Deploy to one stage; return whether the next may follow."""
        switched: list[str] = []
        try:
            self._put(stage, report, switched)
            self._prove(switched, report)
        except BaseException:
            # Interrupted: what nobody has proven does not stay.
            self._take_back(number, switched, report)
            raise
        for name in stage:
            error = report.errors.get(name)
            deployments.record_device(
                self.store,
                number,
                name,
                switched=name in switched,
                comparison=report.comparisons.get(name),
                error=error.kind.value if error else "",
                detail=str(error) if error else "",
            )
        found = {n: report.comparisons[n] for n in switched if n in report.comparisons}
        cancelled = self.context.cancelled()
        if not cancelled and _most_are_faster(list(found.values())):
            unproven = [n for n in switched if n not in found or found[n].verdict == "slower"]
            self._take_back(number, unproven, report)
            return True
        report.stopped = "cancelled" if cancelled else "the new model was not measured faster"
        self.context.reporter.noted("deploy", f"{report.stopped}: the old one goes back")
        self._take_back(number, switched, report)
        return False

    def _take_back(self, number: int, names: Sequence[str], report: Report) -> None:
        """Let devices run their old model again, and write it down."""
        if not names:
            return
        for name in back(self.measuring, names, report.errors.__setitem__):
            report.taken_back.append(name)
            deployments.record_device(
                self.store,
                number,
                name,
                switched=False,
                comparison=report.comparisons.get(name),
                error="rolled back",
            )

    def _put(self, stage: tuple[str, ...], report: Report, done: list[str]) -> None:
        """Upload, check and switch; `done` grows by the devices that run the new model now."""
        reporter = self.context.reporter
        reporter.started("push", total=len(stage), weight=len(stage) * 0.8)
        targets = [self.measuring.fleet.members[name] for name in stage]
        for target, answer in on_each(
            self.measuring.fleet.pool,
            targets,
            lambda connection: self._switch(connection, done),
            self.context.cancelled,
        ):
            if isinstance(answer, DeviceError):
                report.errors[target.name] = answer
                reporter.noted("push", str(answer))
            reporter.advanced("push", len(done) + len(report.errors))
        reporter.finished("push", switched=len(done))

    def _switch(self, connection: Connection, done: list[str]) -> None:
        old = Payload.of(Path(self.plan.before[connection.where].path))
        new = Payload.of(Path(self.plan.model.path))
        upload(connection, [self._runner, old, new], cancelled=self.context.cancelled)
        answer = ask_runner(connection, self._runner, "--check", f"{ROOT}/{new.name}")
        if b'"ok": true' not in answer:
            raise DeviceError(
                ErrorKind.FAILED, f"{connection.where}: its ONNX Runtime cannot run the model"
            )
        if release.show(connection).current is None:
            release.switch(connection, old.digest)  # so that there is something to go back to
        release.switch(connection, new.digest)
        # At once, in this thread: an interruption must not leave the store behind the device.
        devices.set_model(self.store, connection.where, new.digest)
        done.append(connection.where)

    def _prove(self, names: Sequence[str], report: Report) -> None:
        """Time old and new side by side on every device that was switched."""
        new, before = self.plan.model, self.plan.before
        blocks = self.measuring.settings.deploy.blocks
        bench = self.measuring.bench(blocks_min=blocks, blocks_max=blocks)
        found: dict[tuple[str, str], Latency] = {}
        visits = {name: [before[name], new] for name in names}
        for latency in self.measuring.run("deploy", visits, bench):
            found[latency.device, latency.model] = latency
        for name in names:
            pair = (found.get((name, before[name].digest)), found.get((name, new.digest)))
            if pair[0] is None or pair[1] is None:
                continue
            failed = next((one for one in pair if one and not one.ok), None)
            if failed is not None:
                report.errors[name] = DeviceError(_kind(failed.error), failed.detail)
                continue
            try:
                report.comparisons[name] = compare(pair[0], pair[1], self.margin)
            except ValueError as error:  # time ran out after a single block
                report.errors[name] = DeviceError(ErrorKind.TIMEOUT, str(error))
                continue
            report.latencies[name] = (pair[0], pair[1])

    def _finish(self, number: int, report: Report) -> DeploymentRow:
        pairs = list(report.latencies.values())
        report.result = compare_fleet(pairs, self.margin) if pairs else None
        row = deployments.row(self.store, number)
        state: State = "finished"
        if not row.switched:
            state = "rolled back" if report.comparisons else "failed"
        elif row.switched < row.devices or report.errors:
            state = "partly"
        running = [d.device for d in deployments.devices(self.store, number) if d.switched]
        settle(self.measuring, self.plan.model.digest, running, "a new model was deployed")
        return deployments.finish(self.store, number, state, report.result)


def back(
    measuring: Measuring,
    names: Sequence[str],
    on_error: Callable[[str, DeviceError], None] = lambda _name, _error: None,
) -> list[str]:
    """Let devices run their previous model again; return those that do."""

    done: list[str] = []
    running: dict[str, list[str]] = {}
    reporter = measuring.context.reporter
    reporter.started("rollback", total=len(names), weight=len(names) * 0.3)
    targets = [measuring.fleet.members[name] for name in names]
    for target, answer in on_each(measuring.fleet.pool, targets, release.restore):
        if isinstance(answer, DeviceError):
            on_error(target.name, answer)
            reporter.noted("rollback", str(answer))
        else:
            if table.by_digest(measuring.store, answer) is not None:
                devices.restore_model(measuring.store, target.name, answer)
            running.setdefault(answer, []).append(target.name)
            done.append(target.name)
        reporter.advanced("rollback", len(done))
    reporter.finished("rollback", switched=len(done))
    for digest, own in running.items():
        settle(measuring, digest, own, "the previous model was put back")
    return done


def settle(measuring: Measuring, digest: str, names: Sequence[str], reason: str) -> None:
    """Resolve what was said of devices under another model, and have them learn new baselines.

    What was said of the fleet or a cluster ends only where all devices have changed.
    """
    store, everybody = measuring.store, {d.name for d in measuring.settings.devices}
    whole = everybody <= set(names)
    for alert in alerts.open_rows(store):
        if whole if alert.scope != "device" else alert.subject in names:
            alerts.resolve(store, alert.id, reason)
    if names:
        restart(measuring.settings, store, digest, names)


def _most_are_faster(found: Sequence[Comparison]) -> bool:
    """Whether a stage earns the next.

    Each device against itself: a few devices of unlike clusters say little about a mean.
    """
    return 2 * sum(one.verdict == "faster" for one in found) > len(found)


def _kind(word: str) -> ErrorKind:
    try:
        return ErrorKind(word)
    except ValueError:
        return ErrorKind.FAILED
