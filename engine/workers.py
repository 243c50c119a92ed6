"""Processes that work for this one, and do not outlive it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import wait
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any


class Spawning(SpawnContext):
    """Starts processes anew (spawn), and can end all that it started."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[SpawnProcess] = []

    def Process(self, *args: Any, **kwargs: Any) -> SpawnProcess:  # type: ignore[override]
        """Return a process, not started yet."""
        process = SpawnProcess(*args, **kwargs)
        self.started.append(process)
        return process

    def end(self) -> None:
        """End them at once, whatever they are at."""
        for process in self.started:
            if process.is_alive():
                process.kill()
        for process in self.started:
            process.join()


def prepare() -> None:
    """Make a new process a worker: one thread, deaf to Ctrl-C, gone when its parent is."""
    import torch

    # Ctrl-C reaches the whole group; it is for the parent to decide.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_outlive, args=(parent.sentinel,), daemon=True).start()


def _outlive(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
