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
from engine.compress.calibrate import Method
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
from hdap_tui.names import cluster_letter
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
    name = part.step("quantize")
    learns, work = step.method == "precision", _Work(job, part, source, dataset, step)
    clusters = [cluster for cluster in job.clusters if cluster.id in part.clusters]
    sets = instruction_sets(job, clusters)
    job.reporter.started(name, total=len(set(sets.values())), weight=EXPECTED_S)
    made: dict[Isa, _Made] = {}
    for preset in dict.fromkeys(sets.values()):
        own = [cluster for cluster in clusters if sets[cluster.id] == preset]
        try:
            made[preset] = work.learn(preset, own) if learns else work.write(preset, maximum_drop)
        except Unreachable as error:
            job.reporter.noted(name, str(error))
            job.reporter.finished(name)
            return None
        job.reporter.advanced(name, len(made))
    job.reporter.finished(name, bytes=max(one.file.bytes for one in made.values()))
    return Quantized(
        precision="mixed" if learns else "int8",
        files={number: made[preset].file for number, preset in sets.items()},
        accuracies={one.file.digest: one.accuracy for one in made.values()},
        figures={
            one.file.digest: {
                "instruction_set": preset, "quantization": step.method, **one.figures
            }
            for preset, one in made.items()
        },
    )  # fmt: skip


@dataclass(frozen=True)
class _Made:
    """A file for one instruction set."""

    file: Exported
    accuracy: float
    """On the selection split."""
    figures: Mapping[str, Any]


@dataclass(frozen=True)
class _Work:
    """What a network is quantized with, whatever the instruction set."""

    job: Job
    part: Part
    source: Exported
    dataset: Dataset
    step: RecipeStep

    @property
    def _method(self) -> Method:
        return self.step.calibration or "minmax"

    def _target(self, preset: Isa) -> Path:
        return self.job.folder.work / self.part.file(f"int8-{preset}.onnx")

    def write(self, preset: Isa, maximum_drop: float | None) -> _Made:
        """Quantize all layers, or all but those that would lose more than that."""
        data, source, target = self.dataset, self.source.path, self._target(preset)
        if self.step.method == "dynamic":
            operators = self.step.operators or ("MatMul", "Gemm")
            file = quantize_dynamic(source, target, preset, operators)
        elif maximum_drop is None:
            images = data.calibration_images
            file = quantize_static(source, target, images, preset, method=self._method)
        else:
            name = self.part.step("quantize")
            found = quantize_within(
                source, target, data.calibration_images, data.selection_images,
                data.selection_labels, maximum_drop, preset, method=self._method,
                progress=lambda sentence: self.job.reporter.noted(name, sentence),
            )  # fmt: skip
            return _Made(found.file, found.accuracy, {"float_layers": list(found.floating)})
        right = onnx_accuracy(file.path, data.selection_images, data.selection_labels)
        return _Made(file, right, {})

    def learn(self, preset: Isa, clusters: Sequence[Cluster]) -> _Made:
        """Learn a precision for each layer from what the clusters' devices measure."""
        job, step, data, target = self.job, self.step, self.dataset, self._target(preset)
        reward, precisions = Reward(), step.precisions or ("fp32", "int8")
        if step.maximum_drop is not None:
            reward = replace(reward, maximum_drop=step.maximum_drop)
        if "int4" in precisions:  # it saves nothing else
            reward = replace(reward, bytes=_BYTES_COUNT)
        found = search_precision(
            self.source.path, target, data.calibration_images, data.selection_images,
            data.selection_labels, partial(_fleet_latency, job, self.source, clusters),
            actions=precisions, reward=reward, preset=preset, method=self._method,
            effort=Effort(rounds=step.rounds or _ROUNDS, seed=job.asked.seed),
            record=job.folder.work / f"precision-{target.stem}.jsonl", reporter=job.reporter,
            cancelled=job.cancelled, step=self.part.step("precision"), weight=EXPECTED_S,
        )  # fmt: skip
        if found is None:
            raise Cancelled
        layers = {choice.layer.name: choice.precision for choice in found.layers}
        figures = {"layer_precisions": layers, "networks_measured": found.tried}
        return _Made(found.file, found.trial.accuracy, figures)


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
    letter = cluster_letter(cluster.id)
    raise ValueError(f"no device of cluster {letter} can be measured now; resume the job later")


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
