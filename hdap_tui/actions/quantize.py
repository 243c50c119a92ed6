"""Quantize a finished model where the devices run it faster, and say why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from hdap_tui.actions.bench import model_named
from hdap_tui.actions.compress import check_data, images, in_use
from hdap_tui.actions.jobs import jobs_dir, started
from hdap_tui.context import Context, Outcome, Table
from hdap_tui.errors import ExitCode
from hdap_tui.figures import ms
from hdap_tui.jobs import control, fleet
from hdap_tui.store import models as table
from hdap_tui.store.records import ClusterMap, ModelRow


def quantize(
    context: Context,
    model: str | None = None,
    data: str | None = None,
    method: str = "static",
    maximum_drop: float | None = None,
    calibration: str | None = None,
    always: bool = False,
    explain: bool = False,
    detach: bool = False,
) -> Outcome:
    """Start a job that makes an int8 version of a model for the clusters that run it faster."""
    settings, store = context.settings, context.store
    named = images(settings, data)

    def current() -> ClusterMap:
        check_data(named)
        return fleet.latest(settings, store)

    if not explain:  # before the model in use is written; to explain may need neither
        current()
    used = in_use(context)
    known = {used.name: used}
    row = used if model is None else model_named(context, known, model)
    if explain:
        told = _decision(table.rows(context.store), row)
        if told:
            return _explained(row, told)
    step = {
        "method": method,
        **({} if maximum_drop is None else {"maximum_drop": maximum_drop}),
        **({} if calibration is None else {"calibration": calibration}),
        **({"take": "always"} if always else {}),
    }
    asked = msgspec.structs.replace(settings.compression, network=row.path)
    request: dict[str, Any] = {
        "config": str(settings.path),
        "compression": msgspec.to_builtins(asked.with_threads()),
        "data": named,
        "model": row.path,
        "name": row.name,
        "parent": row.digest,
        "clusters": fleet.clusters(current(), store, used.digest),
        "recipe": {"name": "", "steps": [step]},
    }
    outcome = started(context, control.start(jobs_dir(context), "quantize", request), detach)
    if not explain or detach or outcome.exit_code != ExitCode.DONE:
        return outcome
    return _explained(row, _decision(table.rows(store), row) or [])


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
    return Outcome(
        data={"model": model.name, "decision": [dict(one) for one in decision]},
        table=Table(columns, tuple(rows)),
        text=text,
    )


def _times(before: float, after: float | None) -> str:
    return "" if after is None else f"{before / after:.2f}x"
