"""What worker threads and widgets tell the application."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from textual.message import Message

from hdap_tui.store.records import AlertEvent, DeploymentDevice, FleetSnapshot, Point

if TYPE_CHECKING:
    from hdap_tui.dashboard.follow import JobView
    from hdap_tui.dashboard.tasks import Task, TaskState
    from hdap_tui.profiles import Comparison
    from hdap_tui.store.facts import Moment


@dataclass
class Polled(Message):
    """The store was asked; a snapshot where something had changed."""

    version: int
    snapshot: FleetSnapshot | None
    watching: bool
    activity: str = ""
    elsewhere: str = ""
    said: str = ""

    def can_replace(self, message: Message) -> bool:
        """A later look at the store makes an earlier one pointless, unless it saw no change."""
        return isinstance(message, Polled) and message.snapshot is not None


@dataclass
class PollFailed(Message):
    """The store could not be read."""

    error: Exception


@dataclass
class TaskMoved(Message):
    """A running command got on."""

    task: Task
    state: TaskState

    def can_replace(self, message: Message) -> bool:
        """Only the latest state of a command is worth showing."""
        return isinstance(message, TaskMoved) and message.task is self.task


@dataclass
class TaskEnded(Message):
    """A command ended: with an outcome, or with what went wrong."""

    task: Task


@dataclass
class Asked(Message):
    """A command asks the operator, and its thread waits for the answer."""

    question: Question


@dataclass
class Wanted(Message):
    """A command needs a secret of the operator's, and its thread waits for it."""

    wish: Wish


@dataclass
class PastRead(Message):
    """The fleet of a moment was read, or the rounds that one can step through."""

    at: int | None
    snapshot: FleetSnapshot | None = None
    rounds: Sequence[int] | None = None
    error: Exception | None = None


@dataclass
class HistoryRead(Message):
    """A device's measurements were read, and when its facts changed."""

    device: str
    points: Sequence[Point]
    moments: Sequence[Moment] = ()


@dataclass
class AlertEventsRead(Message):
    """An alert's history and its explanation were read."""

    alert: int
    events: Sequence[AlertEvent]
    explanation: Sequence[tuple[str, str]] = ()


@dataclass
class DeploymentRead(Message):
    """What was done on the devices of a deployment was read."""

    deployment: int
    devices: Sequence[DeploymentDevice]


@dataclass
class ComparisonRead(Message):
    """What the models are worth and take was read."""

    comparison: Comparison


@dataclass
class JobRead(Message):
    """A job's event stream was read on; None where nothing was new."""

    job: str
    view: JobView | None


@dataclass
class Wish:
    """What is asked for, and the answer once there is one; it never shows in a log."""

    text: str
    answered: threading.Event = field(default_factory=threading.Event)
    answer: str | None = field(default=None, repr=False)

    def reply(self, answer: str | None) -> None:
        """Give the answer and let the asking thread go on."""
        self.answer = answer
        self.answered.set()


@dataclass
class Question:
    """A question, what it touches, and the answer once there is one."""

    text: str
    touched: Sequence[str]
    note: str = ""
    answered: threading.Event = field(default_factory=threading.Event)
    answer: bool = False

    def reply(self, answer: bool) -> None:
        """Give the answer and let the asking thread go on."""
        self.answer = answer
        self.answered.set()
