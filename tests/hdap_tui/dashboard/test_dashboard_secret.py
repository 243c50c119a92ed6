"""A command that needs a passphrase asks for it, and nobody sees what is typed."""

from __future__ import annotations

from collections.abc import Callable

from conftest import Open
from dashboard_fake import FakeSource
from textual.widgets import Input

from hdap_tui.context import Outcome
from hdap_tui.dashboard.messages import Wish
from hdap_tui.dashboard.screens.secret import SecretScreen


def asking(source: FakeSource) -> list[str | None]:
    """Let a command ask; return the list that its answers go to."""
    answers: list[str | None] = []

    def check(secret: Callable[[str], str | None], **_: object) -> Outcome:
        answers.append(secret("Passphrase of \x1b[2J/keys/id"))
        return Outcome(text="checked.")

    source.runs["doctor"] = check
    return answers


async def test_what_is_typed_reaches_the_command_and_not_the_screen(open_app: Open) -> None:
    source = FakeSource()
    answers = asking(source)
    async with open_app(source, size=(80, 24)) as hands:
        await hands.press("colon", *"doctor", "enter")
        await hands.until(lambda: isinstance(hands.screen, SecretScreen))
        await hands.sees("Passphrase of [2J/keys/id")
        await hands.press(*"open q1")
        assert hands.screen.query_one(Input).value == "open q1"
        assert "open q1" not in hands.text()
        await hands.press("enter")
        await hands.until(lambda: answers == ["open q1"])


async def test_escape_goes_on_without_an_answer(open_app: Open) -> None:
    source = FakeSource()
    answers = asking(source)
    async with open_app(source, size=(80, 24)) as hands:
        await hands.press("colon", *"doctor", "enter")
        await hands.until(lambda: isinstance(hands.screen, SecretScreen))
        await hands.press(*"wrong", "escape")
        await hands.until(lambda: answers == [None])


def test_an_answer_shows_in_no_log() -> None:
    wish = Wish("Passphrase of id")
    wish.reply("open sesame")
    assert "sesame" not in repr(wish)
