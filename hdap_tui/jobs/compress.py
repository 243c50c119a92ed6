"""The compression job: search on the real fleet, fine-tune, quantize where it pays, export.

Run by the job's own process. Everything that it measures or trains is saved in the job's folder
before it is used, so a killed job goes on where it was and ends in the same model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from engine import data, files
from engine.compress.export import Exported, export
from engine.compress.finetune import Recipe, labelled
from engine.compress.profile import profile
from engine.compress.prunable import prunable
from engine.compress.quantize import isa, onnx_accuracy, quantize_static
from engine.events import Reporter
from engine.latency import Latency
from engine.models import SHIPPED, image_size, recognise, title
from engine.models import load as load_network
from engine.search import fleetwide, hdap
from engine.search.hdap import Cancelled, Cluster, Result
from engine.search.objective import FleetLatency
from hdap_tui.config import Settings, load
from hdap_tui.config.schema import Compression
from hdap_tui.facts import Facts, gather
from hdap_tui.fanout import on_each
from hdap_tui.jobs.folder import JobFolder, write_json
from hdap_tui.names import cluster_letter
from hdap_tui.progress import WHOLE
from hdap_tui.ssh.errors import DeviceError
from hdap_tui.stages import Stages
from hdap_tui.store import models as table
from hdap_tui.store.database import Store, open_store
from hdap_tui.store.facts import USUAL_MULTIPLE
from hdap_tui.store.records import ModelRow
from hdap_tui.sweep import Bench, Fleet

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Cancelled", "run"]

_BUILTIN = "builtin:"
_STATISTICS_IMAGES = 512  # enough for the mean and variance of a channel
_PREPARE_S, _EXPORT_S, _QUANTIZE_S, _DECIDE_S = 8.0, 6.0, 1.5, 6.0


def run(folder: JobFolder, reporter: Reporter) -> dict[str, Any]:
    """Do the whole job, or what is left of it; return its result.

    Raises:
        Cancelled: somebody asked to stop.
        UserError, ValueError: it cannot be done; the sentence says why.
    """
    request = folder.request
    settings = load(Path(request["config"]))
    asked = _asked(request)
    with _measuring(settings, request) as (fleet, measure):
        job = _Compression(folder, reporter, settings, asked, request, fleet, measure)
        return job.run()


class _Compression:
    """One job's parts, in the order in which they are done."""

    def __init__(
        self,
        folder: JobFolder,
        reporter: Reporter,
        settings: Settings,
        asked: Compression,
        request: dict[str, Any],
        fleet: Fleet,
        measure: Any,
    ) -> None:
        self.folder, self.reporter, self.settings = folder, reporter, settings
        self.asked, self.request = asked, request
        self.fleet, self.measure = fleet, measure
        self.threads = asked.threads or os.cpu_count() or 1
        self.clusters = [
            Cluster(
                id=c["id"],
                size=c["size"],
                devices=tuple(c["devices"]),
                levels=tuple(c.get("levels", ())),
                multiple=c.get("multiple", USUAL_MULTIPLE),
            )
            for c in request["clusters"]
        ]

    def run(self) -> dict[str, Any]:
        """Search, export, quantize, decide, register."""
        search = self._search_settings()
        self.reporter.started(WHOLE, weight=self._expected_s(search))
        self.reporter.started("prepare", weight=_PREPARE_S)
        if not self.asked.channel_multiple and "multiple" not in self.request["clusters"][0]:
            self.reporter.noted(
                "prepare",
                f"no device was probed for its channel multiple: designs are rounded up to "
                f"{USUAL_MULTIPLE} where that is faster; hdap devices probe finds theirs",
            )
        network, dataset = self._load()
        import torch

        example = torch.from_numpy(dataset.test_images[:2]).float() / 255
        found = prunable(network, example)
        if found.sentence:
            self.reporter.noted("prepare", found.sentence)
        groups = found.groups
        self.reporter.finished("prepare", groups=len(groups))
        outcome = fleetwide.compress(
            network,
            groups,
            dataset,
            self.clusters,
            self.measure,
            search,
            self.folder.work,
            self.reporter,
            self._cancelled,
        )
        original = export(network, example, self.folder.work / "original.onnx")
        made, without = [], []
        for numbers, result in outcome.results:
            self.reporter.noted("search", f"ended: {result.stopped}")
            if result.design.widths == tuple(group.channels for group in groups):
                without.append(result.stopped)
                continue
            part = _Part(numbers, len(outcome.results) > 1)
            made.append(self._finish(part, original, result, dataset, example))
        if not made:
            raise ValueError(
                f"no smaller network was found that is good enough: {without[0]}; "
                "allow a larger maximum_drop, or more evaluations"
            )
        forecast = asdict(outcome.forecast) if outcome.forecast else None
        return {**made[0], "models": made, "forecast": forecast}

    def _finish(
        self, part: _Part, original: Exported, result: Result, dataset: data.Dataset, example: Any
    ) -> dict[str, Any]:
        """Export a network, decide in which precision it runs, and register it."""
        pruned = self._export(part, result.network, example)
        chosen, compared = self._decide(part, original, pruned, dataset, result.metrics)
        return self._register(part, chosen, compared, result, dataset, example)

    def _load(self) -> tuple[nn.Module, data.Dataset]:
        asked = self.asked
        dataset = data.load(self.request["data"], asked.seed, image_size(asked.network))
        if len(dataset.classes) != asked.classes:
            raise ValueError(
                f"{dataset.name} has {len(dataset.classes)} classes, and the network is asked for "
                f"{asked.classes}: set compression.classes"
            )
        weights = str(self.request["weights"])
        path = SHIPPED[weights.removeprefix(_BUILTIN)] if weights.startswith(_BUILTIN) else weights
        network = load_network(
            asked.network,
            asked.classes,
            path,
            example_shape=dataset.test_images[:2].shape,
            folder=self.settings.path.parent,
        )
        if recognise(asked.network) == "onnx":
            from engine.models.onnx_graph import restore_batch_norms

            count = restore_batch_norms(network, dataset.train_images[:_STATISTICS_IMAGES])
            if count:
                self.reporter.noted(
                    "prepare", f"{count} batch norms, folded away in the file, are measured anew"
                )
        unknown = int((dataset.train_labels < 0).sum())
        if unknown:
            self.reporter.noted(
                "prepare",
                f"{unknown} training images have no label: the original network's answers stand in",
            )
        return network, labelled(dataset, network)

    def _search_settings(self) -> hdap.Settings:
        asked, tuning = self.asked, self.asked.finetune
        blocks = self.fleet.bench
        one = blocks.blocks_min * (0.1 + blocks.warmup_s + blocks.block_s)
        cores = min(self.settings.cores(d.host_group) for d in self.settings.devices)
        return hdap.Settings(
            outer_iterations=asked.outer_iterations,
            evaluations=asked.evaluations,
            population=asked.population,
            optimiser=asked.optimiser,
            objective=asked.objective,
            weighting=asked.weighting,
            constraint=asked.constraint,
            penalty=asked.penalty,
            per_cluster=asked.per_cluster,
            per_cluster_gain=asked.per_cluster_gain,
            alpha=asked.alpha,
            channel_multiple=asked.channel_multiple or 1,
            reestimate=True,
            max_extra_pruning=asked.max_extra_pruning,
            maximum_drop=asked.maximum_drop,
            target_speedup=asked.target_speedup or None,
            target_latency_ms=asked.target_latency_ms or None,
            accuracy_images=asked.accuracy_images,
            samples=asked.samples,
            sampling=asked.sampling,
            finalists=asked.finalists,
            surrogate=asked.surrogate,
            measurement_seconds=one * max(1.0, len(self.clusters) / cores),
            workers=self.threads,
            executor=asked.executor,
            scheduler=asked.scheduler,
            seed=asked.seed,
            recipe=Recipe(
                epochs=tuning.epochs,
                lr=tuning.lr,
                momentum=tuning.momentum,
                weight_decay=tuning.weight_decay,
                batch=tuning.batch,
                schedule=tuning.schedule,
                distill=tuning.distill,
                seed=asked.seed,
                # Small networks: a second thread waits more than it computes.
                threads=1,
                bf16=tuning.bf16,
                processes=tuning.processes,
            ),
        )

    def _expected_s(self, search: hdap.Settings) -> float:
        searching = search.expected_seconds(len(self.clusters))
        return _PREPARE_S + searching + _EXPORT_S + _QUANTIZE_S + _DECIDE_S

    def _cancelled(self) -> bool:
        return self.folder.cancelled

    def _export(self, part: _Part, pruned: nn.Module, example: Any) -> Exported:
        """Write the pruned network, compared with torch."""
        step = part.step("export")
        self.reporter.started(step, weight=_EXPORT_S)
        after = export(pruned, example, self.folder.work / part.file("pruned.onnx"))
        self.reporter.finished(step, difference=after.difference)
        return after

    def _decide(
        self,
        part: _Part,
        original: Exported,
        pruned: Exported,
        dataset: data.Dataset,
        metrics: Any,
    ) -> tuple[Exported, dict[str, Any]]:
        """Choose between float and int8 by what the representatives measure."""
        candidates = {"fp32": pruned}
        if self.asked.quantize != "never":
            step = part.step("quantize")
            self.reporter.started(step, weight=_QUANTIZE_S)
            candidates["int8"] = quantize_static(
                pruned.path,
                self.folder.work / part.file("int8.onnx"),
                dataset.calibration_images,
                isa(*self._instruction_set()),
            )
            self.reporter.finished(step, bytes=candidates["int8"].bytes)
        accuracy = {
            name: onnx_accuracy(found.path, dataset.selection_images, dataset.selection_labels)
            for name, found in candidates.items()
        }
        clusters = [cluster for cluster in self.clusters if cluster.id in part.clusters]
        medians = self._compare(part, clusters, {"original": original, **candidates})
        before = float(metrics["accuracy_before"]["selection"])
        speedups = {
            name: self._speedup(clusters, medians, original.digest, found.digest)
            for name, found in candidates.items()
        }
        good = {
            name
            for name in candidates
            if 100 * (before - accuracy[name]) <= self.asked.maximum_drop + 1e-9
        }
        choice = _choose(self.asked.quantize, good, speedups, self._margin())
        self.reporter.noted(
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
        return 1 + self.settings.deploy.margin_percent / 100

    def _instruction_set(self) -> tuple[str, Sequence[str]]:
        """Ask a representative for its machine and flags; the answer is kept for a resumed job."""
        path = self.folder.work / "facts.json"
        if path.exists():
            facts = json.loads(path.read_text())
            return str(facts["machine"]), list(facts["isa"])
        for cluster in self.clusters:
            for device in cluster.devices:
                facts = self._facts(device)
                if facts is None:
                    continue
                write_json(path, {"machine": facts.get("machine"), "isa": facts.get("isa", [])})
                return self._instruction_set()
        raise ValueError("no device can be asked for its instruction set; resume the job later")

    def _facts(self, device: str) -> Facts | None:
        """Ask a device what it is; None where it does not answer."""
        pool, target = self.fleet.pool, self.fleet.members[device]
        with _stages(self.settings) as stages:
            [(_, answer)] = on_each(pool, [target], gather, on_stage=stages.say, doing="facts")
        return None if isinstance(answer, DeviceError) else answer

    def _compare(
        self, part: _Part, clusters: Sequence[Cluster], candidates: dict[str, Exported]
    ) -> dict[tuple[int, str], float]:
        """Time the candidates side by side on every cluster; return medians by cluster and digest.

        What was measured is kept, so that a resumed job decides the same.
        """
        path, step = self.folder.work / part.file("decision.json"), part.step("decide")
        wanted = sorted(found.digest for found in candidates.values())
        if path.exists():
            kept = json.loads(path.read_text())
            if kept["models"] == wanted:
                return {(row[0], row[1]): row[2] for row in kept["medians"]}
        self.reporter.started(step, total=len(candidates) * len(clusters), weight=_DECIDE_S)
        medians: dict[tuple[int, str], float] = {}
        for cluster in clusters:
            for device in cluster.devices:
                pairs = [(found.path, device) for found in candidates.values()]
                found = list(self.measure(pairs, self._cancelled))
                if self._cancelled():
                    raise Cancelled
                if found and all(one.ok for one in found):
                    medians |= {(cluster.id, one.model): one.median_ms for one in found}
                    break
            self.reporter.advanced(step, len(medians))
        if not medians:
            raise ValueError("no device can be measured any more; resume the job later")
        rows = [[cluster, digest, ms] for (cluster, digest), ms in medians.items()]
        write_json(path, {"models": wanted, "medians": rows})
        self.reporter.finished(step)
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
        value = FleetLatency.of(usable, self.asked.objective, self.asked.weighting)
        before, after = (
            float(value(np.array([[medians[c.id, digest]] for c in usable]))[0])
            for digest in (old, new)
        )
        return before / after

    def _share(self, store: Store, row: ModelRow, part: _Part) -> list[str]:
        """Return whom a model is for; two clusters may have ended in the very same one."""
        own = self._members(part)
        others = [name for name in row.metrics.get("for_devices", ()) if name not in own]
        if others:
            table.set_metrics(store, row.digest, {"for_devices": [*others, *own]})
        return [*others, *own]

    def _members(self, part: _Part) -> list[str]:
        """Return all devices of the part's clusters, noise counted with the nearest."""
        return [
            name
            for cluster in self.request["clusters"]
            if cluster["id"] in part.clusters
            for name in cluster.get("members", cluster["devices"])
        ]

    def _register(
        self,
        part: _Part,
        chosen: Exported,
        compared: dict[str, Any],
        result: Result,
        dataset: data.Dataset,
        example: Any,
    ) -> dict[str, Any]:
        """Put the artifact into the store, with its lineage."""
        target = self.settings.state_dir / "models" / f"{chosen.digest}.onnx"
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        files.write(target, chosen.path.read_bytes())
        paper = profile(result.network, example, target)
        metrics = {
            **dict(result.metrics),
            **compared,
            "test_accuracy": onnx_accuracy(target, dataset.test_images, dataset.test_labels),
            "test_accuracy_before": result.metrics["accuracy_before"]["test"],
            "parameters": paper.parameters,
            "macs": paper.macs,
            "nonzeros": paper.nonzeros,
            "compressed_bytes": paper.compressed_bytes,
            "design": json.loads(result.design.to_json()),
            "stopped": result.stopped,
            "objective": self.asked.objective,
            **({"for_devices": self._members(part)} if part.alone else {}),
            "data": dataset.name,
            "emulated": any(d.emulated for d in self.settings.devices),
        }
        name = part.file(f"{title(self.asked.network)}-{self.folder.name}")
        store = open_store(self.settings.database)
        try:
            row = table.add(
                store,
                name=name,
                digest=chosen.digest,
                path=target,
                kind="artifact",
                size=chosen.bytes,
                parent=self.request.get("parent", ""),
                job=self.folder.name,
                metrics=metrics,
            )
            if row.job == self.folder.name and part.alone:
                metrics["for_devices"] = self._share(store, row, part)
        finally:
            store.close()
        return {"model": row.name, "digest": row.digest, "path": row.path, "metrics": metrics}


@dataclass(frozen=True)
class _Part:
    """One of the networks that a job makes."""

    clusters: tuple[int, ...]
    """Those that it is for."""
    alone: bool
    """Whether others are made beside it."""

    @property
    def _suffix(self) -> str:
        return f"cluster-{cluster_letter(self.clusters[0])}" if self.alone else ""

    def step(self, kind: str) -> str:
        return f"{kind} ({self._suffix})" if self.alone else kind

    def file(self, name: str) -> str:
        """Return a name that no other part uses."""
        path = Path(name)
        return f"{path.stem}-{self._suffix}{path.suffix}" if self.alone else name


@contextmanager
def _measuring(
    settings: Settings, request: dict[str, Any]
) -> Iterator[tuple[Fleet, Callable[..., Iterator[Latency]]]]:
    names = {name for cluster in request["clusters"] for name in cluster["devices"]}
    members = [device for device in settings.devices if device.name in names]
    # Candidates are many and of no use afterwards: they do not stay on the devices.
    # The surrogates average over designs, so each is measured briefly.
    blocks = settings.benchmark.blocks_min
    bench = Bench.of(settings.benchmark, keep_models=False, blocks_max=blocks, energy_s=0.0)
    with Fleet.of(settings, bench, members) as fleet:

        def measure(
            requests: Sequence[tuple[Path, str]], cancelled: Callable[[], bool]
        ) -> Iterator[Latency]:
            with _stages(settings) as stages:
                yield from fleet.measure(requests, cancelled, stages.say)

        yield fleet, measure


@contextmanager
def _stages(settings: Settings) -> Iterator[Stages]:
    """Write into the store what is being done on each device.

    Only for as long as something is: a search of hours must not keep others from clearing up.
    """
    with closing(open_store(settings.database)) as store, Stages(store) as stages:
        yield stages


def _asked(request: dict[str, Any]) -> Compression:
    return msgspec.convert(request["compression"], Compression)


def _choose(wish: str, good: set[str], speedups: dict[str, float], margin: float) -> str:
    if wish == "always":
        return "int8"
    if "int8" in good and speedups["int8"] > margin * speedups["fp32"]:
        return "int8"
    return "fp32"
