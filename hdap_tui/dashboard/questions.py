"""What the dashboard asks before a command starts, and what it adds to the command's own question.

A command that takes `yes` asks by itself, because it knows what it will touch; those that do not
are asked about here.
"""

from __future__ import annotations

from hdap_tui.alerting.words import alert_sentence
from hdap_tui.dashboard.formats import listed
from hdap_tui.dashboard.grammar import Call, Selection
from hdap_tui.figures import count
from hdap_tui.store.records import FleetSnapshot
from hdap_tui.text import clean


def before(
    call: Call, snapshot: FleetSnapshot | None, selection: Selection
) -> tuple[str, list[str]] | None:
    """Return question and what is touched, or None where the dashboard has nothing to ask."""
    command = call.command
    if command.name == "compress":
        return "Start a compression job for the fleet as it is now?", _compression(
            call, snapshot, selection
        )
    if command.name == "watch pause":
        given = call.arguments
        whom = str(given["select"] or "the whole fleet")
        return f"Have the watcher leave devices alone for {clean(given['for_'], 40)}?", [whom]
    if command.dangerous and not any(p.name == "yes" for p in command.parameters):
        said = [f"{name}: {value}" for name, value in call.arguments.items() if value is not None]
        return f"{command.name}: {command.help}", said
    return None


def note(call: Call, selection: Selection) -> str:
    """Return what the selection leaves out without showing it."""
    takes_devices = any(p.name == "select" for p in call.command.parameters)
    if not (takes_devices and selection.hidden):
        return ""
    hidden = count(selection.hidden, "marked device")
    verb = "is" if selection.hidden == 1 else "are"
    return f"{hidden} {verb} hidden by the filter, and left out."


def _compression(call: Call, snapshot: FleetSnapshot | None, selection: Selection) -> list[str]:
    lines = []
    if snapshot is not None:
        alert = next((a for a in snapshot.alerts if a.id == selection.alert), None)
        if alert is not None:
            lines.append(f"because {alert_sentence(alert)}")
        clusters = snapshot.map.clusters
        lines.append(
            f"for {count(len(snapshot.devices), 'device')} in {count(len(clusters), 'cluster')}"
        )
        chosen = [c.representative for c in clusters if c.representative]
        if chosen:
            lines.append(f"designs are timed on {listed(chosen, 4)}")
        running = sorted({d.model for d in snapshot.devices if d.model})
        if running:
            lines.append(f"the devices run {listed(running)} now")
    lines += [f"{name}: {value}" for name, value in call.given.items()]
    lines.append("a process of its own searches, trains and exports a smaller network")
    lines.append("nothing is deployed; that is asked again")
    return lines
