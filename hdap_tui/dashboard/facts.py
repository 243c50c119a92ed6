"""Paragraphs of facts beside the tables and pictures; every word from elsewhere is made safe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.text import Text

from hdap_tui.alerting.words import alert_sentence, is_quiet_now
from hdap_tui.dashboard.formats import (
    age,
    change,
    clock_time,
    interval_ms,
    letter,
    ms,
    number,
    size,
)
from hdap_tui.dashboard.theme import Palette
from hdap_tui.fact_names import BY_NAME, shown
from hdap_tui.figures import count
from hdap_tui.model_words import model_lines, tidy
from hdap_tui.store.facts import Moment
from hdap_tui.store.records import (
    NO_DATA,
    AlertEvent,
    AlertRow,
    ClusterMap,
    DeviceRow,
    FleetSnapshot,
    ModelRow,
)
from hdap_tui.text import clean

_LABEL = 10
_METRICS = {
    "test_accuracy": "test accuracy",
    "parameters": "parameters",
    "macs": "mult-adds",
    "precision": "precision",
    "measured_speedup": "measured",
    "predicted_speedup": "predicted",
}
"""What is shown of a model's metrics beside the table; all of them are in `models show`."""
_LINES = {"target", "design", "decision", "recipe", "surrogate", "step"}
"""Beginnings of the lines of `models show` that are shown there as well."""

_SHOWN_FACTS = (
    "board", "cpu_model", "isa", "cores_usable", "memory_mb", "os", "kernel", "libc", "python",
    "onnxruntime", "power_mode", "governor", "channel_multiple", "disk_free_mb",
)  # fmt: skip
"""What is shown of a device's facts beside its chart; all of them are in `devices show`."""
_BRIEF = ("board", "cpu_model", "os", "onnxruntime")
"""What is shown of them where there is no room."""
_CHANGES = 4
_EVENTS = 5
"""Lines of an alert's history that are shown beside its explanation."""


def pairs(
    rows: Iterable[tuple[str, str | Text]], palette: Palette, room: int, width: int = _LABEL
) -> Text:
    """Return lines of a label and what it is, the latter folded into its own column."""
    lines = []
    for label, value in rows:
        text = value if isinstance(value, Text) else Text(value)
        for i, part in enumerate(folded(text, max(8, room - width - 1))):
            line = Text(f"{'' if i else label:<{width}} ", style=palette["muted"])
            lines.append(Text.assemble(line, part))
    return Text("\n").join(lines)


def folded(text: Text, room: int) -> list[Text]:
    """Return a text as lines of at most `room` characters, broken at blanks where possible."""
    lines = []
    while len(text) > room:
        cut = text.plain.rfind(" ", 0, room + 1)
        cut = cut if cut > 0 else room
        lines.append(text[:cut])
        text = text[cut:]
        while text.plain.startswith(" "):
            text = text[1:]
    return [*lines, text] if text or not lines else lines


def device_facts(
    row: DeviceRow, snapshot: FleetSnapshot, now: datetime, palette: Palette, room: int
) -> Text:
    """Return what is known about a device."""
    title = Text(clean(row.name, 80), style=palette["title"])
    if row.emulated:
        title.append("  ")
        title.append(" EMULATED ", palette["badge"])
    alerts = [a for a in snapshot.alerts if a.subject == row.name and a.state != "resolved"]
    unknown = "not known of then" if row.past else "–"
    facts: list[tuple[str, str | Text]] = [
        ("state", Text(state_sentence(row, now), style=palette[row.state])),
        ("model", f"{clean(row.model, 60) or unknown} {row.model_digest[:12]}".rstrip()),
        ("latency", _latency(row, palette)),
        ("baseline", _baseline(row)),
        ("cluster", cluster_words(row, snapshot.map, palette)),
        ("alert", _alert(alerts, palette)),
        ("tags", clean(", ".join(row.tags), 120) or "–"),
    ]
    return Text("\n").join([title, pairs(facts, palette, room)])


def known_facts(
    row: DeviceRow,
    moments: Sequence[Moment],
    now: datetime,
    palette: Palette,
    room: int,
    brief: bool = False,
) -> Text:
    """Return what a device is, and the latest changes of that; empty where nobody looked yet."""
    if not row.facts:
        return Text()
    known = {n: clean(shown(n, row.facts[n]), 160) for n in _SHOWN_FACTS if n in row.facts}
    if brief:
        return pairs([("is", ", ".join(known[n] for n in _BRIEF if n in known))], palette, room)
    lines = [pairs([(_fact_title(n), text) for n, text in known.items()], palette, room)]
    changed = [(moment.at, one) for moment in moments for one in moment.changes]
    for at, one in changed[: -_CHANGES - 1 : -1]:
        before, after = (clean(shown(one.name, v), 60) for v in (one.before, one.after))
        words = f"{_fact_title(one.name)} {before or '–'} → {after or '–'}"
        lines.append(pairs([(clock_time(at, now), Text(words, palette["warn"]))], palette, room))
    return Text("\n").join(lines)


def _fact_title(name: str) -> str:
    title = BY_NAME[name].title
    words = (title, title.split()[-1], name)
    return next((word for word in words if len(word) <= _LABEL), name[:_LABEL])


def state_sentence(row: DeviceRow, now: datetime) -> str:
    """Return a device's state as a sentence."""
    seen = age(row.seen_at, now)
    since = f", last seen {seen} ago" if seen else ""
    match row.state:
        case "ok":
            return f"ok, reached {seen} ago" if seen else "ok"
        case "busy":
            return f"busy: {clean(row.stage, 80) or 'being measured'}"
        case "unknown" if row.past:
            return "not known of then"
        case "unknown":
            return "not reached yet: press c to connect"
    why = ": ".join(clean(part, 160) for part in (row.error, row.detail) if part)
    return f"{row.state}{f', {why}' if why else ''}{since}"


def cluster_words(row: DeviceRow, clustering: ClusterMap, palette: Palette) -> Text:
    """Return a device's cluster: letter, what tells it apart, whether it stands for it."""
    if row.cluster is None and row.past:
        return Text("not clustered by then", style=palette["muted"])
    if row.cluster is None:
        return Text("not clustered yet: press s for a sweep", style=palette["muted"])
    text = Text()
    if row.cluster < 0:
        return text.append("noise: like no other device", palette["noise"])
    text.append(letter(row.cluster), palette.cluster(row.cluster))
    text.append(", representative" if row.representative else "", palette["accent"])
    found = next((c for c in clustering.clusters if c.id == row.cluster), None)
    if found is not None:
        text.append(f" of {count(found.size, 'device')}")
        text.append(f", {clean(found.note, 120)}" if found.note else "", palette["muted"])
    return text


def cluster_lines(
    clustering: ClusterMap, palette: Palette, width: int
) -> tuple[Text, Mapping[int, int]]:
    """Return the clusters one below the other, and on which line each begins."""
    lines: list[Text] = []
    begins = {}
    for row in clustering.clusters:
        begins[row.id] = len(lines)
        line = Text()
        line.append(f" {letter(row.id)} ", palette.cluster(row.id))
        line.append(f" {count(row.size, 'device')}", palette["strong"])
        line.append(f", like {clean(row.representative, 40)}", palette["muted"])
        lines.append(line)
        medians = [f"{clean(name, 20)} {ms(v)}" for name, v in row.median_ms.items()]
        lines += [Text(f"    {part}") for part in _wrapped(medians, width - 4)]
        note = Text(clean(row.note, 160), style=palette["muted"])
        lines += [Text.assemble("    ", part) for part in folded(note, width - 4) if part]
    noise = sum(label < 0 for label in clustering.labels)
    if noise:
        begins[-1] = len(lines)
        text = f" {letter(-1)}  {count(noise, 'device')} like no other"
        lines.append(Text(text, style=palette["noise"]))
    return Text("\n", no_wrap=True).join(lines), begins


def alert_facts(
    row: AlertRow,
    events: Sequence[AlertEvent],
    explanation: Sequence[tuple[str, str]],
    now: datetime,
    palette: Palette,
    room: int,
) -> Text:
    """Return an alert in words, with its history and its explanation."""
    title = Text(f"{alert_sentence(row)}.", style=palette["strong"])
    if row.emulated:
        title.append("  ")
        title.append(" EMULATED ", palette["badge"])
    latency = f"{ms(row.baseline_ms)} → {ms(row.now_ms)} ms ({change(row.size_percent, ' %')})"
    furthest = " at its furthest" if row.state == "resolved" else ""
    of_model = f"{latency}{furthest} with {clean(row.model, 60)}"
    noticed = clock_time(row.fired_at or row.opened_at, now)
    facts: list[tuple[str, str | Text]] = [
        ("latency", "not known" if row.kind == NO_DATA else of_model),
        ("began", f"{clock_time(row.onset_at, now)} UTC, noticed {noticed}"),
    ]
    if row.inhibited:
        facts.append(("stands for", f"{count(row.inhibited, 'device')} (+ shows their alerts)"))
    if row.inhibited_by is not None:
        facts.append(("beneath", f"alert {row.inhibited_by}: nobody is told of this one"))
    if is_quiet_now(row, now):
        facts.append(("silenced", f"until {clock_time(row.silenced_until, now)} UTC (Q ends it)"))
    if row.reason:
        facts.append(("reason", clean(row.reason, 200)))
    lines = [title, pairs(facts, palette, room)]
    steps = [e for i, e in enumerate(events) if e.what != "changed" or i == len(events) - 1]
    shown_events = steps[-_EVENTS:]
    if len(shown_events) < len(events):
        more = f"{'':<11}… {count(len(events) - len(shown_events), 'line')} before (i)"
        lines.append(Text(more, style=palette["muted"]))
    for event in shown_events:
        line = Text(f"{clock_time(event.at, now):<10} ", style=palette["muted"])
        line.append(clean(event.what, 40), palette["strong"])
        line.append(f" by {clean(event.who, 40)}" if event.who else "", palette["muted"])
        line.append(f"  {clean(event.text, 200)}" if event.text else "")
        lines.append(line)
    # What it says stands in the title already.
    known = [(about, Text(clean(text, 400))) for about, text in explanation if about != "what"]
    if known:
        lines.append(pairs(known, palette, room))
    return Text("\n").join(lines)


def model_facts(row: ModelRow, models: Sequence[ModelRow], palette: Palette, room: int) -> Text:
    """Return a model's lineage and what was measured when it was made."""
    title = Text(clean(row.name, 80), style=palette["title"])
    facts: list[tuple[str, str | Text]] = [
        ("lineage", " ← ".join(lineage(row, models))),
        ("file", f"{size(row.bytes)}, {row.digest[:16]}"),
        ("runs on", count(row.deployed_on, "device")),
    ]
    if row.job:
        facts.append(("made by", clean(row.job, 60)))
    metrics = tidy(row.metrics)
    predicted = metrics.get("search", {}).get("predicted_speedup")
    known = {**metrics.get("profile", {}), **metrics, "predicted_speedup": predicted}
    facts += [
        (label, _before_and_after(name, known))
        for name, label in _METRICS.items()
        if known.get(name) is not None
    ]
    facts += [
        (clean(label, 13), clean(text, 400))
        for label, text in model_lines(metrics)
        if label.split()[0] in _LINES
    ]
    return Text("\n").join([title, pairs(facts, palette, room, width=14)])


def _before_and_after(name: str, metrics: Mapping[str, Any]) -> str:
    after, before = metric(name, metrics[name]), metrics.get(f"{name}_before")
    return after if before is None else f"{after}, was {metric(name, before)}"


def metric(name: str, value: Any) -> str:
    """Return one metric: shares as per cent, speed-ups as factors, large numbers grouped."""
    if isinstance(value, float) and "accuracy" in name and 0 <= value <= 1:
        return f"{100 * value:.2f} %"
    if isinstance(value, float) and name.endswith("speedup"):
        where = "on the representatives" if name.startswith("measured") else "by the surrogates"
        return f"{value:.2f}× {where}"
    return number(value)


def lineage(row: ModelRow, models: Sequence[ModelRow]) -> list[str]:
    """Return a model's name and the names of what it was made from, the eldest last."""
    by_name = {model.name: model for model in models}
    chain = [row.name]
    while (parent := by_name[chain[-1]].parent if chain[-1] in by_name else "") and (
        parent not in chain
    ):
        chain.append(parent)
    return [clean(name, 60) for name in chain]


def _latency(row: DeviceRow, palette: Palette) -> Text:
    if row.latency_ms is None:
        return Text("not measured yet", style=palette["muted"])
    text = Text(f"{ms(row.latency_ms)} ms", style=palette["strong"])
    between = interval_ms(row.low_ms, row.high_ms)
    text.append(f"  ({between})" if between else "", palette["muted"])
    if row.contended:
        text.append(f"  {row.contended:.0%} contended", palette["warn"])
    return text


def _baseline(row: DeviceRow) -> str:
    if row.past:
        return "not known of then"
    if row.watched == "no data":
        return "no data: it has not answered in the last rounds"
    if row.baseline_ms is None:
        return "still being learned"
    return f"{ms(row.baseline_ms)} ms, now {change(row.change_percent, ' %')}"


def _alert(alerts: Sequence[AlertRow], palette: Palette) -> Text:
    if not alerts:
        return Text("none", style=palette["muted"])
    first = alerts[0]
    return Text(f"{alert_sentence(first)} ({first.state})", style=palette[first.state])


def _wrapped(words: Sequence[str], width: int) -> list[str]:
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + len(word) + 2 <= width:
            lines[-1] += f"  {word}"
        else:
            lines.append(word[:width])
    return lines
