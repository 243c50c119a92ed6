"""What follows from an alert is a decision of its own: nothing, a suggestion, or a compression job.

Only a lasting shift of a cluster or the fleet, or a latency that is too high for as long, is a
reason; one device never is. One transaction decides, so that two processes cannot both do it.
Nothing is deployed from here: an operator looks at what the job made, and deploys it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from hdap_tui.alerting.words import alert_sentence, is_quiet_now
from hdap_tui.config import Settings
from hdap_tui.context import Context
from hdap_tui.errors import RefusedError, UserError
from hdap_tui.jobs import control
from hdap_tui.jobs.folder import JobFolder
from hdap_tui.store import alerts, decisions, devices, measurements
from hdap_tui.store.database import Store
from hdap_tui.store.records import NO_DATA, AlertRow, Decision

OBJECTIVE = "objective"
"""What a decision is about that follows from a latency, not from an alert."""
_ANSWERED = 0.5
"""Share of the fleet that a round must have measured to say anything about the fleet."""
_STARTING = timedelta(seconds=60)
"""How long starting a job may take; whoever takes longer has died."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that a compression may follow from."""

    cause: str
    """ "alert 3", "objective"."""
    alert: int | None
    reason: str
    """What was found, in words."""
    missing: tuple[str, ...]
    """What stands against it; empty: it should be done."""


def findings(settings: Settings, store: Store) -> list[Finding]:
    """Return what a compression may follow from, with what is missing."""
    found = [_of_alert(settings, store, a) for a in alerts.open_rows(store) if _is_wide(a)]
    if settings.policy.objective_ms:
        found.append(_of_objective(settings, store))
    return found


def obstacles(settings: Settings, store: Store) -> Iterator[str]:
    """Yield why no job may be started by itself now."""
    running = [job for job in control.every(_jobs(settings)) if job.state in ("running", "queued")]
    if running:
        yield f"{running[0].name} is running: one job at a time, and an operator's before all"
    if any(d.state == "starting" for d in decisions.pending(store)):
        yield "another process is starting a job"
    last = _last_compression(settings)
    wait = timedelta(hours=settings.policy.cooldown_h)
    if last is not None and datetime.now(UTC) - last < wait:
        until = (last + wait).isoformat(timespec="minutes")
        yield f"the last compression began at {last:%Y-%m-%d %H:%M}, the next may at {until[:16]}"


def decide(context: Context) -> list[Decision]:
    """Suggest or start what should follow now; return what was decided.

    Called by the watcher after each round, and safe to call from several processes at once.
    """
    settings, store = context.settings, context.store
    _tidy(settings, store)
    if settings.policy.mode == "off":
        return []
    if not any(_is_due(settings, store, finding) for finding in findings(settings, store)):
        return []
    made: list[Decision] = []
    with store.write():  # what is found and what is decided upon it are one
        for finding in findings(settings, store):
            if not _is_due(settings, store, finding):
                continue
            starts = settings.policy.mode == "start" and not [*obstacles(settings, store)]
            before = decisions.of_cause(store, finding.cause)
            if before is not None and before.state == "suggested":
                if starts:
                    made.append(decisions.turn(store, before.id, "starting", finding.reason))
                continue
            made.append(
                decisions.add(
                    store,
                    cause=finding.cause,
                    alert=finding.alert,
                    state="starting" if starts else "suggested",
                    reason=finding.reason,
                    recipe=settings.policy.recipe,
                )
            )
            _note(store, made[-1], "recompression", _words(made[-1]))
    return [_start(context, one) if one.state == "starting" else one for one in made]


def start(context: Context, number: int | None, who: str) -> Decision:
    """Start the job that was suggested; the latest suggestion where no number is given.

    Raises:
        RefusedError: it is no longer suggested, or another job runs.
    """
    settings, store = context.settings, context.store
    with store.write():
        found = _chosen(store, number)
        if found.state not in ("suggested", "failed"):
            raise RefusedError(f"decision {found.id} is {found.state}, and no longer suggested.")
        running = [j for j in control.every(_jobs(settings)) if j.state in ("running", "queued")]
        if running:
            raise RefusedError(f"{running[0].name} is running; one job at a time.")
        if any(d.state == "starting" for d in decisions.pending(store)):
            raise RefusedError("another process is starting a job; look again in a moment.")
        found = decisions.turn(store, found.id, "starting", "asked for", who)
    return _start(context, found, who)


def undo(context: Context, number: int | None, who: str) -> Decision:
    """Withdraw a suggestion, or cancel the job that was started; nothing is asked again for it.

    Raises:
        RefusedError: there is nothing left to undo.
    """
    store = context.store
    with store.write():
        found = _chosen(store, number)
        if found.state == "suggested":
            return decisions.turn(store, found.id, "withdrawn", "the operator withdrew it", who)
        if found.state != "started":
            raise RefusedError(f"decision {found.id} is {found.state}: there is nothing to undo.")
        folder = control.find(_jobs(context.settings), found.job)
        if folder.state not in ("running", "queued"):
            raise RefusedError(
                f"{found.job} has ended already ({folder.state}); nothing that it made is deployed "
                "by itself."
            )
        control.cancel(folder)
        found = decisions.turn(store, found.id, "undone", f"{found.job} was cancelled", who)
        _note(store, found, "recompression undone", f"{found.job} was cancelled", who)
        return found


def _is_wide(alert: AlertRow) -> bool:
    level = alert.kind not in ("spread", NO_DATA)
    return alert.scope != "device" and alert.state != "pending" and level


def _of_alert(settings: Settings, store: Store, alert: AlertRow) -> Finding:
    policy, missing = settings.policy, []
    lasted = measurements.rounds_since(store, alert.onset_at) if alert.onset_at else 0
    if alert.direction != "up":
        missing.append("it has become faster, which needs no smaller network")
    if abs(alert.size_percent) < policy.minimum_percent:
        missing.append(f"{alert.size_percent:+.1f} % is less than {policy.minimum_percent:g} %")
    if lasted < policy.lasting_rounds:
        missing.append(f"it has lasted {lasted} of {policy.lasting_rounds} rounds")
    if alert.state == "recovering":
        missing.append("it is recovering")
    if alert.inhibited_by is not None:
        missing.append(f"alert {alert.inhibited_by} stands for it")
    if is_quiet_now(alert, datetime.now(UTC)):
        missing.append(f"it is silenced until {alert.silenced_until[:16]}")
    emulated = " (emulated)" if alert.emulated else ""
    reason = f"{alert_sentence(alert)}{emulated}, for {lasted} canary rounds"
    return Finding(cause=f"alert {alert.id}", alert=alert.id, reason=reason, missing=tuple(missing))


def _of_objective(settings: Settings, store: Store) -> Finding:
    policy = settings.policy
    known = measurements.deployed_rounds(store, policy.lasting_rounds)
    least = _ANSWERED * len(devices.rows(store))
    told = [_latency(policy.objective, list(v.values())) for v in known if len(v) >= max(least, 1)]
    above = 0
    for value in reversed(told):
        if value <= policy.objective_ms:
            break
        above += 1
    name = "mean" if policy.objective == "mean" else "95th percentile"
    now = f"{told[-1]:.3f} ms" if told else "not known"
    missing = []
    if above < policy.lasting_rounds:
        missing.append(f"it has been too high for {above} of {policy.lasting_rounds} rounds")
    reason = (
        f"the fleet's {name} is {now}, the objective {policy.objective_ms:g} ms, exceeded in the "
        f"last {above} canary rounds"
    )
    return Finding(cause=OBJECTIVE, alert=None, reason=reason, missing=tuple(missing))


def _is_too_slow(settings: Settings, store: Store) -> bool:
    if not settings.policy.objective_ms:
        return False
    return not _of_objective(settings, store).missing


def _latency(which: str, values: list[float]) -> float:
    return float(np.mean(values) if which == "mean" else np.percentile(values, 95))


def _is_due(settings: Settings, store: Store, finding: Finding) -> bool:
    """Say whether something is to be decided: once for an alert, once a cool-down otherwise."""
    if finding.missing:
        return False
    before = decisions.of_cause(store, finding.cause)
    if before is None:
        return True
    if before.state == "suggested":
        return settings.policy.mode == "start" and not [*obstacles(settings, store)]
    age = datetime.now(UTC) - datetime.fromisoformat(before.at)
    return finding.alert is None and age >= timedelta(hours=settings.policy.cooldown_h)


def _tidy(settings: Settings, store: Store) -> None:
    """Withdraw suggestions whose reason is gone, and find out what became of who was starting."""
    if not decisions.pending(store):
        return
    jobs = {str(j.request.get("decision", "")): j.name for j in control.every(_jobs(settings))}
    with store.write():
        for one in decisions.pending(store):
            alert = alerts.row(store, one.alert) if one.alert is not None else None
            age = datetime.now(UTC) - datetime.fromisoformat(_since(store, one))
            if one.state == "starting" and str(one.id) in jobs and age > _STARTING:
                decisions.turn(store, one.id, "started", "found running", job=jobs[str(one.id)])
            elif one.state == "starting" and age > _STARTING:
                decisions.turn(store, one.id, "failed", "who was starting it has died")
            elif one.state == "suggested" and alert is not None and alert.state == "resolved":
                why = f"alert {alert.id} has resolved: {alert.reason}"
                decisions.turn(store, one.id, "withdrawn", why)
            elif one.state == "suggested" and alert is None and not _is_too_slow(settings, store):
                decisions.turn(store, one.id, "withdrawn", "the objective is kept to again")


def _since(store: Store, decision: Decision) -> str:
    return decisions.steps(store, decision.id)[-1].at


def _start(context: Context, decision: Decision, who: str = "") -> Decision:
    """Start the job of a decision that this process has taken on."""
    from hdap_tui.actions.compress import compress

    settings, store = context.settings, context.store
    try:
        started = compress(
            context, recipe=decision.recipe or None, detach=True, decision=decision.id
        )
    except UserError as error:
        found = decisions.turn(store, decision.id, "failed", str(error), who)
        _note(store, found, "recompression failed", str(error), who)
        return found
    except BaseException:
        decisions.turn(store, decision.id, "failed", "starting it was interrupted", who)
        raise
    job = str(started.data["job"])
    found = decisions.turn(store, decision.id, "started", decision.reason, who, job=job)
    others = [
        other.name
        for other in control.every(_jobs(settings))
        if other.name != job and other.state in ("running", "queued")
    ]
    if others:  # an operator started one in the same moment
        control.cancel(JobFolder(Path(str(started.data["folder"]))))
        why = f"{others[0]} was started in the same moment, and goes before"
        found = decisions.turn(store, decision.id, "undone", why)
    _note(store, found, "recompression", _words(found), who)
    return found


def sentence(store: Store, decision: Decision) -> str:
    """Return why something should follow, and what became of that."""
    became = _words(decision)
    if decision.state == "failed":
        became = f"no job could be started: {decisions.steps(store, decision.id)[-1].text}"
    return f"{decision.reason}; {became}"


def _words(decision: Decision) -> str:
    how = f"recipe {decision.recipe}" if decision.recipe else "a search for the fleet"
    match decision.state:
        case "suggested":
            return f"suggested ({how}): hdap policy start {decision.id}"
        case "started":
            return f"{decision.job} was started ({how}): hdap policy undo {decision.id} cancels it"
    return f"{decision.state} ({how})"


def _note(store: Store, decision: Decision, what: str, text: str, who: str = "") -> None:
    if decision.alert is not None:
        alerts.note(store, decision.alert, what, text, who)


def _chosen(store: Store, number: int | None) -> Decision:
    if number is not None:
        return decisions.row(store, number)
    found = [d for d in decisions.rows(store) if d.state in ("suggested", "started")]
    if not found:
        raise RefusedError("nothing is suggested, and nothing was started.")
    return found[0]


def _last_compression(settings: Settings) -> datetime | None:
    began = [
        datetime.fromisoformat(str(job.request["created_at"]))
        for job in control.every(_jobs(settings))
        if job.request.get("kind") == "compress"
    ]
    return max(began, default=None)


def _jobs(settings: Settings) -> Path:
    return settings.state_dir / "jobs"
