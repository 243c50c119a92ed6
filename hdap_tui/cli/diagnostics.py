"""Standard error: notes, questions and the progress bar."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from engine.events import AnyEvent, Failed, Noted
from hdap_tui.progress import Progress, duration


def note(text: str) -> None:
    """Print a sentence on standard error, after all data that was printed before it."""
    sys.stdout.flush()
    print(text, file=sys.stderr, flush=True)


def confirm(question: str, touched: Sequence[str]) -> bool:
    """Ask the operator; without a terminal the answer is no."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        note("This changes something, and there is no terminal to ask on: add --yes.")
        return False
    for line in touched:
        note(f"  {line}")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def secret(question: str) -> str | None:
    """Ask on the terminal, without showing what is typed; None without one or without an answer."""
    import atexit
    import getpass
    import termios

    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    except OSError:
        return None
    before = termios.tcgetattr(terminal)

    def restore() -> None:  # also where the process ends while somebody types
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)

    atexit.register(restore)
    try:
        return getpass.getpass(f"{question}: ") or None
    except EOFError:
        return None
    finally:
        restore()
        atexit.unregister(restore)
        os.close(terminal)


class ProgressBar:
    """Shows a stream of events: a bar on a terminal, else a line every few seconds."""

    every_s = 5.0

    def __init__(self) -> None:
        self.progress = Progress()
        self._bar: Any = None
        self._paused = False
        self._task: Any = None
        self._last = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, event: AnyEvent) -> None:
        """Take in one event and show what changed."""
        self.progress(event)
        if isinstance(event, Noted | Failed):
            text = event.text if isinstance(event, Noted) else event.error
            self._say(f"{event.step}: {text}")
        if self._paused:
            return
        if sys.stderr.isatty():
            self._draw()
        elif time.monotonic() - self._last > self.every_s:
            self._last = time.monotonic()
            note(f"[{self.progress.fraction:4.0%}] {self._summary()}")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the terminal to somebody else for a while."""
        self._paused = True
        if self._bar is not None:
            self._bar.stop()
        try:
            yield
        finally:
            self._paused = False
            if self._bar is not None:
                self._bar.start()

    def _say(self, text: str) -> None:
        if self._bar is None:
            note(text)
        else:
            from rich.text import Text

            self._bar.console.print(Text(text))

    def _summary(self) -> str:
        step = self.progress.steps.get(self.progress.step)
        if step is None:
            return ""
        count = f" {step.n}/{step.total}" if step.total else ""
        left = self.progress.left_s
        rest = f", about {duration(left)} left" if left is not None else ""
        return f"{step.name}{count}{rest}"

    def _draw(self) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

            self._bar = Progress(
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.description}", markup=False),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task("", total=1.0)
            self._bar.start()
        self._bar.update(self._task, completed=self.progress.fraction, description=self._summary())
