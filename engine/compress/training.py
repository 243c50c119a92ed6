"""A training run between its checkpoints: epochs that go on to the same bits.

What is random in an epoch comes from the recipe's seed and the epoch's number alone, so a run that
was killed and started again ends in the same network, given the same processor and number of
threads.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine import accelerator
from engine.compress import checkpoint as checkpoints
from engine.compress.evaluate import evaluate, place
from engine.compress.recipe import Recipe
from engine.compress.updates import Update
from engine.data import augment

if TYPE_CHECKING:
    from engine.data import Dataset
    from engine.events import Reporter

_MAX_ROLLBACKS = 4
_ROLLBACK_FACTOR = 0.2
_CHECK = 20  # batches between two looks at the loss


@dataclass(frozen=True)
class Epoch:
    """One epoch of a run."""

    loss: float
    """Mean training loss."""
    accuracy: float
    """On the selection split, after the epoch."""
    lr: float
    """Learning rate at its beginning."""


@dataclass(frozen=True)
class Result:
    """What came of a run; the network holds the best epoch's weights."""

    accuracy: float
    """Of the best epoch, on the selection split."""
    best_epoch: int
    """Counted from 1; 0 where no epoch was better than the start."""
    epochs: tuple[Epoch, ...]
    finished: bool
    """False where it was cancelled."""


@dataclass
class _State:
    """Everything that a resumed run needs beside the tensors."""

    fingerprint: str
    rollbacks: int = 0
    best_epoch: int = 0
    best_accuracy: float = -1.0
    best_loss: float = math.inf
    epochs: list[dict[str, float]] = field(default_factory=list)


class DivergenceError(ValueError):
    """Training diverges at any learning rate."""


class _Diverged(ArithmeticError):
    pass


class _Cancelled(Exception):
    pass


def work(
    model: nn.Module,
    dataset: Dataset,
    recipe: Recipe,
    teacher: nn.Module | None,
    reporter: Reporter,
    checkpoint: Path | None,
    cancelled: Callable[[], bool],
    step: str,
    team: Team | None = None,
    update: Update | None = None,
) -> Result:
    """Train in this process, as one of a team or alone; arguments as with `finetune`."""
    team, update = team or Team(recipe), update or Update()
    cuda = [team.device] if team.device.type == "cuda" else []
    with accelerator.threads(recipe.threads), torch.random.fork_rng(devices=cuda):
        run = _Run(model, dataset, recipe, teacher, checkpoint, cancelled, team, update)
        if run.bf16 != recipe.bf16:
            reporter.noted(step, "this machine has no bfloat16: training in float32")
        if 0 < len(run.state.epochs) < recipe.epochs:
            reporter.noted(step, f"resuming after epoch {len(run.state.epochs)}")
        if run.state.epochs:
            reporter.advanced(step, len(run.state.epochs))
        finished = True
        while finished and len(run.state.epochs) < recipe.epochs:
            number = len(run.state.epochs) + 1
            try:
                done = run.epoch()
            except _Diverged as error:
                reporter.noted(step, run.roll_back(number, error))
                continue
            except _Cancelled:
                finished = False
                continue
            reporter.advanced(step, number)
            reporter.scored(step, "accuracy", number, done.accuracy)
            for name, value in update.scores().items():
                reporter.scored(step, name, number, value)
            reporter.scored(step, "loss", number, done.loss)
        return run.finish(finished)


class Team:
    """Who trains together: here, one process alone."""

    rank, size = 0, 1

    def __init__(self, recipe: Recipe) -> None:
        self.device = accelerator.device(recipe.device)

    def share(self, batch: Tensor) -> Tensor:
        """Return this process's part of a batch."""
        return batch[self.rank :: self.size]

    def join(self, model: nn.Module) -> nn.Module:
        """Return the network so that its gradients are averaged over the team."""
        return model

    def backward(self, loss: Tensor) -> None:
        """Find the gradients."""
        loss.backward()  # type: ignore[no-untyped-call]

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum over the team."""
        return value

    def agree(self, model: nn.Module) -> None:
        """Take over the first one's batch norm statistics."""


class _Run:
    """One training run between its checkpoints."""

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        recipe: Recipe,
        teacher: nn.Module | None,
        checkpoint: Path | None,
        cancelled: Callable[[], bool],
        team: Team,
        update: Update,
    ) -> None:
        self.model, self.recipe, self.team, self.update = model, recipe, team, update
        self.checkpoint, self.cancelled = checkpoint, cancelled
        self.mirrors = dataset.mirrors
        self.images = torch.from_numpy(dataset.train_images).to(team.device)
        self.labels = torch.from_numpy(dataset.train_labels).to(team.device)
        self.selection = (
            team.share(torch.from_numpy(dataset.selection_images)).to(team.device),
            team.share(torch.from_numpy(dataset.selection_labels)).to(team.device),
        )
        self.bf16 = recipe.bf16 and accelerator.has_bfloat16(team.device)
        self.state = _State(_fingerprint(model, dataset, recipe, update))
        self.home = place(model)
        model.to(team.device)
        self.teacher = None
        if teacher is not None and recipe.distill:
            # A copy: the caller's stays as it is, and where it is.
            self.teacher = copy.deepcopy(teacher).eval().requires_grad_(False).to(team.device)
        if self.bf16:
            for network in (model, self.teacher):
                if network is not None:
                    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # Joining may put the weights elsewhere in memory: the update comes after it.
        self.learner = team.join(model)
        self.batches = len(self._split(torch.arange(len(self.labels))))
        update.begin(model, recipe, self.batches)
        if checkpoint is not None and checkpoint.exists():
            self._resume(checkpoint)
        else:
            found, loss = self._judge()
            if math.isfinite(loss):
                self.state.best_accuracy, self.state.best_loss = found, loss
            self.best = _copy(model.state_dict())
        self.good = self._tensors()

    def epoch(self) -> Epoch:
        """Train one epoch, judge it, and save the state."""
        number = len(self.state.epochs)
        first = self._rate(number, 0.0)
        loss = self._train(number)
        self.team.agree(self.model)
        found, selection_loss = self._judge()
        if not math.isfinite(selection_loss):
            raise _Diverged("the loss on the selection split is not finite")
        done = Epoch(loss, found, first)
        self.state.epochs.append(asdict(done))
        better = (found, -selection_loss) > (self.state.best_accuracy, -self.state.best_loss)
        # What was before the update had settled does not count.
        if self.update.settled(number + 1) and (better or not self.update.settled(number)):
            self.state.best_epoch = number + 1
            self.state.best_accuracy, self.state.best_loss = found, selection_loss
            self.best = _copy(self.model.state_dict())
        self.good = self._tensors()
        if self.checkpoint is not None and not self.team.rank:
            checkpoints.save(self.checkpoint, {**self.good, "best": self.best}, asdict(self.state))
        return done

    def roll_back(self, number: int, error: _Diverged) -> str:
        """Return to the last good epoch with a lower learning rate; say so."""
        self.state.rollbacks += 1
        if self.state.rollbacks > _MAX_ROLLBACKS:
            raise DivergenceError(
                f"training diverges in epoch {number} even at a learning rate of "
                f"{self._rate(number - 1, 0.0) / _ROLLBACK_FACTOR:.2g}: {error}"
            ) from error
        self._restore(self.good)
        return (
            f"epoch {number} diverged ({error}): back to epoch {number - 1} with the learning "
            f"rate lowered to {self._rate(number - 1, 0.0):.2g}"
        )

    def finish(self, finished: bool) -> Result:
        """Leave the best weights in the network."""
        self.model.load_state_dict(self.best)
        if self.bf16:
            self.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.model.eval().to(self.home)
        epochs = tuple(Epoch(**epoch) for epoch in self.state.epochs)
        return Result(self.state.best_accuracy, self.state.best_epoch, epochs, finished)

    def _train(self, number: int) -> float:
        generator = torch.Generator().manual_seed(self.recipe.seed * 100_003 + number)
        torch.manual_seed(self.recipe.seed * 100_003 + number)  # for dropout
        order = torch.randperm(len(self.labels), generator=generator)
        self.learner.train()
        total = torch.zeros((), dtype=torch.float64, device=self.team.device)
        for done, chosen in enumerate(self._split(order)):
            if self.cancelled():
                raise _Cancelled
            chosen = chosen.to(self.team.device)
            images = self.images[chosen]
            if self.recipe.augment:
                images = augment(images, generator, flip=self.mirrors)
            images, labels = self.team.share(images), self.team.share(self.labels[chosen])
            total += self._batch(images.float() / 255, labels)
            at = number * self.batches + done
            self.update.step(at, self._rate(number, done / self.batches))
            if done % _CHECK == 0 or done == self.batches - 1:
                # Not every time: asking for a number makes a GPU wait.
                mean = float(self.team.sum(total)) / self.team.size
                if not math.isfinite(mean):
                    raise _Diverged("the loss is not finite")
        return mean / self.batches

    def _split(self, order: Tensor) -> list[Tensor]:
        """Return the batches of an epoch."""
        # A batch of one image has no variance to normalise by.
        least = 2 * self.team.size
        return [b for b in torch.split(order, self.recipe.batch) if len(b) >= least]

    def _judge(self) -> tuple[float, float]:
        """Return accuracy and mean loss on the selection split."""
        found, loss = evaluate(self.model, *self.selection)
        if self.team.size == 1:
            return found, loss
        count = len(self.selection[1])
        sums = torch.tensor([found * count, loss * count, count], dtype=torch.float64)
        right, lost, images = self.team.sum(sums.to(self.team.device)).tolist()
        return round(right) / images, lost / images

    def _batch(self, images: Tensor, labels: Tensor) -> Tensor:
        if self.bf16:
            images = images.to(memory_format=torch.channels_last)
        share, device = self.recipe.distill, self.team.device
        with accelerator.mixed(device, self.bf16):
            logits = self.learner(images)
            if self.teacher is not None:
                with torch.inference_mode():
                    soft = self.teacher(images)
        loss = torch.zeros((), device=device)
        if share < 1:
            loss = functional.cross_entropy(
                logits.float(), labels, label_smoothing=self.recipe.label_smoothing
            )
        if self.teacher is not None:
            loss = (1 - share) * loss + share * _distillation(
                logits.float(), soft.float(), self.recipe.temperature
            )
        self.update.optimizer.zero_grad(set_to_none=True)
        self.team.backward(loss)
        return loss.detach()

    def _rate(self, number: int, part: float) -> float:
        """Learning rate `part` of the way through an epoch, counted from 0."""
        return self.recipe.rate(number, part, _ROLLBACK_FACTOR**self.state.rollbacks)

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        found = {name: _copy(tensors) for name, tensors in self.update.tensors().items()}
        return {**found, "model": _copy(self.model.state_dict())}

    def _restore(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.model.load_state_dict(tensors["model"])
        self.update.restore(tensors)

    def _resume(self, path: Path) -> None:
        tensors, state = checkpoints.load(path)
        if state.get("fingerprint") != self.state.fingerprint:
            raise ValueError(
                f"{path}: the checkpoint belongs to a run with another network, dataset or "
                "recipe: remove it, or give another file"
            )
        self.state = _State(**state)
        self._restore(tensors)
        self.best = tensors["best"]


def _distillation(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of softened answers, scaled as in arXiv 1503.02531, section 2."""
    return temperature**2 * functional.kl_div(
        functional.log_softmax(logits / temperature, 1),
        functional.log_softmax(teacher / temperature, 1),
        reduction="batchmean",
        log_target=True,
    )


def _copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _fingerprint(model: nn.Module, dataset: Dataset, recipe: Recipe, update: Update) -> str:
    """Tell apart runs that must not continue each other."""
    digest = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode())
    digest.update(update.fingerprint.encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    digest.update(dataset.train_labels.tobytes())
    digest.update(dataset.selection_labels.tobytes())
    return digest.hexdigest()
