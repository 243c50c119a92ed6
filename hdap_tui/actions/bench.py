"""Time models on the devices."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from engine.latency import Configuration, Latency
from hdap_tui import library
from hdap_tui.actions import comparing
from hdap_tui.config.source import did_you_mean
from hdap_tui.context import Context, Outcome, Table
from hdap_tui.errors import ExitCode, SettingsError, UserError
from hdap_tui.figures import interval
from hdap_tui.measuring import Measuring
from hdap_tui.ssh.errors import DeviceError, ErrorKind
from hdap_tui.store import models as table
from hdap_tui.store.records import ModelRow
from hdap_tui.visit import Bench

PROVIDERS = (
    "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider",
    "OpenVINOExecutionProvider", "DnnlExecutionProvider", "ROCMExecutionProvider",
    "MIGraphXExecutionProvider", "QNNExecutionProvider", "NnapiExecutionProvider",
    "XnnpackExecutionProvider", "ACLExecutionProvider", "ArmNNExecutionProvider",
    "RknpuExecutionProvider", "CANNExecutionProvider", "VitisAIExecutionProvider",
    "VSINPUExecutionProvider", "CoreMLExecutionProvider", "DmlExecutionProvider",
)  # fmt: skip
"""ONNX Runtime's own; a runtime that was built with another one takes that as well."""

_LIST_MOST = 16


def bench(
    context: Context,
    models: tuple[str, ...] = (),
    select: str | None = None,
    batch: str | None = None,
    threads: str | None = None,
    provider: str | None = None,
    compare: bool = False,
    cool_below: float | None = None,
    idle_below: float | None = None,
    wait_limit: float | None = None,
    at_limit: str | None = None,
    energy: float | None = None,
) -> Outcome:
    """Time ONNX models on the devices, interleaved, each block in a fresh process."""
    chosen = context.select(select)
    asked = _bench(
        Bench.of(context.settings.benchmark),
        _configurations(Bench.of(context.settings.benchmark), batch, threads, provider),
        cool_below_c=cool_below,
        idle_below=idle_below,
        wait_limit_s=wait_limit,
        at_limit=at_limit,
        energy_s=energy,
    )
    known = library.ensure(context.settings, context.store)
    wanted = [model_named(context, known, word) for word in models]
    if compare and len({row.digest for row in wanted}) < 2:
        raise SettingsError(
            "--compare: name two models or more; the first is the one to compare with."
        )
    with Measuring(context) as measuring:
        visits = {device.name: wanted or [measuring.deployed(device.name)] for device in chosen}
        latencies = measuring.run("bench", visits, asked)
    names = {row.digest: row.name for row in table.rows(context.store)}
    order = {device.name: number for number, device in enumerate(chosen)}
    latencies.sort(key=lambda f: (order[f.device], names.get(f.model, ""), _how(f)))
    data: dict[str, Any] = {"measurements": [document(found, names) for found in latencies]}
    shown, text = measurements_table(latencies, names), ""
    if compare:
        old, *others = dict.fromkeys(row.digest for row in wanted)
        compared = comparing.pairs(latencies, old, others)
        data |= comparing.document(compared, names, old)
        failed = [found for found in latencies if not found.ok]
        shown = comparing.table(compared, names, old, failed)
        text = comparing.sentence(compared, names, old)
    return Outcome(data=data, table=shown, text=text, exit_code=exit_code(latencies))


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


def document(found: Latency, names: Mapping[str, str]) -> dict[str, Any]:
    """Return a measurement as the JSON that the command line prints."""
    return {
        "device": found.device,
        "emulated": found.emulated,
        "model": names.get(found.model, found.model[:12]),
        "model_digest": found.model,
        "batch": found.batch,
        "threads": found.threads,
        "provider": found.provider,
        "median_ms": found.median_ms,
        "low_ms": found.low_ms,
        "high_ms": found.high_ms,
        "p90_ms": found.p90_ms,
        "cpu_ms": found.cpu_ms,
        "per_image_ms": found.per_image_ms,
        "energy_mj": found.energy_mj,
        "energy": found.conditions.get("energy"),
        "runs": found.n,
        "block_medians_ms": list(found.block_medians_ms),
        "contended": found.contended,
        "cold_ms": found.conditions.get("cold_ms"),
        "sustained_ms": found.conditions.get("sustained_ms"),
        "throttled": found.conditions.get("throttled"),
        "during": found.conditions.get("during", {}),
        "waited": found.conditions.get("waited"),
        "remarks": list(found.remarks),
        "at": found.at,
        "error": found.error,
        "detail": found.detail,
    }


def measurements_table(latencies: Sequence[Latency], names: Mapping[str, str]) -> Table:
    """Return measurements for a person; a column that would say nothing is left out."""
    many = len({found.configuration for found in latencies}) > 1
    images = any(found.ok and found.per_image_ms != found.median_ms for found in latencies)
    energy = any(found.energy_mj is not None for found in latencies)
    wanted = {"run with": many, "an image": images, "energy": energy}
    columns = (
        "device", "model", "run with", "median", "95 % interval", "p90", "an image", "energy",
        "runs", "contended", "",
    )  # fmt: skip
    shown = [number for number, name in enumerate(columns) if wanted.get(name, True)]
    rows = [_row(found, names) for found in latencies]
    return Table(
        tuple(columns[number] for number in shown),
        tuple(tuple(row[number] for number in shown) for row in rows),
    )


def _how(found: Latency) -> tuple[str, int, int]:
    return found.provider, found.threads, found.batch


def _row(found: Latency, names: Mapping[str, str]) -> tuple[str, ...]:
    name, how = names.get(found.model, found.model[:12]), str(found.configuration)
    if not found.ok:
        return found.device, name, how, found.error, "", "", "", "", "", "", found.detail
    notes = (["emulated"] if found.emulated else []) + list(found.remarks)
    return (
        found.device,
        name,
        how,
        f"{found.median_ms:.3f} ms",
        interval(found.low_ms, found.high_ms),
        f"{found.p90_ms:.3f}",
        f"{found.per_image_ms:.3f}",
        "" if found.energy_mj is None else f"{found.energy_mj:.3g} mJ",
        str(found.n),
        f"{found.contended:.0%}",
        "; ".join(notes),
    )


# ---- what is asked


def _bench(bench: Bench, configurations: tuple[Configuration, ...], **changes: Any) -> Bench:
    """Return how to measure: as the settings say, but for the options that were given.

    Raises:
        SettingsError: an option has a value that makes no sense.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    for name, value in given.items():
        if isinstance(value, float) and not 0 <= value < 1e6:
            option = name.removesuffix("_c").removesuffix("_s").replace("_", "-")
            raise SettingsError(f"--{option}: {value:g} is no number from 0 on.")
    if given.get("idle_below", 0) > 1:
        raise SettingsError("--idle-below: write a share from 0 to 1, such as 0.2 for 20 %.")
    # A visit with twice the configurations may take twice the time.
    limit = bench.time_limit_s * max(len(configurations), 1)
    return dataclasses.replace(bench, configurations=configurations, time_limit_s=limit, **given)


def _configurations(
    bench: Bench, batch: str | None, threads: str | None, provider: str | None
) -> tuple[Configuration, ...]:
    """Return every combination of what the options list; empty where none was given."""
    if not (batch or threads or provider):
        return ()
    batches = _counts("batch", batch) or [bench.batch]
    counts = _counts("threads", threads) or [bench.threads]
    providers = [_provider(word) for word in _words(provider)] or [bench.provider]
    found = [
        Configuration(batch=b, threads=t, provider=p)
        for p, t, b in product(providers, counts, batches)
    ]
    return tuple(dict.fromkeys(found))


def _words(text: str | None) -> list[str]:
    return [word for word in re.split(r"[,\s]+", text or "") if word]


def _counts(option: str, text: str | None) -> list[int]:
    words = _words(text)
    if not all(word.isdecimal() and 1 <= int(word) <= 65536 for word in words):
        raise SettingsError(f'--{option}: "{text}" is no list of whole numbers such as 1,2,4.')
    if len(words) > _LIST_MOST:
        raise SettingsError(f"--{option}: {len(words)} are too many for one run; {_LIST_MOST} go.")
    return [int(word) for word in words]


def _provider(word: str) -> str:
    """Return a provider's whole name: "cuda" and "CUDAExecutionProvider" are the same."""
    short = {name.removesuffix("ExecutionProvider").lower(): name for name in PROVIDERS}
    stem = word.lower().removesuffix("executionprovider")
    if stem in short:
        return short[stem]
    if word.endswith("ExecutionProvider"):
        return word  # one that a runtime was built with
    hint = did_you_mean(stem, list(short))
    raise SettingsError(f'--provider: "{word}" is none of ONNX Runtime; {hint}')


def model_named(context: Context, known: Mapping[str, ModelRow], word: str) -> ModelRow:
    """Return a model by its name in the settings or the store, its digest, or its file's path.

    Raises:
        SettingsError: there is none.
    """
    if word in known:
        return known[word]
    if word.endswith(".onnx") or "/" in word:
        return library.from_file(context.store, Path(word).expanduser())
    try:
        return table.find(context.store, word)
    except UserError as error:
        raise SettingsError(str(error)) from error
