"""The compression job: search on the real fleet, fine-tune, quantize where it pays, export.

Run by the job's own process. Everything that it measures or trains is saved in the job's folder
before it is used, so a killed job goes on where it was and ends in the same model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from engine import data, files
from engine.compress.export import Exported, export
from engine.compress.finetune import labelled
from engine.compress.profile import profile
from engine.compress.prunable import prunable
from engine.compress.quantize import onnx_accuracy
from engine.compress.recipe import Recipe
from engine.events import Reporter
from engine.latency import Latency
from engine.models import SHIPPED, image_size, recognise, title
from engine.models import load as load_network
from engine.search import fleetwide, hdap
from engine.search.hdap import Cancelled, Cluster, Result
from hdap_tui.config import Settings, load
from hdap_tui.config.schema import Compression
from hdap_tui.jobs import deciding
from hdap_tui.jobs.deciding import Decision
from hdap_tui.jobs.folder import JobFolder
from hdap_tui.jobs.parts import Job, Part, stages_of
from hdap_tui.progress import WHOLE
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
_PREPARE_S, _EXPORT_S = 8.0, 6.0


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
        clusters = [
            Cluster(
                id=c["id"],
                size=c["size"],
                devices=tuple(c["devices"]),
                levels=tuple(c.get("levels", ())),
                multiple=c.get("multiple", USUAL_MULTIPLE),
            )
            for c in request["clusters"]
        ]
        job = Job(folder, reporter, settings, asked, request, fleet, measure, clusters)
        return _Compression(job).run()


class _Compression:
    """One job's steps, in the order in which they are done."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.folder, self.reporter = job.folder, job.reporter
        self.settings, self.asked, self.request = job.settings, job.asked, job.request

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
            self.job.clusters,
            self.job.measure,
            search,
            self.folder.work,
            self.reporter,
            self.job.cancelled,
        )
        original = export(network, example, self.folder.work / "original.onnx")
        made, without = [], []
        for numbers, result in outcome.results:
            self.reporter.noted("search", f"ended: {result.stopped}")
            if result.design.widths == tuple(group.channels for group in groups):
                without.append(result.stopped)
                continue
            part = Part(numbers, len(outcome.results) > 1)
            made.append(self._finish(part, original, result, dataset, example))
        if not made:
            raise ValueError(
                f"no smaller network was found that is good enough: {without[0]}; "
                "allow a larger maximum_drop, or more evaluations"
            )
        forecast = asdict(outcome.forecast) if outcome.forecast else None
        return {**made[0], "models": made, "forecast": forecast}

    def _finish(
        self, part: Part, original: Exported, result: Result, dataset: data.Dataset, example: Any
    ) -> dict[str, Any]:
        """Export a network, decide in which precision it runs, and register it."""
        pruned = self._export(part, result.network, example)
        chosen, compared = Decision(self.job).choose(
            part, original, pruned, dataset, result.metrics
        )
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
        blocks = self.job.fleet.bench
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
            measurement_seconds=one * max(1.0, len(self.job.clusters) / cores),
            workers=asked.threads,
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
                threads=tuning.threads,
                bf16=tuning.bf16,
                processes=tuning.processes,
            ),
        )

    def _expected_s(self, search: hdap.Settings) -> float:
        searching = search.expected_seconds(len(self.job.clusters))
        return _PREPARE_S + searching + _EXPORT_S + deciding.EXPECTED_S

    def _export(self, part: Part, pruned: nn.Module, example: Any) -> Exported:
        """Write the pruned network, compared with torch."""
        step = part.step("export")
        self.reporter.started(step, weight=_EXPORT_S)
        after = export(pruned, example, self.folder.work / part.file("pruned.onnx"))
        self.reporter.finished(step, difference=after.difference)
        return after

    def _share(self, store: Store, row: ModelRow, part: Part) -> list[str]:
        """Return whom a model is for; two clusters may have ended in the very same one."""
        own = self._members(part)
        others = [name for name in row.metrics.get("for_devices", ()) if name not in own]
        if others:
            table.set_metrics(store, row.digest, {"for_devices": [*others, *own]})
        return [*others, *own]

    def _members(self, part: Part) -> list[str]:
        """Return all devices of the part's clusters, noise counted with the nearest."""
        return [
            name
            for cluster in self.request["clusters"]
            if cluster["id"] in part.clusters
            for name in cluster.get("members", cluster["devices"])
        ]

    def _register(
        self,
        part: Part,
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
            with stages_of(settings) as stages:
                yield from fleet.measure(requests, cancelled, stages.say)

        yield fleet, measure


def _asked(request: dict[str, Any]) -> Compression:
    return msgspec.convert(request["compression"], Compression).with_threads()
