"""The two lines on top of every screen: how the fleet is, and where one is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from rich.cells import cell_len

from hdap_tui.dashboard.formats import STATE_LETTERS, fit
from hdap_tui.dashboard.widgets.line import Piece
from hdap_tui.figures import count
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
_SHORT = {"deployments": "deploy"}
_DOING_WIDTH = 24
"""Cells that what is going on gets, before the views are shortened for it."""


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
    loud = [a.state for a in snapshot.alerts if not a.is_quiet]
    firing = loud.count("firing")
    open_alerts = firing + loud.count("acknowledged") + loud.count("recovering")
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
        counts["alerts"] = sum(
            alert.state not in ("resolved", "pending") and alert.inhibited_by is None
            for alert in snapshot.alerts
        )
        counts["jobs"] = sum(job.state in {"running", "queued"} for job in snapshot.jobs)
    right = [Piece(f"{marks} marked  ", "mark")] if marks else []
    doing = clean(activity, 120) or ("watching" if watching else "not watching (w starts)")
    style = "accent" if activity or watching else "muted"
    room = width - sum(cell_len(piece.text) for piece in right) - 1
    for brevity in range(3):
        left = _tabs(view, counts, brevity)
        rest = room - sum(cell_len(piece.text) for piece in left)
        if rest >= min(cell_len(doing), _DOING_WIDTH):
            break
    if rest > 1:
        right.append(Piece(f"{fit(doing, min(rest, cell_len(doing)))} ", style))
    return left, right


def _tabs(view: str, counts: Mapping[str, int], brevity: int) -> list[Piece]:
    """Return the views: with 1 closer together, with 2 as bare keys but for where one is."""
    left = []
    for key, name, command in _VIEWS:
        word = name
        if brevity:
            word = "" if brevity > 1 and name != view else _SHORT.get(name, name)
        number = f" {counts[name]}" if counts.get(name) and word else ""
        style = "tab" if name == view else "muted"
        said = " ".join(filter(None, (key, word)))
        left.append(Piece(f" {said}{number} ", style, f"app.command('{command}')"))
        if not brevity:
            left.append(Piece(" "))
    return left
