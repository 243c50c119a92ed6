"""Standard error: notes, questions and how far it all is."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

from engine.events import AnyEvent, Failed, Noted
from hdap_tui.cli.board import Board
from hdap_tui.progress import Progress, duration

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live


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
    """Shows a stream of events and what is being done on each device.

    On a terminal a bar with the stages below it, else a line every few seconds.
    """

    every_s = 5.0
    refreshes = 4.0
    """Pictures a second: what changes faster nobody can read."""

    def __init__(
        self, live: bool = True, shown: Callable[[str], str] = str, journal: bool = False
    ) -> None:
        """Begin to listen.

        Args:
            live: whether a terminal shows more than notes.
            shown: what a device is called.
            journal: what is no terminal gets a line for every note and no other, with the time
                unless systemd's journal adds it.
        """
        self.progress = Progress()
        self.board = Board(shown)
        journal = journal and not sys.stderr.isatty()
        self._wanted = (live or not sys.stderr.isatty()) and not journal
        self._stamped = journal and "JOURNAL_STREAM" not in os.environ
        self.draws = live and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        """Whether there is a terminal to draw on."""
        self._live: Live | None = None
        self._paused = False
        self._lock = threading.Lock()
        self._drawing = threading.RLock()  # two that draw at once would leave lines behind
        self._ended = threading.Event()
        self._last = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hide()

    def __call__(self, event: AnyEvent) -> None:
        """Take in one event and show what changed."""
        with self._lock:
            self.progress(event)
        if isinstance(event, Noted | Failed):
            text = event.text if isinstance(event, Noted) else event.error
            self._say(f"{event.step}: {text}")
        self._show()
        if not self.draws and self._wanted and time.monotonic() - self._last > self.every_s:
            self._last = time.monotonic()
            note(f"[{self.progress.fraction:4.0%}] {self._summary()}")

    def stage(self, device: str, stage: str, since_s: float | None = None, /) -> None:
        """Take in what is being done on a device; safe to call from several threads."""
        self.board.say(device, stage, since_s)
        self._show()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the terminal to somebody else for a while."""
        with self._drawing:
            self._paused = True
            drawn = self._hide()
        try:
            yield
        finally:
            self._paused = False
            if drawn:
                self._show()

    def _say(self, text: str) -> None:
        with self._drawing:
            if self._live is None:
                stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ ", time.gmtime()) if self._stamped else ""
                note(stamp + text)
            else:
                from rich.text import Text

                self._live.console.print(Text(text))

    def _summary(self) -> str:
        step = self.progress.steps.get(self.progress.step)
        if step is None:
            return ""
        count = f" {step.n}/{step.total}" if step.total else ""
        left = self.progress.left_s
        rest = f", about {duration(left)} left" if left is not None else ""
        return f"{step.name}{count}{rest}"

    def _show(self) -> None:
        """Begin to draw; from then on a thread does, a few times a second."""
        if not self.draws or self._live is not None:
            return
        with self._drawing:
            if self._live is not None or self._paused:
                return
            from rich.console import Console
            from rich.live import Live

            console = Console(stderr=True)
            self._live = Live(
                console=console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                get_renderable=lambda: self._picture(console),
            )
            self._live.start(refresh=True)
            self._ended = threading.Event()
            threading.Thread(
                target=self._redraw, args=(self._live, self._ended), name="progress", daemon=True
            ).start()

    def _redraw(self, live: Live, ended: threading.Event) -> None:
        while not ended.wait(1 / self.refreshes):
            with self._drawing:
                if not ended.is_set():
                    live.refresh()

    def _hide(self) -> bool:
        """Wipe what is drawn; return whether there was anything.

        The same picture is not begun again: it would wipe what was said meanwhile.
        """
        with self._drawing:
            live, self._live = self._live, None
            self._ended.set()
            if live is not None:
                live.stop()
        return live is not None

    def _picture(self, console: Console) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar as Bar
        from rich.table import Table
        from rich.text import Text

        with self._lock:
            done, summary = self.progress.fraction, self._summary()
        first = Table.grid(padding=(0, 1, 0, 0))
        first.add_column(width=min(40, console.width // 4))
        first.add_column(no_wrap=True)
        first.add_column(no_wrap=True, overflow="ellipsis")
        first.add_row(Bar(total=1.0, completed=done), f"{done:4.0%}", Text(summary))
        # One row stays free for the cursor, one for what was said last.
        stages = self.board.picture(console, console.height - 3)
        return first if stages is None else Group(first, stages)
