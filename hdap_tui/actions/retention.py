"""Roll old measurements up, as the settings' [retention] says."""

from __future__ import annotations

import time
from typing import Any

from hdap_tui.context import Context, Outcome, Table
from hdap_tui.store import retention
from hdap_tui.store.database import Store
from hdap_tui.store.retention import Cuts, Step
from hdap_tui.store.values import from_micros


def compact(context: Context, dry_run: bool = False) -> Outcome:
    """Roll old measurements up to one row an hour, then one a day; thin old clusterings."""
    own, store = context.settings.retention, context.store
    cut = retention.cuts(store, own.full_days, own.hourly_days)
    planned = retention.plan(store, cut)
    began, before = time.monotonic(), _bytes(store)
    done = Step() if dry_run else _run(context, cut, planned)
    data: dict[str, Any] = {
        "dry_run": dry_run,
        "full_days": own.full_days,
        "hourly_days": own.hourly_days,
        "hours_before": from_micros(cut.hours) if cut.hours else None,
        "days_before": from_micros(cut.days) if cut.days else None,
        "planned": planned,
    }
    if not dry_run:
        data |= {
            "done": {
                "measurements": done.measurements,
                "hours": done.hours,
                "days": done.days,
                "clusterings": done.clusterings,
            },
            "seconds": round(time.monotonic() - began, 3),
            "longest_step_s": round(done.seconds, 4),
            "bytes_before": before,
            "bytes_after": _bytes(store),
        }
    return Outcome(data=data, table=_table(planned), text=_sentence(context, data, done))


def _run(context: Context, cut: Cuts, planned: dict[str, int]) -> Step:
    """Roll up, and return what all steps did together, with the longest time of one."""
    total = planned["measurements"] + planned["hours"]
    context.reporter.started("roll-up", total=total, weight=max(1, total // 20_000))
    done = Step()
    for step in retention.compact(context.store, cut, context.cancelled):
        done = Step(
            measurements=done.measurements + step.measurements,
            hours=done.hours + step.hours,
            days=done.days + step.days,
            clusterings=done.clusterings + step.clusterings,
            pages=done.pages + step.pages,
            seconds=max(done.seconds, step.seconds),
        )
        context.reporter.advanced("roll-up", min(total, done.measurements))
    context.reporter.finished("roll-up")
    return done


def _table(planned: dict[str, int]) -> Table | None:
    rows = (
        ("measurements", planned["measurements"], f"{planned['into_hours']} hours"),
        ("hours", planned["hours"], f"{planned['into_days']} days"),
        ("clusterings", planned["clusterings"], "deleted; the last of each day or month stays"),
    )
    shown = tuple((name, str(count), what) for name, count, what in rows if count)
    return Table(("of", "rows", "become"), shown) if shown else None


def _sentence(context: Context, data: dict[str, Any], done: Step) -> str:
    if not data["full_days"]:
        return f"{context.settings.path}: retention.full_days is 0, so everything is kept in full."
    if not any(data["planned"].values()) and not done.pages:
        return f"Nothing is older than {data['full_days']} measured days."
    if data["dry_run"]:
        return "Nothing was changed."
    saved = (data["bytes_before"] - data["bytes_after"]) / 1e6
    ended = "Stopped; the rest is done another time. " if context.cancelled() else ""
    return (
        f"{ended}{done.measurements} measurements rolled up in {data['seconds']:.1f} s; "
        f"{max(0.0, saved):.1f} MB given back to the disk, what else became free is used again."
    )


def _bytes(store: Store) -> int:
    return store.path.stat().st_size
