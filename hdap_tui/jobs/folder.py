"""A job on disk: its folder is the truth about it.

::

    jobs/compress-3/
      request.json     what was asked, as it was asked
      events.jsonl     what it has said, one event a line
      log.txt          what it and its libraries have printed
      work/            measurements, checkpoints, models on the way
      result.json      how it ended; absent while it runs and after it was killed
      lock             held by the process that works on it
      cancel           there when somebody asked it to stop
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engine import files
from engine.events import AnyEvent, from_json, to_json
from hdap_tui import locking
from hdap_tui.errors import RefusedError, UserError
from hdap_tui.progress import Progress
from hdap_tui.store.records import JobRow, JobState

_MEASURED = ("measurements.jsonl", "facts.json", "decision*.json", "precision*.json*")


class JobFolder:
    """Reads and writes one job's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, jobs: Path, kind: str, request: Mapping[str, Any]) -> JobFolder:
        """Make the folder of a new job under `jobs`, with its request written."""
        jobs.mkdir(parents=True, exist_ok=True, mode=0o700)
        number = 1 + max((_number(p.name, kind) for p in jobs.glob(f"{kind}-*")), default=0)
        while True:
            folder = cls(jobs / f"{kind}-{number}")
            try:
                folder.path.mkdir(mode=0o700)
                break
            except FileExistsError:
                number += 1  # somebody else started a job in the same moment
        folder.work.mkdir()
        document = {"kind": kind, "created_at": _now(), **request}
        write_json(folder.path / "request.json", document)
        return folder

    @property
    def name(self) -> str:
        """The job's name."""
        return self.path.name

    @property
    def work(self) -> Path:
        """Where the job keeps measurements and checkpoints."""
        return self.path / "work"

    @property
    def measurements(self) -> list[Path]:
        """Files of what devices have told: all that is random in a job, but for its seed."""
        return [path for name in _MEASURED for path in self.work.glob(name)]

    @property
    def request(self) -> dict[str, Any]:
        """What was asked.

        Raises:
            UserError: the folder holds no readable request.
        """
        try:
            return dict(json.loads((self.path / "request.json").read_text()))
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path}: not a job, its request cannot be read.") from error

    @property
    def result(self) -> dict[str, Any] | None:
        """How it ended; None while nobody can say."""
        try:
            return dict(json.loads((self.path / "result.json").read_text()))
        except (OSError, ValueError):
            return None

    def finish(self, state: JobState, **result: Any) -> None:
        """Write how the job ended."""
        write_json(self.path / "result.json", {"state": state, "at": _now(), **result})

    def reopen(self) -> None:
        """Forget how it ended, so that it can go on; measurements and checkpoints stay."""
        for name in ("result.json", "cancel"):
            (self.path / name).unlink(missing_ok=True)

    def cancel(self) -> None:
        """Ask the job to stop at its next opportunity."""
        (self.path / "cancel").touch()

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked it to stop."""
        return (self.path / "cancel").exists()

    @property
    def state(self) -> JobState:
        """How the job stands now."""
        result = self.result
        if result is not None:
            return result["state"]  # type: ignore[no-any-return]
        if self._is_locked():
            return "running"
        # Between the request and the first event its process is still starting.
        age = datetime.now(UTC).timestamp() - (self.path / "request.json").stat().st_mtime
        starting = not (self.path / "events.jsonl").exists() and age < 20
        return "queued" if starting else "interrupted"

    def _is_locked(self) -> bool:
        try:
            with (self.path / "lock").open("rb") as lock:
                return not locking.take(lock, shared=True)
        except FileNotFoundError:
            return False

    @contextmanager
    def working(self) -> Iterator[None]:
        """Hold the job, so that no second process works on it; freed by death as well.

        Raises:
            RefusedError: another process works on it.
        """
        with (self.path / "lock").open("ab") as lock:
            # Whoever only looks at the state holds the lock for an instant.
            deadline = time.monotonic() + 1.0
            while not locking.take(lock):
                if time.monotonic() > deadline:
                    raise RefusedError(f"{self.name} is running already.")
                time.sleep(0.02)
            yield

    def events(self, offset: int = 0) -> tuple[list[AnyEvent], int]:
        """Return the whole events from a byte offset on, and the offset to go on from."""
        try:
            with (self.path / "events.jsonl").open("rb") as file:
                file.seek(offset)
                data = file.read()
        except FileNotFoundError:
            return [], 0
        end = data.rfind(b"\n") + 1
        events = []
        for line in data[:end].splitlines():
            try:
                events.append(from_json(line.decode()))
            except ValueError:
                continue  # half a line that a killed process left behind
        return events, offset + end

    def progress(self) -> Progress:
        """Return how far it is, rebuilt from its events."""
        progress = Progress()
        for event in self.events()[0]:
            progress(event)
        return progress

    def row(self) -> JobRow:
        """Return the job as the screens show it."""
        request, result, state = self.request, self.result or {}, self.state
        progress = self.progress()
        events = self.path / "events.jsonl"
        updated = events.stat().st_mtime if events.exists() else None
        return JobRow(
            id=self.name,
            kind=str(request.get("kind", "")),
            state=state,
            folder=str(self.path),
            created_at=str(request.get("created_at", "")),
            updated_at=datetime.fromtimestamp(updated, UTC).isoformat() if updated else "",
            step=progress.step,
            progress=1.0 if state == "finished" else progress.fraction,
            left_s=progress.left_s if state == "running" else None,
            result=result,
            error=str(result.get("error", "")),
        )


class EventFile:
    """Appends events to a job's stream; what is written survives the writer."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")
        if self._file.tell():
            with path.open("rb") as written:
                written.seek(-1, os.SEEK_END)
                if written.read(1) != b"\n":
                    self._file.write(b"\n")  # a killed process left half a line

    def __call__(self, event: AnyEvent) -> None:
        """Write one event."""
        self._file.write(to_json(event).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document so that a reader sees the old one or the new one, never half of it."""
    files.write(path, json.dumps(document, indent=1))


def _number(name: str, kind: str) -> int:
    rest = name.removeprefix(f"{kind}-")
    return int(rest) if rest.isdecimal() else 0


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
