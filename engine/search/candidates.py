"""What a candidate of the search is worth: its accuracy, and one value for the search."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engine.compress.designs import Design
from engine.search.measurements import Cancelled
from engine.search.objective import Penalty
from engine.search.space import Widths

if TYPE_CHECKING:
    from torch import nn

    from engine.compress.groups import Group

Array = NDArray[np.float64]
_BATCH = 32  # larger ones leave the processor's cache
_STATISTICS_BATCH = 96  # images that a batch norm's statistics need


def at_widths(scores: Sequence[NDArray[np.float64]], widths: Widths) -> Design:
    """Return the design that keeps each group's highest-scored channels, that many of them."""
    return Design(
        tuple(
            tuple(sorted(int(c) for c in np.argsort(-score, kind="stable")[:width]))
            for score, width in zip(scores, widths, strict=True)
        )
    )


def fitness(latency: Array, accuracy: Array, alpha: float, penalty: Penalty) -> Array:
    """Return what the search minimises, for n candidates.

    HDAP (arXiv 2501.15240, released code): the latency while enough accuracy is kept, else
    (1 - accuracy) / (1 - alpha), which is above 1. A feasible candidate that is slower than the
    unpruned network counts as 1, so that it is never worse than an infeasible one. "add" puts
    the missing accuracy on top of the latency instead, which lets a fast candidate miss a little.

    Args:
        latency: mean over the fleet, relative to the unpruned network (n,).
        accuracy: relative to the start of the outer iteration (n,).
        alpha: the share of accuracy to keep.
        penalty: which form.
    """
    room = max(1.0 - alpha, 1e-9)
    if penalty == "add":
        return np.asarray(latency + np.maximum(0.0, alpha - accuracy) / room)
    lost = np.maximum(1.0 + 1e-9, (1.0 - accuracy) / room)
    return np.where(accuracy >= alpha, np.minimum(latency, 1.0), lost)


class Accuracies:
    """Accuracies of candidates on fixed images; each is estimated once and kept in a file.

    Args:
        model: the network at the start of the outer iteration.
        groups: its dependency groups.
        scores: importance of their channels; the highest-scored are kept.
        images: images (N, C, H, W) uint8 of the training split.
        labels: their classes.
        path: where accuracies are kept, one JSON line a candidate.
        round_: which outer iteration they belong to.
        reestimate: whether a candidate's batch norms take their statistics from these images
            (in the same pass) in place of those of the network that it was cut from.
        workers: candidates estimated at once, each on one thread.
        cancelled: asked before each candidate.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[Group],
        scores: Sequence[NDArray[np.float64]],
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        path: Path,
        round_: int,
        reestimate: bool = True,
        workers: int = 1,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        self._model, self._groups, self._scores = model, groups, scores
        self._images, self._labels = images, labels
        self._path, self._round = path, round_
        self._reestimate, self._workers, self._cancelled = reestimate, workers, cancelled
        self._known = _read(path, round_)

    def seconds(self, widths: Widths) -> float:
        """Estimate a design once more and return how long that takes."""
        begun = time.perf_counter()
        self._estimate(widths)
        return time.perf_counter() - begun

    def __call__(self, designs: Sequence[Widths]) -> Array:
        """Return the accuracy, 0 to 1, of each design.

        Raises:
            Cancelled: somebody asked to stop.
        """
        new = [widths for widths in dict.fromkeys(designs) if widths not in self._known]
        if new:
            if self._workers > 1 and len(new) > 1:
                with ThreadPoolExecutor(min(self._workers, len(new))) as pool:
                    found = list(pool.map(self._estimate, new))
            else:
                found = [self._estimate(widths) for widths in new]
            self._save(dict(zip(new, found, strict=True)))
        return np.array([self._known[widths] for widths in designs])

    def _estimate(self, widths: Widths) -> float:
        import torch

        from engine.compress.finetune import accuracy
        from engine.compress.prune import prune

        if self._cancelled():
            raise Cancelled
        candidate = prune(self._model, self._groups, at_widths(self._scores, widths))
        candidate = candidate.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self._reestimate:
            return accuracy_by_batch_statistics(candidate, self._images, self._labels)
        return accuracy(candidate, self._images, self._labels, _BATCH)

    def _save(self, found: Mapping[Widths, float]) -> None:
        self._known.update(found)
        with self._path.open("a", encoding="utf-8") as file:
            for widths, value in found.items():
                line = {"round": self._round, "widths": widths, "accuracy": value}
                file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def accuracy_by_batch_statistics(
    model: nn.Module, images: NDArray[np.uint8], labels: NDArray[np.int64]
) -> float:
    """Return the accuracy, 0 to 1, with batch norms that normalise by the images at hand.

    A pruned network's own statistics are those of another one, and hide what its channels can
    still do. One pass, against the two of measuring the statistics anew and then evaluating,
    with much the same answer. The model's batch norms are left in training mode.
    """
    import torch
    from torch import nn

    for module in model.eval().modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
            module.momentum = 0.0
    right, parts = 0, max(1, round(len(images) / _STATISTICS_BATCH))
    with torch.no_grad():
        for part in np.array_split(np.arange(len(images)), parts):
            logits = model(torch.from_numpy(images[part]).float() / 255)
            right += int((logits.argmax(1).numpy() == labels[part]).sum())
    return right / len(images)


def _read(path: Path, round_: int) -> dict[Widths, float]:
    """Read a file of accuracies; what was cut off or damaged is estimated again."""
    known: dict[Widths, float] = {}
    if not path.exists():
        return known
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        os.truncate(path, len(whole))
    for line in whole.splitlines():
        try:
            data = json.loads(line)
            if data["round"] == round_:
                known[tuple(data["widths"])] = float(data["accuracy"])
        except (ValueError, TypeError, KeyError):
            continue
    return known
