"""A job as its event stream tells it, read on from where the last look ended."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from hdap_tui.dashboard.source import Source
from hdap_tui.progress import Progress, Step
from hdap_tui.store.records import JobRow
from hdap_tui.text import clean

LOG_LINES = 200


@dataclass(frozen=True)
class StepView:
    """One step of a job."""

    name: str
    state: str
    n: int
    total: int | None
    fraction: float


@dataclass(frozen=True)
class JobView:
    """Everything the pane of a job shows; nothing in it changes any more."""

    state: str = "waiting"
    fraction: float = 0.0
    left_s: float | None = None
    steps: tuple[StepView, ...] = ()
    curves: tuple[tuple[str, tuple[tuple[float, float], ...]], ...] = ()
    log: tuple[str, ...] = ()
    error: str = ""


@dataclass
class Follower:
    """Follows one job; whoever reads holds the lock."""

    source: Source
    job: str
    offset: int = 0
    progress: Progress = field(default_factory=Progress)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self, row: JobRow) -> JobView | None:
        """Read on; return the job as it is now, or None where nothing was new."""
        events, offset = self.source.job_events(row, self.offset)
        if offset < self.offset:  # a new stream in the same place
            self.progress, self.offset = Progress(), 0
            events, offset = self.source.job_events(row, 0)
        first, self.offset = self.offset == 0, offset
        for event in events:
            self.progress(event)
        return self._view() if events or first else None

    def _view(self) -> JobView:
        progress = self.progress
        return JobView(
            state=progress.state,
            fraction=progress.fraction,
            left_s=progress.left_s,
            steps=tuple(_step(step) for step in progress.steps.values()),
            curves=tuple(
                (clean(name, 40), tuple(points)) for name, points in progress.curves.items()
            ),
            log=tuple(clean(line, 300) for line in list(progress.log)[-LOG_LINES:]),
            error=clean(progress.error),
        )


def _step(step: Step) -> StepView:
    return StepView(clean(step.name, 40), step.state, step.n, step.total, step.fraction)
