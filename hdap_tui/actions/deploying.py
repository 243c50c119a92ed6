"""Deploy a model and prove it; put the previous one back."""

from __future__ import annotations

from typing import Any

from hdap_tui.actions.models import deployment_document
from hdap_tui.context import Context, Outcome, Table
from hdap_tui.deploy import Plan, Report, Rollout, back, plan
from hdap_tui.errors import ExitCode, RefusedError, SettingsError
from hdap_tui.measuring import Measuring
from hdap_tui.ssh.errors import DeviceError
from hdap_tui.store import deployments, devices
from hdap_tui.store import models as table
from hdap_tui.store.records import ModelRow


def deploy(
    context: Context,
    model: str | None = None,
    select: str | None = None,
    dry_run: bool = False,
    yes: bool = False,
) -> Outcome:
    """Put a model on the devices, then prove on them that it is faster."""
    chosen = [device.name for device in context.select(select)]
    with Measuring(context) as measuring:
        row = table.find(context.store, model) if model else _latest(context)
        todo = plan(measuring, row, chosen)
        if dry_run:
            return _planned(context, todo)
        if not yes and not context.confirm(f"Deploy {row.name}?", _touched(context, todo)):
            raise RefusedError(f"{row.name} was not deployed.")
        report = Rollout(measuring, todo).run()
    return _reported(report, context)


def rollback(context: Context, select: str | None = None, yes: bool = False) -> Outcome:
    """Put the previous model back on the devices."""
    chosen = [device.name for device in context.select(select)]
    devices.sync(context.store, context.settings.devices)
    running = devices.models_on(context.store)
    todo = [name for name in chosen if running.get(name, ("", ""))[1]]
    touched = [context.shown(name) for name in todo or chosen]
    if not yes and not context.confirm("Put the previous model back?", touched):
        raise RefusedError("Nothing was changed.")
    if not todo:
        raise RefusedError("No device has a previous model: nothing has been deployed on them.")
    errors: dict[str, DeviceError] = {}
    with Measuring(context) as measuring:
        done = back(measuring, todo, errors.__setitem__)
        last = deployments.last(context.store)
        if last is not None and _undone(context, last.id, done):
            deployments.finish(context.store, last.id, "rolled back")
    return Outcome(
        data={
            "rolled_back": done,
            "failed": {name: str(error) for name, error in errors.items()},
        },
        text="\n".join(
            [
                f"{len(done)} devices run their previous model again: "
                f"{', '.join(map(context.shown, done))}.",
                *map(str, errors.values()),
            ]
        ),
        exit_code=_code(done, errors),
    )


def _latest(context: Context) -> ModelRow:
    for row in table.rows(context.store):
        if row.kind == "artifact":
            return row
    raise SettingsError('There is no artifact to deploy yet; "hdap compress" makes one.')


def _touched(context: Context, todo: Plan) -> list[str]:
    return [
        f"{context.shown(name)}: {todo.before[name].name} -> {todo.model.name}"
        for stage in todo.stages
        for name in stage
    ]


def _planned(context: Context, todo: Plan) -> Outcome:
    rows = tuple(
        (str(number), context.shown(name), todo.before[name].name, todo.model.name)
        for number, stage in enumerate(todo.stages, start=1)
        for name in stage
    )
    return Outcome(
        data={
            "dry_run": True,
            "model": todo.model.name,
            "bytes": todo.model.bytes,
            "stages": [list(stage) for stage in todo.stages],
        },
        table=Table(("stage", "device", "runs", "will run"), rows),
        text="Nothing was changed.",
    )


def _reported(report: Report, context: Context) -> Outcome:
    names = [*report.comparisons, *(n for n in report.errors if n not in report.comparisons)]
    emulated = {device.name for device in context.settings.devices if device.emulated}
    rows = tuple(_line(name, report, name in emulated) for name in names)
    result, code = report.result, ExitCode.FAILED
    text = f"Deployment {report.row.id}: {report.row.state}."
    if result is not None:
        kind = ", emulated" if report.row.emulated else ""
        text += (
            f" Mean speed-up over {result.devices} devices: {result.speedup:.2f}x"
            f" (95 % interval {result.low:.2f} to {result.high:.2f}, measured{kind}):"
            f" {result.verdict}; mean latency {result.mean_before_ms:.3f} ms ->"
            f" {result.mean_after_ms:.3f} ms."
        )
        if result.verdict == "faster" and report.row.switched:
            code = ExitCode.DONE if report.row.state == "finished" else ExitCode.PARTLY
    elif report.errors:
        code = next(iter(report.errors.values())).exit_code
    if report.taken_back:
        text += f" The old model is back on {', '.join(report.taken_back)}."
    if report.stopped:
        text += f" Stopped: {report.stopped}."
    return Outcome(
        data={
            **deployment_document(report.row),
            "taken_back": report.taken_back,
            "per_device": _documents(report, emulated),
        },
        table=Table(("device", "before", "after", "speed-up", "95 % interval", ""), rows),
        text=text,
        exit_code=code,
    )


def _line(name: str, report: Report, emulated: bool) -> tuple[str, ...]:
    found = report.comparisons.get(name)
    note = " (emulated)" if emulated else ""
    if found is None:
        return name, "", "", "", "", str(report.errors[name]) + note
    old, new = report.latencies[name]
    return (
        name,
        f"{old.median_ms:.3f} ms",
        f"{new.median_ms:.3f} ms",
        f"{found.speedup:.2f}x",
        f"{found.low:.2f} to {found.high:.2f}",
        found.verdict + note,
    )


def _documents(report: Report, emulated: set[str]) -> list[dict[str, Any]]:
    found = []
    for name, comparison in report.comparisons.items():
        old, new = report.latencies[name]
        found.append(
            {
                "device": name,
                "emulated": name in emulated,
                "before_ms": old.median_ms,
                "after_ms": new.median_ms,
                "speedup": comparison.speedup,
                "low": comparison.low,
                "high": comparison.high,
                "verdict": comparison.verdict,
            }
        )
    for name, error in report.errors.items():
        found.append({"device": name, "error": error.kind.value, "detail": str(error)})
    return found


def _undone(context: Context, number: int, done: list[str]) -> bool:
    """Whether every device that a deployment had switched runs its old model again."""
    switched = {d.device for d in deployments.devices(context.store, number) if d.switched}
    return bool(switched) and switched <= set(done)


def _code(done: list[str], errors: dict[str, DeviceError]) -> ExitCode:
    if not errors:
        return ExitCode.DONE
    return ExitCode.PARTLY if done else next(iter(errors.values())).exit_code
