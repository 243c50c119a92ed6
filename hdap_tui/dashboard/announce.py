"""Sentences about what happened, made from two snapshots; no widgets in here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from hdap_tui.alerting.words import alert_sentence
from hdap_tui.dashboard.formats import listed, proof
from hdap_tui.figures import count
from hdap_tui.store.records import FleetSnapshot, JobRow
from hdap_tui.text import clean

if TYPE_CHECKING:
    from hdap_tui.dashboard.tasks import Task

_MANY = 3


def news(before: FleetSnapshot | None, after: FleetSnapshot) -> Iterator[tuple[str, str]]:
    """Yield a sentence and its weight for what is worth interrupting somebody."""
    if before is None:
        return
    known = {a.id for a in before.alerts if a.state != "pending" and not a.is_quiet}
    fresh = [
        a for a in after.alerts if a.id not in known and a.state == "firing" and not a.is_quiet
    ]
    if len(fresh) > _MANY:
        yield f"{count(len(fresh), 'new alert')}: {listed(a.subject for a in fresh)}.", "warning"
    else:
        for alert in fresh:
            yield f"{alert_sentence(alert)}: press 3 for the alerts.", "warning"
    suggested = {one.id for one in before.decisions}
    for one in after.decisions:
        if one.id not in suggested and one.state == "suggested":
            yield f"Recompression is suggested: {clean(one.reason, 200)} (press 3).", "warning"
    states = {job.id: job.state for job in before.jobs}
    for job in after.jobs:
        if states.get(job.id) in {"running", "queued"} and job.state != states[job.id]:
            yield from _job(job)
    running = {d.id for d in before.deployments if d.state == "running"}
    for deployment in after.deployments:
        if deployment.id in running and deployment.state != "running":
            what = f"{clean(deployment.model, 60)} {deployment.state}"
            yield f"Deployment of {what}: {proof(deployment)}.", "information"


def farewell(snapshot: FleetSnapshot | None) -> Iterator[str]:
    """Yield what whoever closes the dashboard should know."""
    jobs = [job.id for job in snapshot.jobs if job.state == "running"] if snapshot else []
    if jobs:
        verb = "goes on" if len(jobs) == 1 else "go on"
        yield (
            f"{count(len(jobs), 'job')} {verb} without the dashboard: {listed(jobs)} "
            "(hdap jobs follow)."
        )


def names(tasks: Sequence[Task]) -> str:
    """Return the names of running commands."""
    return listed(task.name for task in tasks)


def _job(job: JobRow) -> Iterator[tuple[str, str]]:
    name = clean(job.id, 60)
    if job.state == "finished":
        yield f"Job {name} has finished: press 5 for the models.", "information"
    elif job.state == "failed":
        yield f"Job {name} has failed: {clean(job.error)}", "error"
    elif job.state == "interrupted":
        yield f"Job {name} was interrupted: press 4, then u to resume it.", "warning"
