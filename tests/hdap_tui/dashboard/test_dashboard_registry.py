"""Everything in the registry works by key, at the prompt and in the palette."""

from __future__ import annotations

import shlex
from collections import Counter

import pytest
from conftest import Open, Opened
from dashboard_fake import SMALL, FakeSource
from textual.widgets import Input

from hdap_tui.commands import COMMANDS, Command
from hdap_tui.dashboard.application import HdapApp
from hdap_tui.dashboard.palette import RegistryProvider
from hdap_tui.dashboard.screens.confirm import ConfirmScreen
from hdap_tui.dashboard.screens.help import HelpScreen
from hdap_tui.dashboard.screens.prompt import PromptScreen
from hdap_tui.dashboard.widgets.scatter import Scatter
from hdap_tui.dashboard.widgets.table import Table

HOME = {
    "alert": "3",
    "matter": "3",
    "silence": "3",
    "decision": "3",
    "job": "4",
    "model": "5",
    "deployment": "6",
    "devices": "1",
    "device": "1",
    "": "1",
}
"""The view on which a command's subject is selected."""
HOMES_BY_KEY = {
    "1": "fleet",
    "2": "map",
    "3": "alerts",
    "4": "jobs",
    "5": "models",
    "6": "deployments",
}
HOMES = set(HOMES_BY_KEY.values())
VIEWS = {"fleet": "fleet", "map": "map", "alerts": "alerts", "jobs": "jobs", "models": "models",
         "compare": "models", "deployments": "deployments",
         "device": "device", "job": "jobs"}  # fmt: skip


def keys_of(*owners: type) -> list[str]:
    found = []
    for owner in owners:
        for binding in owner.__dict__["BINDINGS"]:
            found += [key.strip() for key in binding.key.split(",")]
    return found


def test_no_key_means_two_things() -> None:
    registry = [command.key for command in COMMANDS]
    assert [key for key, n in Counter(registry).items() if n > 1] == []
    every = keys_of(HdapApp)
    assert [key for key, n in Counter(every).items() if n > 1] == []
    own = set(every) - set(registry)
    for widget in (Table, Scatter):
        assert not set(keys_of(widget)) & (set(registry) | own), widget


async def was_done(hands: Opened, command: Command) -> str:
    """Wait until a command shows that it was understood, and say how."""
    app, source = hands.app, hands.source

    def evidence() -> str:
        if isinstance(app.screen, ConfirmScreen):
            app.screen.action_answer(True)
            return ""
        if any(name == command.name for name, _ in source.ran):
            return "ran"
        if isinstance(app.screen, PromptScreen):
            typed = [line.value for line in app.screen.query(Input)]
            return "asks" if typed and typed[0].startswith(f"{command.name} ") else ""
        if command.name == "watch":
            return "watches" if source.watching else ""
        wanted = VIEWS.get(command.view) or ("jobs" if command.name == "jobs follow" else "")
        return "shows" if wanted and hands.view == wanted else ""

    await hands.until(evidence, command.name)
    found = evidence()
    source.ran.clear()
    source.watching = False
    await hands.until(lambda: not app.desk.tasks.running, "the end")
    while hands.view not in HOMES:
        app.pop_screen()
        await hands.settle()
    return found


async def go_home(hands: Opened, command: Command) -> None:
    """Open the view on which a command's subject is selected, and not the one it opens."""
    home = "2" if command.view == "fleet" else HOME[command.subject]
    if hands.view != HOMES_BY_KEY[home]:
        await hands.press(home)


async def test_every_command_has_a_key_that_works(open_app: Open) -> None:
    async with open_app() as hands:
        for command in sorted(COMMANDS, key=lambda c: HOME[c.subject]):
            await go_home(hands, command)
            await hands.press(command.key)
            how = await was_done(hands, command)
            needs = [p for p in command.parameters if p.required]
            # With its subject selected, only what no screen can know is asked for.
            unknowable = needs and (
                needs[-1].choices
                or needs[-1].kind == "path"
                or needs[-1].name == "reason"
                or needs[0].name == "old"
            )
            assert how != "asks" or unknowable, command.name


async def test_every_command_works_at_the_prompt(open_app: Open) -> None:
    values = {"device": "edge-02", "alert": "3", "job": "compress-2", "model": SMALL,
              "kind": "refuse", "source": "hosts.csv", "selector": "edge-02", "old": "was",
              "new": "edge-02"}  # fmt: skip
    async with open_app() as hands:
        for command in COMMANDS:
            needed = [p for p in command.parameters if p.required]
            words = [values[p.name] for p in needed if p.positional]
            words += [f"--{p.name}=2h" for p in needed if not p.positional]
            if command.view == "fleet":
                await go_home(hands, command)
            hands.app.desk.type(f"{command.name} {shlex.join(words)}")  # what the prompt calls
            how = await was_done(hands, command)
            assert how != "asks", command.name


async def test_what_is_typed_at_the_prompt_is_run_and_remembered(open_app: Open) -> None:
    async with open_app() as hands:
        await hands.press("colon")
        await hands.type("bench compute --select edge-0*")
        await hands.sees(":bench compute --select edge-0*")
        await hands.press("enter")
        await hands.until(lambda: hands.source.ran)
        ((name, arguments),) = hands.source.ran
        given = {key: value for key, value in arguments.items() if value}
        assert (name, given) == ("bench", {"models": ("compute",), "select": "edge-0*"})
        await hands.press("colon", "up")
        await hands.sees(":bench compute --select edge-0*")
        await hands.press("escape")
        assert hands.view == "fleet"


async def test_tab_completes_as_far_as_the_suggestions_agree(open_app: Open) -> None:
    async with open_app() as hands:
        await hands.press("colon")
        await hands.type("lab dr")
        await hands.press("tab")
        await hands.sees(":lab drift")
        await hands.type(" edge-0")
        await hands.sees("lab drift edge-08")
        await hands.sees("device: Name of the device.")


async def test_a_mistake_at_the_prompt_is_one_sentence(open_app: Open) -> None:
    async with open_app(size=(120, 30)) as hands:
        hands.app.desk.type("benhc")
        await hands.sees('There is no command "benhc"; did you mean bench?')
        hands.app.desk.type("alerts accept three")
        await hands.sees('alert must be a whole number, and "three" is none.')
        assert hands.source.ran == []


async def test_every_command_is_in_the_palette_and_does_there_what_its_key_does(
    open_app: Open,
) -> None:
    async with open_app() as hands:
        provider = RegistryProvider(hands.app.screen)
        hits = {hit.text: hit.command async for hit in provider.discover()}
        assert set(hits) == {command.name for command in COMMANDS}
        pressed: list[str] = []
        hands.app.desk.press = pressed.append  # type: ignore[method-assign]
        for command in COMMANDS:
            hits[command.name]()
            assert pressed == [command.name]
            await hands.press(command.key)
            assert pressed == [command.name] * 2
            pressed.clear()


async def test_the_palette_finds_a_command_by_a_few_letters(open_app: Open) -> None:
    async with open_app() as hands:
        await hands.press("ctrl+p")
        await hands.type("rollback")
        await hands.sees("rollback  (B)")
        await hands.press("down", "enter")
        await hands.until(lambda: isinstance(hands.screen, ConfirmScreen), "the question")


async def test_the_help_lists_every_command_with_its_key(open_app: Open) -> None:
    async with open_app(size=(160, 60)) as hands:
        await hands.press("question_mark")
        await hands.until(lambda: isinstance(hands.screen, HelpScreen))
        rows = {(entry.key, entry.name) for entry in hands.screen.main.rows}
        assert {(c.key, c.name) for c in COMMANDS} <= rows
        await hands.press("question_mark")
        assert hands.view == "fleet"


async def test_read_only_removes_what_changes_devices(open_app: Open) -> None:
    source = FakeSource()
    source.read_only = True
    dangerous = [c for c in COMMANDS if c.dangerous]
    assert dangerous
    async with open_app(source, size=(160, 48)) as hands:
        assert "READ-ONLY" in hands.text()
        for command in dangerous:
            await hands.press(HOME[command.subject], command.key)
        hits = [hit.text async for hit in RegistryProvider(hands.app.screen).discover()]
        assert not {c.name for c in dangerous} & set(hits)
        await hands.press("question_mark")
        await hands.until(lambda: isinstance(hands.screen, HelpScreen))
        names = {entry.name for entry in hands.screen.main.rows}
        assert not {c.name for c in dangerous} & names
        await hands.idle()
        assert source.ran == []
        assert not any(isinstance(s, ConfirmScreen) for s in hands.app.screen_stack)


@pytest.mark.parametrize(
    ("view", "key", "sentence"),
    [
        ("4", "b", "bench needs a device: press 1"),
        ("1", "a", "alerts acknowledge needs an alert: press 3"),
        ("3", "p", ""),
        ("1", "o", "models show needs a model: press 5"),
    ],
)
async def test_a_key_without_its_subject_says_where_to_find_one(
    open_app: Open, view: str, key: str, sentence: str
) -> None:
    async with open_app(size=(120, 30)) as hands:
        await hands.press(view, key)
        if sentence:
            await hands.sees(sentence)
            assert hands.source.ran == []
        else:  # deploy takes the latest artifact where no model is selected
            await hands.until(lambda: isinstance(hands.screen, ConfirmScreen))
