"""Devices, as the store knows them: list, show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from hdap_tui import replacing
from hdap_tui.actions.fact_words import change_words, columns_of, moment_document, title, word_of
from hdap_tui.actions.past import UNKNOWN, Moment, fleet_at, moment_of
from hdap_tui.config.fields import FIELDS
from hdap_tui.context import Context, Outcome, Table
from hdap_tui.errors import RefusedError
from hdap_tui.fact_names import NAMES, shown
from hdap_tui.figures import count, interval, ms
from hdap_tui.moments import NothingYetError, said
from hdap_tui.names import cluster_letter
from hdap_tui.selection import row_record, select_rows
from hdap_tui.store import devices as table
from hdap_tui.store import facts, measurements
from hdap_tui.store.records import DeviceRow, Point
from hdap_tui.store.snapshot import snapshot
from hdap_tui.text import clean


def list_devices(
    context: Context,
    select: str | None = None,
    columns: str | None = None,
    at: str | None = None,
) -> Outcome:
    """Show the fleet: state, latency, cluster and drift of every device, or chosen columns."""
    names = columns_of(columns, FIELDS) if columns else None
    if at is not None:
        return _list_at(context, select, names, moment_of(context, at))
    chosen = {device.name for device in context.select(select)}
    table.sync(context.store, context.settings.devices)
    rows = [r for r in snapshot(context.store, context.settings.name).devices if r.name in chosen]
    return Outcome(
        data={"fleet": context.settings.name, "devices": [document(r) for r in rows]},
        table=_chosen(context, rows, names) if names else _usual(rows),
        text=_counted(rows),
    )


def _list_at(
    context: Context, select: str | None, names: Sequence[str] | None, moment: Moment
) -> Outcome:
    known = {device.name: device for device in context.settings.devices}
    rows = select_rows(fleet_at(context, moment).devices, select, known)
    return Outcome(
        data={
            "fleet": context.settings.name,
            "as_of": moment.document,
            "devices": [document(r) for r in rows],
        },
        table=_chosen(context, rows, names) if names else _usual(rows, "measured (UTC)"),
        text=f"{moment.sentence}\n{_counted(rows)}",
    )


def show(context: Context, device: str, limit: int = 50, at: str | None = None) -> Outcome:
    """Show one device with the history of its latency and its latest conditions."""
    moment = None if at is None else moment_of(context, at)
    row = _live(context, device) if moment is None else _then(context, device, moment)
    until = None if moment is None else moment.micros
    now_called = table.name_of(context.store, row.id)
    points = measurements.history(context.store, now_called, limit=limit, every=True, until=until)
    latest = measurements.details(context.store, now_called) if moment is None else []
    off = latest[0]["remarks"] if latest else ()
    moments = facts.history(context.store, now_called, until=moment.utc if moment else "")
    return Outcome(
        data={
            **document(row),
            **({} if moment is None else {"as_of": moment.document}),
            "earlier": table.earlier(context.store, device),
            "fact_changes": [moment_document(m) for m in moments],
            "conditions": latest[0]["conditions"] if latest else {},
            "history": [
                {
                    "at": p.at,
                    "model": p.model,
                    "median_ms": p.median_ms,
                    "low_ms": p.low_ms,
                    "high_ms": p.high_ms,
                    "contended": p.contended,
                    "configuration": p.configuration,
                    "energy_mj": p.energy_mj,
                    "remarks": list(p.remarks),
                    "error": p.error,
                    "rolled_up": p.span or None,
                    "count": p.count,
                    "failed": p.failed,
                }
                for p in points
            ],
        },
        table=Table(
            ("when (UTC)", "model", "median", "95 % interval", "energy", ""),
            tuple(_point_row(p) for p in points),
            title=device + (" (emulated)" if row.emulated else ""),
        ),
        text="\n".join(
            filter(
                None,
                (
                    moment.sentence if moment else "",
                    row.detail,
                    *_before(context, device),
                    *_off(off, latest),
                    *_facts_lines(row, moments),
                ),
            )
        ),
    )


def _live(context: Context, device: str) -> DeviceRow:
    """Return a device's line; also of one that the settings name no more."""
    if not any(one.name == device for one in context.settings.devices):
        gone = table.unlisted(context.store, device)
        if gone is not None:
            return gone
    context.settings.device(device)
    table.sync(context.store, context.settings.devices)
    rows = snapshot(context.store, context.settings.name).devices
    return next(row for row in rows if row.name == device)


def _then(context: Context, device: str, moment: Moment) -> DeviceRow:
    for row in fleet_at(context, moment).devices:
        if row.name == device:
            return row
    raise NothingYetError(
        f"No device was called {clean(device, 63)} at {said(moment.when)}, or nothing of it had "
        "been recorded."
    )


def _before(context: Context, device: str) -> Iterator[str]:
    for name in table.earlier(context.store, device):
        yield f"Another device had this name before: hdap devices show {name}"


def _point_row(point: Point) -> tuple[str, ...]:
    said = [point.error] if point.error else list(point.remarks)
    if point.span:  # its ends are no interval of the median
        some = f", {point.failed} failed" if point.failed else ""
        said.insert(0, f"rolled up, 1 {point.span}: {point.count} measurements{some}")
        between = f"lowest {point.low_ms:.3f}, highest {point.high_ms:.3f}"
    else:
        between = interval(point.low_ms, point.high_ms)
    return (
        point.at[:19],
        point.model + (f" ({point.configuration})" if point.configuration else ""),
        ms(point.median_ms if not point.error else None),
        "" if point.error else between,
        "" if point.energy_mj is None else f"{point.energy_mj:.3g} mJ",
        "; ".join(said),
    )


def _off(remarks: Sequence[str], latest: Sequence[dict[str, Any]]) -> list[str]:
    """Return what was off about the latest measurement, as a sentence."""
    if not remarks:
        return []
    return [f"The measurement of {latest[0]['at'][:19]}: " + "; ".join(remarks) + "."]


def rename(context: Context, old: str, new: str, yes: bool = False) -> Outcome:
    """Give what was recorded of a device to the name that the settings have for it now."""
    what = f"what was recorded of {old} becomes that of {new}; it learns a new baseline"
    if not yes and not context.confirm("Rename this device?", [what]):
        raise RefusedError(f"{old} stays as it is.")
    replacing.rename(context.settings, context.store, old, new)
    return Outcome(
        data={"old": old, "new": new}, text=f"What was recorded of {old} is that of {new} now."
    )


def _usual(rows: Sequence[DeviceRow], measured: str = "measured") -> Table:
    return Table(
        ("device", "state", "model", "latency", "change", "cluster", "alert", measured, ""),
        tuple(_row(r) for r in rows),
    )


def _chosen(context: Context, rows: Sequence[DeviceRow], names: Sequence[str]) -> Table:
    lines, known = [], {device.name: device for device in context.settings.devices}
    for row in rows:
        record = row_record(row, names, known.get(row.name))
        words = (clean(word_of(name, record[name]), 48) for name in names)
        lines.append((f"{row.name} (emulated)" if row.emulated else row.name, *words))
    return Table(("device", *map(title, names)), tuple(lines))


def document(row: DeviceRow) -> dict[str, Any]:
    """Return a device as the JSON that the command line prints; null is what nobody knows."""
    if row.past:
        return {**_document(row), "stage": None, "model": row.model or None,
                "model_digest": row.model_digest or None, "seen_at": None,
                "facts": dict(row.facts) or None}  # fmt: skip
    return _document(row)


def _document(row: DeviceRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "emulated": row.emulated,
        "tags": list(row.tags),
        "state": row.state,
        "stage": row.stage,
        "error": row.error,
        "detail": row.detail,
        "seen_at": row.seen_at,
        "model": row.model,
        "model_digest": row.model_digest,
        "latency_ms": row.latency_ms,
        "low_ms": row.low_ms,
        "high_ms": row.high_ms,
        "contended": row.contended,
        "measured_at": row.measured_at,
        "rolled_up": row.span or None,
        "baseline_ms": row.baseline_ms,
        "change_percent": row.change_percent,
        "cluster": row.cluster,
        "representative": row.representative,
        "alert": row.alert,
        "watched": row.watched,
        "facts": dict(row.facts),
    }


def _facts_lines(row: DeviceRow, moments: Sequence[facts.Moment]) -> Iterator[str]:
    """Yield what the device is and when that changed, one line a fact."""
    for name in NAMES:
        if name.name in row.facts:
            yield f"{name.title}: {clean(shown(name.name, row.facts[name.name]), 160)}"
    for moment in moments[-10:]:
        for change in moment.changes:
            yield f"{moment.at[:19]}  {change_words(change)}"


def _row(row: DeviceRow) -> tuple[str, ...]:
    between = f"1 {row.span}" if row.span else interval(row.low_ms, row.high_ms)
    number = row.cluster
    cluster = "" if number is None else "noise" if number < 0 else cluster_letter(number)
    unknown = UNKNOWN if row.past else ""
    return (
        row.name,
        ": ".join(word for word in (row.state, row.stage or row.error) if word),
        row.model or unknown,
        ms(row.latency_ms) + (f" ({between})" if between else ""),
        unknown if row.change_percent is None else f"{row.change_percent:+.1f} %",
        cluster + (" *" if row.representative else ""),
        row.standing if row.standing != "ok" else "",
        row.measured_at[:19],
        "emulated" if row.emulated else "",
    )


def _counted(rows: Sequence[DeviceRow]) -> str:
    states = Counter(row.state for row in rows)
    emulated = sum(row.emulated for row in rows)
    said = ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
    return f"{count(len(rows), 'device')}: {said}" + (f"; {emulated} emulated" if emulated else "")
