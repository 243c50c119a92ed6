"""Names and texts from elsewhere can neither crash a screen nor reach the terminal as they are."""

from __future__ import annotations

import unicodedata

import pytest
from conftest import Open
from dashboard_fake import HOSTILE, FakeSource, fleet
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from textual.widgets import Static

from hdap_tui.context import Outcome, Table
from hdap_tui.dashboard.formats import fit
from hdap_tui.dashboard.screens.confirm import ConfirmScreen
from hdap_tui.errors import UserError
from hdap_tui.text import clean


def assert_harmless(text: str) -> None:
    bad = {c for c in text if unicodedata.category(c) in {"Cc", "Cf", "Cs"} and c != "\n"}
    assert not bad, f"{bad!r} reached the screen"


@pytest.mark.parametrize("size", [(160, 48), (30, 8)])
async def test_hostile_names_on_every_screen_do_no_harm(
    open_app: Open, size: tuple[int, int]
) -> None:
    source = FakeSource(fleet(len(HOSTILE), names=HOSTILE))
    source.runs["lab status"] = lambda **_: Outcome(
        table=Table(HOSTILE[:5], tuple(tuple(HOSTILE[i : i + 5]) for i in range(8))),
        text="\n".join(HOSTILE),
    )
    async with open_app(source, size=size) as hands:
        for view in "12345":
            await hands.press(view)
            await hands.press("down", "space", "o" if view == "5" else "n", "escape")
            assert_harmless(hands.text())
        for name in HOSTILE[::4] if size[0] < 80 else HOSTILE:
            if name:
                hands.app.push_screen(_device(name))
                await hands.settle()
                await hands.idle()
                assert_harmless(hands.text())
                await hands.press("escape")
        await hands.press("1", "L")
        await hands.idle()
        assert_harmless(hands.text())
        await hands.press("escape", "colon")
        await hands.type("lab drift ")
        assert_harmless(hands.text())
        await hands.press("escape", "B")
        await hands.until(lambda: isinstance(hands.screen, ConfirmScreen))
        assert_harmless(hands.text())
        await hands.press("n")
        hands.app.desk.type("devices show '[/' [/ \x1b[2J")
        await hands.settle()
        assert_harmless(hands.text())


def _device(name: str):  # type: ignore[no-untyped-def]
    from hdap_tui.dashboard.screens.device import DeviceScreen

    return DeviceScreen(name)


async def test_brackets_are_shown_as_they_are(open_app: Open) -> None:
    names = ("host [/dev/ttyUSB0]", "[/", "a [/] b", "dev[eu-1]", "C:\\dir\\[x")
    source = FakeSource(fleet(len(names), names=names))
    async with open_app(source, size=(160, 48)) as hands:
        for name in names:
            assert name in hands.text()


async def test_what_a_command_says_is_shown_without_its_escape_sequences(open_app: Open) -> None:
    source = FakeSource()

    def fail(**_: object) -> Outcome:
        raise UserError("edge-01 said [/red] \x1b[2J\x07 and left")

    source.runs["doctor"] = fail
    async with open_app(source, size=(120, 30)) as hands:
        await hands.press("Y")
        await hands.sees("edge-01 said [/red] [2J and left")
        assert_harmless(hands.text())


@settings(max_examples=50)
@given(st.text(max_size=300), st.integers(1, 80))
def test_clean_text_is_short_printable_and_on_one_line(text: str, limit: int) -> None:
    found = clean(text, limit)
    assert len(found) <= limit
    assert not set(found) & set("\n\r\u2028\u2029")
    assert_harmless(found)


@settings(max_examples=50)
@given(st.text(max_size=60), st.integers(1, 40))
def test_a_fitted_text_takes_exactly_its_cells(text: str, width: int) -> None:
    assert cell_len(fit(clean(text), width)) == width


def test_a_static_with_markup_would_have_crashed() -> None:
    with pytest.raises(Exception, match="closing tag"):
        Static("a [/] b").render()
