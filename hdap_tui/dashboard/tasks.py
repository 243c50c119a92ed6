"""Commands that run in threads while the screens stay usable; no widgets in here."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from textual.message import Message

from engine.events import AnyEvent, Reporter
from hdap_tui.context import Outcome
from hdap_tui.dashboard.grammar import Call
from hdap_tui.dashboard.messages import Asked, Question, TaskEnded, TaskMoved, Wanted, Wish
from hdap_tui.dashboard.source import Source
from hdap_tui.errors import UserError
from hdap_tui.progress import Progress
from hdap_tui.text import clean

log = logging.getLogger("hdap_tui.dashboard")


@dataclass(frozen=True)
class TaskState:
    """How far a command is."""

    step: str = ""
    fraction: float = 0.0
    left_s: float | None = None


@dataclass(eq=False)
class Task:
    """One command that runs, or ran."""

    call: Call
    note: str = ""
    """What the operator should know before saying yes."""
    state: TaskState = field(default_factory=TaskState)
    outcome: Outcome | None = None
    error: str = ""
    declined: bool = False
    """The operator said no."""
    stop: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    @property
    def name(self) -> str:
        """The command's name."""
        return self.call.command.name


class Tasks:
    """Runs commands, each in a thread; `post` takes messages from any thread."""

    def __init__(self, source: Source, post: Callable[[Message], object]) -> None:
        self._source = source
        self._post = post
        self.running: list[Task] = []

    def start(self, call: Call, note: str = "") -> Task:
        """Start a command."""
        task = Task(call, note)
        # A daemon thread: a command that will not stop cannot keep the dashboard from closing.
        task.thread = threading.Thread(
            target=self._run, args=(task,), name=f"command {task.name}", daemon=True
        )
        self.running.append(task)
        task.thread.start()
        return task

    def ended(self, task: Task) -> None:
        """Forget a task that has ended."""
        if task in self.running:
            self.running.remove(task)

    def cancel(self) -> None:
        """Ask all running commands to stop."""
        for task in self.running:
            task.stop.set()

    def close(self, wait_s: float = 3.0) -> None:
        """Ask all commands to stop and give them a moment."""
        self.cancel()
        deadline = time.monotonic() + wait_s
        for task in self.running:
            if task.thread is not None:
                task.thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self, task: Task) -> None:
        progress = Progress()

        def listen(event: AnyEvent) -> None:
            progress(event)
            step = progress.steps.get(progress.step)
            done = f" {step.n}/{step.total}" if step and step.total else ""
            state = TaskState(
                clean(f"{progress.step}{done}", 60), progress.fraction, progress.left_s
            )
            self._post(TaskMoved(task, state))

        def confirm(question: str, touched: Sequence[str]) -> bool:
            return self._ask(task, question, touched)

        def secret(text: str) -> str | None:
            return self._want(task, text)

        try:
            task.outcome = self._source.run(
                task.call.command,
                task.call.arguments,
                Reporter(task.name, listen),
                confirm,
                task.stop.is_set,
                secret,
            )
        except UserError as error:
            task.error = str(error)
        except Exception as error:
            log.exception("%s failed", task.call.text)
            task.error = f"{task.name} failed: {type(error).__name__}: {error}"
        self._post(TaskEnded(task))

    def _want(self, task: Task, text: str) -> str | None:
        wish = Wish(text)
        self._post(Wanted(wish))
        while not wish.answered.wait(0.1):
            if task.stop.is_set():
                return None
        return wish.answer

    def _ask(self, task: Task, question: str, touched: Sequence[str]) -> bool:
        asked = Question(question, touched, task.note)
        self._post(Asked(asked))
        while not asked.answered.wait(0.1):
            if task.stop.is_set():
                return False
        task.declined = not asked.answer
        return asked.answer
