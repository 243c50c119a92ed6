"""Training and fine-tuning, resumable after every epoch to the same bits.

Stochastic gradient descent with momentum; the *selection* split chooses the best epoch (the
state before the first one takes part), the *test* split is never looked at. What is random in
an epoch comes from the recipe's seed and the epoch's number alone, so a run that was killed and
started again ends in the same network, given the same processor and number of threads.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.compress import checkpoint as checkpoints
from engine.compress.evaluate import accuracy, evaluate, reestimate_batch_norm
from engine.compress.inference import evaluating
from engine.data import augment
from engine.events import silent

if TYPE_CHECKING:
    from engine.data import Dataset
    from engine.events import Reporter

__all__ = ["Epoch", "Recipe", "Result", "accuracy", "finetune", "reestimate_batch_norm"]

_MAX_ROLLBACKS = 4
_ROLLBACK_FACTOR = 0.2


@dataclass(frozen=True)
class Recipe:
    """How to train."""

    epochs: int = 20
    lr: float = 0.01
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    batch: int = 64
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    step_epochs: int = 10
    """With the step schedule: after how many epochs the learning rate falls to a tenth."""
    augment: bool = True
    """Shift images by up to four pixels, and mirror them where the dataset allows."""
    distill: float = 0.0
    """Share of the loss that comes from the teacher, 0 to 1."""
    temperature: float = 4.0
    """Softens both distributions of the distillation (Hinton et al. 2015, arXiv 1503.02531)."""
    seed: int = 0
    threads: int = 1
    bf16: bool = False
    """Train in bfloat16, channels last, where the processor has it."""


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


class _Diverged(ArithmeticError):
    pass


class _Cancelled(Exception):
    pass


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

    Raises:
        ValueError: the recipe makes no sense, the checkpoint is another run's, the dataset has
            other classes than the network, or training diverges at any learning rate.
    """
    _validate(model, dataset, recipe, teacher)
    reporter = reporter or silent()
    reporter.started(step, total=recipe.epochs, weight=weight)
    with _threads(recipe.threads), torch.random.fork_rng(devices=[]):
        run = _Run(model, dataset, recipe, teacher, checkpoint, cancelled)
        if run.bf16 != recipe.bf16:
            reporter.noted(step, "this processor has no bfloat16: training in float32")
        if run.state.epochs:
            reporter.noted(step, f"resuming after epoch {len(run.state.epochs)}")
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
            reporter.scored(step, "loss", number, done.loss)
        result = run.finish(finished)
    if finished:
        reporter.finished(step, accuracy=result.accuracy, best_epoch=result.best_epoch)
    return result


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
    ) -> None:
        self.model, self.recipe, self.teacher = model, recipe, teacher
        self.checkpoint, self.cancelled = checkpoint, cancelled
        self.mirrors = dataset.mirrors
        self.images = torch.from_numpy(dataset.train_images)
        self.labels = torch.from_numpy(dataset.train_labels)
        self.selection = (
            torch.from_numpy(dataset.selection_images),
            torch.from_numpy(dataset.selection_labels),
        )
        self.bf16 = recipe.bf16 and torch.cpu._is_avx512_bf16_supported()
        self.state = _State(_fingerprint(model, dataset, recipe))
        if self.bf16:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        learnt = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(
            learnt,
            lr=recipe.lr,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
        )
        if checkpoint is not None and checkpoint.exists():
            self._resume(checkpoint)
        else:
            found, loss = evaluate(model, *self.selection)
            if math.isfinite(loss):
                self.state.best_accuracy, self.state.best_loss = found, loss
            self.best = _copy(model.state_dict())
        self.good = self._tensors()

    def epoch(self) -> Epoch:
        """Train one epoch, judge it, and save the state."""
        number = len(self.state.epochs)
        first = self._rate(number, 0.0)
        loss = self._train(number)
        found, selection_loss = evaluate(self.model, *self.selection)
        if not math.isfinite(selection_loss):
            raise _Diverged("the loss on the selection split is not finite")
        done = Epoch(loss, found, first)
        self.state.epochs.append(asdict(done))
        if (found, -selection_loss) > (self.state.best_accuracy, -self.state.best_loss):
            self.state.best_epoch = number + 1
            self.state.best_accuracy, self.state.best_loss = found, selection_loss
            self.best = _copy(self.model.state_dict())
        self.good = self._tensors()
        if self.checkpoint is not None:
            checkpoints.save(self.checkpoint, {**self.good, "best": self.best}, asdict(self.state))
        return done

    def roll_back(self, number: int, error: _Diverged) -> str:
        """Return to the last good epoch with a lower learning rate; say so."""
        self.state.rollbacks += 1
        if self.state.rollbacks > _MAX_ROLLBACKS:
            raise ValueError(
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
        self.model.eval()
        epochs = tuple(Epoch(**epoch) for epoch in self.state.epochs)
        return Result(self.state.best_accuracy, self.state.best_epoch, epochs, finished)

    def _train(self, number: int) -> float:
        generator = torch.Generator().manual_seed(self.recipe.seed * 100_003 + number)
        torch.manual_seed(self.recipe.seed * 100_003 + number)  # for dropout
        order = torch.randperm(len(self.labels), generator=generator)
        # A batch of one image has no variance to normalise by.
        batches = [b for b in torch.split(order, self.recipe.batch) if len(b) > 1]
        self.model.train()
        total = 0.0
        for done, chosen in enumerate(batches):
            if self.cancelled():
                raise _Cancelled
            for group in self.optimizer.param_groups:
                group["lr"] = self._rate(number, done / len(batches))
            images = self.images[chosen]
            if self.recipe.augment:
                images = augment(images, generator, flip=self.mirrors)
            total += self._batch(images.float() / 255, self.labels[chosen])
        return total / len(batches)

    def _batch(self, images: Tensor, labels: Tensor) -> float:
        if self.bf16:
            images = images.to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            logits = self.model(images)
        loss = functional.cross_entropy(logits.float(), labels)
        if self.recipe.distill and self.teacher is not None:
            with evaluating(self.teacher), torch.no_grad():
                soft = self.teacher(images)
            share = self.recipe.distill
            loss = (1 - share) * loss + share * _distillation(
                logits.float(), soft.float(), self.recipe.temperature
            )
        value = float(loss.detach())
        if not math.isfinite(value):
            raise _Diverged("the loss is not finite")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return value

    def _rate(self, number: int, part: float) -> float:
        """Learning rate `part` of the way through an epoch, counted from 0."""
        recipe = self.recipe
        rate = recipe.lr * _ROLLBACK_FACTOR**self.state.rollbacks
        if recipe.schedule == "cosine":
            return rate * 0.5 * (1 + math.cos(math.pi * (number + part) / recipe.epochs))
        if recipe.schedule == "step":
            return rate * 0.1 ** (number // recipe.step_epochs)
        return rate

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        momenta = {
            name: self.optimizer.state[p]["momentum_buffer"]
            for name, p in self.model.named_parameters()
            if self.optimizer.state.get(p, {}).get("momentum_buffer") is not None
        }
        return {"model": _copy(self.model.state_dict()), "momentum": _copy(momenta)}

    def _restore(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.model.load_state_dict(tensors["model"])
        momenta = tensors.get("momentum", {})
        self.optimizer.state.clear()
        for name, parameter in self.model.named_parameters():
            if name in momenta:
                # Laid out in memory like the parameter, as the optimizer itself would.
                buffer = torch.empty_like(parameter).copy_(momenta[name])
                self.optimizer.state[parameter]["momentum_buffer"] = buffer.detach()

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


def _validate(
    model: nn.Module, dataset: Dataset, recipe: Recipe, teacher: nn.Module | None
) -> None:
    for name, good in (
        ("epochs", recipe.epochs >= 0),
        ("batch", recipe.batch >= 2),
        ("lr", recipe.lr > 0 and math.isfinite(recipe.lr)),
        ("threads", recipe.threads >= 1),
        ("step_epochs", recipe.step_epochs >= 1),
        ("temperature", recipe.temperature > 0),
        ("distill", 0 <= recipe.distill <= 1),
    ):
        if not good:
            raise ValueError(f"the recipe's {name} cannot be {getattr(recipe, name)}")
    if recipe.distill and teacher is None:
        raise ValueError("the recipe distils, but there is no teacher")
    with evaluating(model), torch.no_grad():
        try:
            outputs = model(torch.from_numpy(dataset.train_images[:1]).float() / 255).shape[-1]
        except RuntimeError as error:
            raise ValueError(
                f"the network cannot read the images of {dataset.name}: {error}"
            ) from error
    if outputs != len(dataset.classes):
        raise ValueError(
            f"the network tells {outputs} classes apart, {dataset.name} has {len(dataset.classes)}"
        )


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


def _fingerprint(model: nn.Module, dataset: Dataset, recipe: Recipe) -> str:
    """Tell apart runs that must not continue each other."""
    digest = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    digest.update(dataset.train_labels.tobytes())
    digest.update(dataset.selection_labels.tobytes())
    return digest.hexdigest()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
