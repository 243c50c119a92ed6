"""Quantize a finished model where the devices run it faster, and say why."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from hdap_tui.actions.bench import model_named
from hdap_tui.actions.compress import check_data, images, in_use
from hdap_tui.actions.jobs import jobs_dir, started
from hdap_tui.config.recipes import KEYS
from hdap_tui.config.schema import RecipeStep
from hdap_tui.context import Context, Outcome, Table
from hdap_tui.errors import ExitCode, SettingsError
from hdap_tui.figures import ms
from hdap_tui.jobs import control, fleet
from hdap_tui.jobs.folder import JobFolder
from hdap_tui.jobs.origin import origin
from hdap_tui.store import models as table
from hdap_tui.store.records import ModelRow


def quantize(
    context: Context,
    model: str | None = None,
    data: str | None = None,
    method: str | None = None,
    maximum_drop: float | None = None,
    calibration: str | None = None,
    always: bool = False,
    explain: bool = False,
    detach: bool = False,
) -> Outcome:
    """Start a job that makes an int8 version of a model for the clusters that run it faster."""
    settings, store = context.settings, context.store
    step = _step(method, maximum_drop, calibration, always)
    if data is not None:
        check_data(images(settings, data))
    if not explain:  # before the model in use is written; to explain may need neither
        fleet.latest(settings, store)
    used = in_use(context)
    known = {used.name: used}
    row = used if model is None else model_named(context, known, model)
    if explain and len(step) == 1 and method is None:  # what is asked for else is not known yet
        told = _decision(table.rows(store), row)
        if told:
            return _explained(row, told)
    _check_float(context, row)
    origins = origin(settings, row)
    named = origins.data if data is None else images(settings, data)
    check_data(named)
    asked = msgspec.structs.replace(
        settings.compression, network=row.path, seed=origins.seed, classes=origins.classes
    )
    request: dict[str, Any] = {
        "config": str(settings.path),
        "compression": msgspec.to_builtins(asked.with_threads()),
        "data": named,
        "model": row.path,
        "name": row.name,
        "parent": row.digest,
        "clusters": fleet.clusters(fleet.latest(settings, store), store, used.digest),
        "recipe": {"name": "", "steps": [step]},
    }
    outcome = started(context, control.start(jobs_dir(context), "quantize", request), detach)
    if not explain or detach or outcome.exit_code != ExitCode.DONE:
        return outcome
    return _explained(row, _decision(table.rows(store), row) or [])


def _step(
    method: str | None, maximum_drop: float | None, calibration: str | None, always: bool
) -> dict[str, Any]:
    """Return the step of a recipe that the options ask for.

    Raises:
        SettingsError: they do not go together, or one is no sensible value.
    """
    step: dict[str, Any] = {"method": method or "static"}
    options = {"maximum_drop": maximum_drop, "calibration": calibration}
    step |= {name: value for name, value in options.items() if value is not None}
    step |= {"take": "always"} if always else {}
    for name in sorted(step.keys() - {"method"} - KEYS[step["method"]]):
        raise SettingsError(
            f"--{name.replace('_', '-')}: dynamic quantization takes none, since it looks at no "
            "images; --method static does."
        )
    try:
        msgspec.convert(step, RecipeStep)
    except msgspec.ValidationError as error:
        raise SettingsError(f"--maximum-drop is {maximum_drop:g}: {error}.") from error
    return step


def _check_float(context: Context, model: ModelRow) -> None:
    """Refuse a model that is quantized already, and name the one that it was made from.

    Raises:
        SettingsError: it is.
    """
    precision = model.metrics.get("precision", "fp32")
    if precision == "fp32":
        return
    digest = str(model.metrics.get("float_digest", ""))
    made = table.by_digest(context.store, digest)
    # Where every cluster took the quantized one, the float network lies in the job's folder alone.
    work = JobFolder(jobs_dir(context) / (model.job or ".")).work
    lying = (p for p in sorted(work.glob("*.onnx")) if _digest(p) == digest)
    name = made.name if made else next(map(str, lying), "the float network")
    raise SettingsError(
        f"{model.name} is quantized already ({precision}): quantize {name}, from which it was made."
    )


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _decision(rows: Iterable[ModelRow], model: ModelRow) -> list[Mapping[str, Any]]:
    """Return the newest decision on a float model, cluster by cluster.

    It stands with the quantized versions of the model, and with itself where a cluster keeps it.
    """
    found = [
        one
        for row in rows
        if model.digest in (row.digest, row.metrics.get("float_digest"))
        for one in row.metrics.get("decision", ())
    ]
    newest = max((one["at"] for one in found), default="")
    return [one for one in found if one["at"] == newest]


def _explained(model: ModelRow, decision: list[Mapping[str, Any]]) -> Outcome:
    """Return why each cluster gets what it gets."""
    rows = [
        (
            str(one["cluster"]),
            str(one["devices"]),
            measured["device"],
            f"{measured['float_ms']:.3f} ms",
            ms(measured["quantized_ms"]),
            _times(measured["float_ms"], measured["quantized_ms"]),
            str(one["takes"]),
        )
        for one in decision
        for measured in one["measured"]
    ]
    columns = ("cluster", "devices", "measured on", "float", "quantized", "speed-up", "takes")
    text = "\n".join(one["reason"] for one in decision)
    if decision:
        text = f"Decided at {decision[0]['at'][:16].replace('T', ' ')} UTC.\n{text}"
    return Outcome(
        data={"model": model.name, "decision": [dict(one) for one in decision]},
        table=Table(columns, tuple(rows)),
        text=text,
    )


def _times(before: float, after: float | None) -> str:
    return "" if after is None else f"{before / after:.2f}x"
