"""Devices, asked themselves: who answers, and whom to trust."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hdap_tui.context import Context, Outcome, Table
from hdap_tui.errors import ExitCode, RefusedError
from hdap_tui.facts import gather
from hdap_tui.fanout import on_each
from hdap_tui.reach import connections, targets
from hdap_tui.ssh.connection import scan
from hdap_tui.ssh.errors import DeviceError
from hdap_tui.ssh.hostkeys import HostKey, KnownHosts
from hdap_tui.ssh.target import Target
from hdap_tui.store import devices as table
from hdap_tui.store import facts
from hdap_tui.text import clean


def check(context: Context, select: str | None = None) -> Outcome:
    """Connect to the devices and say what each has, or why it cannot be reached."""
    settings, reporter = context.settings, context.reporter
    chosen = targets(settings, context.select(select))
    table.sync(context.store, settings.devices)
    found: dict[str, dict[str, Any] | DeviceError] = {}
    reporter.started("check", total=len(chosen), weight=len(chosen))
    with connections(context) as pool:
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
            tuple((context.shown(name), *_said(found[name])) for name in names),
        ),
        exit_code=exit_code([found[name] for name in names]),
    )


def trust(context: Context, select: str | None = None, yes: bool = False) -> Outcome:
    """Show the fingerprints of unknown or changed host keys, and accept them if told to."""
    settings = context.settings
    chosen = targets(settings, context.select(select))
    known = KnownHosts(settings.known_hosts)
    new: dict[str, tuple[str, int, HostKey, str]] = {}
    failed: dict[str, DeviceError] = {}
    context.reporter.started("scan", total=len(chosen), weight=len(chosen))
    with ThreadPoolExecutor(max(1, min(settings.ssh.parallel, len(chosen)))) as workers:
        looks = workers.map(_look, chosen)
        for number, (target, key) in enumerate(zip(chosen, looks, strict=True), start=1):
            context.reporter.advanced("scan", number)
            if isinstance(key, DeviceError):
                failed[target.name] = key
                continue
            try:
                known.check(target.host, target.port, key, target.name)
            except DeviceError as error:
                new[target.name] = (target.host, target.port, key, error.kind.value)
    context.reporter.finished("scan")
    asked = [f"{context.shown(name)}: {kind}: {key}" for name, (_, _, key, kind) in new.items()]
    accepted = bool(new) and (yes or context.confirm("Accept these host keys?", asked))
    if new and not accepted:
        raise RefusedError(f"{len(new)} host keys stay refused: {'; '.join(asked)}")
    for name, (host, port, key, _) in list(new.items()):
        try:
            known.trust(host, port, key)
        except DeviceError as error:  # revoked: never accepted
            failed[name] = error
            del new[name]
    rows = [
        *((context.shown(name), "accepted", str(key)) for name, (_, _, key, _) in new.items()),
        *((context.shown(name), error.kind.value, str(error)) for name, error in failed.items()),
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


def _look(target: Target) -> HostKey | DeviceError:
    try:
        return scan(target)
    except DeviceError as error:
        return error


def exit_code(results: list[Any]) -> ExitCode:
    """Return the exit status of something done on many devices."""
    errors = [r for r in results if isinstance(r, DeviceError)]
    if not errors:
        return ExitCode.DONE
    return ExitCode.PARTLY if len(errors) < len(results) else errors[0].exit_code


def _remember(context: Context, name: str, answer: dict[str, Any] | DeviceError) -> None:
    if isinstance(answer, DeviceError):
        table.set_state(context.store, name, "off", answer.kind.value, str(answer))
    else:
        table.set_state(context.store, name, "ok")
        facts.save(context.store, name, answer)


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
    # What the device says of itself comes first: it must not speak for us.
    return {**answer, "name": name, "emulated": emulated, "ok": not missing, "missing": missing}


def _said(answer: dict[str, Any] | DeviceError) -> tuple[str, str]:
    if isinstance(answer, DeviceError):
        return answer.kind.value, str(answer)
    missing = [need for need in ("numpy", "onnxruntime") if not answer.get(need)]
    if missing:
        return "lacking", f"its Python has no {' and no '.join(missing)}: install it there"
    cores, cpu = answer.get("cores"), clean(answer.get("cpu_model", answer.get("machine", "")), 40)
    text = f"{cpu}, {cores} cores, ONNX Runtime {clean(answer['onnxruntime'], 20)}"
    return "ok", text
