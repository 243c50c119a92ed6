"""The dashboard goes back in time: what it shows then, and that no key waits for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

import pytest
from conftest import Open, Opened
from dashboard_fake import MODEL, NOW, FakeSource, at, fleet

from hdap_tui.dashboard.history import history_plot
from hdap_tui.dashboard.travel import Travel
from hdap_tui.errors import UserError
from hdap_tui.moments import NothingYetError, said
from hdap_tui.store.records import Point, Span
from hdap_tui.store.values import from_micros


def shown(at: int) -> str:
    """Return how the screen says a moment."""
    return f"AS OF {said(datetime.fromisoformat(from_micros(at)))}"


async def gone_back(hands: Opened, *keys: str) -> None:
    await hands.press(*keys)
    await hands.until(lambda: hands.app.travel.seen is not None, "the past")
    await hands.idle()


BACK, ON, HOUR_BACK, HOUR_ON = (
    "left_square_bracket", "right_square_bracket", "left_curly_bracket", "right_curly_bracket",
)  # fmt: skip


async def test_a_step_back_shows_the_fleet_after_the_last_round_and_says_so(open_app: Open) -> None:
    async with open_app(size=(160, 48)) as hands:
        rounds = hands.source.moments_of_rounds
        assert "AS OF" not in hands.text()
        await gone_back(hands, BACK)
        text = hands.text()
        assert shown(rounds[-1]) in text
        assert "10 min ago, not live" in text
        assert "11 devices" in text
        assert "edge-12" not in text
        await hands.press(BACK, BACK)
        await hands.sees(shown(rounds[-3]))
        await hands.press(ON)
        await hands.sees(shown(rounds[-2]))
        await hands.press(ON, ON)
        await hands.sees("edge-12")
        assert "AS OF" not in hands.text()
        await hands.sees("Live again.")


async def test_unknown_is_shown_as_unknown(open_app: Open) -> None:
    async with open_app(size=(160, 48)) as hands:
        await gone_back(hands, BACK)
        line = next(line for line in hands.text().splitlines() if "edge-02" in line)
        assert MODEL not in line
        assert line.count("?") == 2  # model and change
        assert "9.000" in line
        assert "new" not in line


async def test_hours_are_jumped_and_l_comes_back(open_app: Open) -> None:
    async with open_app(size=(160, 48)) as hands:
        rounds = hands.source.moments_of_rounds
        await gone_back(hands, HOUR_BACK, HOUR_BACK, HOUR_BACK)
        await hands.sees("3 h ago, not live")
        await hands.press(HOUR_ON)
        await hands.sees("2 h ago, not live")
        for _ in range(40):
            await hands.press(HOUR_BACK)
        await hands.sees(shown(rounds[0]))
        await hands.press(BACK, BACK)
        assert "first round" in hands.text()
        await hands.press("backspace")
        assert "AS OF" not in hands.text()
        assert "edge-12" in hands.text()


async def test_map_alerts_and_device_show_the_same_moment_and_the_other_views_say_that_they_do_not(
    open_app: Open,
) -> None:
    async with open_app(size=(160, 48)) as hands:
        moment = shown(hands.source.moments_of_rounds[-1])
        await gone_back(hands, BACK)
        await hands.press("2")
        await hands.sees("eps 7.5 %")
        assert moment in hands.text()
        await hands.press("3")
        await hands.sees("by how much is not known")
        assert moment in hands.text()
        await hands.press("4")
        await hands.sees("This view is live; fleet, map and alerts are as of")
        await hands.press("1", "enter")
        await hands.until(lambda: hands.view == "device")
        await hands.idle()
        assert moment in hands.text()
        assert "86 measurements" in hands.text()  # of 90, without the last ten minutes
        await hands.press("backspace")
        await hands.sees("90 measurements")


async def test_a_key_that_is_held_down_waits_for_nothing(open_app: Open) -> None:
    async with open_app(size=(160, 48)) as hands:
        source, travel = hands.source, hands.app.travel
        rounds = source.moments_of_rounds
        await gone_back(hands, BACK)
        source.gate.clear()  # from here on the disk does not answer
        try:
            await hands.press(*[BACK] * 150)
            assert travel.wanted == rounds[-151]
            text = hands.text()
            assert shown(rounds[-1]) in text  # what is shown is said, not what is wanted
            assert "→ " in text
        finally:
            source.gate.set()
        await hands.sees(shown(rounds[-151]))
        await hands.idle()
        assert len(source.visited) <= 4  # the first, the one under way, and the last


async def test_keys_that_come_before_the_rounds_are_known_are_not_lost(open_app: Open) -> None:
    async with open_app(size=(160, 48)) as hands:
        app, rounds = hands.app, hands.source.moments_of_rounds
        for _ in range(5):
            app.action_step(-1)
        assert app.travel.wanted is None
        await hands.sees(shown(rounds[-5]))


async def test_what_changes_meanwhile_does_not_move_the_past(open_app: Open) -> None:
    async with open_app(size=(160, 48)) as hands:
        await gone_back(hands, BACK)
        before = hands.text()
        hands.source.put_device("edge-01", latency_ms=1.234)
        hands.source.doing = "canary round"
        await hands.sees("canary round")
        await hands.idle()
        assert "1.234" not in hands.text()
        assert hands.text().splitlines()[3:] == before.splitlines()[3:]
        assert "canary round" in hands.text()


async def test_the_prompt_goes_to_any_moment(open_app: Open) -> None:
    async with open_app(size=(160, 48)) as hands:
        await hands.press("colon")
        await hands.type("alerts --at 2026-11-20T12:00+00:00")
        await hands.press("enter")
        await hands.until(lambda: hands.view == "alerts")
        await hands.until(lambda: hands.app.travel.seen is not None)
        await hands.idle()
        assert hands.app.travel.seen_at == 1_795_176_000_000_000
        assert "AS OF" in hands.text()
        await hands.press("colon")
        await hands.type("fleet --at soon")
        await hands.press("enter")
        await hands.sees('"soon" is no time')
        assert hands.app.travel.seen_at == 1_795_176_000_000_000


@pytest.mark.parametrize(
    "error", [NothingYetError("Nothing had been recorded."), UserError("the database is damaged")]
)
async def test_a_moment_that_cannot_be_read_is_one_sentence_and_the_screen_stays(
    open_app: Open, error: UserError
) -> None:
    async with open_app(size=(160, 48)) as hands:
        source, rounds = hands.source, hands.source.moments_of_rounds
        source.failing_past = error
        await hands.press(BACK)
        await hands.sees(str(error))
        await hands.until(lambda: hands.app.travel.is_live)
        assert "edge-12" in hands.text()
        source.failing_past = None
        await gone_back(hands, BACK)
        source.failing_past = error
        await hands.press(BACK)
        await hands.until(lambda: not hands.app.travel.is_behind)
        assert shown(rounds[-1]) in hands.text()


async def test_without_a_round_there_is_nothing_to_step_to(open_app: Open) -> None:
    source = FakeSource()
    source.moments_of_rounds = []
    async with open_app(source, size=(160, 48)) as hands:
        await hands.press(BACK)
        await hands.sees("No round has been finished yet.")
        assert hands.app.travel.is_live


@pytest.mark.parametrize("key", ["b", "B", "p", "c", "X"])
async def test_what_acts_on_devices_is_refused_in_the_past(open_app: Open, key: str) -> None:
    async with open_app(size=(160, 48)) as hands:
        await gone_back(hands, BACK)
        await hands.press(key)
        await hands.sees("is for what is live: press backspace to come back.")
        assert hands.source.ran == []


@pytest.mark.parametrize("size", [(80, 24), (160, 48)], ids=["80x24", "160x48"])
async def test_the_past_looks_as_it_did(
    open_app: Open, snapshot: Callable[[str, str], None], size: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("hdap_tui.moments.said", lambda when: f"{when:%Y-%m-%d %H:%M:%S} +00:00")
    async with open_app(size=size) as hands:
        await gone_back(hands, BACK)
        snapshot(f"past-{size[0]}x{size[1]}", hands.text())


async def test_a_history_says_what_of_it_is_rolled_up(
    open_app: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = FakeSource()
    measured = source.history("edge-01")[-3:]
    day = replace(measured[0], at="2026-10-02T00:00:00+00:00", span="day", count=24, failed=2)
    monkeypatch.setattr(source, "history", lambda *_: [day, *measured])
    async with open_app(source, size=(160, 48)) as hands:
        await hands.press("enter")
        await hands.until(lambda: hands.view == "device")
        await hands.idle()
        text = hands.text()
        assert "29 measurements, the oldest as 1 point" in text
        line = next(line for line in text.splitlines() if "10-02 00:00" in line)
        assert "1 day, 24 measurements, 2 failed" in line
        assert " … " in line


# Without a screen


def plotted(minutes: list[float], span: Span = "") -> list[float]:
    """Return the line that is drawn for measurements so long ago."""
    found = [
        Point(at=at(ago), model="m", median_ms=5.0, low_ms=5.0, high_ms=5.0, contended=0.0,
              span=span)
        for ago in minutes
    ]  # fmt: skip
    (line,) = history_plot(found, fleet(), None, NOW).series
    return list(line.ys)


def test_a_gap_in_a_history_is_a_gap_in_its_line() -> None:
    usual = [float(ago) for ago in range(60, 30, -2)]
    assert not any(map(math.isnan, plotted(usual)))
    broken = plotted([*(ago + 600 for ago in usual), *usual])
    assert [index for index, y in enumerate(broken) if math.isnan(y)] == [15]


def test_a_day_that_was_rolled_up_lasts_until_the_next() -> None:
    days = [1440.0 * ago for ago in (9, 8, 7, 3, 2, 1)]
    assert [math.isnan(y) for y in plotted(days, "day")].count(True) == 0
    days = [1440.0 * ago for ago in (60, 59, 58, 3, 2, 1)]
    assert [math.isnan(y) for y in plotted(days, "day")].count(True) == 1


def test_stepping_beyond_the_last_round_is_live_and_before_the_first_stays_there() -> None:
    travel = Travel()
    travel.take_rounds([10, 20, 30])
    wanted = []
    for count in (-1, -2, -1, 1, 5):
        travel.step(count)
        wanted.append(travel.wanted)
    assert wanted == [30, 10, 10, 20, None]
    assert travel.is_live


def test_from_between_two_rounds_a_step_goes_to_the_nearest_one() -> None:
    travel = Travel()
    travel.take_rounds([10, 20, 30])
    travel.wanted = 25
    travel.step(-1)
    assert travel.wanted == 20
    travel.wanted = 15
    travel.step(1)
    assert travel.wanted == 20
