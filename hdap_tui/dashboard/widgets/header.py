"""The two lines on top of every screen: how the fleet is, and where one is."""

from __future__ import annotations

from collections import Counter

from hdap_tui.dashboard.formats import STATE_LETTERS, count
from hdap_tui.dashboard.widgets.line import Piece
from hdap_tui.store.records import FleetSnapshot
from hdap_tui.text import clean

_VIEWS = (
    ("1", "fleet", "devices list"),
    ("2", "map", "clusters"),
    ("3", "alerts", "alerts list"),
    ("4", "jobs", "jobs list"),
    ("5", "models", "models list"),
    ("6", "deployments", "deployments list"),
)


def fleet_line(
    snapshot: FleetSnapshot | None, read_only: bool, width: int
) -> tuple[list[Piece], list[Piece]]:
    """Return the first line: the fleet's name, its devices by state, its open alerts."""
    if snapshot is None:
        return [Piece(" hdap ", "title"), Piece("  reading the fleet …", "muted")], []
    wide = width >= 100
    gap = "  " if wide else " "
    left = [
        Piece(" hdap ", "title"),
        Piece(f"{clean(snapshot.fleet, 24 if wide else 14)} ", "strong"),
    ]
    emulated = sum(row.emulated for row in snapshot.devices)
    if emulated:
        some = "" if emulated == len(snapshot.devices) else f"{emulated} "
        left += [Piece(gap[1:]), Piece(f" {some}EMULATED ", "badge")]
    if read_only:
        left += [Piece(" "), Piece(" READ-ONLY ", "badge")]
    states = Counter(row.state for row in snapshot.devices)
    left.append(Piece(f"{gap}{count(len(snapshot.devices), 'device')}"))
    for state in ("ok", "busy", "failed", "off", "unknown"):
        if states[state]:
            letter = f"{STATE_LETTERS[state]} " if wide or state == "unknown" else ""
            left.append(Piece(gap))
            left.append(Piece(f"{letter}{states[state]} {state}", state))
    return left, [_alerts(snapshot)]


def _alerts(snapshot: FleetSnapshot) -> Piece:
    firing = sum(alert.state == "firing" for alert in snapshot.alerts)
    open_alerts = firing + sum(alert.state == "acknowledged" for alert in snapshot.alerts)
    if not open_alerts:
        return Piece("no alerts ", "muted")
    style = "firing" if firing else "acknowledged"
    return Piece(f"! {count(open_alerts, 'alert')} ", style, "app.command('alerts list')")


def tab_line(
    snapshot: FleetSnapshot | None, view: str, watching: bool, activity: str, marks: int, width: int
) -> tuple[list[Piece], list[Piece]]:
    """Return the second line: the views, and what the watcher does."""
    counts: dict[str, int] = {}
    if snapshot is not None:
        counts["alerts"] = sum(alert.state != "resolved" for alert in snapshot.alerts)
        counts["jobs"] = sum(job.state in {"running", "queued"} for job in snapshot.jobs)
    left = []
    for key, name, command in _VIEWS:
        number = f" {counts[name]}" if counts.get(name) else ""
        style = "tab" if name == view else "muted"
        left += [Piece(f" {key} {name}{number} ", style, f"app.command('{command}')"), Piece(" ")]
    right = [Piece(f"{marks} marked  ", "mark")] if marks else []
    room = max(10, width - 52 - 10 * bool(marks))
    doing = clean(activity, room) or ("watching" if watching else "not watching (w starts)")
    right.append(Piece(f"{doing} ", "accent" if activity or watching else "muted"))
    return left, right
