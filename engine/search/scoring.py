"""The accuracy of one candidate, here or in a worker that has been sent the network once."""

from __future__ import annotations

import copy
import hashlib
import pickle
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine import accelerator, files
from engine.compress.designs import Design
from engine.search.space import Widths

if TYPE_CHECKING:
    from torch import nn

    from engine.compress.groups import Group

_BATCH = 96  # larger ones leave the processor's cache


def at_widths(scores: Sequence[NDArray[np.float64]], widths: Widths) -> Design:
    """Return the design that keeps each group's highest-scored channels, that many of them."""
    return Design(
        tuple(
            tuple(sorted(int(c) for c in np.argsort(-score, kind="stable")[:width]))
            for score, width in zip(scores, widths, strict=True)
        )
    )


class Scorer:
    """Estimates candidates of one network on fixed images; it pickles.

    Args:
        model: the network that candidates are cut from; it is copied.
        groups: its dependency groups.
        scores: importance of their channels; the highest-scored are kept.
        images: images (N, C, H, W) uint8.
        labels: their classes.
        reestimate: whether batch norms normalise by these images.
        bf16: whether to compute in bfloat16.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[Group],
        scores: Sequence[NDArray[np.float64]],
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        reestimate: bool = True,
        bf16: bool = False,
    ) -> None:
        import torch

        from engine.compress.prune import Pruner

        self._device = accelerator.device()
        self._again = (groups, scores, images, labels, reestimate, bf16)
        self._scores, self._reestimate, self.bf16 = scores, reestimate, bf16
        self._model = copy.deepcopy(model).eval().to(self._device)
        self._pruner = Pruner(self._model, groups)
        self._images = torch.from_numpy(images).to(self._device)
        self._labels = torch.from_numpy(labels).to(self._device)

    def __call__(self, widths: Widths) -> float:
        """Return a candidate's accuracy, 0 to 1."""
        import torch

        from engine.compress.evaluate import accuracy_by_batch_statistics, evaluate

        candidate = self._pruner.reuse(at_widths(self._scores, widths))
        candidate = candidate.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with accelerator.mixed(self._device, self.bf16):
            if self._reestimate:
                return accuracy_by_batch_statistics(candidate, self._images, self._labels)
            return evaluate(candidate, self._images, self._labels, _BATCH)[0]

    def __reduce__(self) -> tuple[type[Scorer], tuple[Any, ...]]:
        return Scorer, (copy.deepcopy(self._model).cpu(), *self._again)


@dataclass(frozen=True)
class Ticket:
    """Names a scorer, and says where workers of this machine find it."""

    key: str
    path: str


def pack(scorer: Scorer, path: Path) -> tuple[Ticket, bytes]:
    """Write a scorer where workers of this machine find it; return it for others, too.

    Raises:
        ValueError: the network cannot be sent to another process.
    """
    try:
        content = pickle.dumps(scorer)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"the network cannot be sent to other processes ({error}): define its class in a "
            'module of its own, or set the executor to "threads" with one worker'
        ) from error
    files.write(path, content)
    return Ticket(hashlib.sha256(content).hexdigest(), str(path.absolute())), content


class _Kept(threading.local):
    """The last scorer of each thread of a worker."""

    key = ""
    scorer: Scorer | None = None


_kept = _Kept()


def score(ticket: Ticket, widths: Widths, content: bytes | None = None) -> float | None:
    """Score a candidate in a worker.

    None where the worker has not got the network and cannot read its file (it is on another
    machine): ask again with what `pack` returned.
    """
    if _kept.key != ticket.key:
        if content is None:
            try:
                content = Path(ticket.path).read_bytes()
            except OSError:
                return None
            if hashlib.sha256(content).hexdigest() != ticket.key:
                return None
        import torch

        torch.set_num_threads(1)  # for the same bits everywhere
        _kept.scorer, _kept.key = pickle.loads(content), ticket.key
    assert _kept.scorer is not None
    return _kept.scorer(widths)
