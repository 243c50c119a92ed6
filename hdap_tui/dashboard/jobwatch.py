"""The jobs as their folders tell them, cheap enough to ask twice a second."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from hdap_tui.errors import UserError
from hdap_tui.jobs.folder import JobFolder
from hdap_tui.progress import Progress
from hdap_tui.store.records import JobRow

SHOWN = 100
"""Jobs that are shown, the latest."""

Stamp = tuple[int, int]


@dataclass
class _Known:
    """One job, and how much of it has been read."""

    folder: JobFolder
    kind: str
    created_at: str
    progress: Progress = field(default_factory=Progress)
    offset: int = 0
    stamp: Stamp = (-1, -1)
    row: JobRow | None = None


class JobWatch:
    """Reads on in the job folders; `version` grows whenever a row changed."""

    def __init__(self, jobs: Path) -> None:
        self._jobs = jobs
        self._known: dict[str, _Known] = {}
        self.rows: tuple[JobRow, ...] = ()
        self.version = 0

    def look(self) -> None:
        """Bring the rows up to date."""
        rows = []
        for path in self._jobs.glob("*/request.json"):
            known = self._known.get(path.parent.name) or self._meet(JobFolder(path.parent))
            if known is not None:
                rows.append(self._row(known))
        rows.sort(key=lambda row: (row.created_at, row.id), reverse=True)
        latest = tuple(rows[:SHOWN])
        if latest != self.rows:
            self.rows = latest
            self.version += 1

    def _meet(self, folder: JobFolder) -> _Known | None:
        try:
            request = folder.request
        except UserError:
            return None  # being written, or no job
        known = _Known(folder, str(request.get("kind", "")), str(request.get("created_at", "")))
        self._known[folder.name] = known
        return known

    def _row(self, known: _Known) -> JobRow:
        folder = known.folder
        stamp = (_size(folder.path / "events.jsonl"), _changed(folder.path / "result.json"))
        if known.row is not None and stamp == known.stamp and stamp[1] > 0:
            return known.row  # it has ended, and nobody resumed it
        state = folder.state
        events, offset = folder.events(known.offset)
        if offset < known.offset:
            known.progress = Progress()
            events, offset = folder.events(0)
        for event in events:
            known.progress(event)
        known.offset, known.stamp = offset, stamp
        progress, result = known.progress, folder.result or {}
        events_file = folder.path / "events.jsonl"
        updated = events_file.stat().st_mtime if events_file.exists() else None
        known.row = JobRow(
            id=folder.name,
            kind=known.kind,
            state=state,
            folder=str(folder.path),
            created_at=known.created_at,
            updated_at=datetime.fromtimestamp(updated, UTC).isoformat() if updated else "",
            step=progress.step,
            progress=1.0 if state == "finished" else progress.fraction,
            left_s=progress.left_s if state == "running" else None,
            result=result,
            error=str(result.get("error", "")),
        )
        return known.row


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
