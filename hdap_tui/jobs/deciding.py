"""Float or int8: what the representatives measure decides, and the selection split's accuracy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from engine import data
from engine.compress.export import Exported
from engine.compress.quantize import isa, onnx_accuracy, quantize_static
from engine.search.hdap import Cancelled, Cluster
from engine.search.objective import FleetLatency
from hdap_tui.facts import Facts, gather
from hdap_tui.fanout import on_each
from hdap_tui.jobs.folder import write_json
from hdap_tui.jobs.parts import Job, Part, stages_of
from hdap_tui.ssh.errors import DeviceError

_QUANTIZE_S, _DECIDE_S = 1.5, 6.0
EXPECTED_S = _QUANTIZE_S + _DECIDE_S
"""What all of it is expected to take."""


class Decision:
    """How one job chooses the precision of its networks."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def choose(
        self,
        part: Part,
        original: Exported,
        pruned: Exported,
        dataset: data.Dataset,
        metrics: Any,
    ) -> tuple[Exported, dict[str, Any]]:
        """Choose between float and int8 by what the representatives measure."""
        candidates = {"fp32": pruned}
        if self.job.asked.quantize != "never":
            step = part.step("quantize")
            self.job.reporter.started(step, weight=_QUANTIZE_S)
            candidates["int8"] = quantize_static(
                pruned.path,
                self.job.folder.work / part.file("int8.onnx"),
                dataset.calibration_images,
                isa(*self._instruction_set()),
            )
            self.job.reporter.finished(step, bytes=candidates["int8"].bytes)
        accuracy = {
            name: onnx_accuracy(found.path, dataset.selection_images, dataset.selection_labels)
            for name, found in candidates.items()
        }
        clusters = [cluster for cluster in self.job.clusters if cluster.id in part.clusters]
        medians = self._compare(part, clusters, {"original": original, **candidates})
        before = float(metrics["accuracy_before"]["selection"])
        speedups = {
            name: self._speedup(clusters, medians, original.digest, found.digest)
            for name, found in candidates.items()
        }
        good = {
            name
            for name in candidates
            if 100 * (before - accuracy[name]) <= self.job.asked.maximum_drop + 1e-9
        }
        choice = _choose(self.job.asked.quantize, good, speedups, self._margin())
        self.job.reporter.noted(
            part.step("decide"),
            "; ".join(
                f"{name}: {speedups[name]:.2f}x measured on the representatives, "
                f"{accuracy[name]:.2%} of the selection split right"
                for name in candidates
            )
            + f"; {choice} is taken",
        )
        return candidates[choice], {
            "precision": choice,
            "measured_speedup": speedups[choice],
            "measured_speedups": speedups,
            "selection_accuracy": accuracy[choice],
            "selection_accuracies": accuracy,
        }

    def _margin(self) -> float:
        return 1 + self.job.settings.deploy.margin_percent / 100

    def _instruction_set(self) -> tuple[str, Sequence[str]]:
        """Ask a representative for its machine and flags; the answer is kept for a resumed job."""
        path = self.job.folder.work / "facts.json"
        if path.exists():
            facts = json.loads(path.read_text())
            return str(facts["machine"]), list(facts["isa"])
        for cluster in self.job.clusters:
            for device in cluster.devices:
                facts = self._facts(device)
                if facts is None:
                    continue
                write_json(path, {"machine": facts.get("machine"), "isa": facts.get("isa", [])})
                return self._instruction_set()
        raise ValueError("no device can be asked for its instruction set; resume the job later")

    def _facts(self, device: str) -> Facts | None:
        """Ask a device what it is; None where it does not answer."""
        pool, target = self.job.fleet.pool, self.job.fleet.members[device]
        with stages_of(self.job.settings) as stages:
            [(_, answer)] = on_each(pool, [target], gather, on_stage=stages.say, doing="facts")
        return None if isinstance(answer, DeviceError) else answer

    def _compare(
        self, part: Part, clusters: Sequence[Cluster], candidates: dict[str, Exported]
    ) -> dict[tuple[int, str], float]:
        """Time the candidates side by side on every cluster; return medians by cluster and digest.

        What was measured is kept, so that a resumed job decides the same.
        """
        path, step = self.job.folder.work / part.file("decision.json"), part.step("decide")
        wanted = sorted(found.digest for found in candidates.values())
        if path.exists():
            kept = json.loads(path.read_text())
            if kept["models"] == wanted:
                return {(row[0], row[1]): row[2] for row in kept["medians"]}
        self.job.reporter.started(step, total=len(candidates) * len(clusters), weight=_DECIDE_S)
        medians: dict[tuple[int, str], float] = {}
        for cluster in clusters:
            for device in cluster.devices:
                pairs = [(found.path, device) for found in candidates.values()]
                found = list(self.job.measure(pairs, self.job.cancelled))
                if self.job.cancelled():
                    raise Cancelled
                if found and all(one.ok for one in found):
                    medians |= {(cluster.id, one.model): one.median_ms for one in found}
                    break
            self.job.reporter.advanced(step, len(medians))
        if not medians:
            raise ValueError("no device can be measured any more; resume the job later")
        rows = [[cluster, digest, ms] for (cluster, digest), ms in medians.items()]
        write_json(path, {"models": wanted, "medians": rows})
        self.job.reporter.finished(step)
        return medians

    def _speedup(
        self,
        clusters: Sequence[Cluster],
        medians: dict[tuple[int, str], float],
        old: str,
        new: str,
    ) -> float:
        """Latency of these clusters' devices, as the objective has it: the old by the new."""
        usable = [c for c in clusters if (c.id, old) in medians and (c.id, new) in medians]
        value = FleetLatency.of(usable, self.job.asked.objective, self.job.asked.weighting)
        before, after = (
            float(value(np.array([[medians[c.id, digest]] for c in usable]))[0])
            for digest in (old, new)
        )
        return before / after


def _choose(wish: str, good: set[str], speedups: dict[str, float], margin: float) -> str:
    if wish == "always":
        return "int8"
    if "int8" in good and speedups["int8"] > margin * speedups["fp32"]:
        return "int8"
    return "fp32"
