"""The history of deployments, and what the devices run against what is recorded."""

from __future__ import annotations

from typing import Any

from hdap_tui.context import Context, Outcome, Table
from hdap_tui.errors import ExitCode, SettingsError
from hdap_tui.store import deployments
from hdap_tui.store.records import DeploymentDevice, DeploymentRow


def list_deployments(context: Context, limit: int = 20) -> Outcome:
    """Show the deployments, the latest first."""
    _notice(context)
    rows = deployments.rows(context.store, limit)
    shown = Table(
        ("", "model", "before", "state", "stage", "switched", "speed-up", "started", "stopped"),
        tuple(
            (
                str(r.id),
                r.model,
                r.previous,
                r.state,
                f"{r.stage}/{r.stages}" if r.stage else "",
                f"{r.switched}/{r.devices}",
                _speedup(r) + (" (emulated)" if r.emulated else ""),
                r.started_at[:19],
                r.stopped,
            )
            for r in rows
        ),
    )
    text = "" if rows else "Nothing has been deployed yet."
    if rows and rows[0].state == "interrupted":
        text = (
            f'Deployment {rows[0].id} was interrupted: "hdap deploy --resume" goes on with it, '
            '"hdap deploy --abort" takes it back.'
        )
    return Outcome(
        data={"deployments": [deployment_document(r) for r in rows]}, table=shown, text=text
    )


def show(context: Context, deployment: int | None = None, steps: bool = False) -> Outcome:
    """Show one deployment: every device, and with `steps` its whole journal."""
    _notice(context)
    store = context.store
    if deployment is None:
        last = deployments.last(store)
        if last is None:
            raise SettingsError("Nothing has been deployed yet.")
        deployment = last.id
    row = deployments.row(store, deployment)
    lines = deployments.devices(store, deployment)
    journal = deployments.steps(store, deployment)
    title = f"deployment {row.id}: {row.previous} -> {row.model}, {row.state}"
    if row.stopped:
        title += f" ({row.stopped})"
    table = Table(
        ("stage", "device", "outcome", "step", "speed-up", "verdict", "detail"),
        tuple(
            (
                str(one.stage),
                context.shown(one.device),
                one.outcome or "undecided",
                one.step,
                f"{one.speedup:.2f}x" if one.speedup else "",
                one.verdict,
                one.detail or one.error,
            )
            for one in lines
        ),
        title=title,
    )
    if steps:
        table = Table(
            ("at", "device", "step", "phase", ""),
            tuple((s.at[:23], context.shown(s.device), s.step, s.phase, s.text) for s in journal),
            title=title,
        )
    return Outcome(
        data={
            **deployment_document(row),
            "per_device": [_line(one) for one in lines],
            "steps": [
                {"at": s.at, "device": s.device, "step": s.step, "phase": s.phase, "text": s.text}
                for s in journal
            ],
        },
        table=table,
    )


def check(context: Context, select: str | None = None) -> Outcome:
    """Ask the devices what they run, and put the store right where it thought otherwise."""
    from hdap_tui.deploy.drift import check as look
    from hdap_tui.measuring import Measuring

    chosen = [device.name for device in context.select(select)]
    with Measuring(context) as measuring:
        found = look(measuring, chosen)
    errors = [one.error for one in found if one.error]
    changed = [one for one in found if one.finding in ("changed", "unknown model")]
    code = ExitCode.DONE
    if errors:
        code = ExitCode.PARTLY if len(errors) < len(found) else errors[0].exit_code
    sentences = [
        f"{context.shown(one.device)} runs {one.runs or 'no model'}, and not {one.recorded}: "
        "somebody or something else changed it; that is recorded now."
        for one in changed
    ]
    return Outcome(
        data={
            "devices": [
                {
                    "device": one.device,
                    "finding": one.finding,
                    "runs": one.runs,
                    "recorded": one.recorded,
                    "previous": one.previous,
                    "locked_by": one.held,
                    "detail": str(one.error or ""),
                }
                for one in found
            ]
        },
        table=Table(
            ("device", "runs", "recorded", "previous", "finding"),
            tuple(
                (
                    context.shown(one.device),
                    one.runs,
                    one.recorded,
                    one.previous,
                    str(one.error) if one.error else one.finding + _locked(one.held),
                )
                for one in found
            ),
        ),
        text="\n".join(sentences) or ("" if errors else "All devices run what is recorded."),
        exit_code=code,
    )


def deployment_document(row: DeploymentRow) -> dict[str, Any]:
    """Return a deployment as the JSON that the command line prints."""
    return {
        "deployment": row.id,
        "model": row.model,
        "previous": row.previous,
        "state": row.state,
        "started_at": row.started_at,
        "finished_at": row.finished_at,
        "stage": row.stage,
        "stages": row.stages,
        "stopped": row.stopped,
        "devices": row.devices,
        "switched": row.switched,
        "failed": row.failed,
        "speedup": row.speedup,
        "low": row.low,
        "high": row.high,
        "verdict": row.verdict,
        "emulated": row.emulated,
    }


def _line(one: DeploymentDevice) -> dict[str, Any]:
    return {
        "device": one.device,
        "stage": one.stage,
        "outcome": one.outcome,
        "step": one.step,
        "previous": one.previous,
        "speedup": one.speedup,
        "low": one.low,
        "high": one.high,
        "verdict": one.verdict,
        "error": one.error,
        "detail": one.detail,
        "at": one.at,
    }


def _notice(context: Context) -> None:
    """Find out whether a deployment's process is gone."""
    from hdap_tui.deploy.owning import notice

    notice(context.store, context.settings.state_dir)


def _speedup(row: DeploymentRow) -> str:
    return f"{row.speedup:.2f}x {row.verdict}" if row.speedup else ""


def _locked(who: str) -> str:
    return f"; {who} deploys to it now" if who else ""
