"""Progress and time left, rebuilt from a stream of events."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from engine.events import Advanced, AnyEvent, Failed, Finished, Noted, Scored, Started

WHOLE = "job"
"""The step that stands for all of them: its weight is the expected length of everything."""

StepState = Literal["running", "finished", "failed"]


@dataclass
class Step:
    """How far one step is."""

    name: str
    total: int | None
    weight: float
    started: float
    """Seconds since the epoch, by the clock of whoever wrote the event."""
    n: int = 0
    state: StepState = "running"
    last: float = 0.0

    @property
    def fraction(self) -> float:
        """0 to 1; a step without a total is taken to go on as long as it was expected to."""
        if self.state != "running":
            return 1.0
        if self.total:
            return min(1.0, self.n / self.total)
        return min(0.95, max(0.0, self.last - self.started) / max(self.weight, 1e-9))


@dataclass
class Progress:
    """Listens to a stream and can say at any time how far it all is."""

    steps: dict[str, Step] = field(default_factory=dict)
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    log: deque[str] = field(default_factory=lambda: deque(maxlen=500))
    state: Literal["waiting", "running", "finished", "failed"] = "waiting"
    error: str = ""
    whole: float = 0.0
    """Expected seconds of everything, as announced."""
    _begun: float = 0.0
    _now: float = 0.0

    def __call__(self, event: AnyEvent) -> None:
        """Take in one event."""
        self._now = datetime.fromisoformat(event.at).timestamp()
        match event:
            case Started(step=name) if name == WHOLE:
                # A resumed job announces itself again; what it did before stays done.
                self.whole, self.state, self.error = event.weight, "running", ""
                self._begun = self._now
            case Started():
                self.steps[event.step] = Step(
                    event.step, event.total, event.weight, self._now, last=self._now
                )
            case Advanced():
                step = self._step(event.step)
                step.n, step.last = event.n, self._now
            case Scored():
                curve = self.curves.setdefault(event.name, [])
                while curve and curve[-1][0] >= event.x:
                    curve.pop()  # a resumed step takes its way again
                curve.append((event.x, event.y))
            case Noted():
                self.log.append(f"{event.at[11:19]} {event.step}: {event.text}")
            case Finished(step=name) if name == WHOLE:
                self.state = "finished"
            case Finished():
                self._step(event.step).state = "finished"
            case Failed(step=name):
                self.error = event.error
                self.log.append(f"{event.at[11:19]} {name}: {event.error}")
                if name == WHOLE:
                    self.state = "failed"
                else:
                    self._step(name).state = "failed"

    @property
    def step(self) -> str:
        """Name of the step that runs, or of the last one that did."""
        running = [s.name for s in self.steps.values() if s.state == "running"]
        return running[-1] if running else next(reversed(self.steps), "")

    @property
    def fraction(self) -> float:
        """0 to 1 over all steps, weighted by how long each was expected to take."""
        if self.state == "finished":
            return 1.0
        known = sum(s.weight for s in self.steps.values())
        done = sum(s.weight * s.fraction for s in self.steps.values())
        return min(0.99, done / max(self.whole, known, 1e-9))

    @property
    def left_s(self) -> float | None:
        """Seconds left at the pace so far; None before there is a pace."""
        if self.state == "finished":
            return 0.0
        known = sum(s.weight for s in self.steps.values())
        done = sum(s.weight * s.fraction for s in self.steps.values())
        elapsed = self._now - self._begun
        if not self._begun or done <= 0 or elapsed < 1:
            return None
        left = max(self.whole, known) - done
        # The expected pace counts until the measured one has earned its say.
        trust = min(1.0, done / max(self.whole, known))
        return left * (trust * elapsed / done + (1 - trust))

    def _step(self, name: str) -> Step:
        if name not in self.steps:
            self.steps[name] = Step(name, None, 0.0, self._now, last=self._now)
        return self.steps[name]


def kind_of(stage: str) -> str:
    """Return a device's stage without what changes while it lasts: "timing" for "timing 2/5"."""
    return re.split(r":| (?=\d)", stage, maxsplit=1)[0]


def duration(seconds: float | None) -> str:
    """Return a length of time as a person says it: "45 s", "2 min 05 s", "1 h 10 min"."""
    if seconds is None:
        return "unknown"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
