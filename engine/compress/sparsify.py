"""Structured sparsity by training once: channels go to zero while the network learns.

    >>> found = sparsify(model, groups, dataset, Recipe(epochs=20), Sparsity(kept=0.4))
    >>> small = prune(model, groups, found.design)

The two methods of *Only Train Once*, on this project's own dependency groups: DHSPG (Chen, Liang,
Ding, Zhu, Zharkov: *OTOv2: Automatic, Generic, User-Friendly*, ICLR 2023) and HESSO (Chen et al.,
arXiv 2409.09085). What the papers leave open follows the released code (github.com/tianyic and
github.com/microsoft, only_train_once, MIT licence). The budget is met exactly here: what is left
when it is due is projected, and a network that has not met it is never chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from engine.compress.channels import learnt
from engine.compress.evaluate import place
from engine.compress.finetune import learn, validate
from engine.compress.groups import Design, Group, check, faults, whole
from engine.compress.recipe import Recipe
from engine.compress.sparsifiers import DHSPG, HESSO, Sparsifier
from engine.compress.sparsity import Sparsity
from engine.compress.training import Result
from engine.events import silent

if TYPE_CHECKING:
    from engine.data import Dataset
    from engine.events import Reporter

__all__ = ["SparseResult", "Sparsity", "sparsify"]

_GUARD = 4  # images that groups are tried with
_METHODS: dict[str, type[Sparsifier]] = {"dhspg": DHSPG, "hesso": HESSO}


@dataclass(frozen=True)
class SparseResult(Result):
    """What came of a run; the network holds the best of those epochs that met the budget."""

    design: Design
    """The channels that are not zero, of all the groups that were given."""
    projected: int
    """How many channels the half-space projection had zeroed by itself when the budget was due;
    the closing projection zeroed the others. With HESSO 0."""
    whole: Mapping[str, str]
    """Why, for each group that could not be made sparse."""


def sparsify(
    model: nn.Module,
    groups: Sequence[Group],
    dataset: Dataset,
    recipe: Recipe,
    sparsity: Sparsity,
    *,
    teacher: nn.Module | None = None,
    reporter: Reporter | None = None,
    checkpoint: Path | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    step: str = "sparsify",
    weight: float = 1.0,
) -> SparseResult:
    """Train a network in place until the budget's channels are zero, and on with the others.

    It keeps its shape, and answers as the pruned one does: `prune(model, groups, design)`. A group
    where zeroing a channel is not the same as removing it (a layer norm reads it) stays whole, and
    so does one whose weights are all frozen; both are named. Resumable after every epoch to the
    same bits, as `finetune` is. A run that is cancelled before the budget is due leaves the
    network as it was, and the design is whole.

    Args:
        model: the network.
        groups: its dependency groups.
        dataset: its training split is learnt, its selection split chooses.
        recipe: how.
        sparsity: how many channels stay, and by which method the others go.
        teacher: the network whose answers are imitated where the recipe says so.
        reporter: hears of each epoch, with the curves "accuracy", "loss" and "channels" (the share
            of channels that are not zero).
        checkpoint: a file for the state after each epoch; where it exists, the run goes on.
        cancelled: asked before each batch; the epoch in progress is then given up. To go on
            later, give the network as it was at the very start, and the checkpoint.
        step: the step's name in the events.
        weight: its expected seconds, for the events.

    Raises:
        ValueError: the recipe or the sparsity makes no sense, no group can be made sparse, there
            are too few batches, or for the reasons of `finetune`.
    """
    sparsity.check()
    validate(model, dataset, recipe, teacher)
    if not recipe.epochs:
        raise ValueError("the recipe has no epochs, and sparsity comes by training")
    images = torch.from_numpy(dataset.train_images[:_GUARD]).to(place(model)).float() / 255
    eligible, reasons = _eligible(model, groups, images)
    update = _METHODS[sparsity.method](eligible, sparsity)
    reporter = reporter or silent()
    reporter.started(step, total=recipe.epochs, weight=weight)
    for name, reason in reasons.items():
        reporter.noted(step, f"group {name} keeps all its channels: {reason}")
    for sentence in sparsity.unmet(eligible):
        reporter.noted(step, sentence)
    found = learn(model, dataset, recipe, update, teacher, reporter, checkpoint, cancelled, step)
    design = whole(groups)
    if update.settled(found.best_epoch):
        alive = dict(zip((g.name for g in eligible), update.alive(), strict=True))
        design = Design(
            tuple(
                alive.get(g.name, all_of_it)
                for g, all_of_it in zip(groups, design.kept, strict=True)
            )
        )
    result = SparseResult(
        **{field.name: getattr(found, field.name) for field in fields(found)},
        design=design,
        projected=int(update.projected),
        whole=reasons,
    )
    if result.finished:
        reporter.noted(step, update.sentence())
        reporter.finished(
            step,
            accuracy=result.accuracy,
            best_epoch=result.best_epoch,
            channels=sum(design.widths),
            projected=result.projected,
        )
    return result


def _eligible(
    model: nn.Module, groups: Sequence[Group], images: Tensor
) -> tuple[tuple[Group, ...], dict[str, str]]:
    """Return the groups that can be made sparse, and why the others cannot."""
    reasons = {g.name: "its weights are frozen" for g in groups if not learnt(model, g)}
    wrong = faults(model, groups, images)
    eligible = tuple(g for g in groups if g.name not in {**reasons, **wrong})
    if not eligible:
        name, reason = next(iter({**reasons, **wrong}.items()), ("none", "there are none"))
        raise ValueError(f"no group of channels can be made sparse: {name}: {reason}")
    if wrong:
        check(model, eligible, images)
    return eligible, reasons | wrong
