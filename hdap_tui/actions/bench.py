"""Time models on the devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.latency import Latency
from hdap_tui import library
from hdap_tui.context import Context, Outcome, Table
from hdap_tui.errors import ExitCode, SettingsError, UserError
from hdap_tui.measuring import Measuring
from hdap_tui.ssh.errors import DeviceError, ErrorKind
from hdap_tui.store import models as table
from hdap_tui.store.records import ModelRow


def bench(context: Context, models: tuple[str, ...] = (), select: str | None = None) -> Outcome:
    """Time ONNX models on the devices, interleaved, each block in a fresh process."""
    chosen = context.select(select)
    known = library.ensure(context.settings, context.store)
    wanted = [_model(context, known, word) for word in models]
    with Measuring(context) as measuring:
        visits = {device.name: wanted or [measuring.deployed(device.name)] for device in chosen}
        latencies = measuring.run("bench", visits)
    names = {row.digest: row.name for row in table.rows(context.store)}
    order = {device.name: number for number, device in enumerate(chosen)}
    latencies.sort(key=lambda found: (order[found.device], names.get(found.model, "")))
    return Outcome(
        data={"measurements": [document(found, names) for found in latencies]},
        table=Table(
            ("device", "model", "median", "95 % interval", "p90", "runs", "contended", ""),
            tuple(_row(found, names) for found in latencies),
        ),
        exit_code=exit_code(latencies),
    )


def exit_code(latencies: list[Latency]) -> ExitCode:
    """Return the exit status of a measurement of many devices."""
    failed = [found for found in latencies if not found.ok]
    if not failed:
        return ExitCode.DONE
    if len(failed) < len(latencies):
        return ExitCode.PARTLY
    try:
        return DeviceError(ErrorKind(failed[0].error), "").exit_code
    except ValueError:
        return ExitCode.FAILED


def document(found: Latency, names: dict[str, str]) -> dict[str, Any]:
    """Return a measurement as the JSON that the command line prints."""
    return {
        "device": found.device,
        "emulated": found.emulated,
        "model": names.get(found.model, found.model[:12]),
        "model_digest": found.model,
        "median_ms": found.median_ms,
        "low_ms": found.low_ms,
        "high_ms": found.high_ms,
        "p90_ms": found.p90_ms,
        "cpu_ms": found.cpu_ms,
        "runs": found.n,
        "block_medians_ms": list(found.block_medians_ms),
        "contended": found.contended,
        "at": found.at,
        "error": found.error,
        "detail": found.detail,
    }


def _model(context: Context, known: dict[str, ModelRow], word: str) -> ModelRow:
    if word in known:
        return known[word]
    if word.endswith(".onnx") or "/" in word:
        return library.from_file(context.store, Path(word).expanduser())
    try:
        return table.find(context.store, word)
    except UserError as error:
        raise SettingsError(str(error)) from error


def _row(found: Latency, names: dict[str, str]) -> tuple[str, ...]:
    note = "emulated" if found.emulated else ""
    name = names.get(found.model, found.model[:12])
    if not found.ok:
        return found.device, name, found.error, "", "", "", "", found.detail
    return (
        found.device,
        name,
        f"{found.median_ms:.3f} ms",
        f"{found.low_ms:.3f} to {found.high_ms:.3f}",
        f"{found.p90_ms:.3f}",
        str(found.n),
        f"{found.contended:.0%}",
        note,
    )
