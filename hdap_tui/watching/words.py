"""What the watcher says of itself: in its log, in the dashboard's header and to `watch status`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from hdap_tui.alerting.words import alert_sentence
from hdap_tui.figures import count
from hdap_tui.progress import duration
from hdap_tui.store.pauses import Pause
from hdap_tui.store.records import NO_DATA, AlertRow
from hdap_tui.store.sweeps import SweepRow
from hdap_tui.store.watchers import Rest, WatcherRow
from hdap_tui.text import clean

Leave = tuple[Sequence[Pause], Sequence[Rest]]
"""Who is left alone: by pauses, and by maintenance windows."""
_NAMED = 5
_WEEK = timedelta(days=6)
"""Further away a day of the week might be another one."""
_KINDS = {"sweep": "sweep", "canary": "canary round"}


def done(row: SweepRow, took_s: float, missed: int, failed: Mapping[str, str]) -> str:
    """Return the line about a round that is whole; `failed` has errors by what a device is called.

    >>> row = SweepRow(id=3, kind="sweep", started_at="", finished_at="", devices=4, failed=1)
    >>> done(row, 75, 0, {"edge-01 (emulated)": "timeout"})
    'sweep 3: 3 of 4 devices measured in 1 min 15 s; failed: edge-01 (emulated) (timeout)'
    """
    good = row.devices - row.failed
    every = count(row.devices, "device")
    measured = f"{good} of {every}" if row.failed else every
    parts = [f"{_KINDS.get(row.kind, row.kind)} {row.id}: {measured} measured"]
    parts[0] += f" in {duration(took_s)}"
    if failed:
        parts.append(f"failed: {listed([f'{name} ({error})' for name, error in failed.items()])}")
    if missed:
        parts.append(f"{missed} before it missed")
    return "; ".join(parts)


def alert(row: AlertRow) -> str:
    """Return the line about an alert that opened."""
    subject = f"{row.subject} (emulated)" if row.emulated else row.subject
    if row.kind == NO_DATA:
        return f"alert {row.id}: {subject}: {alert_sentence(row)}"
    return f"alert {row.id}: {subject} {row.size_percent:+.1f} % ({row.kind}, {row.model})"


def changed(before: Leave, after: Leave, shown: Callable[[str], str]) -> Iterator[str]:
    """Yield a sentence for every pause and maintenance window that began or is over.

    `shown` says what a device is called.
    """

    def whom(one: Pause | Rest) -> str:
        whole = not one.devices if isinstance(one, Pause) else one.whole
        return "the whole fleet" if whole else listed([shown(name) for name in one.devices])

    pairs: tuple[tuple[Sequence[Pause | Rest], Sequence[Pause | Rest], str, str], ...] = (
        (before[0], after[0], "paused", "no longer paused"),
        (before[1], after[1], "maintenance", "maintenance is over"),
    )
    for old, new, begun, over in pairs:
        for one in new:
            if one not in old:
                yield f"{begun}: {whom(one)}{until(one.until)}{because(one.reason)}"
        for one in old:
            if one not in new:
                yield f"{over}: {whom(one)}"


def activity(
    watcher: WatcherRow | None, pauses: Sequence[Pause], names: Collection[str], now: datetime
) -> str:
    """Return the header's few words: who is left alone until when, and what is done now.

    Args:
        watcher: the one that lives; None where none does.
        pauses: those that are not over.
        names: the whole fleet.
        now: the time.
    """
    rests = watcher.rests if watcher else ()
    for pause in pauses:
        if not pause.devices:
            return f"PAUSED{until(pause.until, now)}{because(pause.reason)}"
    for rest in rests:
        if rest.whole:
            return f"MAINTENANCE{until(rest.until, now)}{because(rest.reason)}"
    partly: list[Pause | Rest] = [*pauses, *rests]
    left = {name for one in partly for name in one.devices if name in names}
    doing = _doing(watcher, now) if watcher else ""
    if not left:
        return doing
    latest = max(one.until for one in partly)
    return f"{len(left)} paused{until(latest, now)}" + (f" · {doing}" if doing else "")


def until(at: str, now: datetime | None = None) -> str:
    """Return " until 16:30", by this machine's clock, with the day where that is another one."""
    return f" until {clock(at, now)}"


def clock(at: str, now: datetime | None = None, seconds: bool = False) -> str:
    """Return a time of day by this machine's clock, with the day where that is another one."""
    when, moment = datetime.fromisoformat(at).astimezone(), now or datetime.now(UTC)
    time = f"{when:%H:%M:%S}" if seconds else f"{when:%H:%M}"
    if when.date() == moment.astimezone().date():
        return time
    return f"{when:%a} {time}" if abs(when - moment) < _WEEK else f"{when:%d %b} {time}"


def listed(parts: Sequence[str]) -> str:
    """Return the first few, and how many more there are."""
    more = f" and {len(parts) - _NAMED} more" if len(parts) > _NAMED else ""
    return clean(", ".join(parts[:_NAMED]), 400) + more


def because(reason: str) -> str:
    """Return ": reason", where there is one."""
    return f": {clean(reason, 80)}" if reason else ""


def _doing(watcher: WatcherRow, now: datetime) -> str:
    if watcher.doing != "waiting":
        return watcher.doing
    due = [at for at in (watcher.next_sweep_at, watcher.next_round_at) if at]
    if not due:
        return "watching"
    left = (datetime.fromisoformat(min(due)) - now).total_seconds()
    what = "sweep" if min(due) == watcher.next_sweep_at else "round"
    if left < 60:
        return f"next {what} in {max(0, round(left))} s"
    return f"next {what} {clock(min(due), now)}"
