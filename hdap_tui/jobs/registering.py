"""What a job has made becomes a model of the store, with its lineage and its recipe."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import Any

from engine import files
from hdap_tui.jobs.deciding import Choice
from hdap_tui.jobs.parts import Job, Part
from hdap_tui.jobs.steps import plain, resolved
from hdap_tui.store import models as table
from hdap_tui.store.database import Store, open_store
from hdap_tui.store.records import ModelRow


def register(job: Job, choice: Choice, metrics: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Put an artifact into the store; return what the job's result says of it."""
    known = {
        **metrics,
        **choice.figures,
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
    return {"model": row.name, "digest": row.digest, "path": row.path, "metrics": known}


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
    """Return all that the job was asked for, with nothing left to other settings: for JSON."""
    steps = job.steps
    whole = (*steps.networks, *([steps.quantization] if steps.quantization else ()))
    return {
        "network": job.asked.network,
        "weights": job.request.get("weights", ""),
        "data": job.request["data"],
        "seed": job.asked.seed,
        "steps": [plain(step) for step in resolved(whole, job.asked)],
    }


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
