"""What a candidate of the search is worth: its accuracy, and one value for the search."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, wait
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engine import accelerator, files
from engine.search.executors import lost
from engine.search.measurements import Cancelled
from engine.search.scoring import Scorer, Ticket, pack, score
from engine.search.space import Widths

if TYPE_CHECKING:
    from torch import nn

    from engine.compress.groups import Group

Array = NDArray[np.float64]
_POLL_S = 0.2  # how soon a wish to stop is heard


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
        executor: scores several candidates at once (`executors.opened`); None: one by one, here.
        cancelled: asked before each candidate.
        mixed: compute in bfloat16 where the device has it, unless that costs the unpruned network
            more than one point of accuracy.
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
        executor: Executor | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        mixed: bool = True,
    ) -> None:
        self._what = (model, groups, scores, images, labels, reestimate)
        self._whole = tuple(len(score) for score in scores)
        self._room = max(0.01, 1 / max(1, len(images)))
        self._path, self._round = path, round_
        self._executor, self._cancelled, self._mixed = executor, cancelled, mixed
        self._known = _read(path, round_)

    def seconds(self, widths: Widths) -> float:
        """Estimate a design once more, here, and return how long that takes."""
        scorer = self._scorer
        begun = time.perf_counter()
        # A worker has one thread: here the same, for the same bits.
        with accelerator.threads(1):
            scorer(widths)
        return time.perf_counter() - begun

    def __call__(self, designs: Sequence[Widths]) -> Array:
        """Return the accuracy, 0 to 1, of each design.

        Raises:
            Cancelled: somebody asked to stop.
            ValueError: the executor's workers are gone, and new ones as well.
        """
        new = [widths for widths in dict.fromkeys(designs) if widths not in self._known]
        if new and self._executor is not None:
            self._spread(new, self._executor)
        elif new:
            self._save({widths: self._estimate(widths) for widths in new})
        return np.array([self._known[widths] for widths in designs])

    def _estimate(self, widths: Widths) -> float:
        if self._cancelled():
            raise Cancelled
        with accelerator.threads(1):
            return self._scorer(widths)

    @cached_property
    def _scorer(self) -> Scorer:
        plain = Scorer(*self._what)
        if not self._mixed or not accelerator.has_bfloat16(accelerator.device()):
            return plain
        rough = Scorer(*self._what, bf16=True)
        with accelerator.threads(1):
            apart = abs(rough(self._whole) - plain(self._whole))
        return rough if apart <= self._room else plain

    @cached_property
    def _packed(self) -> tuple[Ticket, bytes]:
        return pack(self._scorer, self._path.with_name("scorer.pickle"))

    def _spread(self, new: Sequence[Widths], executor: Executor) -> None:
        """Score candidates through the executor, with new workers once if some were killed."""
        try:
            self._gather(new, executor)
        except lost() as error:
            renew = getattr(executor, "renew", None)
            try:
                if renew is None:
                    raise
                renew()
                self._gather([widths for widths in new if widths not in self._known], executor)
            except lost():
                raise ValueError(
                    "workers that score candidates were killed or lost (out of memory?): what they "
                    "had scored is kept; go on with fewer workers"
                ) from error

    def _gather(self, new: Sequence[Widths], executor: Executor) -> None:
        ticket, content = self._packed
        pending = {executor.submit(score, ticket, widths): widths for widths in new}
        try:
            while pending:
                if self._cancelled():
                    raise Cancelled
                done, _ = wait(pending, _POLL_S, FIRST_COMPLETED)
                found = {pending.pop(future): future.result() for future in done}
                for widths in (widths for widths, value in found.items() if value is None):
                    pending[executor.submit(score, ticket, widths, content)] = widths
                self._save({w: value for w, value in found.items() if value is not None})
        finally:
            for future in pending:
                future.cancel()

    def _save(self, found: Mapping[Widths, float]) -> None:
        if not found:
            return
        self._known.update(found)
        lines = (
            {"round": self._round, "widths": widths, "accuracy": value}
            for widths, value in found.items()
        )
        files.append(self._path, lines)


def _read(path: Path, round_: int) -> dict[Widths, float]:
    """Read a file of accuracies; what was cut off or damaged is estimated again."""
    known: dict[Widths, float] = {}
    for line in files.lines(path):
        try:
            data = json.loads(line)
            if data["round"] == round_:
                known[tuple(data["widths"])] = float(data["accuracy"])
        except (ValueError, TypeError, KeyError):
            continue
    return known
