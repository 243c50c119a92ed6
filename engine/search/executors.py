"""Where candidates are scored: processes of this machine, threads, or a dask cluster.

>>> with opened("processes", workers=4) as executor:
...     accuracies = Accuracies(..., executor=executor)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from contextlib import contextmanager
from typing import Literal, ParamSpec, TypeVar

from engine.text import first_line
from engine.workers import Spawning, prepare

Kind = Literal["processes", "threads", "dask"]
_P = ParamSpec("_P")
_T = TypeVar("_T")


@contextmanager
def opened(kind: Kind, workers: int = 1, address: str = "") -> Iterator[Executor]:
    """Start workers that compute on one thread each; at the end none of them is left.

    Args:
        kind: "processes" of this machine, started anew (spawn); "threads" of this process;
            "dask": the workers of a running dask.distributed scheduler.
        workers: how many; a dask cluster has as many as it has.
        address: of the dask scheduler, such as tcp://10.0.0.1:8786.

    Raises:
        ValueError: dask cannot be imported, or no such scheduler answers.
    """
    if kind == "dask":
        with _dask(address) as executor:
            yield executor
    elif kind == "threads":
        with _threads(workers) as executor:
            yield executor
    else:
        pool = Processes(workers)
        try:
            yield pool
            pool.shutdown()
        finally:
            pool.end()


class Processes(Executor):
    """A process pool that can be made anew when a worker was killed, and leaves none behind."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._begin()

    def _begin(self) -> None:
        self._context = Spawning()
        self._pool = ProcessPoolExecutor(self._workers, self._context, prepare)

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Run a function in a worker."""
        return self._pool.submit(fn, *args, **kwargs)

    def renew(self) -> None:
        """Begin with new workers."""
        self.end()
        self._begin()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let the workers end what they are at, then end them."""
        self._pool.shutdown(wait, cancel_futures=cancel_futures)

    def end(self) -> None:
        """End the workers at once, whatever they are at."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._context.end()


@contextmanager
def _threads(workers: int) -> Iterator[Executor]:
    import torch

    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


@contextmanager
def _dask(address: str) -> Iterator[Executor]:
    try:
        from distributed import Client
    except ImportError as error:
        raise ValueError(
            'the executor "dask" needs dask.distributed, which cannot be imported '
            f"({first_line(error)}): install the extra hdap-tui[cluster]"
        ) from error
    if not address:
        raise ValueError(
            'the executor "dask" needs the address of its scheduler, such as tcp://10.0.0.1:8786'
        )
    try:
        client = Client(address, timeout=5, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"no dask scheduler answers at {address}") from error
    with client:
        if not client.ncores():
            raise ValueError(
                f"the dask scheduler at {address} has no workers: start some with dask worker"
            )
        yield client.get_executor(pure=False)


def lost() -> tuple[type[BaseException], ...]:
    """Return the errors that mean that workers are gone."""
    if "distributed" not in sys.modules:
        return (BrokenExecutor,)
    from distributed import CancelledError as Forgotten
    from distributed import KilledWorker

    return BrokenExecutor, KilledWorker, Forgotten, CancelledError
