"""Measure the whole fleet: once, or on a schedule."""

from __future__ import annotations

import os
from typing import Any

from hdap_tui.actions.bench import document, exit_code
from hdap_tui.actions.clusters import clusters
from hdap_tui.alerting.words import alert_sentence
from hdap_tui.context import Context, Outcome
from hdap_tui.errors import ExitCode, SettingsError
from hdap_tui.figures import count
from hdap_tui.progress import WHOLE
from hdap_tui.store import models
from hdap_tui.watching.loop import Loop
from hdap_tui.watching.watcher import Watcher


def sweep(context: Context, select: str | None = None, estimate: float | None = None) -> Outcome:
    """Measure all probe models and the deployed one on every device, then cluster the fleet.

    `estimate` measures only the deployed model, on as many devices as tell the fleet's mean.
    """
    if estimate is not None:
        if select is not None:
            raise SettingsError("--estimate draws the devices itself: leave out --select.")
        return _estimate(context, estimate)
    watcher = Watcher(context)
    with watcher.measuring:
        latencies = watcher.sweep([device.name for device in context.select(select)])
    names = {row.digest: name for name, row in watcher.measuring.models.items()}
    found = clusters(context)
    failed = sorted({one.device for one in latencies if not one.ok})
    text = f"{count(sum(one.ok for one in latencies), 'measurement')} saved"
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


def _estimate(context: Context, within_percent: float) -> Outcome:
    from engine.fleet.estimate import document as estimate_document
    from hdap_tui.actions.estimate import sentence, strata_table
    from hdap_tui.estimating import latest_round, measure_sample, plan_sample
    from hdap_tui.measuring import Measuring

    with Measuring(context) as measuring:
        planned, names = plan_sample(context.store, within_percent)
        latencies = measure_sample(measuring, names)
    known = {row.digest: row.name for row in models.rows(context.store)}
    data: dict[str, Any] = {"measurements": [document(one, known) for one in latencies]}
    failed = sorted({one.device for one in latencies if not one.ok})
    text = f"Failed on {', '.join(failed)}." if failed else ""
    if context.cancelled() or len(failed) > len(latencies) - 2:
        return Outcome(data=data, text=text, exit_code=exit_code(latencies))
    found = latest_round(context.store, measuring.last_sweep).estimate()
    # What was asked for is planned anew, from the spread that was found just now.
    wider = found.within_percent > within_percent
    shown = estimate_document(found, (within_percent,) if wider else ())
    emulated = sum(device.emulated for device in context.settings.devices)
    data |= {"estimate": {**shown, "expected_percent": planned.within_percent}}
    return Outcome(
        data={**data, "emulated": emulated},
        table=strata_table(shown),
        text="\n".join(filter(None, (text, sentence(shown, "The fleet", emulated)))),
        exit_code=exit_code(latencies),
    )


def watch(context: Context, rounds: int | None = None, until_alert: bool = False) -> Outcome:
    """Sweep on a schedule, with canary rounds in between, until interrupted."""
    parent, cancelled = os.environ.get("HDAP_WATCH_WITH"), context.cancelled
    if parent is not None:
        # Somebody's child: it ends when that one ends, in whatever way.
        context.cancelled = lambda: cancelled() or str(os.getppid()) != parent
    alerts = Loop(Watcher(context)).run(rounds=rounds, until_alert=until_alert)
    context.reporter.finished(WHOLE)
    return Outcome(
        data={"alerts": [{"alert": a.id, "subject": a.subject} for a in alerts]},
        text="\n".join(f"alert {a.id}: {alert_sentence(a)}" for a in alerts) or "No new alert.",
        exit_code=ExitCode.DONE,
    )
