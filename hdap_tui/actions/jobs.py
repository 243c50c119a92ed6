"""Jobs: list, show, follow, cancel, resume, repeat."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engine.events import AnyEvent
from hdap_tui.context import Context, Outcome, Table
from hdap_tui.errors import ExitCode, RefusedError
from hdap_tui.jobs import control
from hdap_tui.jobs.folder import JobFolder
from hdap_tui.model_words import missed
from hdap_tui.progress import duration
from hdap_tui.store.records import JobRow


def jobs_dir(context: Context) -> Path:
    """Return where the fleet's jobs live."""
    return context.settings.state_dir / "jobs"


def list_jobs(context: Context) -> Outcome:
    """Show all jobs, the newest first."""
    rows = [folder.row() for folder in control.every(jobs_dir(context))]
    table = Table(
        ("job", "state", "step", "done", "left", "started"),
        tuple(
            (r.id, r.state, r.step, f"{r.progress:.0%}", _left(r), r.created_at[:19]) for r in rows
        ),
    )
    return Outcome(
        data={"jobs": [document(r) for r in rows]},
        table=table if rows else None,
        text="" if rows else 'No jobs yet; "hdap compress" starts one.',
    )


def show(context: Context, job: str | None = None) -> Outcome:
    """Show one job: its steps, curves and log."""
    folder = control.find(jobs_dir(context), job)
    row, progress = folder.row(), folder.progress()
    steps = [
        {"name": s.name, "state": s.state, "done": s.n, "total": s.total}
        for s in progress.steps.values()
    ]
    data = {
        **document(row),
        "request": folder.request,
        "steps": steps,
        "curves": progress.curves,
        "log": list(progress.log),
    }
    table = Table(
        ("step", "state", "done"),
        tuple(
            (s.name, s.state, f"{s.n}/{s.total}" if s.total else str(s.n or ""))
            for s in progress.steps.values()
        ),
        title=f"{row.id}: {row.state}, {row.progress:.0%}",
    )
    text = "\n".join([*list(progress.log)[-10:], *([row.error] if row.error else [])])
    return Outcome(data=data, table=table, text=text)


def follow(context: Context, job: str | None = None) -> Outcome:
    """Follow a job until it ends; its end is this command's end."""
    return watch(context, control.find(jobs_dir(context), job))


def cancel(context: Context, job: str | None = None, yes: bool = False) -> Outcome:
    """Stop a job; what it has measured and trained stays."""
    folder = control.find(jobs_dir(context), job)
    if not yes and not context.confirm(f"Stop {folder.name}?", [folder.name]):
        raise RefusedError(f"{folder.name} goes on.")
    control.cancel(folder)
    return Outcome(data={"job": folder.name}, text=f"{folder.name} stops at its next step.")


def resume(context: Context, job: str | None = None, detach: bool = False) -> Outcome:
    """Go on with a job from its last checkpoint."""
    folder = control.find(jobs_dir(context), job)
    control.resume(folder)
    return started(context, folder, detach)


def repeat(context: Context, job: str | None = None, detach: bool = False) -> Outcome:
    """Do a job once more as it was asked for, with what was measured then."""
    before = control.find(jobs_dir(context), job)
    request = {k: v for k, v in before.request.items() if k not in ("kind", "created_at")}
    kind = str(before.request["kind"])
    return started(context, control.start(jobs_dir(context), kind, request, before), detach)


def started(context: Context, folder: JobFolder, detach: bool) -> Outcome:
    """Follow a job that has just been started, unless it is to be left alone."""
    if detach:
        return Outcome(
            data={"job": folder.name, "folder": str(folder.path)},
            text=f'{folder.name} runs on its own; "hdap jobs follow" shows it.',
        )
    return watch(context, folder)


def watch(context: Context, folder: JobFolder) -> Outcome:
    """Pass a job's events on until it ends, and return how it ended."""
    pass_on(context, folder, context.reporter.emit)
    row = folder.row()
    code = {
        "finished": ExitCode.DONE,
        "cancelled": ExitCode.INTERRUPTED,
        "running": ExitCode.DONE,
    }.get(row.state, ExitCode.FAILED)
    text = f"{row.id}: {row.state}" + (f": {row.error}" if row.error else "")
    made = [_made(model) for model in row.result.get("models", ())]
    return Outcome(data=document(row), text="\n".join([text, *made]), exit_code=code)


def pass_on(context: Context, folder: JobFolder, listen: Callable[[AnyEvent], None]) -> None:
    """Pass a job's events on until it ends, and show meanwhile what it does on each device."""
    if not context.shows_stages:
        control.follow(folder, listen, context.cancelled)
        return
    from hdap_tui.stages import Follower

    clusters = folder.request.get("clusters", ())
    names = {name for cluster in clusters for name in cluster["devices"]}
    follower = Follower(context.store, names, context.on_stage)
    control.follow(folder, listen, context.cancelled, follower.look)


def _made(model: Mapping[str, Any]) -> str:
    """Say what a compression job made."""
    metrics = model["metrics"]
    before, after = metrics["test_accuracy_before"], metrics["test_accuracy"]
    short = missed(metrics)
    speedup = metrics["measured_speedup"]
    measured = "not measured" if speedup is None else f"{speedup:.2f}x measured"
    return (
        f"{model['model']} ({metrics['precision']}): {measured} on the representatives, "
        f"{before:.2%} -> {after:.2%} of the test images right"
        f"{f'; {short}' if short else ''}"
    )


def document(row: JobRow) -> dict[str, Any]:
    """Return a job as the JSON that the command line prints."""
    return {
        "job": row.id,
        "kind": row.kind,
        "state": row.state,
        "step": row.step,
        "progress": round(row.progress, 4),
        "left_s": row.left_s,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
        "folder": row.folder,
        "error": row.error,
        "result": dict(row.result),
    }


def _left(row: JobRow) -> str:
    return duration(row.left_s) if row.state == "running" else ""
