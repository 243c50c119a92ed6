"""Measure the whole fleet: once, or on a schedule."""

from __future__ import annotations

import os

from hdap_tui.actions.bench import document, exit_code
from hdap_tui.actions.clusters import clusters
from hdap_tui.context import Context, Outcome
from hdap_tui.errors import ExitCode
from hdap_tui.progress import WHOLE
from hdap_tui.watch import Watcher


def sweep(context: Context, select: str | None = None) -> Outcome:
    """Measure all probe models and the deployed one on every device, then cluster the fleet."""
    watcher = Watcher(context)
    with watcher.measuring:
        latencies = watcher.sweep([device.name for device in context.select(select)])
    names = {row.digest: name for name, row in watcher.measuring.models.items()}
    found = clusters(context)
    failed = sorted({one.device for one in latencies if not one.ok})
    text = f"{len(latencies) - sum(not one.ok for one in latencies)} measurements saved"
    text += f"; failed on {', '.join(failed)}." if failed else "."
    return Outcome(
        data={
            "measurements": [document(one, names) for one in latencies],
            "clusters": dict(found.data),
        },
        table=found.table,
        text=f"{text}\n{found.text}",
        exit_code=exit_code(latencies),
    )


def watch(context: Context, rounds: int | None = None, until_alert: bool = False) -> Outcome:
    """Sweep on a schedule, with canary rounds in between, until interrupted."""
    parent, cancelled = os.environ.get("HDAP_WATCH_WITH"), context.cancelled
    if parent is not None:
        # Somebody's child: it ends when that one ends, in whatever way.
        context.cancelled = lambda: cancelled() or str(os.getppid()) != parent
    watcher = Watcher(context)
    alerts = watcher.run(context.cancelled, rounds=rounds, until_alert=until_alert)
    context.reporter.finished(WHOLE)
    return Outcome(
        data={"alerts": [{"alert": a.id, "subject": a.subject} for a in alerts]},
        text="\n".join(f"alert {a.id}: {a.subject} {a.size_percent:+.1f} %" for a in alerts)
        or "No new alert.",
        exit_code=ExitCode.DONE,
    )
