"""An alert explained: what was measured, against what, since when, by which rule, how surely, and
what else changed at that time.

What it was told by was written down when it was told. What else changed is looked up: facts and
deployments in their histories, conditions in the measurements before and after it began.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any

from hdap_tui.alerting.subjects import COHORT, members
from hdap_tui.alerting.words import is_quiet_now, whole_sentence
from hdap_tui.config import Settings
from hdap_tui.fact_names import BY_NAME, shown
from hdap_tui.figures import count
from hdap_tui.store import alerts, decisions, deployments, devices, facts, measurements, silences
from hdap_tui.store import models as table
from hdap_tui.store.database import Store
from hdap_tui.store.records import NO_DATA, AlertRow
from hdap_tui.store.values import moment
from hdap_tui.text import clean

Line = tuple[str, str]
"""What it is about, and what there is to say."""

ROUNDS = 12
"""Measurements on either side of the onset that conditions are compared over."""
_BEFORE = timedelta(hours=1)
"""How long before the onset a change counts as being of that time, and at least three rounds."""
_LOOKED_AT = 5
"""Devices of a wider alert whose conditions are compared."""
_HOTTER_C = 5.0
_CLOCK = 0.05
_LISTED = 4


def explain(settings: Settings, store: Store, alert: AlertRow) -> list[Line]:
    """Return an alert's explanation, line by line.

    Every number in it was measured; what follows from statistics alone says so.
    """
    with store.read():
        return [
            ("what", f"{whole_sentence(alert)}."),
            *(_of_silence(alert) if alert.kind == NO_DATA else _of_latency(settings, alert)),
            *_standing(store, alert),
            *_follows(store, alert),
            *(("meanwhile", text) for text in _meanwhile(settings, store, alert)),
        ]


def _of_latency(settings: Settings, alert: AlertRow) -> Iterator[Line]:
    yield "measured", _measured(settings, alert)
    yield "baseline", _baseline(alert)
    yield "compared", _compared(alert)
    yield "began", _began(alert)
    yield "found by", _rule(settings, alert)
    yield "size", _size(alert)
    yield "how sure", _sureness(settings, alert)


def _of_silence(alert: AlertRow) -> Iterator[Line]:
    yield "began", _began(alert)
    yield "found by", f"no answer in {devices.NO_DATA_ROUNDS} canary rounds in a row, or more"


def _measured(settings: Settings, alert: AlertRow) -> str:
    where = alert.subject if alert.scope == "device" else count(alert.devices, "device")
    how = "emulated: its slowness is made up" if alert.emulated else "on the device itself"
    bench = settings.canary
    return (
        f"the latency of {clean(alert.model, 60)} on {clean(where, 60)} ({how}), in every canary "
        f"round the median of up to {bench.runs} inferences"
    )


def _baseline(alert: AlertRow) -> str:
    samples = alert.evidence.get("samples")
    if alert.kind == "migration":
        return f"{alert.baseline_ms:.3f} ms in the cluster where it was before"
    learned = f", the mean of the middle half of its first {samples} rounds" if samples else ""
    return f"{alert.baseline_ms:.3f} ms{learned}; it does not move by itself"


def _compared(alert: AlertRow) -> str:
    peers, others = alert.evidence.get("peers"), alert.evidence.get("peer_count", 0)
    if alert.scope == "fleet":
        return "with the fleet's own level before: what all devices do together"
    if alert.scope == "cluster":
        own = (
            "what its devices were before, and what the others do"
            if (alert.subject.startswith(COHORT))
            else "the rest of the fleet"
        )
        return f"with {own}"
    if peers == "nobody" or not peers:
        return "with itself alone: there are too few other devices"
    where = "the fleet" if peers == "the fleet" else f"{peers}"
    return f"with {others} other devices of {where}: what they do together is taken out"


def _began(alert: AlertRow) -> str:
    onset = moment(alert.onset_at)
    noticed = moment(alert.fired_at or alert.opened_at)
    if onset is None or noticed is None:
        return "not known"
    later = _length(noticed - onset)
    return f"{_clock(onset)} UTC, noticed {later} later, at {_clock(noticed)}"


def _rule(settings: Settings, alert: AlertRow) -> str:
    found = alert.evidence
    note = str(found.get("note", ""))
    if alert.kind == "migration":
        return f"three sweeps agree that it moved {note}".rstrip()
    if note:
        return f"many devices that change within a day are one event: {note}"
    limit, height = found.get("limit", 0.0), found.get("height", 0.0)
    match found.get("rule"):
        case "jump":
            sigma = settings.drift.jump_z
            beyond = f"{sigma:g} standard deviations" if sigma else "the jump limit"
            return f"the jump rule: {height:.0f} rounds in a row beyond {beyond}"
        case "cusum":
            return (
                f"the CUSUM chart: its sum reached {height:.1f}, the limit is {limit:.1f} "
                "(standard deviations)"
            )
        case "learning":
            return "a jump of more than 20 % while the baseline was still being learned"
        case "spread":
            return f"the chart of the spread: values scatter {height:.1f} times as wide as before"
    if alert.state == "pending":
        return "a chart that is half-way to its alarm; nothing has been told yet"
    return "a rule of an earlier version, which did not write it down"


def _size(alert: AlertRow) -> str:
    if alert.kind == "spread":
        return "its level has not moved; its values scatter more than they did"
    return (
        f"{alert.size_percent:+.1f} %, {alert.now_ms - alert.baseline_ms:+.3f} ms: "
        f"{alert.baseline_ms:.3f} ms became {alert.now_ms:.3f} ms"
    )


def _sureness(settings: Settings, alert: AlertRow) -> str:
    allowed = settings.drift.false_alerts_per_week
    often = "once" if allowed == 1 else f"{allowed:g} times"
    chance = f"chance alone may alarm {often} a week over the whole fleet"
    noise = alert.evidence.get("noise_percent")
    if not noise:
        return chance
    times = abs(alert.size_percent) / noise
    ratio = f", so this is {times:.1f} times that" if alert.kind != "spread" else ""
    return f"one round scatters by {noise:.1f} %{ratio}; {chance}"


def _standing(store: Store, alert: AlertRow) -> Iterator[Line]:
    """Yield how it stands, and who made it so."""
    if alert.inhibited_by is not None:
        wide = alerts.row(store, alert.inhibited_by)
        yield "stands", f"beneath alert {wide.id} ({wide.subject}); nobody is told of it by itself"
    if alert.silence is not None and is_quiet_now(alert, datetime.now(UTC)):
        one = silences.row(store, alert.silence)
        by = f" by {one.who}" if one.who else ""
        yield "stands", f"silenced{by} until {one.until[:19]}: {one.reason}"
    if alert.acknowledged_at:
        by = f" by {alert.acknowledged_by}" if alert.acknowledged_by else ""
        yield "stands", f"acknowledged{by} at {alert.acknowledged_at[:19]}"
    if alert.state == "recovering":
        yield "stands", "back within the limit that clears it, but not for long enough yet"
    if alert.scope == "device":
        row = next((r for r in devices.rows(store) if r.name == alert.subject), None)
        if row is not None and alert.kind == NO_DATA and row.error:
            yield "last tried", clean(f"{row.error}: {row.detail}", 300)
        elif row is not None and row.watched == "no data":
            yield "stands", f"no data for {devices.NO_DATA_ROUNDS} rounds or more: nobody knows"


def _follows(store: Store, alert: AlertRow) -> Iterator[Line]:
    """Yield what the policy decided to follow from it."""
    found = decisions.of_cause(store, f"alert {alert.id}")
    if found is None:
        return
    if found.state == "suggested":
        yield "follows", f"a compression is suggested: hdap policy start {found.id} starts it"
    else:
        job = f" ({found.job})" if found.job else ""
        yield "follows", f"decision {found.id}{job}: {found.state}"


def _meanwhile(settings: Settings, store: Store, alert: AlertRow) -> Iterator[str]:
    """Yield what else changed when it began."""
    onset, fired = moment(alert.onset_at), moment(alert.fired_at or alert.opened_at)
    if onset is None or fired is None:
        yield "nobody knows when it began"
        return
    rounds = timedelta(seconds=3 * settings.watch.canary_every_s)
    since, until = onset - max(_BEFORE, rounds), fired + rounds
    names = members(settings, store, alert)
    said = [
        *_facts(store, names, since, until),
        *_deployed(store, names, since, until),
        *_conditions(store, names[:_LOOKED_AT], alert, onset),
    ]
    yield from said or ["no fact, deployment or condition is known to have changed at that time"]


def _facts(store: Store, names: Sequence[str], since: datetime, until: datetime) -> Iterator[str]:
    found: Counter[tuple[str, str, str]] = Counter()
    for name in names:
        for change in facts.history(store, name, limit=10):
            at = moment(change.at)
            if at is not None and since <= at <= until:
                found.update(
                    (c.name, shown(c.name, c.before) or "–", shown(c.name, c.after) or "–")
                    for c in change.changes
                )
    for (name, before, after), number in found.most_common(_LISTED):
        title = BY_NAME[name].title if name in BY_NAME else name
        where = f" on {number} of {len(names)} devices" if len(names) > 1 else ""
        yield f"{title} changed from {clean(before, 60)} to {clean(after, 60)}{where}"


def _deployed(
    store: Store, names: Sequence[str], since: datetime, until: datetime
) -> Iterator[str]:
    for row in deployments.rows(store, limit=10):
        at = moment(row.started_at)
        if at is None or not since <= at <= until:
            continue
        own = {one.device for one in deployments.devices(store, row.id) if one.switched}
        if own & set(names):
            many = f" on {len(own & set(names))} of {len(names)} devices" if len(names) > 1 else ""
            yield f"deployment {row.id} put {clean(row.model, 60)} there at {_clock(at)}{many}"


def _conditions(
    store: Store, names: Sequence[str], alert: AlertRow, onset: datetime
) -> Iterator[str]:
    model = table.by_name(store, alert.model)
    for name in names if model is not None else ():
        assert model is not None
        rows = [
            row
            for row in measurements.details(store, name, model.digest, limit=10 * ROUNDS)
            if not row["error"] and isinstance(row.get("conditions"), dict)
        ]
        split = [row for row in rows if (at := moment(row["at"])) and at < onset]
        after = [row for row in rows if (at := moment(row["at"])) and at >= onset]
        before = [row["conditions"] for row in split[-ROUNDS:]]
        words = _differences(before, [row["conditions"] for row in after[:ROUNDS]])
        for text in words:
            yield f"{clean(name, 60)}: {text}" if len(names) > 1 else text


def _differences(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """Yield in words what differs between the conditions of two lists of measurements."""
    if not before or not after:
        return
    old, new = (_usual(side, ("after", "governor")) for side in (before, after))
    if old and new and old != new:
        yield f"governor changed from {clean(old, 40)} to {clean(new, 40)}"
    if before[-1].get("boot_id") and after[0].get("boot_id") not in (None, before[-1]["boot_id"]):
        yield "it was started anew in between"
    cold, hot = (_numbers(side, ("during", "temperature_c"), -1) for side in (before, after))
    if cold and hot and abs(median(hot) - median(cold)) >= _HOTTER_C:
        yield f"temperature {median(cold):.0f} °C before, {median(hot):.0f} °C since"
    slow, fast = (_numbers(side, ("during", "clock_khz"), 1) for side in (after, before))
    if slow and fast and abs(median(slow) / median(fast) - 1) >= _CLOCK:
        yield f"clock {median(fast) / 1e6:.2f} GHz before, {median(slow) / 1e6:.2f} GHz since"
    throttled = [sum(row.get("throttled") is True for row in side) for side in (before, after)]
    if throttled[1] and not throttled[0]:
        yield f"throttled in {throttled[1]} of {len(after)} rounds since, in none before"


def _usual(rows: Sequence[Mapping[str, Any]], path: tuple[str, str]) -> str:
    found = [str(v) for row in rows if (v := _at(row, path)) not in (None, "", "unknown")]
    return Counter(found).most_common(1)[0][0] if found else ""


def _numbers(rows: Sequence[Mapping[str, Any]], path: tuple[str, str], place: int) -> list[float]:
    found = []
    for row in rows:
        value = _at(row, path)
        if isinstance(value, list) and len(value) >= abs(place) + (place >= 0):
            one = value[place]
            if isinstance(one, int | float) and not isinstance(one, bool) and one > 0:
                found.append(float(one))
    return found


def _at(row: Mapping[str, Any], path: tuple[str, str]) -> Any:
    held = row.get(path[0])
    return held.get(path[1]) if isinstance(held, Mapping) else None


def _clock(when: datetime) -> str:
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _length(length: timedelta) -> str:
    seconds = max(length.total_seconds(), 0.0)
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
