"""Devices: list, show, check, trust."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hdap_tui.context import Context, Outcome, Table
from hdap_tui.errors import ExitCode, RefusedError
from hdap_tui.facts import gather
from hdap_tui.fanout import on_each
from hdap_tui.ssh.connection import scan
from hdap_tui.ssh.errors import DeviceError, ErrorKind
from hdap_tui.ssh.hostkeys import HostKey, KnownHosts
from hdap_tui.ssh.pool import Connections
from hdap_tui.store import devices as table
from hdap_tui.store import measurements
from hdap_tui.store.records import DeviceRow
from hdap_tui.store.snapshot import snapshot
from hdap_tui.sweep import targets
from hdap_tui.text import clean


def list_devices(context: Context, select: str | None = None) -> Outcome:
    """Show the fleet: state, latency, cluster and drift of every device."""
    chosen = {device.name for device in context.settings.select(select)}
    table.sync(context.store, context.settings.devices)
    rows = [r for r in snapshot(context.store, context.settings.name).devices if r.name in chosen]
    return Outcome(
        data={"fleet": context.settings.name, "devices": [document(r) for r in rows]},
        table=Table(
            ("device", "state", "model", "latency", "change", "cluster", "alert", "measured", ""),
            tuple(_row(r) for r in rows),
        ),
        text=_counted(rows),
    )


def show(context: Context, device: str, limit: int = 50) -> Outcome:
    """Show one device with the history of its latency and its latest conditions."""
    context.settings.device(device)
    table.sync(context.store, context.settings.devices)
    rows = snapshot(context.store, context.settings.name).devices
    row = next(r for r in rows if r.name == device)
    points = measurements.history(context.store, device, limit=limit)
    latest = measurements.details(context.store, device)
    return Outcome(
        data={
            **document(row),
            "conditions": latest[0]["conditions"] if latest else {},
            "history": [
                {
                    "at": p.at,
                    "model": p.model,
                    "median_ms": p.median_ms,
                    "low_ms": p.low_ms,
                    "high_ms": p.high_ms,
                    "contended": p.contended,
                    "error": p.error,
                }
                for p in points
            ],
        },
        table=Table(
            ("when", "model", "median", "95 % interval", "error"),
            tuple(
                (
                    p.at[:19],
                    p.model,
                    _ms(p.median_ms if not p.error else None),
                    "" if p.error else f"{p.low_ms:.3f} to {p.high_ms:.3f} ms",
                    p.error,
                )
                for p in points
            ),
            title=device + (" (emulated)" if row.emulated else ""),
        ),
        text=row.detail,
    )


def check(context: Context, select: str | None = None) -> Outcome:
    """Connect to the devices and say what each has, or why it cannot be reached."""
    settings, reporter = context.settings, context.reporter
    chosen = targets(settings, settings.select(select))
    table.sync(context.store, settings.devices)
    found: dict[str, dict[str, Any] | DeviceError] = {}
    reporter.started("check", total=len(chosen), weight=len(chosen))
    with Connections(settings.ssh.parallel) as pool:
        for target, answer in on_each(pool, chosen, gather, context.cancelled):
            found[target.name] = answer
            _remember(context, target.name, answer)
            reporter.advanced("check", len(found))
    reporter.finished("check")
    names = [target.name for target in chosen if target.name in found]
    emulated = {target.name: target.emulated for target in chosen}
    return Outcome(
        data={"devices": [_checked(name, found[name], emulated[name]) for name in names]},
        table=Table(
            ("device", "state", "found"),
            tuple((name, *_said(found[name], emulated[name])) for name in names),
        ),
        exit_code=exit_code([found[name] for name in names]),
    )


def trust(context: Context, select: str | None = None, yes: bool = False) -> Outcome:
    """Show the fingerprints of unknown or changed host keys, and accept them if told to."""
    settings = context.settings
    chosen = targets(settings, settings.select(select))
    known = KnownHosts(settings.known_hosts)
    new: dict[str, tuple[str, int, HostKey, str]] = {}
    failed: dict[str, DeviceError] = {}
    context.reporter.started("scan", total=len(chosen), weight=len(chosen))
    for number, target in enumerate(chosen, start=1):
        try:
            key = scan(target)
            known.check(target.host, target.port, key, target.name)
        except DeviceError as error:
            if error.kind in {ErrorKind.HOST_KEY_UNKNOWN, ErrorKind.HOST_KEY_CHANGED}:
                new[target.name] = (target.host, target.port, key, error.kind.value)
            else:
                failed[target.name] = error
        context.reporter.advanced("scan", number)
    context.reporter.finished("scan")
    asked = [f"{name}: {kind}: {key}" for name, (_, _, key, kind) in new.items()]
    accepted = bool(new) and (yes or context.confirm("Accept these host keys?", asked))
    if new and not accepted:
        raise RefusedError(f"{len(new)} host keys stay refused: {'; '.join(asked)}")
    for host, port, key, _ in new.values():
        known.trust(host, port, key)
    rows = [
        *((name, "accepted", str(key)) for name, (_, _, key, _) in new.items()),
        *((name, error.kind.value, str(error)) for name, error in failed.items()),
    ]
    same = len(chosen) - len(new) - len(failed)
    return Outcome(
        data={
            "accepted": {name: key.fingerprint for name, (_, _, key, _) in new.items()},
            "failed": {name: error.kind.value for name, error in failed.items()},
            "known": same,
        },
        table=Table(("device", "", "host key"), tuple(rows)) if rows else None,
        text=f"{len(new)} accepted, {same} known already, {len(failed)} not reached.",
        exit_code=exit_code([*failed.values(), *([None] * (len(chosen) - len(failed)))]),
    )


def exit_code(results: list[Any]) -> ExitCode:
    """Return the exit status of something done on many devices."""
    errors = [r for r in results if isinstance(r, DeviceError)]
    if not errors:
        return ExitCode.DONE
    return ExitCode.PARTLY if len(errors) < len(results) else errors[0].exit_code


def document(row: DeviceRow) -> dict[str, Any]:
    """Return a device as the JSON that the command line prints."""
    return {
        "name": row.name,
        "emulated": row.emulated,
        "tags": list(row.tags),
        "state": row.state,
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
        "baseline_ms": row.baseline_ms,
        "change_percent": row.change_percent,
        "cluster": row.cluster,
        "representative": row.representative,
        "alert": row.alert,
    }


def _remember(context: Context, name: str, answer: dict[str, Any] | DeviceError) -> None:
    if isinstance(answer, DeviceError):
        table.set_state(context.store, name, "off", answer.kind.value, str(answer))
    else:
        table.set_state(context.store, name, "ok")


def _checked(name: str, answer: dict[str, Any] | DeviceError, emulated: bool) -> dict[str, Any]:
    if isinstance(answer, DeviceError):
        return {
            "name": name,
            "emulated": emulated,
            "ok": False,
            "error": answer.kind.value,
            "detail": str(answer),
        }
    missing = [need for need in ("numpy", "onnxruntime") if not answer.get(need)]
    return {"name": name, "emulated": emulated, "ok": not missing, "missing": missing, **answer}


def _said(answer: dict[str, Any] | DeviceError, emulated: bool) -> tuple[str, str]:
    if isinstance(answer, DeviceError):
        return answer.kind.value, str(answer)
    missing = [need for need in ("numpy", "onnxruntime") if not answer.get(need)]
    if missing:
        return "lacking", f"its Python has no {' and no '.join(missing)}: install it there"
    cores, cpu = answer.get("cores"), clean(answer.get("cpu", answer.get("machine", "")), 40)
    text = f"{cpu}, {cores} cores, ONNX Runtime {clean(answer['onnxruntime'], 20)}"
    return "ok", text + (" (emulated)" if emulated else "")


def _row(row: DeviceRow) -> tuple[str, ...]:
    interval = ""
    if row.low_ms is not None and row.high_ms is not None and row.low_ms > 0:
        interval = f" ({row.low_ms:.3f} to {row.high_ms:.3f})"
    cluster = "" if row.cluster is None else "noise" if row.cluster < 0 else chr(65 + row.cluster)
    return (
        row.name,
        row.state + (f": {row.error}" if row.error else ""),
        row.model,
        _ms(row.latency_ms) + interval,
        "" if row.change_percent is None else f"{row.change_percent:+.1f} %",
        cluster + (" *" if row.representative else ""),
        row.alert or "",
        row.measured_at[:19],
        "emulated" if row.emulated else "",
    )


def _counted(rows: list[DeviceRow]) -> str:
    states = Counter(row.state for row in rows)
    emulated = sum(row.emulated for row in rows)
    said = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    return f"{len(rows)} devices: {said}" + (f"; {emulated} emulated" if emulated else "")


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.3f} ms"
