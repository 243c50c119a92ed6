"""Deploy a model and prove it; go on with what was interrupted; put the previous model back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hdap_tui import library
from hdap_tui.actions.deployments import deployment_document
from hdap_tui.context import Context, Outcome, Table
from hdap_tui.deploy import Options, Plan, Report, Rollout, abort, back, plan, preview, resume
from hdap_tui.deploy.preview import Seen
from hdap_tui.deploy.taking_up import find
from hdap_tui.errors import ExitCode, RefusedError, SettingsError
from hdap_tui.figures import count
from hdap_tui.measuring import Measuring
from hdap_tui.ssh.errors import DeviceError
from hdap_tui.store import deployments, devices
from hdap_tui.store import models as table
from hdap_tui.store.records import ModelRow


def deploy(
    context: Context,
    model: str | None = None,
    select: str | None = None,
    stages: str | None = None,
    pause: str | None = None,
    max_failures: str | None = None,
    dry_run: bool = False,
    resume: bool = False,
    abort: bool = False,
    yes: bool = False,
) -> Outcome:
    """Put a model on the devices in stages, and prove on them that it is faster."""
    if resume and abort:
        raise SettingsError("--resume goes on and --abort takes back: name one of them.")
    if resume or abort:
        if select or stages or pause or max_failures or dry_run:
            raise SettingsError(
                f"--{'resume' if resume else 'abort'} keeps to the plan that was begun; it takes "
                "no other option but --yes."
            )
        return take_up(context, _number(model), goes_on=resume, yes=yes)
    options = Options.of(
        context.settings.deploy, stages=stages, pause=pause, max_failures=max_failures
    )
    chosen = [device.name for device in context.select(select)]
    with Measuring(context) as measuring:
        row = _named(context, model) if model else _latest(context)
        if select is None:
            chosen = meant_for(context, row, chosen)
        if all(measuring.deployed(name).digest == row.digest for name in chosen):
            return _nothing_to_do(row, chosen)
        todo = plan(measuring, row, chosen, options)
        if dry_run:
            return _planned(context, todo, preview(measuring, todo))
        if not yes and not context.confirm(f"Deploy {row.name}?", _touched(context, todo)):
            raise RefusedError(f"{row.name} was not deployed.")
        report = Rollout(measuring, todo).run()
    return reported(report, context)


def _nothing_to_do(model: ModelRow, names: list[str]) -> Outcome:
    """Return what is said where all is as it was asked for: that is done, and no failure."""
    return Outcome(
        data={"deployment": None, "model": model.name, "state": "finished", "runs_on": names},
        text=f"{model.name} runs on {count(len(names), 'device')} already: there is nothing to do.",
    )


def resume_deployment(
    context: Context, deployment: int | None = None, yes: bool = False
) -> Outcome:
    """Go on with the deployment that was interrupted."""
    return take_up(context, deployment, goes_on=True, yes=yes)


def abort_deployment(context: Context, deployment: int | None = None, yes: bool = False) -> Outcome:
    """Take the deployment that was interrupted back, on all of its devices."""
    return take_up(context, deployment, goes_on=False, yes=yes)


def take_up(context: Context, number: int | None, *, goes_on: bool, yes: bool) -> Outcome:
    """Go on with an interrupted deployment, or take it back."""
    row = find(context.store, number)
    names = [d.device for d in deployments.devices(context.store, row.id)]
    question = (
        f"Go on with deployment {row.id} of {row.model}?"
        if goes_on
        else f"Put back what ran before deployment {row.id} of {row.model}?"
    )
    if not yes and not context.confirm(question, [context.shown(name) for name in names]):
        raise RefusedError("Nothing was changed.")
    with Measuring(context) as measuring:
        report = (resume if goes_on else abort)(measuring, row.id)
    outcome = reported(report, context)
    if goes_on:
        return outcome
    left = [n for n in names if n in report.errors and n not in report.taken_back]
    code = ExitCode.PARTLY if left else ExitCode.DONE
    return Outcome(outcome.data, outcome.table, outcome.text, code)


def rollback(context: Context, select: str | None = None, yes: bool = False) -> Outcome:
    """Put the previous model back on the devices.

    Where some of them run what was deployed last, only on those: a device that did not get it, or
    got its old model back, would go one step further back than the others.
    """
    chosen = [device.name for device in context.select(select)]
    devices.sync(context.store, context.settings.devices)
    running = devices.models_on(context.store)
    todo = [name for name in chosen if running.get(name, ("", ""))[1]]
    without = [name for name in chosen if name not in todo]
    last = deployments.last(context.store)
    newest = deployments.kept_plan(context.store, last.id)[0] if last else ""
    behind = [name for name in todo if running[name][0] != newest]
    if len(behind) < len(todo):
        todo = [name for name in todo if name not in behind]
    else:
        behind = []
    touched = [_step_back(context, name, running[name]) for name in todo]
    touched = touched or [context.shown(name) for name in chosen]
    if not yes and not context.confirm("Put the previous model back?", touched):
        raise RefusedError("Nothing was changed.")
    if not todo:
        raise RefusedError(
            "None of these devices has a previous model: nothing was deployed there, or all that "
            "was has been taken back."
        )
    errors: dict[str, DeviceError] = {}
    with Measuring(context) as measuring:
        done = back(measuring, todo, errors.__setitem__)
        if last is not None and _undone(context, last.id, done):
            deployments.finish(context.store, last.id, "rolled back")
    return Outcome(
        data={
            "rolled_back": done,
            "failed": {name: str(error) for name, error in errors.items()},
            "without_previous": without,
            "not_on_latest": behind,
        },
        text="\n".join(
            [
                f"{count(len(done), 'device')} back on their previous model: "
                f"{', '.join(map(context.shown, done))}.",
                *map(str, errors.values()),
                *_alone(context, "without a previous model", without),
                *_alone(context, "since what was deployed last does not run there", behind),
            ]
        ),
        exit_code=_code(done, errors),
    )


def meant_for(context: Context, row: ModelRow, names: list[str]) -> list[str]:
    """Return the devices of the cluster that a model was made for; all, where it is for all."""
    own = row.metrics.get("for_devices")
    if not isinstance(own, list):
        return names
    found = [name for name in names if name in own]
    if not found:
        raise RefusedError(
            f"{row.name} was made for devices that {context.settings.path} no longer names; say "
            "with --select where it is to go."
        )
    return found


def _number(word: str | None) -> int | None:
    if word is not None and not word.isdecimal():
        raise SettingsError(
            f'"{word}" is no number of a deployment; "hdap deployments" lists them.'
        )
    return None if word is None else int(word)


def _named(context: Context, word: str) -> ModelRow:
    if word.endswith(".onnx") or "/" in word:  # a file, as `bench` takes one
        return library.from_file(context.store, Path(word).expanduser())
    return table.find(context.store, word)


def _latest(context: Context) -> ModelRow:
    for row in table.rows(context.store):
        if row.kind == "artifact":
            return row
    raise SettingsError('There is no artifact to deploy yet; "hdap compress" makes one.')


def _touched(context: Context, todo: Plan) -> list[str]:
    return [
        f"{context.shown(name)}: {todo.before[name].name} -> {todo.model.name} (stage {stage})"
        for name, stage in todo.numbers.items()
    ]


def _planned(context: Context, todo: Plan, seen: dict[str, Seen | DeviceError]) -> Outcome:
    hook = context.settings.deploy.hook
    rows, documents = [], []
    for name, stage in todo.numbers.items():
        found = seen[name]
        runs, push, note = todo.before[name].name, "", "yes"
        document = {"device": name, "stage": stage, "will_run": todo.model.name, "hook": hook}
        if isinstance(found, DeviceError):
            note = f"no: {found.kind}"
            document |= {"runs": runs, "reachable": False, "error": found.kind.value}
        else:
            push = f"{found.bytes / 1000:.0f} kB"
            if found.foreign:
                runs, note = found.foreign[:12], "yes, but somebody else has changed it"
            elif found.held:
                note = f"yes, but locked by {found.held}"
            document |= {
                "runs": runs, "reachable": True, "bytes": found.bytes, "locked_by": found.held,
                "foreign": found.foreign,
            }  # fmt: skip
        rows.append((str(stage), context.shown(name), runs, todo.model.name, push, note, hook))
        documents.append(document)
    errors = [one for one in seen.values() if isinstance(one, DeviceError)]
    foreign = any(isinstance(one, Seen) and one.foreign for one in seen.values())
    code = ExitCode.PARTLY if errors or foreign else ExitCode.DONE
    if errors and len(errors) == len(seen):
        code = errors[0].exit_code
    return Outcome(
        data={
            "dry_run": True,
            "model": todo.model.name,
            "bytes": todo.model.bytes,
            "stages": [list(stage) for stage in todo.stages],
            "max_failures": todo.options.max_failures,
            "pause_s": todo.options.pause_s,
            "devices": documents,
        },
        table=Table(
            ("stage", "device", "runs", "will run", "to send", "reachable", "hook"), tuple(rows)
        ),
        text="Nothing was changed.",
        exit_code=code,
    )


def reported(report: Report, context: Context) -> Outcome:
    """Return what came of a deployment, for people and programs."""
    names = [*report.comparisons, *(n for n in report.errors if n not in report.comparisons)]
    emulated = {device.name for device in context.settings.devices if device.emulated}
    rows = tuple(_line(name, report, name in emulated) for name in names)
    result, code = report.result, ExitCode.FAILED
    text = f"Deployment {report.row.id}: {report.row.state}."
    if result is not None:
        kind = ", emulated" if report.row.emulated else ""
        text += (
            f" Mean speed-up over {count(result.devices, 'device')}: {result.speedup:.2f}x"
            f" (95 % interval {result.low:.2f} to {result.high:.2f}, measured{kind}):"
            f" {result.verdict}; mean latency {result.mean_before_ms:.3f} ms ->"
            f" {result.mean_after_ms:.3f} ms."
        )
        # The mean of a few unlike devices has a wide interval, however clear each of them is.
        faster = result.verdict == "faster" or 2 * result.faster > result.devices
        if faster and report.row.switched:
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
    found, error = report.comparisons.get(name), report.errors.get(name)
    note = " (emulated)" if emulated else ""
    if found is None:
        return name, "", "", "", "", str(error) + note
    old, new = report.latencies[name]
    return (
        name,
        f"{old.median_ms:.3f} ms",
        f"{new.median_ms:.3f} ms",
        f"{found.speedup:.2f}x",
        f"{found.low:.2f} to {found.high:.2f}",
        (str(error) if error else found.verdict) + note,
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


def _step_back(context: Context, device: str, models: tuple[str, str]) -> str:
    now, before = (_called(context, digest) for digest in models)
    return f"{context.shown(device)}: {now} -> {before}"


def _called(context: Context, digest: str) -> str:
    row = table.by_digest(context.store, digest)
    return (row.name if row else "") or digest[:12]


def _alone(context: Context, why: str, names: list[str]) -> list[str]:
    return [f"Left alone, {why}: {', '.join(map(context.shown, names))}."] if names else []


def _undone(context: Context, number: int, done: list[str]) -> bool:
    """Whether every device that a deployment had switched runs its old model again."""
    switched = {d.device for d in deployments.devices(context.store, number) if d.switched}
    return bool(switched) and switched <= set(done)


def _code(done: list[str], errors: dict[str, DeviceError]) -> ExitCode:
    if not errors:
        return ExitCode.DONE
    return ExitCode.PARTLY if done else next(iter(errors.values())).exit_code
