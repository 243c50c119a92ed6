"""What a job has made becomes a model of the store, with its lineage and its recipe."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import Any

import msgspec

from engine import files
from hdap_tui.config.recipes import TRAINING
from hdap_tui.jobs.deciding import Choice
from hdap_tui.jobs.parts import Job, Part
from hdap_tui.jobs.steps import plain, resolved
from hdap_tui.model_words import aim
from hdap_tui.store import models as table
from hdap_tui.store.database import Store, open_store
from hdap_tui.store.records import ModelRow


def register(job: Job, choice: Choice, metrics: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Put an artifact into the store; return what the job's result says of it."""
    known = {
        **metrics,
        **choice.figures,
        **_aim(job, metrics, choice),
        "objective": job.asked.objective,
        "emulated": any(d.emulated for d in job.settings.devices),
        "recipe": recipe(job),
        **({"for_devices": members(job, choice.part)} if choice.part.alone else {}),
    }
    with closing(open_store(job.settings.database)) as store:
        row = table.by_digest(store, choice.file.digest)
        if row is None:
            row = _add(store, job, choice, known, name)
        elif row.job == job.folder.name and choice.part.alone:
            known["for_devices"] = _share(store, job, row, choice.part)
        elif "decision" in known:  # it stays in use where it was
            table.set_metrics(store, row.digest, {"decision": known["decision"]})
        _tell_parent(store, job, metrics)
    return {"model": row.name, "digest": row.digest, "path": row.path, "metrics": known}


def _aim(job: Job, metrics: Mapping[str, Any], choice: Choice) -> dict[str, Any]:
    """Return what was to be reached, and whether the model as it goes out reaches it."""
    found = aim(metrics.get("search", {}), choice.figures["measured_speedup"])
    if found and job.asked.target_latency_ms:
        found["target_latency_ms"] = job.asked.target_latency_ms
    return found


def _tell_parent(store: Store, job: Job, metrics: Mapping[str, Any]) -> None:
    """Keep the accuracy of the model that the job began with, so that both can be compared."""
    parent = table.by_digest(store, job.request.get("parent", ""))
    if parent is not None and "test_accuracy" not in parent.metrics:
        found = {"test_accuracy": metrics["test_accuracy_before"], "data": metrics["data"]}
        table.set_metrics(store, parent.digest, found)


def _add(store: Store, job: Job, choice: Choice, known: Mapping[str, Any], name: str) -> ModelRow:
    target = job.settings.state_dir / "models" / f"{choice.file.digest}.onnx"
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    files.write(target, choice.file.path.read_bytes())
    return table.add(
        store,
        name=choice.part.file(name),
        digest=choice.file.digest,
        path=target,
        kind="artifact",
        size=choice.file.bytes,
        parent=job.request.get("parent", ""),
        job=job.folder.name,
        metrics=known,
    )


def recipe(job: Job) -> dict[str, Any]:
    """Return all that the job was asked for, with nothing left to other settings: for JSON.

    Beside the steps stands what they have no keys for: how is trained and how is searched, as in
    [compression.finetune] and [compression], and the speed-up from which int8 is taken.
    """
    steps, asked = job.steps, job.asked
    whole = (*steps.networks, *([steps.quantization] if steps.quantization else ()))
    methods = {step.method for step in whole}
    named = job.request.get("recipe") or {}
    found: dict[str, Any] = {
        "name": named.get("name", ""),
        "maximum_bytes": steps.maximum_bytes,
        "network": asked.network,
        "weights": job.request.get("weights", ""),
        "data": job.request["data"],
        "seed": asked.seed,
        "steps": [plain(step) for step in resolved(whole, asked)],
    }
    if methods & {"search", *TRAINING}:
        found["finetune"] = msgspec.to_builtins(asked.finetune)
    if "search" in methods:
        # What options have replaced stands above, and fine-tuning beside it.
        searched = msgspec.to_builtins(asked)
        found["compression"] = {k: v for k, v in searched.items() if k not in found}
    if steps.quantization is not None and not steps.always:
        found["margin_percent"] = job.settings.deploy.margin_percent
    return found


def members(job: Job, part: Part) -> list[str]:
    """Return all devices of a part's clusters, noise counted with the nearest."""
    return [
        name
        for cluster in job.request["clusters"]
        if cluster["id"] in part.clusters
        for name in cluster.get("members", cluster["devices"])
    ]


def _share(store: Store, job: Job, row: ModelRow, part: Part) -> list[str]:
    """Return whom a model is for; two clusters may have ended in the very same one."""
    own = members(job, part)
    others = [name for name in row.metrics.get("for_devices", ()) if name not in own]
    if others:
        table.set_metrics(store, row.digest, {"for_devices": [*others, *own]})
    return [*others, *own]
