"""What each compression method makes of one network, trained once and kept in a folder."""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from benchmarks.designs import OutOfTimeError
from engine import data, files, models
from engine.compress.evaluate import accuracy
from engine.compress.export import Template, parity
from engine.compress.finetune import finetune
from engine.compress.groups import Design
from engine.compress.profile import Profile, profile
from engine.compress.prunable import prunable
from engine.compress.prune import prune
from engine.compress.quantize import onnx_accuracy, quantize_dynamic
from engine.compress.recipe import Recipe
from engine.compress.sparsify import Sparsity, sparsify
from engine.compress.training import Result
from engine.compress.unstructured import prune_weights
from engine.events import AnyEvent, Noted, Reporter, Scored

SHARE = 0.5
"""Of the single weights that unstructured pruning takes."""
MULTIPLE = 8
"""OTO keeps multiples of so many channels."""
TITLES = {
    "original": "original",
    "l1": f"L1 unstructured, {SHARE:.0%}",
    "random": f"random unstructured, {SHARE:.0%}",
    "dhspg": "OTO (DHSPG)",
    "hesso": "OTO (HESSO)",
}


@dataclass(frozen=True)
class Row:
    """One model of the table."""

    method: str
    """A key of `TITLES`."""
    tuned: bool
    """Whether it was fine-tuned."""
    quantized: bool
    epochs: int
    """Trained since the original."""
    accuracy: float
    """On the test images, 0 to 1."""
    profile: Profile
    bytes: int
    """Of the ONNX file."""
    file: Path

    def smaller(self, original: Row) -> float:
        """Return by which share its file is smaller than the original's."""
        return 1 - self.bytes / original.bytes

    @property
    def title(self) -> str:
        if not self.quantized:
            return TITLES[self.method]
        quantized = "dynamic quantization"
        return quantized if self.method == "original" else f"{TITLES[self.method]} + {quantized}"


class Study:
    """A network and what the methods make of it, each made once and kept.

    Args:
        spec: the network.
        options: the command line.
        dataset: what it was trained on.
        end: when to stop training, by `time.monotonic`.
    """

    def __init__(
        self, spec: str, options: argparse.Namespace, dataset: data.Dataset, end: float
    ) -> None:
        self.name, self.options, self.dataset, self._end = models.title(spec), options, dataset, end
        self.folder: Path = options.folder / self.name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.example = torch.from_numpy(dataset.test_images[:2]).float() / 255
        classes, moments = len(dataset.classes), (dataset.mean, dataset.std)
        self.original = models.load(
            spec, classes, options.weights, self.example.shape, *moments, folder=Path.cwd()
        )
        self.prunable = prunable(self.original, self.example)

    @cached_property
    def _template(self) -> Template:
        return Template(self.original, self.example, self.prunable.groups)

    def rows(self) -> Iterator[Row]:
        """Yield the rows; the first is the original's.

        Raises:
            OutOfTimeError: training has not ended.
        """
        sparse = self.options.sparsifier
        floats, quantizable = ("original", "l1", "random", sparse), ("original", sparse)
        for method in floats:
            # What takes hours comes first.
            self.network(method, tuned=True)
        for quantized in (False, True):
            for method in quantizable if quantized else floats:
                for tuned in (False, True):
                    yield self._row(method, tuned, quantized)

    def network(self, method: str, tuned: bool) -> nn.Module:
        """Return the network of a method, made now if it was not before.

        Raises:
            OutOfTimeError: its training has not ended.
        """
        if tuned:
            network = copy.deepcopy(self.network(method, False))
            recipe = self._recipe(self.options.epochs, self.options.lr, method in ("l1", "random"))

            def learn(**how: Any) -> Result:
                return finetune(network, self.dataset, recipe, **how)

            self._kept(network, f"{method}-tuned", learn)
            return network
        if method == "original":
            return self.original
        if method in ("dhspg", "hesso"):
            return self._once(method)
        measure: Any = method
        return prune_weights(self.original, SHARE, measure, seed=self.options.seed)

    def _once(self, method: str) -> nn.Module:
        """Return the compact network that training to sparsity leaves."""
        network, groups = copy.deepcopy(self.original), self.prunable.groups
        recipe = self._recipe(self.options.sparse_epochs, self.options.sparse_lr)
        chosen: Any = method
        sparsity = Sparsity(chosen, kept=self.options.kept, multiple=MULTIPLE)
        path = self.folder / f"{method}.json"

        def learn(**how: Any) -> Result:
            found = sparsify(network, groups, self.dataset, recipe, sparsity, **how)
            files.write(path, json.dumps(found.design.kept))
            return found

        self._kept(network, method, learn)
        design = Design(tuple(tuple(kept) for kept in json.loads(path.read_text())))
        return prune(network, groups, design)

    def _kept(self, network: nn.Module, name: str, learn: Callable[..., Result]) -> None:
        """Give a network the weights that are kept under a name, learnt now if there are none."""
        path = self.folder / f"{name}.safetensors"
        if path.exists():
            models.load_weights(network, path)
            return
        checkpoint = path.with_suffix(".checkpoint")
        found = learn(
            reporter=Reporter(f"{self.name} {name}", _say),
            checkpoint=checkpoint,
            cancelled=lambda: time.monotonic() > self._end,
        )
        if not found.finished:
            raise OutOfTimeError(f"{self.name}, {name}: {len(found.epochs)} epochs are done")
        files.write(path, save({n: t.contiguous() for n, t in network.state_dict().items()}))
        checkpoint.unlink(missing_ok=True)

    def _recipe(self, epochs: int, lr: float, keep_zeros: bool = False) -> Recipe:
        return Recipe(
            epochs=epochs, lr=lr, optimizer="adamw", weight_decay=0.05, batch=self.options.batch,
            warmup_epochs=epochs / 10, label_smoothing=0.1, keep_zeros=keep_zeros, bf16=True,
            seed=self.options.seed, threads=self.options.threads,
        )  # fmt: skip

    def _row(self, method: str, tuned: bool, quantized: bool) -> Row:
        network = self.network(method, tuned)
        file = self.folder / f"{method}{'-tuned' if tuned else ''}.onnx"
        written = self._template.write(network, file)
        parity(file, network, self.example)
        if quantized:
            preset = self.options.preset
            written = quantize_dynamic(file, file.with_suffix(".int8.onnx"), preset)
        images, labels = self.dataset.test_images, self.dataset.test_labels
        known = self.folder / "accuracies.json"
        found: dict[str, float] = json.loads(known.read_text()) if known.exists() else {}
        if written.digest not in found:
            found[written.digest] = (
                onnx_accuracy(written.path, images, labels)
                if quantized
                else accuracy(network, images, labels)
            )
            files.write(known, json.dumps(found))
        once = self.options.sparse_epochs if method in ("dhspg", "hesso") else 0
        return Row(
            method, tuned, quantized, once + tuned * self.options.epochs, found[written.digest],
            profile(network, self.example, written.path), written.bytes, written.path,
        )  # fmt: skip


def _say(event: AnyEvent) -> None:
    if isinstance(event, Scored):
        print(f"{event.job}, epoch {event.x:.0f}: {event.name} {event.y:.4f}", file=sys.stderr)
    elif isinstance(event, Noted):
        print(f"{event.job}: {event.text}", file=sys.stderr)
