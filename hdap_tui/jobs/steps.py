"""The steps of a job: those of its recipe, or what `hdap compress` does without one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec.structs import replace

from engine.compress.recipe import Recipe
from engine.search import hdap
from hdap_tui.config.recipes import QUANTIZING, TRAINING
from hdap_tui.config.schema import Compression, RecipeStep


@dataclass(frozen=True)
class Steps:
    """What a job does, in order."""

    networks: tuple[RecipeStep, ...]
    """Those that change the torch network; none where a finished ONNX model is quantized."""
    quantization: RecipeStep | None
    """The last step; None: everything stays in float."""
    usual: bool
    """Whether it is what `hdap compress` does without a recipe; int8 may then lose only what
    pruning has left of the accuracy that may be lost."""
    maximum_bytes: int = 0
    """Size of the ONNX file that must be met; 0: any."""

    @classmethod
    def of(cls, request: Mapping[str, Any], asked: Compression) -> Steps:
        """Return the steps that a request asks for."""
        recipe = request.get("recipe")
        if recipe is None:
            last = {
                "auto": RecipeStep(method="static"),
                "always": RecipeStep(method="static", take="always"),
            }.get(asked.quantize)
            return cls((RecipeStep(method="search"),), last, usual=True)
        steps = [msgspec.convert(step, RecipeStep) for step in recipe["steps"]]
        last = steps.pop() if steps and steps[-1].method in QUANTIZING else None
        return cls(tuple(steps), last, False, int(recipe.get("maximum_bytes", 0)))

    @property
    def always(self) -> bool:
        """Whether what is quantized is taken even where it is slower."""
        return self.quantization is not None and self.quantization.take == "always"

    def allow(self, size: int) -> bool:
        """Whether a file of so many bytes is small enough."""
        return not self.maximum_bytes or size <= self.maximum_bytes


def plain(step: RecipeStep) -> dict[str, Any]:
    """Return a step as it stands in a settings file."""
    found = msgspec.to_builtins(step)
    return {key: value for key, value in found.items() if value is not None}


def resolved(steps: Sequence[RecipeStep], asked: Compression) -> tuple[RecipeStep, ...]:
    """Return steps that say all that they have keys for, and that depends on other settings."""
    return tuple(
        replace(step, epochs=own.epochs, lr=own.lr, optimizer=own.optimizer)
        if step.method in TRAINING and (own := training(asked, step))
        else step
        for step in steps
    )


def training(asked: Compression, step: RecipeStep | None = None) -> Recipe:
    """Return how a network is trained: as [compression.finetune] says, but for the step's keys."""
    tuning, own = asked.finetune, step or RecipeStep(method="finetune")
    return Recipe(
        epochs=tuning.epochs if own.epochs is None else own.epochs,
        lr=own.lr or tuning.lr,
        optimizer=own.optimizer or "sgd",
        momentum=tuning.momentum,
        weight_decay=tuning.weight_decay,
        batch=tuning.batch,
        schedule=tuning.schedule,
        distill=tuning.distill,
        seed=asked.seed,
        threads=tuning.threads,
        bf16=tuning.bf16,
        processes=tuning.processes,
    )


def searching(asked: Compression, measurement_seconds: float) -> hdap.Settings:
    """Return the settings of the search.

    `measurement_seconds` is about what a design takes on all clusters.
    """
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
        measurement_seconds=measurement_seconds,
        workers=asked.threads,
        executor=asked.executor,
        scheduler=asked.scheduler,
        seed=asked.seed,
        recipe=training(asked),
    )
