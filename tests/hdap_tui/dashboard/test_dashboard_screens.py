"""Every screen at 80x24 and at 160x48, as text; and the pictures for the documentation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Open
from textual import events
from textual.widgets import Input

from hdap_tui.dashboard.screens.confirm import ConfirmScreen

ROOT = Path(__file__).parents[3]
SCREENSHOTS = ROOT / "docs" / "screenshots"
WALK: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("fleet", ("down", "space"), "1 marked"),
    ("map", ("2",), "eps 3.5 %"),
    ("alerts", ("3",), "14:26:00   opened"),
    ("question", ("r",), "Start a compression job"),
    ("jobs", ("n", "4"), "260/400"),
    ("models", ("5",), "2.31×"),
    ("deployments", ("6",), "A/B measurement done"),
    ("device", ("1", "up", "enter"), "90 measurements"),
    ("result", ("escape", "L"), "lab status: done."),
    ("help", ("escape", "question_mark"), "what it does"),
    ("prompt", ("question_mark", "colon", "l", "a", "b", "space"), ":lab"),
)
"""Name of the picture, the keys from the one before to it, and what it waits for."""
SIZES = ((80, 24), (160, 48))
IN_DOCS = {"fleet", "map", "alerts", "question", "jobs", "models", "deployments", "device"}


@pytest.mark.parametrize("size", SIZES, ids=["80x24", "160x48"])
async def test_every_screen_looks_as_it_did(
    open_app: Open, snapshot: Callable[[str, str], None], size: tuple[int, int]
) -> None:
    async with open_app(size=size) as hands:
        for name, keys, awaited in WALK:
            await hands.press(*keys)
            await hands.sees(awaited)
            await hands.idle()
            text = hands.text()
            assert len(text.splitlines()) == size[1]
            assert max(len(line) for line in text.splitlines()) <= size[0]
            snapshot(f"{name}-{size[0]}x{size[1]}", text)


async def test_screenshots_for_the_documentation(
    open_app: Open, request: pytest.FixtureRequest
) -> None:
    if request.config.getoption("--update-screenshots", default=False):
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        async with open_app(size=(120, 34)) as hands:
            for name, keys, awaited in WALK:
                await hands.press(*keys)
                await hands.sees(awaited)
                await hands.idle()
                if name in IN_DOCS:
                    svg = hands.app.export_screenshot(title="hdap")
                    (SCREENSHOTS / f"{name}.svg").write_text(svg)
    for name in sorted(IN_DOCS):
        picture = SCREENSHOTS / f"{name}.svg"
        assert picture.exists(), f"run pytest {Path(__file__).parent} --update-screenshots"
        assert "EMULATED" in picture.read_text()


@pytest.mark.parametrize("size", [(1, 1), (40, 10), (220, 60)])
async def test_no_size_breaks_a_screen(open_app: Open, size: tuple[int, int]) -> None:
    async with open_app(size=(100, 30)) as hands:
        for view in "123456":
            await hands.press(view)
            await hands.pilot.resize_terminal(*size)
            await hands.until(lambda: len(hands.text().split("\n")) == size[1], "the new size")
            await hands.pilot.resize_terminal(100, 30)
            await hands.until(lambda: len(hands.text().split("\n")) == 30, "the old size")


async def test_escape_steps_back_one_thing_at_a_time(open_app: Open) -> None:
    async with open_app() as hands:
        await hands.press("space", "slash")
        await hands.type("edge")
        await hands.press("enter", "2")
        assert hands.view == "map"
        await hands.press("escape")
        assert hands.view == "fleet"
        main = hands.app.screen.query_one("#main")
        assert main.wanted == "edge"
        await hands.press("escape")
        assert (main.wanted, len(main.marks)) == ("", 1)
        await hands.press("escape")
        assert main.marks == set()
        await hands.press("escape")
        assert hands.view == "fleet"


async def test_keys_typed_into_a_line_are_text_and_no_commands(open_app: Open) -> None:
    async with open_app() as hands:
        await hands.press("slash")
        await hands.type("qsbr2")
        assert hands.app.screen.query_one("#filter", Input).value == "qsbr2"
        assert hands.view == "fleet"
        assert hands.source.ran == []


async def test_keys_pressed_before_a_new_screen_stands_are_not_lost(open_app: Open) -> None:
    async with open_app() as hands:
        app = hands.app
        for key in ("3", "a", "4", "slash", "escape", "5", "question_mark", "escape", "2", "b"):
            app.post_message(events.Key(key, key if len(key) == 1 else None))
        await hands.until(lambda: len(hands.source.ran) == 2)
        assert hands.source.ran[0] == ("alerts acknowledge", {"alert": 3, "reason": None})
        name, given = hands.source.ran[1]
        assert (name, given["models"], given["select"]) == ("bench", (), "edge-01")


async def test_tabs_and_keys_can_be_clicked(open_app: Open) -> None:
    async with open_app(size=(120, 30)) as hands:
        tabs = hands.text().splitlines()[1]
        await hands.pilot.click("#tabs", offset=(tabs.index("2 map"), 0))
        await hands.until(lambda: hands.view == "map")
        await hands.sees("recompress")
        keys = hands.text().splitlines()[-1]
        await hands.pilot.click("#keys", offset=(keys.index("recompress"), 0))
        await hands.until(lambda: isinstance(hands.screen, ConfirmScreen))
