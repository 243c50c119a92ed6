"""The dashboard on a made-up fleet, with a fixed clock, and pictures of it as plain text."""

from __future__ import annotations

import asyncio
import difflib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from dashboard_fake import NOW, FakeSource
from textual.pilot import Pilot
from textual.screen import Screen
from textual.widgets import Input

from hdap_tui.dashboard import application
from hdap_tui.dashboard.application import HdapApp

HERE = Path(__file__).parent
WAIT_S = 20.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-snapshots", action="store_true", help="Write the text pictures.")
    parser.addoption("--update-screenshots", action="store_true", help="Write docs/screenshots.")


@dataclass
class Clock:
    """Stands still until a test moves it."""

    now: datetime = NOW

    def __call__(self) -> datetime:
        return self.now

    def go_on(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@dataclass
class Opened:
    """A dashboard that runs, and the hands on it."""

    app: HdapApp
    pilot: Pilot[None]
    source: FakeSource
    clock: Clock

    @property
    def screen(self) -> Screen[object]:
        return self.app.screen

    @property
    def view(self) -> str:
        return getattr(self.app.screen, "view", type(self.app.screen).__name__)

    def text(self) -> str:
        """Return what stands on the screen."""
        strips = self.app.screen._compositor.render_strips()
        return "\n".join(strip.text.rstrip() for strip in strips)

    async def press(self, *keys: str) -> None:
        for key in keys:
            await self.pilot.press(key)
            await self.settle()

    async def settle(self) -> None:
        """Wait until every widget has handled what was sent to it, and what came of that."""
        for _ in range(2):
            await self.pilot._wait_for_screen()
            self.app.screen._on_timer_update()  # draw now, not at the next tick of the screen

    async def type(self, text: str) -> None:
        names = {" ": "space", "-": "minus", "*": "asterisk", "=": "equals_sign", "!": "!"}
        await self.press(*(names.get(char, char) for char in text))

    async def until(self, condition: Callable[[], object], what: str = "") -> None:
        """Wait for a condition, and fail with the screen where it does not come true."""
        deadline = time.monotonic() + WAIT_S
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"{what or 'the condition'} did not come true:\n{self.text()}")
            await asyncio.sleep(0.01)
            await self.pilot._wait_for_screen()

    async def sees(self, text: str) -> None:
        await self.until(lambda: text in self.text(), repr(text))

    async def idle(self) -> None:
        """Wait until no reader and no command runs, and all that is known is shown."""

        def at_rest() -> bool:
            readers = [w for w in self.app.workers if w.group != "poll" and not w.is_finished]
            seen = self.app.snapshot is not None
            return not readers and not self.app.desk.tasks.running and seen

        await self.until(at_rest, "rest")
        await self.settle()

    async def change(self, **changes: object) -> None:
        """Change the fleet, and wait until the dashboard has it."""
        wanted = self.source.put(**changes).version
        await self.until(lambda: self.app._version >= wanted, "the change")
        await self.settle()


async def _a_few_turns(*_limits: float) -> None:
    """Stand in for Textual's wait for an idle processor, which a shared machine never has."""
    for _ in range(3):
        await asyncio.sleep(0)


Open = Callable[..., AbstractAsyncContextManager[Opened]]


@pytest.fixture
def open_app(monkeypatch: pytest.MonkeyPatch) -> Open:
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "HDAP_THEME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(application, "POLL_S", 0.05)
    monkeypatch.setattr("textual.app.wait_for_idle", _a_few_turns)
    monkeypatch.setattr("textual.pilot.wait_for_idle", _a_few_turns)
    monkeypatch.setattr(Input, "_toggle_cursor", lambda self: None)

    @asynccontextmanager
    async def opened(
        source: FakeSource | None = None, size: tuple[int, int] = (80, 24)
    ) -> AsyncIterator[Opened]:
        source = source or FakeSource()
        app = HdapApp(source)
        app.now = clock = Clock()
        async with app.run_test(size=size, notifications=True) as pilot:
            hands = Opened(app, pilot, source, clock)
            await hands.idle()
            yield hands
        app.desk.tasks.close()

    return opened


@pytest.fixture
def snapshot(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with the file of its name in snapshots/, or write that file."""
    update = request.config.getoption("--update-snapshots", default=False)

    def compare(name: str, text: str) -> None:
        path = HERE / "snapshots" / f"{name}.txt"
        if update:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text + "\n")
            return
        assert path.exists(), f"no {path}: run pytest {HERE} --update-snapshots and look at it"
        wanted = path.read_text().removesuffix("\n")
        if wanted != text:
            lines = difflib.unified_diff(wanted.splitlines(), text.splitlines(), "file", "screen")
            pytest.fail(f"{name} looks different:\n" + "\n".join(lines))

    return compare
