"""The quantized version of a network, for the instruction sets of the clusters' devices."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from engine.compress.bits import Effort, Reward, search_precision
from engine.compress.controlled import Unreachable, quantize_within
from engine.compress.export import Exported, known
from engine.compress.presets import Isa, isa
from engine.compress.quantize import onnx_accuracy, quantize_dynamic, quantize_static
from engine.data import Dataset
from engine.search.hdap import Cancelled, Cluster
from engine.search.objective import FleetLatency
from hdap_tui.config.schema import RecipeStep
from hdap_tui.facts import Facts, gather
from hdap_tui.fanout import on_each
from hdap_tui.jobs.folder import write_json
from hdap_tui.jobs.parts import Job, Part, stages_of
from hdap_tui.ssh.errors import DeviceError

EXPECTED_S = 3.0
"""What it is expected to take, but for "precision"."""
_ROUNDS = 12
_BYTES_COUNT = 0.5  # half the bytes are worth as much as 0.7 of the latency


@dataclass(frozen=True)
class Quantized:
    """A network in fewer bits; one file for each instruction set."""

    precision: str
    """"int8", or "mixed" where it was chosen layer by layer."""
    files: Mapping[int, Exported]
    """By cluster."""
    accuracies: Mapping[str, float]
    """On the selection split, by digest."""
    figures: Mapping[str, Mapping[str, Any]]
    """What more is known of a file, by digest: for the model's metrics."""


def quantized(
    job: Job,
    part: Part,
    source: Exported,
    dataset: Dataset,
    step: RecipeStep,
    maximum_drop: float | None,
) -> Quantized | None:
    """Quantize a network; None where every mixture with float loses more than may be lost.

    Args:
        job: what it is done for.
        part: whom the network is for.
        source: the float network.
        dataset: its calibration split gives the ranges, its selection split tells the accuracy.
        step: how.
        maximum_drop: points of accuracy that it may lose; None: any.

    Raises:
        Cancelled: somebody asked to stop.
        ValueError: it cannot be done; the sentence says why.
    """
    name = part.step("precision" if step.method == "precision" else "quantize")
    clusters = [cluster for cluster in job.clusters if cluster.id in part.clusters]
    sets = instruction_sets(job, clusters)
    job.reporter.started(name, total=len(set(sets.values())), weight=EXPECTED_S)
    files: dict[Isa, Exported] = {}
    figures: dict[str, Mapping[str, Any]] = {}
    for number, preset in enumerate(dict.fromkeys(sets.values()), 1):
        target = job.folder.work / part.file(f"int8-{preset}.onnx")
        own = [cluster for cluster in clusters if sets[cluster.id] == preset]
        try:
            if step.method == "precision":
                file, more = _chosen(job, name, source, target, dataset, step, preset, own)
            else:
                file, more = _write(job, name, source, target, dataset, step, preset, maximum_drop)
        except Unreachable as error:
            job.reporter.noted(name, str(error))
            job.reporter.finished(name)
            return None
        files[preset] = file
        figures[file.digest] = {"instruction_set": preset, "quantization": step.method, **more}
        job.reporter.advanced(name, number)
    accuracies = {
        file.digest: onnx_accuracy(file.path, dataset.selection_images, dataset.selection_labels)
        for file in files.values()
    }
    job.reporter.finished(name, bytes=max(file.bytes for file in files.values()))
    by_cluster = {number: files[preset] for number, preset in sets.items()}
    precision = "mixed" if step.method == "precision" else "int8"
    return Quantized(precision, by_cluster, accuracies, figures)


def _write(
    job: Job,
    name: str,
    source: Exported,
    target: Path,
    dataset: Dataset,
    step: RecipeStep,
    preset: Isa,
    maximum_drop: float | None,
) -> tuple[Exported, dict[str, Any]]:
    if step.method == "dynamic":
        operators = step.operators or ("MatMul", "Gemm")
        return quantize_dynamic(source.path, target, preset, operators), {}
    method = step.calibration or "minmax"
    if maximum_drop is None:
        images = dataset.calibration_images
        return quantize_static(source.path, target, images, preset, method=method), {}
    found = quantize_within(
        source.path, target, dataset.calibration_images, dataset.selection_images,
        dataset.selection_labels, maximum_drop, preset, method=method,
        progress=lambda sentence: job.reporter.noted(name, sentence),
    )  # fmt: skip
    return found.file, {"float_layers": list(found.floating)}


def _chosen(
    job: Job,
    name: str,
    source: Exported,
    target: Path,
    dataset: Dataset,
    step: RecipeStep,
    preset: Isa,
    clusters: Sequence[Cluster],
) -> tuple[Exported, dict[str, Any]]:
    """Learn a precision for each layer from what the clusters' devices measure."""
    reward, precisions = Reward(), step.precisions or ("fp32", "int8")
    if step.maximum_drop is not None:
        reward = replace(reward, maximum_drop=step.maximum_drop)
    if "int4" in precisions:  # it saves nothing else
        reward = replace(reward, bytes=_BYTES_COUNT)
    found = search_precision(
        source.path, target, dataset.calibration_images, dataset.selection_images,
        dataset.selection_labels, partial(_fleet_latency, job, source, clusters),
        actions=precisions, reward=reward, preset=preset, method=step.calibration or "minmax",
        effort=Effort(rounds=step.rounds or _ROUNDS, seed=job.asked.seed),
        record=job.folder.work / f"precision-{target.stem}.jsonl", reporter=job.reporter,
        cancelled=job.cancelled, step=name, weight=EXPECTED_S,
    )  # fmt: skip
    if found is None:
        raise Cancelled
    layers = {choice.layer.name: choice.precision for choice in found.layers}
    return found.file, {"layer_precisions": layers, "networks_measured": found.tried}


def _fleet_latency(job: Job, source: Exported, clusters: Sequence[Cluster], path: Path) -> float:
    """Return a file's latency over clusters, in milliseconds, measured beside the float file.

    What a device was slower by in this moment is taken out by the float file's own latency.
    """
    kept = job.folder.work / "precision-float.json"
    usual: dict[str, float] = json.loads(kept.read_text()) if kept.exists() else {}
    latencies = []
    for cluster in clusters:
        device, (before, after) = _beside(job, cluster, source.path, path)
        usual.setdefault(device, before)
        latencies.append(usual[device] * after / before)
    write_json(kept, usual)
    value = FleetLatency.of(clusters, job.asked.objective, job.asked.weighting)
    return float(value(np.array(latencies)[:, None])[0])


def _beside(
    job: Job, cluster: Cluster, first: Path, second: Path
) -> tuple[str, tuple[float, float]]:
    """Time two files side by side on a cluster's first device that answers; milliseconds."""
    for device in cluster.devices:
        paths = list(dict.fromkeys((first, second)))
        answers = list(job.measure([(path, device) for path in paths], job.cancelled))
        if job.cancelled():
            raise Cancelled
        if answers and all(one.ok for one in answers):
            by_digest = {one.model: one.median_ms for one in answers}
            before, after = (by_digest[known(path).digest] for path in (first, second))
            return device, (before, after)
    raise ValueError(
        f"no device of cluster {cluster.id} can be measured any more; resume the job later"
    )


def instruction_sets(job: Job, clusters: Sequence[Cluster]) -> dict[int, Isa]:
    """Return the preset of each cluster, as its devices tell; kept for a resumed job.

    A cluster of which nobody answers gets that of the first that does.

    Raises:
        ValueError: no device answers, or there is no preset for its kind of machine.
    """
    path = job.folder.work / "facts.json"
    told: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for cluster in clusters:
        if str(cluster.id) in told:
            continue
        answers = (_facts(job, device) for device in cluster.devices)
        facts = next((found for found in answers if found is not None), None)
        if facts is not None:
            told[str(cluster.id)] = {"machine": facts.get("machine"), "isa": facts.get("isa", [])}
            write_json(path, told)
    if not told:
        raise ValueError("no device can be asked for its instruction set; resume the job later")
    found = {number: isa(str(one["machine"]), list(one["isa"])) for number, one in told.items()}
    usual = next(iter(found.values()))
    return {cluster.id: found.get(str(cluster.id), usual) for cluster in clusters}


def _facts(job: Job, device: str) -> Facts | None:
    """Ask a device what it is; None where it does not answer."""
    pool, target = job.fleet.pool, job.fleet.members[device]
    with stages_of(job.settings) as stages:
        [(_, answer)] = on_each(pool, [target], gather, on_stage=stages.say, doing="facts")
    return None if isinstance(answer, DeviceError) else answer
