"""Training and fine-tuning, resumable after every epoch to the same bits.

Stochastic gradient descent with momentum, or AdamW; the *selection* split chooses the best epoch
(the state before the first one takes part), the *test* split is never looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from engine.compress.evaluate import accuracy, answers, place, reestimate_batch_norm
from engine.compress.inference import evaluating
from engine.compress.padding import Zeros
from engine.compress.recipe import Recipe
from engine.compress.training import Epoch, Result, work
from engine.compress.updates import Update
from engine.events import silent

if TYPE_CHECKING:
    from engine.data import Dataset
    from engine.events import Reporter

__all__ = ["Epoch", "Recipe", "Result", "accuracy", "finetune", "reestimate_batch_norm"]


def finetune(
    model: nn.Module,
    dataset: Dataset,
    recipe: Recipe,
    *,
    teacher: nn.Module | None = None,
    reporter: Reporter | None = None,
    checkpoint: Path | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    step: str = "finetune",
    weight: float = 1.0,
    zeros: Sequence[Zeros] = (),
) -> Result:
    """Train a network in place; at the end it holds the weights of its best epoch.

    Args:
        model: the network; frozen parameters stay as they are.
        dataset: its training split is learnt, its selection split chooses.
        recipe: how.
        teacher: the network whose answers are imitated where the recipe says so.
        reporter: hears of each epoch, with the curves "accuracy" and "loss".
        checkpoint: a file for the state after each epoch; where it exists, the run goes on.
        cancelled: asked before each batch; the epoch in progress is then given up. To go on
            later, give the network as it was at the very start, and the checkpoint.
        step: the step's name in the events.
        weight: its expected seconds, for the events.
        zeros: what stays zero whatever is learnt: see `padding.pad`.

    Raises:
        DivergenceError: training diverges at any learning rate.
        ValueError: the recipe makes no sense, the checkpoint is another run's, or the dataset has
            other classes than the network.
    """
    validate(model, dataset, recipe, teacher)
    reporter = reporter or silent()
    reporter.started(step, total=recipe.epochs, weight=weight)
    update = Update(zeros)
    result = learn(model, dataset, recipe, update, teacher, reporter, checkpoint, cancelled, step)
    if result.finished:
        reporter.finished(step, accuracy=result.accuracy, best_epoch=result.best_epoch)
    return result


def learn(
    model: nn.Module,
    dataset: Dataset,
    recipe: Recipe,
    update: Update,
    teacher: nn.Module | None,
    reporter: Reporter,
    checkpoint: Path | None,
    cancelled: Callable[[], bool],
    step: str,
) -> Result:
    """Train as `finetune` does, by any update, in as many processes as the recipe says.

    Whoever calls has validated, and tells where the step begins and ends.
    """
    if teacher is not None:
        dataset = labelled(dataset, teacher)
    with TemporaryDirectory() as folder:
        if recipe.processes > 1:
            from engine.compress import team

            checkpoint = checkpoint or Path(folder) / "checkpoint.safetensors"
            team.finetune(
                model, dataset, recipe, teacher, reporter, checkpoint, cancelled, step, update
            )
            # What they learnt lies in the checkpoint.
            cancelled = lambda: True  # noqa: E731
        return work(
            model, dataset, recipe, teacher, reporter, checkpoint, cancelled, step, update=update
        )


def labelled(dataset: Dataset, network: nn.Module) -> Dataset:
    """Give training, selection and calibration images without a label (-1) the network's answer.

    Where there are no labels, what the original network says is what a pruned one has to keep.
    """
    found = {}
    for split in ("train", "selection", "calibration"):
        labels = getattr(dataset, f"{split}_labels")
        missing = np.flatnonzero(labels < 0)
        if len(missing):
            images = torch.from_numpy(getattr(dataset, f"{split}_images")[missing])
            found[f"{split}_labels"] = labels.copy()
            found[f"{split}_labels"][missing] = answers(network, images).numpy()
    return replace(dataset, **found) if found else dataset


def validate(model: nn.Module, dataset: Dataset, recipe: Recipe, teacher: nn.Module | None) -> None:
    """Refuse what cannot be trained.

    Raises:
        ValueError: the recipe makes no sense, the network does not read the images or has other
            classes than the dataset, or labels or a teacher are missing.
    """
    recipe.check()
    if recipe.distill and teacher is None:
        raise ValueError("the recipe distils, but there is no teacher")
    if recipe.distill < 1 and (dataset.train_labels < 0).any():
        raise ValueError(
            f"{dataset.name} has training images without a label: they can only be learnt from "
            "the unpruned network's answers: set distill to 1"
        )
    with evaluating(model), torch.no_grad():
        try:
            images = torch.from_numpy(dataset.train_images[:1]).to(place(model))
            outputs = model(images.float() / 255).shape[-1]
        except RuntimeError as error:
            raise ValueError(
                f"the network cannot read the images of {dataset.name}: {error}"
            ) from error
    if outputs != len(dataset.classes):
        raise ValueError(
            f"the network tells {outputs} classes apart, {dataset.name} has {len(dataset.classes)}"
        )
