"""What devices are: their facts as columns and history, their channel multiple, their cohorts."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from hdap_tui.actions.fact_words import (
    SHOWN,
    change_words,
    columns_of,
    moment_document,
    title,
    word_of,
)
from hdap_tui.actions.reaching import exit_code
from hdap_tui.config.fields import FIELDS
from hdap_tui.context import Context, Outcome, Table
from hdap_tui.errors import ExitCode
from hdap_tui.fact_names import BY_NAME, Fact, shown
from hdap_tui.figures import count
from hdap_tui.selection import row_record
from hdap_tui.ssh.errors import DeviceError
from hdap_tui.store import devices as table
from hdap_tui.store import facts as store_facts
from hdap_tui.store.records import DeviceRow
from hdap_tui.store.snapshot import snapshot
from hdap_tui.text import clean

_USUAL = "board,cpu_model,cores_usable,memory_mb,os,onnxruntime,governor,channel_multiple"


def facts(
    context: Context,
    select: str | None = None,
    columns: str | None = None,
    history: bool = False,
    refresh: bool = False,
) -> Outcome:
    """Show what the devices are, as columns; or when and how that changed."""
    names = columns_of(columns or _USUAL, BY_NAME)
    chosen = [device.name for device in context.select(select)]
    table.sync(context.store, context.settings.devices)
    failed = _look_again(context, chosen) if refresh else {}
    known = store_facts.latest(context.store)
    moments = {n: store_facts.history(context.store, n) for n in chosen} if history else {}
    data = [
        {
            "name": name,
            "emulated": context.settings.device(name).emulated,
            "facts": dict(known.get(name, {})),
            **({"error": failed[name].kind.value} if name in failed else {}),
            **({"history": [moment_document(m) for m in moments[name]]} if history else {}),
        }
        for name in chosen
    ]
    unknown = sum(name not in known for name in chosen)
    text = [f"{name}: {error}" for name, error in failed.items()]
    if unknown:
        text.append(
            f"{unknown} of {len(chosen)} devices were never looked at: "
            "hdap devices facts --refresh does it."
        )
    return Outcome(
        data={"devices": data},
        table=_history_table(context, moments)
        if history
        else _table(context, chosen, known, names),
        text="\n".join(text),
        exit_code=exit_code([failed.get(name) for name in chosen]) if refresh else ExitCode.DONE,
    )


def probe(context: Context, select: str | None = None) -> Outcome:
    """Find the channel multiple at which the devices' convolutions run fastest."""
    from hdap_tui import probing
    from hdap_tui.measuring import Measuring

    chosen = [device.name for device in context.select(select)]
    with Measuring(context) as measuring:
        found = probing.probe(measuring, chosen)
    names = [name for name in chosen if name in found]
    good = [name for name in names if not isinstance(found[name], str)]
    return Outcome(
        data={"devices": [_probed(context, name, found[name]) for name in names]},
        table=Table(
            ("device", "multiple", "other widths cost", ""),
            tuple(_probed_row(context, name, found[name]) for name in names),
        ),
        text=f"{len(good)} of {len(chosen)} devices told their channel multiple.",
        exit_code=(
            ExitCode.DONE
            if len(good) == len(chosen)
            else ExitCode.PARTLY if good else ExitCode.FAILED
        ),
    )  # fmt: skip


def cohorts(context: Context, by: str = "board,os", select: str | None = None) -> Outcome:
    """Count the devices that share some facts, with the measured latency of their model."""
    names = columns_of(by, FIELDS)
    chosen = {device.name for device in context.select(select)}
    table.sync(context.store, context.settings.devices)
    rows = [r for r in snapshot(context.store, context.settings.name).devices if r.name in chosen]
    groups: dict[tuple[str, ...], list[DeviceRow]] = defaultdict(list)
    for row in rows:
        record = row_record(row, names, context.settings.device(row.name))
        groups[tuple(word_of(name, record[name]) for name in names)].append(row)
    ordered = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    return Outcome(
        data={
            "by": names,
            "cohorts": [
                {
                    "facts": dict(zip(names, values, strict=True)),
                    "size": len(members),
                    "emulated": sum(row.emulated for row in members),
                    "measured": len(_latencies(members)),
                    "median_ms": _median(members),
                    "devices": [row.name for row in members],
                }
                for values, members in ordered
            ],
        },
        table=Table(
            (*(title(name) for name in names), "devices", "median measured", ""),
            tuple(
                (
                    *(clean(value, SHOWN) or "–" for value in values),
                    str(len(members)),
                    _median_words(members),
                    _emulated_words(members),
                )
                for values, members in ordered
            ),
        ),
        text=f"{count(len(rows), 'device')} in {count(len(ordered), 'cohort')} by "
        f"{', '.join(names)}.",
    )


def _look_again(context: Context, names: Sequence[str]) -> dict[str, DeviceError]:
    from hdap_tui.facts import gather
    from hdap_tui.fanout import on_each
    from hdap_tui.reach import connections, targets
    from hdap_tui.stages import Stages

    targets_ = targets(context.settings, [context.settings.device(name) for name in names])
    failed: dict[str, DeviceError] = {}
    context.reporter.started("facts", total=len(names), weight=len(names))
    with connections(context) as pool, Stages(context.store, context.on_stage) as stages:
        looked = on_each(
            pool, targets_, gather, context.cancelled, on_stage=stages.say, doing="facts"
        )
        for done, (target, answer) in enumerate(looked, start=1):
            if isinstance(answer, DeviceError):
                failed[target.name] = answer
                table.set_state(context.store, target.name, "off", answer.kind.value, str(answer))
            else:
                table.set_state(context.store, target.name, "ok")
                store_facts.save(context.store, target.name, answer)
            context.reporter.advanced("facts", done)
    context.reporter.finished("facts")
    return failed


def _table(
    context: Context,
    chosen: Sequence[str],
    known: Mapping[str, Mapping[str, Fact]],
    names: Sequence[str],
) -> Table:
    return Table(
        ("device", *(title(name) for name in names)),
        tuple(
            (
                context.shown(device),
                *(clean(shown(name, known.get(device, {}).get(name)), SHOWN) for name in names),
            )
            for device in chosen
        ),
    )


def _history_table(context: Context, moments: Mapping[str, Sequence[store_facts.Moment]]) -> Table:
    rows = [
        (moment.at[:19], context.shown(device), words)
        for device, own in moments.items()
        for moment in own
        for words in (map(change_words, moment.changes) if moment.changes else ("first look",))
    ]
    return Table(("when (UTC)", "device", "what changed"), tuple(sorted(rows)))


def _probed(context: Context, name: str, answer: Any) -> dict[str, Any]:
    head = {"name": name, "emulated": context.settings.device(name).emulated}
    if isinstance(answer, str):
        return {**head, "ok": False, "detail": answer}
    return {
        **head,
        "ok": True,
        "channel_multiple": answer.multiple,
        "channel_gain_percent": answer.gain_percent,
        "doubt_percent": answer.doubt_percent,
        "cost_percent": {str(m): cost for m, cost in answer.cost_percent.items()},
        "latency_ms": {str(width): ms for width, ms in answer.latency_ms.items()},
    }


def _probed_row(context: Context, name: str, answer: Any) -> tuple[str, ...]:
    if isinstance(answer, str):
        return (context.shown(name), "", "", clean(answer, 160))
    said = "no preference" if answer.multiple == 1 else ""
    worth = f"{answer.gain_percent:.0f} % more" if answer.multiple > 1 else ""
    return (context.shown(name), str(answer.multiple), worth, said)


def _latencies(rows: Sequence[DeviceRow]) -> list[float]:
    return [row.latency_ms for row in rows if row.latency_ms is not None]


def _median(rows: Sequence[DeviceRow]) -> float | None:
    """Return the median latency; None where nothing is measured or the models differ."""
    measured = [row for row in rows if row.latency_ms is not None]
    if not measured or len({row.model_digest for row in measured}) > 1:
        return None
    return statistics.median(_latencies(measured))


def _median_words(rows: Sequence[DeviceRow]) -> str:
    middle = _median(rows)
    if middle is not None:
        return f"{middle:.3f} ms"
    return "several models" if _latencies(rows) else ""


def _emulated_words(rows: Sequence[DeviceRow]) -> str:
    emulated = sum(row.emulated for row in rows)
    return "" if not emulated else "emulated" if emulated == len(rows) else f"{emulated} emulated"
