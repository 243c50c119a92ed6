"""Leave devices alone for a while, and say what the watcher does."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from hdap_tui import moments
from hdap_tui.context import Context, Outcome, Table
from hdap_tui.figures import count
from hdap_tui.progress import duration
from hdap_tui.store import devices, pauses, sweeps, watchers
from hdap_tui.store.pauses import Pause
from hdap_tui.store.sweeps import SweepRow
from hdap_tui.store.values import from_seconds
from hdap_tui.watching import words
from hdap_tui.watching.away import Away
from hdap_tui.watching.owner import running, where


def pause(
    context: Context, select: str | None = None, for_: str = "1h", reason: str | None = None
) -> Outcome:
    """Have the watcher leave devices alone; without a selector the whole fleet.

    Raises:
        SettingsError: the time is none, or the selector names nobody.
    """
    length = moments.length(for_).total_seconds()
    names = [device.name for device in context.select(select)] if select else []
    devices.sync(context.store, context.settings.devices)
    until = from_seconds(time.time() + length)
    row = pauses.add(context.store, names, until, reason or "")
    alive = running(context.store)
    text = f"{_whom(context, row.devices)} paused{words.until(until)}."
    if alive is None:
        text += " Nobody watches this fleet just now."
    return Outcome(data={"pause": _pause(row)}, text=text)


def resume(context: Context, select: str | None = None) -> Outcome:
    """End pauses; without a selector all of them."""
    everybody = [device.name for device in context.settings.devices]
    names = [device.name for device in context.select(select)] if select else []
    released = pauses.resume(context.store, everybody, names)
    if not released:
        return Outcome(data={"resumed": []}, text="No device was paused.")
    whole = len(released) == len(everybody)
    text = f"{_whom(context, () if whole else released)} no longer paused."
    return Outcome(data={"resumed": list(released)}, text=text)


def status(context: Context) -> Outcome:
    """Say what the watcher does, what it did last, what is next, and who is left alone."""
    store = context.store
    row, last = running(store), watchers.latest(store)
    away = Away(context.settings, store)
    away.look()
    rounds = [sweeps.last(store, "sweep"), sweeps.last(store, "canary")]
    half = sweeps.half(store)
    data: dict[str, Any] = {
        "running": row is not None,
        "watcher": None
        if row is None
        else {
            "host": row.host, "pid": row.pid, "since": row.since, "heard_at": row.heard_at,
            "doing": row.doing, "doing_since": row.doing_since,
            "next_sweep_at": row.next_sweep_at or None, "next_round_at": row.next_round_at or None,
            "missed_sweeps": row.missed_sweeps, "missed_rounds": row.missed_rounds,
            "error": row.error, "error_at": row.error_at,
        },
        "last_sweep": _round(rounds[0]),
        "last_round": _round(rounds[1]),
        "half_sweep": _round(half),
        "pauses": [_pause(one) for one in away.pauses],
        "maintenance": [asdict(one) for one in away.rests],
        "left_alone": sorted(away.names),
    }  # fmt: skip
    rows: list[tuple[str, str]] = []
    if row is not None:
        rows += [("watches", where(row)), ("now", f"{row.doing}, since {_at(row.doing_since)}")]
        due = (("next sweep", row.next_sweep_at), ("next canary round", row.next_round_at))
        rows += [(title, _at(at)) for title, at in due if at]
        rows.append(("missed", f"{row.missed_sweeps} sweeps, {row.missed_rounds} canary rounds"))
        if row.error:
            rows.append(("failed", f"{_at(row.error_at)}: {row.error}"))
    elif last is not None:
        how = f"ended {_at(last.ended_at)}" if last.ended_at else "was killed"
        rows.append(("watched last", f"{where(last)}; {how}"))
    titles = ("last sweep", "last canary round")
    rows += [(t, _done(one)) for t, one in zip(titles, rounds, strict=True) if one is not None]
    if half is not None:
        rows.append(
            ("half", f"sweep {half.id}, {count(half.devices, 'device')}, {_at(half.started_at)}")
        )
    for one in away.pauses:
        said = f"{_whom(context, one.devices)}{words.until(one.until)}{words.because(one.reason)}"
        rows.append(("paused", said))
    for rest in away.rests:
        whom = _whom(context, () if rest.whole else rest.devices)
        rows.append(("maintenance", f"{whom}{words.until(rest.until)}{words.because(rest.reason)}"))
    text = "" if row is not None else "Nobody watches this fleet."
    return Outcome(data=data, table=Table(("what", "how it is"), tuple(rows)), text=text)


def _whom(context: Context, names: Sequence[str]) -> str:
    if not names:
        return "The whole fleet"
    return words.listed([context.shown(name) for name in names])


def _pause(row: Pause) -> dict[str, Any]:
    return {**asdict(row), "devices": list(row.devices), "whole": not row.devices}


def _round(row: SweepRow | None) -> dict[str, Any] | None:
    if row is None:
        return None
    found = {**asdict(row), "finished_at": row.finished_at or None, "took_s": None}
    if row.finished_at:
        found["took_s"] = round(_took(row), 3)
    return found


def _took(row: SweepRow) -> float:
    started, finished = map(datetime.fromisoformat, (row.started_at, row.finished_at))
    return max(0.0, (finished - started).total_seconds())


def _done(row: SweepRow) -> str:
    failed = f", {row.failed} of them failed" if row.failed else ""
    among = count(row.devices, "device")
    return f"{_at(row.finished_at)}: {among}{failed}, took {duration(_took(row))}"


def _at(at: str) -> str:
    return words.clock(at, seconds=True) if at else "unknown"
