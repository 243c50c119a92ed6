"""What a job makes of the torch network, step by step, before it becomes an ONNX file.

Whatever trains keeps its state in the job's folder after every epoch, and what does not train
takes a moment: a job that goes on does all of its steps again, and is soon where it was.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from engine import accelerator
from engine.compress.designs import Design, choose, compose, whole
from engine.compress.evaluate import accuracy, reestimate_batch_norm
from engine.compress.finetune import finetune
from engine.compress.groups import Group, importance
from engine.compress.padding import pad
from engine.compress.profile import macs
from engine.compress.prunable import prunable
from engine.compress.prune import narrow, prune
from engine.compress.recipe import Recipe
from engine.compress.sparsify import Sparsity, sparsify
from engine.compress.unstructured import prune_weights
from engine.search import fleetwide
from engine.search.hdap import Cancelled, Result
from hdap_tui.config.recipes import PRUNING, TRAINING
from hdap_tui.config.schema import RecipeStep
from hdap_tui.jobs.parts import Job, Part
from hdap_tui.jobs.steps import searching, training
from hdap_tui.store.facts import USUAL_MULTIPLE

if TYPE_CHECKING:
    from torch import Tensor, nn

    from engine.compress.export import Template
    from engine.data import Dataset

STATISTICS_IMAGES = 512
"""Enough for the mean and variance of a channel."""
_EPOCH_S = 5.0  # a guess, for the progress alone
_OF_A_NETWORK = re.compile(r"(accuracy|macs|parameters|widths)_(before|after)$")
_NORM = {"l1": 1, "l2": 2}


@dataclass(frozen=True)
class Network:
    """A network on its way."""

    part: Part
    network: nn.Module
    design: Design
    """Which of the original network's channels it has."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """What is known of it, and under "search" the figures of the search that made it, if one did:
    the finished model has a speed-up of its own."""
    sparse: bool = False
    """Whether single weights are zero and have to stay so."""


def _sorted(result: Result) -> dict[str, Any]:
    """Return what a search found out: of its network as such, and of itself under "search"."""
    own = {name: value for name, value in result.metrics.items() if _OF_A_NETWORK.match(name)}
    rest = {name: value for name, value in result.metrics.items() if name not in own}
    return {**own, "search": {**rest, "stopped": result.stopped}}


def expected_s(job: Job) -> float:
    """Return about how long a job's steps take, but for its quantization."""
    search = searching(job.asked, job.measurement_seconds)
    return sum(
        search.expected_seconds(len(job.clusters))
        if step.method == "search"
        else _EPOCH_S * training(job.asked, step).epochs
        if step.method in TRAINING
        else 1.0
        for step in job.steps.networks
    )


class Builder:
    """Takes the original network through the steps.

    Args:
        job: whose steps they are.
        original: the network; it is left as it was.
        dataset: what it is trained and judged on.
    """

    def __init__(self, job: Job, original: nn.Module, dataset: Dataset) -> None:
        import torch

        self.job, self.original, self.dataset = job, original, dataset
        self.example: Tensor = torch.from_numpy(dataset.test_images[:2]).float() / 255
        self.groups: tuple[Group, ...] = ()
        self.forecast: dict[str, Any] | None = None

    @cached_property
    def template(self) -> Template:
        """The original as ONNX; torch's exporter takes seconds, and is run for it alone, once."""
        from engine.compress.export import Template

        folder = self.job.settings.state_dir / "templates"
        name = str(self.job.asked.network)
        return Template.kept(folder, name, self.original, self.example, self.groups)

    def prepare(self) -> None:
        """Find the groups of channels, where a step removes any.

        Raises:
            ValueError: nothing of the network can be pruned safely.
        """
        methods = {step.method for step in self.job.steps.networks}
        if not methods & PRUNING:
            return
        found = prunable(self.original, self.example)
        if found.sentence:
            self.job.reporter.noted("prepare", found.sentence)
        asked, first = self.job.asked, self.job.request["clusters"][0]
        if "search" in methods and not asked.channel_multiple and "multiple" not in first:
            self.job.reporter.noted(
                "prepare",
                f"no device was probed for its channel multiple: designs are rounded up to "
                f"{USUAL_MULTIPLE} where that is faster; hdap devices probe finds theirs",
            )
        self.groups = found.groups

    def build(self) -> list[Network]:
        """Do the steps; return the networks, several where each cluster gets its own.

        Raises:
            Cancelled: somebody asked to stop.
            ValueError: a step cannot be done; the sentence says why.
        """
        steps = self.job.steps.networks
        everyone = tuple(cluster.id for cluster in self.job.clusters)
        # With one thread until a step says otherwise: many small things are done side by side.
        with accelerator.threads(1):
            start = Network(Part(everyone, False), copy.deepcopy(self.original).eval(),
                            whole(self.groups))  # fmt: skip
            networks = [start]
            for number, step in enumerate(steps, 1):
                if step.method == "search":
                    networks = self._search(networks[0])
                else:
                    name = step.method if len(steps) == 1 else f"step {number}: {step.method}"
                    networks = [self._step(one, step, number, name) for one in networks]
            if steps and steps[-1].method == "search":
                return networks
            widths = [group.channels for group in self.groups]
            before = {**self._figures(self.original, "before"), "widths_before": widths}
            return [replace(one, metrics={**one.metrics, **before, **self._after(one)})
                    for one in networks]  # fmt: skip

    def _search(self, start: Network) -> list[Network]:
        settings = searching(self.job.asked, self.job.measurement_seconds)
        outcome = fleetwide.compress(
            start.network,
            self.groups,
            self.dataset,
            self.job.clusters,
            self.job.measure,
            settings,
            self.job.folder.work,
            self.job.reporter,
            self.job.cancelled,
            lambda: self.template,
        )
        self.forecast = asdict(outcome.forecast) if outcome.forecast else None
        found, without = [], ""
        for numbers, result in outcome.results:
            part = Part(numbers, set(numbers) != set(start.part.clusters))
            self.job.reporter.noted(part.step("search"), f"ended: {result.stopped}")
            if result.design.widths == start.design.widths:
                without = without or result.stopped
                continue
            found.append(Network(part, result.network, result.design, _sorted(result)))
        if not found:
            raise ValueError(
                f"no smaller network was found that is good enough: {without}; "
                "allow a larger maximum_drop, or more evaluations"
            )
        return found

    def _step(self, before: Network, step: RecipeStep, number: int, name: str) -> Network:
        name = before.part.step(name)
        if step.method in TRAINING:
            train = self._finetune if step.method == "finetune" else self._sparsify
            return train(before, step, number, name)
        self.job.reporter.started(name)
        cut = self._uniform if step.method == "uniform" else self._unstructured
        after = cut(before, step, name)
        self.job.reporter.finished(name)
        return after

    def _uniform(self, before: Network, step: RecipeStep, name: str) -> Network:
        assert step.kept is not None
        groups = narrow(self.groups, before.design)
        scores = importance(before.network, groups, _NORM[step.measure or "l1"])
        ratios = [1 - step.kept] * len(groups)
        return self._pruned(before, choose(groups, ratios, scores, step.multiple or 1), name)

    def _sparsify(self, before: Network, step: RecipeStep, number: int, name: str) -> Network:
        assert step.kept is not None
        assert step.method in ("dhspg", "hesso")
        recipe = training(self.job.asked, step)
        network = copy.deepcopy(before.network)
        found = sparsify(
            network,
            narrow(self.groups, before.design),
            self.dataset,
            recipe,
            Sparsity(method=step.method, kept=step.kept, multiple=step.multiple or 1),
            teacher=self.original if recipe.distill else None,
            reporter=self.job.reporter,
            checkpoint=self._checkpoint(before.part, number),
            cancelled=self.job.cancelled,
            step=name,
            weight=_EPOCH_S * recipe.epochs,
        )
        if not found.finished:
            raise Cancelled
        return self._pruned(replace(before, network=network), found.design, name, trained=True)

    def _pruned(self, before: Network, design: Design, name: str, trained: bool = False) -> Network:
        """Remove channels; the batch norms of what was not trained since are measured anew."""
        network = prune(before.network, narrow(self.groups, before.design), design)
        if not trained:
            reestimate_batch_norm(network, self.dataset.train_images[:STATISTICS_IMAGES])
        was, now = sum(before.design.widths), sum(design.widths)
        self.job.reporter.noted(name, f"{now} of {was} channels stay")
        return replace(before, network=network, design=compose(before.design, design))

    def _unstructured(self, before: Network, step: RecipeStep, name: str) -> Network:
        assert step.kept is not None
        assert step.measure != "l2"
        network = prune_weights(
            before.network, 1 - step.kept, step.measure or "l1", step.scope or "layer",
            self.job.asked.seed,
        )  # fmt: skip
        self.job.reporter.noted(
            name,
            f"{step.kept:.0%} of the weights stay; dense kernels multiply by the zeros all the "
            "same, so nothing gets faster: only the compressed file gets smaller",
        )
        return replace(before, network=network, sparse=True)

    def _finetune(self, before: Network, step: RecipeStep, number: int, name: str) -> Network:
        recipe = replace(training(self.job.asked, step), keep_zeros=before.sparse)
        pruned = before.design != whole(self.groups)
        multiple = accelerator.training_multiple(accelerator.device(recipe.device), recipe.bf16)
        # Widened, a pruned network trains faster; what single zeros are left is not known then.
        wide = (
            pad(before.network, self.original, self.groups, before.design, multiple)
            if pruned and not before.sparse
            else None
        )
        network = wide.network if wide else copy.deepcopy(before.network)
        self._train(network, recipe, before.part, number, name, wide.zeros if wide else ())
        return replace(before, network=wide.strip() if wide else network)

    def _train(
        self, network: nn.Module, recipe: Recipe, part: Part, number: int, name: str, zeros: Any
    ) -> None:
        tuned = finetune(
            network,
            self.dataset,
            recipe,
            teacher=self.original if recipe.distill else None,
            reporter=self.job.reporter,
            checkpoint=self._checkpoint(part, number),
            cancelled=self.job.cancelled,
            step=name,
            weight=_EPOCH_S * recipe.epochs,
            zeros=zeros,
        )
        if not tuned.finished:
            raise Cancelled

    def _checkpoint(self, part: Part, number: int) -> Any:
        return self.job.folder.work / part.file(f"step-{number}.safetensors")

    def _after(self, made: Network) -> dict[str, Any]:
        widths = list(made.design.widths)
        return {**self._figures(made.network, "after"), "widths_after": widths}

    def _figures(self, network: nn.Module, when: str) -> dict[str, Any]:
        """Return accuracies and sizes under the names that a search gives them."""
        data, threads = self.dataset, self.job.asked.finetune.threads
        with accelerator.threads(threads):
            accuracies = {
                "selection": accuracy(network, data.selection_images, data.selection_labels),
                "test": accuracy(network, data.test_images, data.test_labels),
            }
        return {
            f"accuracy_{when}": accuracies,
            f"macs_{when}": macs(network, self.example),
            f"parameters_{when}": sum(p.numel() for p in network.parameters()),
        }
