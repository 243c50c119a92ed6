"""Devices, asked themselves: who answers, and whom to trust."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from hdap_tui.context import Context, Outcome, Table
from hdap_tui.errors import ExitCode, RefusedError
from hdap_tui.facts import gather
from hdap_tui.fanout import on_each
from hdap_tui.figures import count
from hdap_tui.reach import connections, targets
from hdap_tui.replacing import take_key
from hdap_tui.ssh.errors import DeviceError
from hdap_tui.ssh.pool import Connections
from hdap_tui.ssh.target import Target
from hdap_tui.stages import Stages
from hdap_tui.store import devices as table
from hdap_tui.store import facts
from hdap_tui.text import clean
from hdap_tui.trusting import Stranger, jump_levels, look, resolved

ALIKE = 3
"""Devices that fail for the same reason share a row from this many on."""


def check(context: Context, select: str | None = None) -> Outcome:
    """Connect to the devices and say what each has, or why it cannot be reached."""
    settings, reporter = context.settings, context.reporter
    chosen = targets(settings, context.select(select))
    table.sync(context.store, settings.devices)
    found: dict[str, dict[str, Any] | DeviceError] = {}
    reporter.started("check", total=len(chosen), weight=len(chosen))
    with connections(context) as pool, Stages(context.store, context.on_stage) as stages:
        answers = on_each(
            pool, chosen, gather, context.cancelled, on_stage=stages.say, doing="facts"
        )
        for target, answer in answers:
            found[target.name] = answer
            _remember(context, target.name, answer)
            reporter.advanced("check", len(found))
    reporter.finished("check")
    done = [target for target in chosen if target.name in found]
    return Outcome(
        data={
            "devices": [_checked(t.name, found[t.name], t.emulated) for t in done],
        },
        table=Table(("device", "state", "found"), tuple(_rows(context, found, done))),
        text=_summary([_said(found[t.name])[0] for t in done]),
        exit_code=exit_code([found[t.name] for t in done]),
    )


def _rows(
    context: Context, found: dict[str, dict[str, Any] | DeviceError], done: list[Target]
) -> Iterator[tuple[str, str, str]]:
    """Yield one row a device; those that fail alike share one, behind the others."""
    alike: dict[tuple[str, str], list[str]] = {}
    for target in done:
        name, answer = context.shown(target.name), found[target.name]
        state, said = _said(answer)
        if isinstance(answer, DeviceError):
            alike.setdefault((state, _without_name(said, target)), []).append(name)
        else:
            yield name, state, said
    for (state, said), names in alike.items():
        if len(names) >= ALIKE:
            shown = f"{', '.join(names[:2])} and {len(names) - 2} more"
            yield shown, state, said
        else:
            yield from ((name, state, said) for name in names)


def _without_name(said: str, target: Target) -> str:
    """Return a sentence about a device without what is the device's alone."""
    head, colon, rest = said.partition(": ")
    return rest if colon and head.partition(" ")[0] == target.name else said


def _summary(states: list[str]) -> str:
    counts = Counter(states)
    ok = counts.pop("ok", 0)
    parts = [f"{ok} of {len(states)} devices ok", *(f"{n} {s}" for s, n in counts.most_common())]
    return ", ".join(parts) + "."


def trust(
    context: Context, select: str | None = None, same_device: bool = False, yes: bool = False
) -> Outcome:
    """Show the fingerprints of unknown or changed host keys, and accept them if told to.

    A device that shows another key than before is another device, unless `same_device`.
    """
    settings = context.settings
    wanted = targets(settings, context.select(select))
    chosen, failed = resolved(wanted, settings.ssh.parallel)
    jumps: list[Stranger] = []
    context.reporter.started("scan", total=len(chosen), weight=len(chosen))
    table.sync(context.store, settings.devices)
    with connections(context) as pool, Stages(context.store, context.on_stage) as stages:
        for level in jump_levels(chosen):
            found = look(pool, level, context.cancelled, lambda _name, _stage: None)
            new = [answer for _, answer in found if isinstance(answer, Stranger)]
            _accept(context, pool, new, yes, jumps=True)
            jumps += new
        new = []
        looks = look(pool, chosen, context.cancelled, stages.say)
        for number, (target, answer) in enumerate(looks, start=1):
            context.reporter.advanced("scan", number)
            if isinstance(answer, DeviceError):
                failed[target.name] = answer
            elif answer is not None:
                new.append(answer)
        new.sort(key=lambda one: one.target.name)
        context.reporter.finished("scan")
        _accept(context, pool, new, yes, same_device)
        before = _note_keys(context, new, same_device)
    same = len(wanted) - len(new) - len(failed)
    return Outcome(
        data={
            "accepted": {one.target.name: one.key.fingerprint for one in new},
            "replaced": {
                one.target.name: [old.fingerprint for old in one.old] for one in new if one.old
            },
            "now_called": before,
            "jump_hosts": {one.target.name: one.key.fingerprint for one in jumps},
            "failed": {name: error.kind.value for name, error in failed.items()},
            "known": same,
        },
        table=_trusted(context, jumps, new, failed),
        text="\n".join(
            (
                f"{len(new)} accepted, {same} known already, {len(failed)} not reached.",
                *(
                    f"{name} is another device from now on; what was recorded is that of {old}."
                    for name, old in before.items()
                ),
            )
        ),
        exit_code=exit_code([*failed.values(), *([None] * (len(wanted) - len(failed)))]),
    )


def _accept(
    context: Context,
    pool: Connections,
    new: list[Stranger],
    yes: bool,
    same_device: bool = False,
    jumps: bool = False,
) -> None:
    """Ask about some host keys, and take them where the answer is yes.

    Raises:
        RefusedError: the answer is no.
    """
    if not new:
        return
    asked = [
        f"jump host {one.target.name}: {one.sentence}"
        if jumps
        else f"{context.shown(one.target.name)}: {one.sentence}{_follows(one, same_device)}"
        for one in new
    ]
    if not (yes or context.confirm("Accept these host keys?", asked)):
        raise RefusedError(f"{count(len(new), 'host key')} refused: {'; '.join(asked)}")
    pool.known(new[0].target).trust_all([(one.target.known_as, one.key) for one in new])


def _follows(one: Stranger, same_device: bool) -> str:
    """Return what accepting a changed key does to the device's history."""
    if not one.old:
        return ""
    if same_device:
        return "; it is the same device and keeps its history"
    return "; it counts as another device and begins anew (--same-device: it keeps its history)"


def _note_keys(context: Context, new: list[Stranger], same_device: bool) -> dict[str, str]:
    """Note the keys that were accepted; return what devices that were replaced are called now."""
    before = {}
    for one in new:
        name, store = one.target.name, context.store
        # Without a key in the files, another one may still be noted: the address has changed.
        is_same = same_device or not (one.old or table.host_key(store, name))
        old = take_key(context.settings, store, name, one.key.fingerprint, is_same)
        if old:
            before[name] = old
    return before


def _trusted(
    context: Context, jumps: list[Stranger], new: list[Stranger], failed: dict[str, DeviceError]
) -> Table | None:
    rows = [
        (
            name,
            one.key.type,
            ", ".join(old.fingerprint for old in one.old) or "unknown until now",
            one.key.fingerprint,
        )
        for name, one in (
            *((f"jump host {one.target.name}", one) for one in jumps),
            *((context.shown(one.target.name), one) for one in new),
        )
    ]
    rows += [
        (context.shown(name), error.kind.value, "", str(error)) for name, error in failed.items()
    ]
    columns = ("device", "key type", "old fingerprint", "new fingerprint")
    return Table(columns, tuple(rows)) if rows else None


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
        return (
            "lacking",
            f"its Python has no {' and no '.join(missing)}: run hdap devices provision",
        )
    cores, cpu = answer.get("cores"), clean(answer.get("cpu_model", answer.get("machine", "")), 40)
    text = f"{cpu}, {cores} cores, ONNX Runtime {clean(answer['onnxruntime'], 20)}"
    return "ok", text
