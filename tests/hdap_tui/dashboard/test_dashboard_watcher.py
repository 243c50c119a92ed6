"""Who watches the fleet while the dashboard is open."""

from __future__ import annotations

import asyncio

import pytest
from conftest import Open, Opened
from dashboard_fake import FakeSource

from hdap_tui.dashboard import application

pytestmark = pytest.mark.timeout(60)


async def another_comes_and_goes(hands: Opened, source: FakeSource) -> None:
    source.elsewhere = "process 7 on bench"
    await hands.until(lambda: hands.app._elsewhere)
    source.elsewhere = ""
    await hands.until(lambda: not hands.app._elsewhere)


async def test_it_goes_on_when_the_process_that_watched_has_ended(
    open_app: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application, "TAKE_OVER_S", 0.3)
    source = FakeSource()
    source.elsewhere = "process 7 on bench"
    async with open_app(source, size=(160, 48)) as hands:
        await hands.press("w")
        await hands.sees("process 7 on bench watches this fleet already. This dashboard goes on")
        assert not source.watching
        source.elsewhere = ""
        await hands.until(lambda: source.watching)

        await hands.press("w")  # by hand, which holds
        assert not source.watching
        await another_comes_and_goes(hands, source)
        await asyncio.sleep(0.5)
        await hands.settle()
        assert not source.watching


async def test_who_does_not_want_to_go_on_says_so(
    open_app: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application, "TAKE_OVER_S", 0.1)
    source = FakeSource()
    source.elsewhere = "process 7 on bench"
    async with open_app(source, size=(160, 48)) as hands:
        await hands.press("w", "w")
        await hands.sees("This dashboard does not go on when the other process ends.")
        source.elsewhere = ""
        await hands.until(lambda: not hands.app._elsewhere)
        await asyncio.sleep(0.3)
        assert not source.watching


async def test_a_process_that_comes_back_is_left_its_place_each_time(
    open_app: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application, "TAKE_OVER_S", 3600.0)
    source = FakeSource()
    source.elsewhere = "process 7 on bench"
    async with open_app(source) as hands:
        await hands.press("w")
        armed = []
        for _ in range(2):
            source.elsewhere = ""
            await hands.until(lambda: not hands.app._elsewhere)
            armed.append(hands.app._waiting)
            await another_comes_and_goes(hands, source)
        assert all(timer is not None for timer in armed)
        running = [timer for timer in armed if timer._task is not None and not timer._task.done()]
        assert running == [], "the time counts from the latest end"
        assert hands.app._waiting not in armed
