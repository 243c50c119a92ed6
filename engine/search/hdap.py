"""HDAP: prune a network until it is fast on average over a whole fleet of unlike devices.

Zhang, Li, Lu, Yang, Tang, arXiv 2501.15240. An outer iteration learns latency from designs that
the clusters' representatives have measured, searches pruning ratios (the paper with Negatively
Correlated Search; `optimisers` has more), prunes, and fine-tunes; then the next begins from there.

Everything that costs time is kept in a folder: measurements, accuracies of candidates, epochs of
fine-tuning, finished outer iterations. A search that was stopped anywhere takes the same way
again and ends in the same network to the last bit, given the same recorded measurements,
processor and number of threads.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.accelerator import device, threads, training_multiple
from engine.compress import checkpoint as checkpoints
from engine.compress.designs import Design, compose, whole
from engine.compress.finetune import accuracy, finetune
from engine.compress.groups import Group, importance
from engine.compress.padding import pad
from engine.compress.prune import narrow, prune
from engine.compress.training import DivergenceError
from engine.events import Reporter, silent
from engine.fleet.geometry import measure_geometry
from engine.latency import Measure
from engine.search import sampling
from engine.search.candidates import Accuracies
from engine.search.executors import opened
from engine.search.iterations import Iteration, claim, read, rebuild
from engine.search.learning import Fleet, learn
from engine.search.measurements import Cancelled, Cluster, Log, Measurements
from engine.search.outer import Found, Search, target
from engine.search.scoring import at_widths
from engine.search.settings import EXPORT_SECONDS, Settings
from engine.search.space import Space, Widths, steps

if TYPE_CHECKING:
    from torch import nn

    from engine.compress.export import Template
    from engine.data import Dataset

__all__ = ["Cancelled", "Cluster", "Iteration", "Result", "Settings", "compress"]


@dataclass(frozen=True)
class Result:
    """What came of a search."""

    network: nn.Module
    """The pruned and fine-tuned network; a copy of the original where nothing was gained."""
    design: Design
    """Against the original network."""
    iterations: tuple[Iteration, ...]
    """All that were finished, a refused last one among them."""
    stopped: str
    """Why it ended, in a sentence."""
    metrics: Mapping[str, Any]
    """Accuracies, sizes and latencies before and after, for JSON. Predicted and measured
    latencies never share a key; those not known are missing."""


def compress(
    network: nn.Module,
    groups: Sequence[Group],
    dataset: Dataset,
    clusters: Sequence[Cluster],
    measure: Measure,
    settings: Settings,
    folder: Path,
    reporter: Reporter | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    template: Callable[[], Template] | None = None,
) -> Result:
    """Search, prune and fine-tune; started again on the same folder, it goes on.

    Args:
        network: the original; it is left as it was.
        groups: its dependency groups.
        dataset: training images compare candidates, the selection split decides, the test split
            is only reported.
        clusters: the fleet.
        measure: times ONNX files on devices.
        settings: how to search.
        folder: where everything is kept; made if it is missing.
        reporter: hears of the steps: sample, surrogates, search, refine, finetune, each followed
            by the number of the outer iteration from the second on.
        cancelled: asked all the time.
        template: gives the original's template, asked for when something is to be measured; None:
            the search makes one.

    Raises:
        Cancelled: somebody asked to stop.
        ValueError: the arguments make no sense together, the folder belongs to another search,
            or no device can be measured.
    """
    # Candidates are small: one thread each, several at once, beats many threads for one.
    with threads(1), scorers(settings) as executor:
        return Loop(
            network, groups, dataset, clusters, measure, settings, folder, reporter, cancelled,
            executor=executor, template=template,
        ).run()  # fmt: skip


class Loop:
    """The state between outer iterations; arguments and errors as with `compress`.

    Args:
        log: file of measurements that several searches share; default: one in the folder.
        suffix: what is put behind the names of the steps.
        executor: scores several candidates at once.
    """

    def __init__(
        self,
        network: nn.Module,
        groups: Sequence[Group],
        dataset: Dataset,
        clusters: Sequence[Cluster],
        measure: Measure,
        settings: Settings,
        folder: Path,
        reporter: Reporter | None,
        cancelled: Callable[[], bool],
        log: Path | None = None,
        suffix: str = "",
        executor: Executor | None = None,
        template: Callable[[], Template] | None = None,
    ) -> None:
        import torch

        if not clusters or not all(cluster.devices and cluster.size > 0 for cluster in clusters):
            raise ValueError("every cluster needs a size and at least one device to measure")
        folder.mkdir(parents=True, exist_ok=True)
        claim(folder, network, dataset, clusters, settings)
        self.original, self.original_groups = network, tuple(groups)
        self.dataset, self.settings, self.folder = dataset, settings, folder
        self.reporter, self.cancelled = reporter or silent(), cancelled
        self.suffix, self.executor = suffix, executor
        self._first: tuple[Found | None, Search] | None = None
        self.example = torch.from_numpy(dataset.train_images[:2]).float() / 255
        self.geometry = measure_geometry(network, groups, self.example)
        self.scores = importance(network, groups, settings.norm)
        self.template = template or cache(self._template)
        self.whole: Widths = whole(groups).widths
        self.measurements = Measurements(
            Log(log or folder / "measurements.jsonl"),
            clusters,
            measure,
            self.write,
            folder / "candidates",
            self.whole,
            self.reporter,
            cancelled,
            settings.batch,
        )
        chosen = np.random.default_rng([settings.seed, 2]).permutation(len(dataset.train_labels))
        self.subset = chosen[: settings.accuracy_images]
        self.original_accuracy = self.accuracy(network)
        # What the outer iterations so far have made of the network:
        self.network, self.groups = copy.deepcopy(network).eval(), self.original_groups
        self.design = whole(groups)
        self.iterations: list[Iteration] = []

    def run(self) -> Result:
        """Go through the outer iterations until there is a reason to stop."""
        stopped = ""
        while not stopped:
            stopped = self.iterate(len(self.iterations) + 1)
        metrics = self.metrics()
        if metrics.get("target_reached") is False:
            stopped += f"; {self._missed(metrics['target_speedup'], metrics['speedup'])}"
        return Result(self.network, self.design, tuple(self.iterations), stopped, metrics)

    def _missed(self, wanted: float, best: float) -> str:
        """Say that a target was not reached, in the unit in which it was given."""
        asked = self.settings.target_latency_ms
        if asked is None:
            return f"the target of {wanted:.3g}x was not reached: the best is {best:.2f}x"
        found = asked * wanted / best
        return f"the target of {asked:g} ms was not reached: the best is {found:.3g} ms"

    def iterate(self, number: int) -> str:
        """Do one outer iteration, or take it from the folder; say why to stop, if so."""
        path = self.folder / f"iteration-{number}.safetensors"
        if path.exists():
            self.measurements.replay(read(path)[0].asked)
        else:
            found = self.search(number)
            if found is None:
                return "nothing found that is faster and accurate enough"
            try:
                iteration, tuned = self.finish(number, found)
            except DivergenceError as error:
                if not self.iterations:
                    raise
                return f"outer iteration {number}: {error}: the network before it is kept"
            checkpoints.save(path, {"network": tuned.state_dict()}, iteration.to_state())
        # Read back in any case: a resumed search goes on from the same bits.
        iteration, network = rebuild(path, self.network, self.groups)
        self.iterations.append(iteration)
        if not self.accurate(iteration):
            lost = 100 * (self.original_accuracy - iteration.accuracy)
            return (
                f"outer iteration {number} loses {lost:.2f} points of accuracy, more than the "
                f"{self.settings.maximum_drop:g} allowed: the network before it is kept"
            )
        self.groups = narrow(self.groups, iteration.design)
        self.network, self.design = network, compose(self.design, iteration.design)
        if iteration.goal is not None and 1 / iteration.speedup <= iteration.goal:
            return (
                f"the speed-up of {iteration.speedup:.2f} reaches the target of "
                f"{1 / iteration.goal:.3g}"
            )
        if number == self.settings.outer_iterations:
            if number == 1:
                return "the one outer iteration is done"
            return f"all {number} outer iterations are done"
        return ""

    def first(self) -> tuple[Found | None, Search]:
        """Do the first outer iteration's search, once, and return what it found, and itself."""
        if self._first is None:
            search = self.prepare(1)
            self._first = search.run(), search
        return self._first

    def search(self, number: int) -> Found | None:
        """Measure designs and search among candidates."""
        if number == 1:
            return self.first()[0]
        if self.space.smallest == self.space.now:
            return None
        return self.prepare(number).run()

    @property
    def space(self) -> Space:
        """Where the next search is going to look."""
        settings = self.settings
        return Space(
            channels=self.whole,
            now=self.design.widths,
            reach=settings.max_extra_pruning,
            multiple=settings.channel_multiple,
            minimum=settings.minimum_channels,
            steps=steps(cluster.multiple for cluster in self.measurements.clusters)
            if settings.channel_multiple == 1
            else (),
        )

    def prepare(self, number: int) -> Search:
        """Measure the designs that a search learns from, and return it ready to run."""
        settings, space = self.settings, self.space
        if space.smallest == space.now:
            raise ValueError(
                f"pruning at most {100 * space.reach:g} % of the channels removes none when they "
                f"are kept in multiples of {space.multiple}: allow more, or a smaller multiple"
            )
        self.sample(space, number)
        accuracies = Accuracies(
            self.network,
            self.groups,
            importance(self.network, self.groups, settings.norm),
            self.dataset.train_images[self.subset],
            self.dataset.train_labels[self.subset],
            self.folder / "accuracies.jsonl",
            number,
            settings.reestimate,
            self.executor,
            self.cancelled,
        )
        return Search(
            space,
            accuracies,
            self.measurements,
            lambda previous: self.learn(number, previous),
            settings,
            self.reporter,
            self.cancelled,
            number,
            lambda kind: self.step(kind, number),
        )

    def step(self, kind: str, number: int) -> str:
        """Return the name of a step of an outer iteration."""
        return f"{kind}{'' if number == 1 else f' {number}'}{self.suffix}"

    def sample(self, space: Space, number: int) -> None:
        """Have designs measured where the search is going to look."""
        settings, step = self.settings, self.step("sample", number)
        random = np.random.default_rng([settings.seed, number, 0])
        count = settings.samples if number == 1 else settings.resamples
        left = settings.outer_iterations - number + 1
        wide = min(0.9, space.reach * left)
        known = {self.whole, *(w for call in self.measurements.asked for w in call)}
        designs = sampling.first(space, count, random, known, wide, settings.sampling)
        if number == 1:
            designs.insert(0, self.whole)
        expected = len(designs) * settings.measurement_seconds + EXPORT_SECONDS * (number == 1)
        total = len(designs) * len(self.measurements.clusters)
        self.reporter.started(step, total, expected)
        self.measurements.ensure(step, designs)
        self.reporter.finished(step, designs=len(designs))

    def learn(self, number: int, previous: Fleet | None) -> Fleet:
        """Fit the surrogates to all that has been measured."""
        step, count = self.step("surrogates", number), len(self.measurements.clusters)
        known = (self.measurements, self.geometry, self.settings, self.reporter, step)
        if previous is not None:
            return learn(*known, previous)
        self.reporter.started(step, count, 1.5 * count)
        fleet = learn(*known)
        self.reporter.finished(step, **fleet.report())
        return fleet

    def finish(self, number: int, found: Found) -> tuple[Iteration, nn.Module]:
        """Prune and fine-tune."""
        recipe = self.settings.recipe
        scores = importance(self.network, self.groups, self.settings.norm)
        design = at_widths(scores, found.widths)
        multiple = training_multiple(device(recipe.device), recipe.bf16)
        padded = pad(
            prune(self.network, self.groups, design),
            self.original,
            self.original_groups,
            compose(self.design, design),
            multiple,
        )
        tuned = finetune(
            padded.network,
            self.dataset,
            recipe,
            teacher=self.original if recipe.distill else None,
            reporter=self.reporter,
            checkpoint=self.folder / f"finetune-{number}.safetensors",
            cancelled=self.cancelled,
            step=self.step("finetune", number),
            weight=self.settings.epoch_seconds * recipe.epochs,
            zeros=padded.zeros,
        )
        if not tuned.finished:
            raise Cancelled
        network = padded.strip()
        fleet = found.fleet
        return Iteration(
            design=design,
            accuracy=tuned.accuracy,
            test_accuracy=self.accuracy(network, "test"),
            macs=int(self.geometry.macs(found.widths).sum()),
            accuracy_kept=found.accuracy,
            predicted_ms=_by_cluster(fleet, found.widths),
            predicted_original_ms=_by_cluster(fleet, self.whole),
            measured_ms=fleet.measured(found.widths),
            measured_original_ms=fleet.measured(self.whole),
            predicted_speedup=float(fleet.value([self.whole])[0] / fleet.value([found.widths])[0]),
            measured_speedup=_measured_speedup(fleet, self.whole, found.widths),
            asked=self.measurements.asked,
            surrogates=fleet.report(),
            goal=target(self.settings, fleet, self.whole),
        ), network

    def write(self, widths: Widths, path: Path) -> str:
        """Write the ONNX file of a design of the original network; return its digest."""
        pruned = prune(self.original, self.original_groups, at_widths(self.scores, widths))
        return self.template().write(pruned, path).digest

    def _template(self) -> Template:
        from engine.compress.export import Template

        return Template(self.original, self.example, self.original_groups)

    def accuracy(self, network: nn.Module, split: str = "selection") -> float:
        """Return a network's accuracy on a split, 0 to 1."""
        images = getattr(self.dataset, f"{split}_images")
        with threads(self.settings.recipe.threads):
            return accuracy(network, images, getattr(self.dataset, f"{split}_labels"))

    def metrics(self) -> dict[str, Any]:
        """Return the figures of the result."""
        splits = ("selection", "test")
        kept = [i for i in self.iterations if self.accurate(i)]
        widths = self.design.widths
        metrics: dict[str, Any] = {
            "accuracy_before": {split: self.accuracy(self.original, split) for split in splits},
            "accuracy_after": {split: self.accuracy(self.network, split) for split in splits},
            "macs_before": int(self.geometry.macs(self.whole).sum()),
            "macs_after": int(self.geometry.macs(widths).sum()),
            "parameters_before": _parameters(self.original),
            "parameters_after": _parameters(self.network),
            "widths_before": list(self.whole),
            "widths_after": list(widths),
            "outer_iterations": len(kept),
            "front": [step.point() for step in self.iterations],
            "designs_measured": sum(len(call) for call in self.measurements.asked),
        }
        return metrics | (kept[-1].figures() if kept else {})

    def accurate(self, iteration: Iteration) -> bool:
        """Whether an iteration's network keeps as much accuracy as it must."""
        lost = 100 * (self.original_accuracy - iteration.accuracy)
        settings = self.settings
        return settings.constraint == "latency" or lost <= settings.maximum_drop + 1e-9


def _by_cluster(fleet: Fleet, widths: Widths) -> dict[str, float]:
    predicted = fleet.predict([widths])[:, 0]
    return {str(c.id): float(ms) for c, ms in zip(fleet.clusters, predicted, strict=True)}


def _measured_speedup(fleet: Fleet, before: Widths, after: Widths) -> float | None:
    slow, fast = fleet.measured_value(before), fleet.measured_value(after)
    return None if slow is None or fast is None else slow / fast


def _parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@contextmanager
def scorers(settings: Settings) -> Iterator[Executor | None]:
    """Start the workers that score candidates; None where they are scored here, one by one."""
    if settings.workers == 1 and settings.executor != "dask":
        yield None
    else:
        with opened(settings.executor, settings.workers, settings.scheduler) as executor:
            yield executor
