"""The compression job: its steps, an ONNX file, quantized where it pays, and a model of the store.

Run by the job's own process. Everything that it measures or trains is saved in the job's folder
before it is used, so a killed job goes on where it was and ends in the same model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from engine import data
from engine.compress.export import Exported, export, known
from engine.compress.finetune import labelled
from engine.compress.onnx_profile import profile_file
from engine.compress.quantize import onnx_accuracy
from engine.events import Reporter
from engine.latency import Latency
from engine.models import SHIPPED, image_size, recognise, title
from engine.models import load as load_network
from engine.search.hdap import Cancelled, Cluster
from hdap_tui.config import Settings, load
from hdap_tui.config.schema import Compression
from hdap_tui.jobs import deciding, quantizing
from hdap_tui.jobs.deciding import Choice, Decision, check_size
from hdap_tui.jobs.folder import JobFolder
from hdap_tui.jobs.networks import STATISTICS_IMAGES, Builder, Network, expected_s
from hdap_tui.jobs.parts import Job, Part, stages_of
from hdap_tui.jobs.quantizing import Quantized, quantized
from hdap_tui.jobs.registering import register
from hdap_tui.jobs.steps import Steps
from hdap_tui.progress import WHOLE
from hdap_tui.store.facts import USUAL_MULTIPLE
from hdap_tui.sweep import Bench, Fleet

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Cancelled", "run"]

_BUILTIN = "builtin:"
_PREPARE_S, _EXPORT_S = 8.0, 6.0
_LEARNT = 0.03  # by which the two accuracies of a network differ when it knows the one's images


def run(folder: JobFolder, reporter: Reporter) -> dict[str, Any]:
    """Do the whole job, or what is left of it; return its result.

    Raises:
        Cancelled: somebody asked to stop.
        UserError, ValueError: it cannot be done; the sentence says why.
    """
    request = folder.request
    settings = load(Path(request["config"]))
    asked = msgspec.convert(request["compression"], Compression).with_threads()
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
        steps = Steps.of(request, asked)
        job = Job(folder, reporter, settings, asked, request, steps, fleet, measure, clusters)
        return _Compression(job).run()


@dataclass(frozen=True)
class _Floating:
    """A float network that is done but for its precision."""

    part: Part
    file: Exported
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Ready:
    """A network in all precisions that it may go out in."""

    made: _Floating
    quantized: Quantized | None
    accuracies: Mapping[str, float]
    """On the selection split, by digest."""


class _Compression:
    """One job's steps, in the order in which they are done."""

    def __init__(self, job: Job) -> None:
        self.job, self.folder, self.reporter = job, job.folder, job.reporter
        self.asked, self.request = job.asked, job.request

    def run(self) -> dict[str, Any]:
        """Make the networks, or take the model as it is; quantize, decide, register."""
        expected = expected_s(self.job) + _PREPARE_S + _EXPORT_S + quantizing.EXPECTED_S
        expected += deciding.EXPECTED_S * len(self.job.clusters)
        self.reporter.started(WHOLE, weight=expected)
        self.reporter.started("prepare", weight=_PREPARE_S)
        model = self.request.get("model")
        if model is None:
            network, dataset = self._load()
            original, networks, forecast = self._networks(network, dataset)
        else:
            original, dataset, forecast = known(model), self._dataset(), None
            networks = [self._taken(original, dataset)]
            self.reporter.finished("prepare")
        self._warn(networks[0].metrics["accuracy_before"])
        # All are known to be small enough before devices measure any, and before any is kept.
        ready = [self._ready(network, dataset) for network in networks]
        chosen = [(one.made, choice) for one in ready for choice in self._choose(one, original)]
        made = [self._register(choice, network, dataset) for network, choice in chosen]
        return {**made[0], "models": made, "forecast": forecast}

    def _warn(self, before: Mapping[str, float]) -> None:
        """Say so where images that are to choose have been learnt by the original network."""
        if before["selection"] - before["test"] > _LEARNT:
            self.reporter.noted(
                "decide",
                f"the original network gets {before['selection']:.2%} of the selection split right "
                f"and {before['test']:.2%} of the test images: it has probably been trained on the "
                "selection split, where accuracies are too good then; believe the test images",
            )

    def _networks(
        self, network: nn.Module, dataset: data.Dataset
    ) -> tuple[Exported, list[_Floating], dict[str, Any] | None]:
        """Take the torch network through its steps, and write what comes of it as ONNX."""
        builder = Builder(self.job, network, dataset)
        builder.prepare()
        self.reporter.finished("prepare", groups=len(builder.groups))
        networks = builder.build()
        path = self.folder.work / "original.onnx"
        original = export(network, builder.example, path, template=builder.template)
        return original, [self._export(one, builder) for one in networks], builder.forecast

    def _export(self, made: Network, builder: Builder) -> _Floating:
        """Write a network as ONNX, compared with torch."""
        step = made.part.step("export")
        self.reporter.started(step, weight=_EXPORT_S)
        path = self.folder.work / made.part.file("pruned.onnx")
        file = export(made.network, builder.example, path, template=builder.template)
        self.reporter.finished(step, difference=file.difference)
        if self.job.steps.quantization is None:
            check_size(self.job.steps, file)
        metrics = {**made.metrics, "design": json.loads(made.design.to_json())}
        return _Floating(made.part, file, metrics)

    def _ready(self, made: _Floating, dataset: data.Dataset) -> _Ready:
        """Quantize a network, and see that what comes of it is small enough."""
        accuracies = {made.file.digest: self._accuracy(made.file, dataset, "selection")}
        found = self._quantized(made, dataset, accuracies[made.file.digest])
        if found is not None:
            accuracies |= found.accuracies
        check_size(self.job.steps, made.file, list(found.files.values()) if found else ())
        return _Ready(made, found, accuracies)

    def _choose(self, ready: _Ready, original: Exported) -> list[Choice]:
        """Decide in which precision each cluster gets a network."""
        made = ready.made
        decision = Decision(self.job, made.part, original, made.file, ready.quantized)
        return decision.choose(self.job.steps.always, ready.accuracies)

    def _quantized(
        self, made: _Floating, dataset: data.Dataset, accuracy: float
    ) -> Quantized | None:
        steps = self.job.steps
        if steps.quantization is None:
            return None
        maximum = steps.quantization.maximum_drop
        if steps.usual and not steps.always:
            lost = 100 * (float(made.metrics["accuracy_before"]["selection"]) - accuracy)
            # Where the target decides, whatever that loses, int8 may still lose no more than this.
            spent = 0.0 if self.asked.constraint == "latency" else lost
            maximum = max(0.0, self.asked.maximum_drop - spent)
        return quantized(self.job, made.part, made.file, dataset, steps.quantization, maximum)

    def _taken(self, original: Exported, dataset: data.Dataset) -> _Floating:
        """Return a finished model as if the steps before the quantization had made it."""
        everyone = tuple(cluster.id for cluster in self.job.clusters)
        accuracies = {
            split: self._accuracy(original, dataset, split) for split in ("selection", "test")
        }
        return _Floating(Part(everyone, False), original, {"accuracy_before": accuracies})

    def _accuracy(self, file: Exported, dataset: data.Dataset, split: str) -> float:
        images = getattr(dataset, f"{split}_images")
        return onnx_accuracy(file.path, images, getattr(dataset, f"{split}_labels"))

    def _register(self, choice: Choice, made: _Floating, dataset: data.Dataset) -> dict[str, Any]:
        metrics = {
            **made.metrics,
            "test_accuracy": self._accuracy(choice.file, dataset, "test"),
            "test_accuracy_before": made.metrics["accuracy_before"]["test"],
            "data": dataset.name,
            "profile": asdict(profile_file(choice.file.path)),
        }
        name = f"{self.request.get('name') or title(self.asked.network)}-{self.folder.name}"
        return register(self.job, choice, metrics, name)

    def _dataset(self) -> data.Dataset:
        asked = self.asked
        dataset = data.load(self.request["data"], asked.seed, image_size(asked.network))
        if len(dataset.classes) != asked.classes:
            raise ValueError(
                f"{dataset.name} has {len(dataset.classes)} classes, and the network is asked for "
                f"{asked.classes}: set compression.classes"
            )
        return dataset

    def _load(self) -> tuple[nn.Module, data.Dataset]:
        asked, dataset = self.asked, self._dataset()
        weights = str(self.request["weights"])
        path = SHIPPED[weights.removeprefix(_BUILTIN)] if weights.startswith(_BUILTIN) else weights
        network = load_network(
            asked.network,
            asked.classes,
            path,
            example_shape=dataset.test_images[:2].shape,
            folder=self.job.settings.path.parent,
        )
        if recognise(asked.network) == "onnx":
            from engine.models.onnx_graph import restore_batch_norms

            count = restore_batch_norms(network, dataset.train_images[:STATISTICS_IMAGES])
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
