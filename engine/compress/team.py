"""Fine-tuning by several processes that average their gradients (Hugging Face accelerate).

The processes are started here, train, and end; the first one writes the checkpoint after every
epoch, which is all that comes of them. One GPU each where there is CUDA, else the processor.
"""

from __future__ import annotations

import os
import queue
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.compress.recipe import Recipe
from engine.compress.training import DivergenceError, Team, work
from engine.compress.updates import Update
from engine.events import Advanced, AnyEvent, Noted, Reporter, Scored
from engine.workers import Spawning, prepare

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from engine.data import Dataset

_POLL_S = 0.2


def finetune(
    model: nn.Module,
    dataset: Dataset,
    recipe: Recipe,
    teacher: nn.Module | None,
    reporter: Reporter,
    checkpoint: Path,
    cancelled: Callable[[], bool],
    step: str,
    update: Update,
) -> None:
    """Train with `recipe.processes` processes; what comes of it lies in the checkpoint.

    Raises:
        ValueError: accelerate is not installed, there are fewer GPUs, or a process failed.
    """
    _check(recipe)
    context = Spawning()
    events: Any = context.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for rank in range(recipe.processes):
        what = (rank, port, events, model, dataset, recipe, teacher, checkpoint, step, update)
        context.Process(target=_member, args=what, daemon=True).start()
    try:
        while any(process.is_alive() for process in context.started):
            if cancelled():
                return  # what they are at is ended below
            _relay(events, reporter)
            if any(process.exitcode for process in context.started):
                break
        while _relay(events, reporter):
            pass
        # One that waits for another that is gone is ended below.
        if any(process.exitcode for process in context.started):
            raise ValueError(
                "a process of the fine-tuning ended unexpectedly (out of memory?): the epochs "
                "before are kept; go on with fewer processes"
            )
    finally:
        context.end()


def _check(recipe: Recipe) -> None:
    import torch

    from engine import accelerator

    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "fine-tuning by several processes needs accelerate: install the extra hdap-tui[gpu]"
        ) from error
    gpus = torch.cuda.device_count()
    if accelerator.device(recipe.device).type == "cuda" and recipe.processes > gpus:
        raise ValueError(f"{recipe.processes} processes need as many GPUs, and there are {gpus}")


def _relay(events: Any, reporter: Reporter) -> bool:
    """Pass on one event of the first process; False where none came for a moment."""
    try:
        event = events.get(timeout=_POLL_S)
    except queue.Empty:
        return False
    if isinstance(event, Advanced):
        reporter.advanced(event.step, event.n)
    elif isinstance(event, Scored):
        reporter.scored(event.step, event.name, event.x, event.y)
    elif isinstance(event, Noted):
        reporter.noted(event.step, event.text)
    elif isinstance(event, ValueError):
        raise event
    return True


def _member(
    rank: int,
    port: int,
    events: Any,
    model: nn.Module,
    dataset: Dataset,
    recipe: Recipe,
    teacher: nn.Module | None,
    checkpoint: Path,
    step: str,
    update: Update,
) -> None:
    """Be one of the team: what a spawned process runs."""
    import torch.distributed

    prepare()
    together = Accelerated(recipe, rank, port)

    def tell(event: AnyEvent) -> None:
        if not rank:
            events.put(event)

    try:
        work(
            model, dataset, recipe, teacher, Reporter("", tell), checkpoint, lambda: False, step,
            together, update,
        )  # fmt: skip
    except ValueError as error:
        if not rank:
            kind = DivergenceError if isinstance(error, DivergenceError) else ValueError
            events.put(kind(str(error)))
    events.close()
    events.join_thread()
    torch.distributed.destroy_process_group()


class Accelerated(Team):
    """One of several processes that average their gradients.

    Args:
        recipe: how they train.
        rank: which one this is.
        port: a free port of this machine, where they meet.
    """

    def __init__(self, recipe: Recipe, rank: int, port: int) -> None:
        from accelerate import Accelerator

        super().__init__(recipe)
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(recipe.processes),
            "LOCAL_WORLD_SIZE": str(recipe.processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": str(recipe.threads),
        }
        # Unless told that it is to use the processor, accelerate looks for GPUs only, finds none,
        # and quietly trains as a single process.
        self._accelerator = Accelerator(cpu=self.device.type == "cpu")
        self.rank, self.size = rank, recipe.processes
        if self._accelerator.num_processes != self.size:
            raise ValueError(
                f"accelerate started {self._accelerator.num_processes} of {self.size} processes"
            )
        self.device: torch.device = self._accelerator.device

    def join(self, model: nn.Module) -> nn.Module:
        """Wrap the network."""
        joined: nn.Module = self._accelerator.prepare_model(model)
        return joined

    def backward(self, loss: Tensor) -> None:
        """Find the gradients and average them."""
        self._accelerator.backward(loss)

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum over the team."""
        total: Tensor = self._accelerator.reduce(value.clone(), "sum")
        return total

    def agree(self, model: nn.Module) -> None:
        """Take over the first one's batch norm statistics, and see that weights are the same."""
        import torch
        from torch.distributed import broadcast

        for buffer in model.buffers():
            broadcast(buffer, 0)
        mine = torch.stack([p.detach().double().sum() for p in model.parameters()])
        first = mine.clone()
        broadcast(first, 0)
        if self.sum((mine != first).any().double()):
            raise ValueError("the processes of the fine-tuning hold different weights")
