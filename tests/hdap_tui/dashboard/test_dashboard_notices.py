"""Messages that are shown for a few seconds."""

from __future__ import annotations

import asyncio
import time

import pytest
from conftest import Open
from textual.widgets._toast import Toast

from hdap_tui.dashboard.notices import Notice

pytestmark = pytest.mark.timeout(60)


async def test_a_message_whose_time_is_over_before_it_is_shown_goes_away(open_app: Open) -> None:
    async with open_app() as hands:
        late = Notice("too late", timeout=1.0, raised_at=time.time() - 2.0)
        await hands.app.screen.mount(Toast(late))
        for _ in range(500):
            if not hands.app.screen.query(Toast):
                break
            await asyncio.sleep(0.02)
        assert not hands.app.screen.query(Toast)


async def test_all_messages_are_such_that_nothing_can_hang_by_them(open_app: Open) -> None:
    async with open_app() as hands:
        hands.app.say("something happened")
        hands.app.notify("something else", severity="warning", timeout=30)
        await hands.idle()
        shown = list(hands.app._notifications)
        assert [n.message for n in shown] == ["something happened", "something else"]
        assert all(isinstance(notice, Notice) for notice in shown)
        assert not any(notice.has_expired for notice in shown)
