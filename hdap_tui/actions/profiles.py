"""Compare models: a row each of accuracy, size, operations, latency and energy."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from hdap_tui import library, profiles
from hdap_tui.actions.bench import model_named
from hdap_tui.config.expression import quote
from hdap_tui.context import Context, Outcome, Table
from hdap_tui.errors import ExitCode, SettingsError, UserError
from hdap_tui.figures import count, interval, ms
from hdap_tui.profiles import Comparison, Profiled
from hdap_tui.store import devices
from hdap_tui.store import models as table
from hdap_tui.store.records import ModelRow
from hdap_tui.text import clean

_OLD = timedelta(days=1)
"""Measurements that lie further apart than this are not of the same conditions."""
_ALL_IMAGES = 10**9


def compare(
    context: Context,
    models: Sequence[str] = (),
    data: str | None = None,
    device: str | None = None,
    markdown: bool = False,
) -> Outcome:
    """Show models side by side, and which of them no other beats in accuracy and latency."""
    settings, store = context.settings, context.store
    if device:
        settings.device(device)
    devices.sync(store, settings.devices)
    chosen, problem = _chosen(context, models)
    if not chosen:
        raise SettingsError(problem or "There is no model yet: name one in [[models]].")
    rows, problems = _completed(context, chosen, data)
    if problem and not any(row.path in problem for row in rows):
        problems.append(problem)
    found = profiles.compare(store, rows, device or "")
    notes = [_summary(context, found), *_notes(found), *problems]
    shown = _table(context, found)
    whole = all(row.paper and not (data and row.accuracy is None) for row in found.rows)
    return Outcome(
        data={**_document(found), "notes": notes},
        table=None if markdown else shown,
        text=_markdown(shown, notes) if markdown else "\n".join(notes),
        exit_code=ExitCode.DONE if whole else ExitCode.PARTLY,
    )


# ---- what is known of the models, and what can be found out


def _chosen(context: Context, names: Sequence[str]) -> tuple[list[ModelRow], str]:
    """Return the models that are named, without names all but the probes; and what went wrong.

    Raises:
        SettingsError: a name is no model's.
    """
    known: dict[str, ModelRow] = {}
    problem = ""
    try:
        known = library.ensure(context.settings, context.store)
    except UserError as error:  # one missing file is no reason to show none of the others
        problem = str(error)
    if not names:
        return [row for row in table.rows(context.store) if row.kind != "probe"], problem
    found = [model_named(context, known, name) for name in names]
    return list({row.digest: row for row in found}.values()), problem


def _completed(
    context: Context, rows: Sequence[ModelRow], data: str | None
) -> tuple[list[ModelRow], list[str]]:
    """Return the models with what their files and, where data is given, its images tell.

    Both are kept with the model, and found out once. What could not be is a sentence each.
    """
    context.reporter.started("profile", total=len(rows))
    done, problems = [], []
    for number, row in enumerate(rows):
        if context.cancelled():
            raise UserError("models compare was stopped; what was found out is kept.")
        known = row
        try:
            _check_content(row)
            for metrics in _found_out(context, row, data):
                table.set_metrics(context.store, row.digest, metrics)
                known = replace(known, metrics={**known.metrics, **metrics})
        except UserError as error:
            problems.append(str(error))
        except ValueError as error:
            problems.append(f"{row.name}: {error}.")
        done.append(known)
        context.reporter.advanced("profile", number + 1)
    context.reporter.finished("profile")
    return done, problems


def _found_out(context: Context, row: ModelRow, data: str | None) -> Iterator[dict[str, Any]]:
    """Yield what was not known yet of a model.

    Raises:
        UserError, ValueError: it is no network, or does not fit the images.
    """
    if "profile" not in row.metrics:
        from engine.compress.onnx_profile import profile_file

        yield {"profile": asdict(profile_file(row.path))}
    if data and "test_accuracy" not in row.metrics:
        from hdap_tui.trial import prepare

        trial = prepare(context.settings, row, data, _ALL_IMAGES, context.cancelled)
        yield {"test_accuracy": trial.accuracy_here, "data": trial.data}


def _check_content(row: ModelRow) -> None:
    """Make sure that a model's file is still there, and still the model.

    Raises:
        UserError: it is not.
    """
    try:
        content = Path(row.path).read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{row.name}: its file {row.path} is gone; put it back.") from error
    except OSError as error:
        raise UserError(f"{row.name}: {row.path} cannot be read: {error.strerror}.") from error
    if hashlib.sha256(content).hexdigest() != row.digest:
        raise UserError(f"{row.name}: its file is gone; {row.path} holds another model now.")


# ---- how it is shown


def _table(context: Context, found: Comparison) -> Table:
    """Return a row a model; a column that would say nothing is left out."""
    energy = any(row.timed and row.timed.energy_mj is not None for row in found.rows)
    wanted = {"energy": energy, "fleet": found.devices > 0}
    columns = (
        "model", "accuracy", "kB", "gzip kB", "parameters", "non-zeros", "MACs", "latency",
        "95 % interval", "p90", "energy", "measured", "fleet", "front", "",
    )  # fmt: skip
    shown = [number for number, name in enumerate(columns) if wanted.get(name, True)]
    titles = {"fleet": f"mean of {count(found.devices, 'device')}"}
    return Table(
        tuple(titles.get(columns[number], columns[number]) for number in shown),
        tuple(tuple(cells[n] for n in shown) for cells in map(_row, found.rows)),
        title=f"latency on {context.shown(found.device)}" if found.device else "",
    )


def _row(row: Profiled) -> tuple[str, ...]:
    paper, timed = row.paper, row.timed
    deployed = row.model.deployed_on
    remarks = (
        f"runs on {count(deployed, 'device')}" if deployed else "",
        "emulated" if timed and timed.emulated else "",
        row.remark,
    )
    return (
        row.model.name,
        "" if row.accuracy is None else f"{100 * row.accuracy:.2f} %",
        _kilobytes(row.model.bytes),
        _kilobytes(paper.get("compressed_bytes")),
        _short(paper.get("parameters")),
        _short(paper.get("nonzeros")),
        _short(paper.get("macs")),
        ms(timed.median_ms) if timed else "",
        interval(timed.low_ms, timed.high_ms) if timed else "",
        f"{timed.p90_ms:.3f}" if timed and timed.p90_ms is not None else "",
        f"{timed.energy_mj:.3g} mJ" if timed and timed.energy_mj is not None else "",
        f"{_age(datetime.now(UTC) - datetime.fromisoformat(timed.at))} ago" if timed else "",
        ms(row.fleet_ms),
        "yes" if row.on_front else "",
        "; ".join(filter(None, remarks)),
    )


def _document(found: Comparison) -> dict[str, Any]:
    return {
        "device": found.device or None,
        "emulated": found.emulated,
        "fleet_devices": found.devices,
        "models": [
            {
                "name": row.model.name,
                "digest": row.model.digest,
                "kind": row.model.kind,
                "parent": row.model.parent,
                "deployed_on": row.model.deployed_on,
                "test_accuracy": row.accuracy,
                "data": row.model.metrics.get("data"),
                **dict.fromkeys(("parameters", "nonzeros", "macs", "compressed_bytes")),
                **row.paper,
                "bytes": row.model.bytes,
                "latency": asdict(row.timed) if row.timed else None,
                "fleet_mean_ms": row.fleet_ms,
                "on_front": row.on_front,
                "remark": row.remark,
            }
            for row in found.rows
        ],
    }


def _markdown(shown: Table, notes: Sequence[str]) -> str:
    """Return table and notes in Markdown; a bar in a name would end its cell, and is escaped."""
    lines = [shown.columns, tuple("---" for _ in shown.columns), *shown.rows]
    rows = (f"| {' | '.join(map(_escaped, line))} |" for line in lines)
    return "\n".join([*rows, "", *(f"- {_escaped(note)}" for note in notes)])


def _escaped(text: str) -> str:
    return re.sub(r"([\\|<`*])", r"\\\1", clean(text, 400))


def _summary(context: Context, found: Comparison) -> str:
    """Return where the latency is from, and which models no other beats."""
    where = context.shown(found.device)
    timed = len(found.rows) - len(found.missing)
    if not timed:
        return f"None of them was measured on {where}." if where else "None of them was measured."
    front = [row.model.name for row in found.rows if row.on_front]
    said = f"Latency on {where}, where {timed} of {len(found.rows)} were measured."
    return f"{said} On the front of accuracy against latency: {', '.join(front) or 'none'}."


def _notes(found: Comparison) -> list[str]:
    """Return what is missing and the command that adds it, and what does not go together."""
    notes = []
    if found.missing:
        first = [row.model.name for row in found.rows if row.timed is not None][:1]
        where = f" on {found.device}" if found.device else ""
        notes.append(
            f"Not measured{where}: {', '.join(found.missing)}. "
            f"{_bench([*first, *found.missing], found.device)} does it."
        )
    unknown = [row.model.name for row in found.rows if row.accuracy is None]
    if unknown:
        notes.append(
            f"No test accuracy is known of {', '.join(unknown)}: --data DATA finds it out."
        )
    sets = {
        str(row.model.metrics["data"]) for row in found.rows if row.accuracy is not None
        and row.model.metrics.get("data")
    }  # fmt: skip
    if len(sets) > 1:
        notes.append(
            f"The accuracies are of different images ({', '.join(sorted(sets))}): they do not "
            "compare."
        )
    times = [datetime.fromisoformat(row.timed.at) for row in found.rows if row.timed]
    if times and max(times) - min(times) > _OLD:
        names = [row.model.name for row in found.rows if row.timed]
        notes.append(
            f"They were measured up to {_age(max(times) - min(times))} apart: "
            f"{_bench(names, found.device)} times them side by side."
        )
    return notes


def _bench(names: Sequence[str], device: str) -> str:
    words = ["hdap", "bench", *names]
    words += ["--compare"] if len(names) > 1 else []
    words += ["--select", quote(device)] if device else []
    return shlex.join(words)


def _age(passed: timedelta) -> str:
    """Return a length of time in its largest unit."""
    seconds = max(0, int(passed.total_seconds()))
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def _kilobytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1000:.0f}"


def _short(number: int | None) -> str:
    """Return a large number with one decimal."""
    if number is None:
        return ""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)
