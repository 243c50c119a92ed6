"""Start, find, follow, cancel and resume jobs."""

from __future__ import annotations

import difflib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.events import AnyEvent
from hdap_tui.errors import RefusedError, SettingsError
from hdap_tui.jobs.folder import JobFolder


def start(
    jobs: Path, kind: str, request: Mapping[str, Any], measured: JobFolder | None = None
) -> JobFolder:
    """Start a job in a process of its own and return its folder.

    Args:
        jobs: where jobs lie.
        kind: what it does.
        request: what is asked.
        measured: a job whose recorded measurements are taken over, so that what was measured
            there is not measured again.
    """
    folder = JobFolder.create(jobs, kind, request)
    for path in measured.measurements if measured else ():
        shutil.copy(path, folder.work / path.name)
    _spawn(folder)
    return folder


def resume(folder: JobFolder) -> None:
    """Let a job that was killed, cancelled or failed go on from its last checkpoint.

    Raises:
        RefusedError: it runs, or there is nothing left to do.
    """
    state = folder.state
    if state in {"running", "queued"}:
        raise RefusedError(f"{folder.name} is running already.")
    if state == "finished":
        raise RefusedError(f"{folder.name} has finished; start a new job to search again.")
    folder.reopen()
    _spawn(folder)


def cancel(folder: JobFolder) -> None:
    """Ask a running job to stop.

    Raises:
        RefusedError: it does not run.
    """
    state = folder.state
    if state not in {"running", "queued"}:
        raise RefusedError(f"{folder.name} does not run: it is {state}.")
    folder.cancel()


def every(jobs: Path) -> list[JobFolder]:
    """Return all jobs, the newest first."""
    found = [JobFolder(p.parent) for p in jobs.glob("*/request.json")]
    return sorted(found, key=lambda f: str(f.request.get("created_at", "")), reverse=True)


def find(jobs: Path, name: str | None) -> JobFolder:
    """Return a job by name, or the newest.

    Raises:
        SettingsError: there is no such job.
    """
    folders = every(jobs)
    if not folders:
        raise SettingsError('There are no jobs yet; "hdap compress" starts one.')
    if name is None:
        return folders[0]
    for folder in folders:
        if folder.name == name:
            return folder
    close = difflib.get_close_matches(name, [f.name for f in folders], n=1)
    hint = f"did you mean {close[0]}?" if close else '"hdap jobs" lists them.'
    raise SettingsError(f"There is no job {name}; {hint}")


def follow(
    folder: JobFolder,
    listen: Callable[[AnyEvent], None],
    cancelled: Callable[[], bool],
    look: Callable[[], None] = lambda: None,
) -> None:
    """Pass a job's events on until it ends, or until the listener has had enough.

    `look` is called whenever there is no event to pass on, a few times a second.
    """
    for events in _stream(folder):
        for event in events:
            listen(event)
        if cancelled():
            return
        if not events:
            look()
            time.sleep(0.2)


def _stream(folder: JobFolder) -> Iterator[list[AnyEvent]]:
    offset, running = 0, True
    while running:
        # Asked before reading, so that the last events of a job that ends now are not missed.
        running = folder.state in {"running", "queued"}
        events, offset = folder.events(offset)
        yield events


def _spawn(folder: JobFolder) -> None:
    with (folder.path / "log.txt").open("ab") as log:
        subprocess.Popen(
            [sys.executable, "-m", "hdap_tui.jobs.worker", str(folder.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # closing the terminal does not reach it
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    deadline = time.monotonic() + 10
    while folder.state == "interrupted" and time.monotonic() < deadline:
        time.sleep(0.05)  # a resumed job has events already: wait until its process holds it
