"""The processes of emulated devices, found again by what their environment says."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from pathlib import Path

MARK = "HDAP_LAB_PROFILE"
"""Environment variable that every process of a device has."""


def processes(folder: Path) -> list[int]:
    """Find the processes of the devices below a folder, detached ones and orphans too."""
    mark = f"{MARK}={folder}/".encode()
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry.name}/environ", "rb") as file:
                if any(word.startswith(mark) for word in file.read().split(b"\0")):
                    found.append(int(entry.name))
    return [pid for pid in found if pid != os.getpid()]


def end_processes(folder: Path, timeout_s: float = 5.0) -> int:
    """Kill every process of the devices below a folder, until none is left; say how many."""
    ended: set[int] = set()
    deadline = time.monotonic() + timeout_s
    # A process may be forking while it is looked for, so look again.
    while (found := processes(folder)) and time.monotonic() < deadline:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        ended.update(found)
        time.sleep(0.01)
    return len(ended)


def allow_writing(folder: Path, allowed: bool) -> None:
    """Make every write of a device's running processes fail, or work again."""
    for pid in processes(folder):
        with contextlib.suppress(OSError):
            _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard if allowed else 0, hard))
