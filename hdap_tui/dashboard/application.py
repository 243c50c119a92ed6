"""The dashboard: the registry of commands as a screen.

Everything slow happens in threads: reading the store in workers, commands in `tasks`. What comes
back is a message, and only message handlers here change what is shown.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from typing import Any, ClassVar

from textual import on, work
from textual.app import App
from textual.binding import Binding, BindingType
from textual.command import Provider
from textual.notifications import Notify, SeverityLevel
from textual.screen import Screen
from textual.timer import Timer
from textual.worker import Worker, WorkerState

from hdap_tui import moments
from hdap_tui.commands import COMMANDS
from hdap_tui.dashboard import announce
from hdap_tui.dashboard.desk import Desk
from hdap_tui.dashboard.formats import utc_now
from hdap_tui.dashboard.grammar import Call, Selection
from hdap_tui.dashboard.messages import (
    Asked,
    PastRead,
    Polled,
    PollFailed,
    TaskEnded,
    TaskMoved,
    Wanted,
)
from hdap_tui.dashboard.notices import Notice
from hdap_tui.dashboard.screens.base import HdapScreen, TableView
from hdap_tui.dashboard.screens.fleet import FleetScreen
from hdap_tui.dashboard.source import Source
from hdap_tui.dashboard.theme import ANSI, DARK, palette, pick_look
from hdap_tui.dashboard.travel import Travel
from hdap_tui.errors import UserError
from hdap_tui.store.records import FleetSnapshot
from hdap_tui.text import clean

log = logging.getLogger("hdap_tui.dashboard")

POLL_S = 0.5
TICK_S = 5.0
SECOND_S = 1.0
TAKE_OVER_S = 90.0
"""How long nobody watches the fleet before the dashboard does: a service comes back sooner."""


# The key of "devices show" opens what is selected, whatever that is.
_REGISTRY_KEYS = [
    Binding(command.key, f"command({command.name!r})", command.help, show=False)
    for command in COMMANDS
    if command.key != "enter"
]


def _commands_provider() -> type[Provider]:
    from hdap_tui.dashboard.palette import RegistryProvider

    return RegistryProvider


class HdapApp(App[None]):
    """The application: owns the latest snapshot, and starts what keys and prompt ask for."""

    CSS_PATH = "dashboard.tcss"
    TITLE = "hdap"
    ENABLE_COMMAND_PALETTE = True
    COMMANDS: ClassVar[set[type[Provider] | Callable[[], type[Provider]]]] = {_commands_provider}
    NOTIFICATION_TIMEOUT = 6
    BINDINGS: ClassVar[list[BindingType]] = [
        *_REGISTRY_KEYS,
        Binding("enter", "enter", "open what is selected", show=False),
        Binding("colon", "prompt", "type a command", show=False),
        Binding("slash", "filter", "filter the table", show=False),
        Binding("question_mark", "help", "all keys and commands", show=False),
        Binding("escape", "back", "one step back", show=False),
        Binding("left_square_bracket", "step(-1)", "back by a round", show=False),
        Binding("right_square_bracket", "step(1)", "on by a round", show=False),
        Binding("left_curly_bracket", "jump(-3600)", "back by an hour", show=False),
        Binding("right_curly_bracket", "jump(3600)", "on by an hour", show=False),
        Binding("backspace", "live", "back to what is live", show=False),
        Binding("v", "result", "show the latest result again", show=False),
        Binding("C", "stop", "stop the commands that run here", show=False),
        Binding("q", "quit", "quit; jobs go on", show=False),
        Binding("ctrl+c", "quit", "quit", show=False),
    ]

    def __init__(self, source: Source, watch: bool = False) -> None:
        self.look = pick_look(os.environ)
        super().__init__(ansi_color=True if self.look != "dark" else None)
        self.source = source
        self.palette = palette(self.look)
        self.now = utc_now
        self.snapshot: FleetSnapshot | None = None
        self.watching = False
        self.activity = ""
        self._said = self._elsewhere = ""
        self._waiting: Timer | None = None  # until nobody has watched the fleet for long enough
        self.marks: frozenset[str] = frozenset()
        self.desk = Desk(self)
        self.travel = Travel()
        self.fatal: UserError | None = None
        self._version = -1
        self._watch_at_start = watch
        self._failures = 0
        for theme in (DARK, ANSI):
            self.register_theme(theme)
        self.theme = (DARK if self.look == "dark" else ANSI).name

    @property
    def read_only(self) -> bool:
        """Whether dangerous commands are refused."""
        return self.source.read_only

    # ------------------------------------------------------------------------------ start and end

    def get_default_screen(self) -> Screen[Any]:
        """Open with the fleet; the other views are made when they are first opened."""
        screen = FleetScreen()
        self.install_screen(screen, "fleet")
        return screen

    def on_mount(self) -> None:
        """Catch the signals that would leave the terminal in disorder, and ask for data."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP):
            try:
                loop.add_signal_handler(number, self._leave, number)
            except (RuntimeError, ValueError):  # not the main thread, as in some tests
                break
        self.set_interval(TICK_S, self._tick)
        self.set_interval(SECOND_S, self._second)
        self.call_after_refresh(self._poll)

    def _leave(self, number: int) -> None:
        self.desk.tasks.cancel()
        self.exit(return_code=128 + number)

    def action_quit(self) -> None:  # type: ignore[override]
        """Quit; commands that run in here are asked about first, jobs go on by themselves."""
        if not self.desk.tasks.running:
            self.exit()
            return
        names = [task.call.text for task in self.desk.tasks.running]
        self.confirm("Quit, and stop the commands that run in the dashboard?", names, self._quit)

    def _quit(self) -> None:
        self.desk.tasks.cancel()
        self.exit()

    # ------------------------------------------------------------------------------ live data

    @work(thread=True, group="poll", exit_on_error=False)
    def _poll(self) -> None:
        source = self.source
        try:
            version = source.version()
            snapshot = source.snapshot() if version != self._version else None
            seen = version if snapshot is None else snapshot.version
            activity = source.activity()
            self.post_message(
                Polled(seen, snapshot, source.watching, activity, source.elsewhere, source.said)
            )
        except Exception as error:
            self.post_message(PollFailed(error))

    @on(Polled)
    def _polled(self, message: Polled) -> None:
        self.set_timer(POLL_S, self._poll)  # armed only now, so that polls never overlap
        self._failures = 0
        changed = (message.watching, message.activity) != (self.watching, self.activity)
        if message.said and message.said != self._said:
            self.say(message.said, "warning")
        self._said = message.said
        self.watching, self.activity = message.watching, message.activity
        another, self._elsewhere = self._elsewhere, message.elsewhere
        if bool(another) != bool(message.elsewhere) and self._waiting is not None:
            self._waiting.stop()
        if another and not message.elsewhere:
            self._waiting = self.set_timer(TAKE_OVER_S, self._take_over)
        if message.snapshot is not None:
            before, self.snapshot = self.snapshot, message.snapshot
            if before is None and self._watch_at_start:
                self.desk.start_watcher()
            self._version = message.version
            for sentence, severity in announce.news(before, message.snapshot):
                self.say(sentence, severity)
            self._show_data()
        elif changed:
            self.refresh_frame()

    def _take_over(self) -> None:
        """Watch the fleet, now that the process that did has ended and has not come back."""
        if self.desk.watches and not self._elsewhere and not self.watching:
            self.desk.start_watcher()

    @on(PollFailed)
    def _poll_failed(self, message: PollFailed) -> None:
        error = message.error
        if self.snapshot is None and isinstance(error, UserError):
            self.fatal = error  # nothing to show: the sentence belongs on the shell
            self.exit(return_code=int(error.exit_code))
            return
        self._failures += 1
        if self._failures == 1:
            self.say(f"The fleet cannot be read: {error}", "error")
            log.error("poll failed", exc_info=error)
        self.set_timer(min(30.0, POLL_S * 2**self._failures), self._poll)

    def _show_data(self) -> None:
        if screen := self._open:
            screen.refresh_frame()
            screen.refresh_data()

    def refresh_frame(self) -> None:
        """Show header, running commands and keys anew."""
        if screen := self._open:
            screen.refresh_frame()

    def _tick(self) -> None:
        if screen := self._open:
            screen.tick()

    def _second(self) -> None:
        if screen := self._open:
            screen.second()

    @property
    def _open(self) -> HdapScreen | None:
        """The screen on top, where it is one of ours; none while the application ends."""
        stack = self.screen_stack
        return stack[-1] if stack and isinstance(stack[-1], HdapScreen) else None

    @on(Worker.StateChanged)
    def _worker_ended(self, event: Worker.StateChanged) -> None:
        if event.state is WorkerState.ERROR and event.worker.error is not None:
            error = event.worker.error
            log.error("%s failed", event.worker.name, exc_info=error)
            text = (
                str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            )
            self.say(text, "error")

    # ------------------------------------------------------------------------------ the past

    def action_step(self, count: int) -> None:
        """Show the fleet after the round before or after."""
        was_live = self.travel.is_live
        self.travel.step(count)
        self._travelled(was_live)

    def action_jump(self, seconds: float) -> None:
        """Show the fleet as it was some time earlier or later."""
        was_live = self.travel.is_live
        self.travel.jump(seconds, self.now())
        self._travelled(was_live)

    def action_live(self) -> None:
        """Show what is live again."""
        was_live = self.travel.is_live
        self.travel.live()
        self._travelled(was_live)

    def travel_to(self, text: str) -> None:
        """Show the fleet as it was at the moment that a text means.

        Raises:
            SettingsError: it means none.
        """
        self.travel.wanted = round(moments.parse(text, self.now()).timestamp() * 1e6)
        self._travelled()

    def _travelled(self, was_live: bool = True) -> None:
        self._show_data()
        travel = self.travel
        if travel.is_live and not was_live:
            self.say("Live again.")
        if travel.is_behind and not travel.reading:
            travel.reading = True
            self._read_past(travel.wanted, travel.rounds is None)

    @work(thread=True, group="past", exit_on_error=False)
    def _read_past(self, at: int | None, with_rounds: bool) -> None:
        source = self.source
        try:
            rounds = source.rounds() if with_rounds else None
            snapshot = source.past(at) if at is not None else None
            self.post_message(PastRead(at, snapshot, rounds))
        except Exception as error:
            self.post_message(PastRead(at, error=error))

    @on(PastRead)
    def _past_read(self, message: PastRead) -> None:
        travel = self.travel
        travel.reading = False
        if travel.is_live:
            return
        if message.error is not None:
            known = isinstance(message.error, UserError)
            self.say(f"{'' if known else 'The past cannot be read: '}{message.error}", "warning")
            if not known:
                log.error("the past cannot be read", exc_info=message.error)
            travel.give_up()
        elif message.rounds is not None:
            travel.take_rounds(message.rounds)
            if not message.rounds:
                self.say("No round has been finished yet.")
                travel.live()
        if message.at is not None and message.snapshot is not None:
            travel.take(message.at, message.snapshot)
        self._travelled()

    # ------------------------------------------------------------------------------ commands

    def selection(self) -> Selection:
        """Return what is selected on the topmost of our screens."""
        for screen in reversed(self.screen_stack):
            if isinstance(screen, HdapScreen) and screen.ready:
                return screen.selection()
        return Selection()

    def action_command(self, name: str) -> None:
        """Do what a key of the registry stands for."""
        self.when_ready(lambda: self.desk.press(name))

    def action_enter(self) -> None:
        """Open what is selected."""
        self.when_ready(self.desk.enter)

    def when_ready(self, then: Callable[[], None]) -> None:
        """Do something once the open screen has its parts and its data.

        Whoever types fast presses the next key before a new screen stands.
        """
        screen = self._open
        if screen is not None and not screen.ready:
            self.set_timer(0.02, lambda: self.when_ready(then))
        else:
            then()

    @on(TaskMoved)
    def _task_moved(self, message: TaskMoved) -> None:
        message.task.state = message.state
        self.desk.moved()

    @on(TaskEnded)
    def _task_ended(self, message: TaskEnded) -> None:
        if self.screen_stack:
            self.desk.ended(message.task)

    @on(Asked)
    def _asked(self, message: Asked) -> None:
        from hdap_tui.dashboard.screens.confirm import ConfirmScreen

        question = message.question
        if not self.screen_stack:
            question.reply(False)  # the application ends
            return
        self.push_screen(
            ConfirmScreen(question.text, question.touched, question.note),
            lambda answer: question.reply(bool(answer)),
        )

    @on(Wanted)
    def _wanted(self, message: Wanted) -> None:
        from hdap_tui.dashboard.screens.secret import SecretScreen

        wish = message.wish
        if not self.screen_stack:
            wish.reply(None)  # the application ends
            return
        self.push_screen(SecretScreen(wish.text), lambda answer: wish.reply(answer or None))

    def confirm(self, text: str, touched: list[str], then: Callable[[], None]) -> None:
        """Ask, and go on where the answer is yes."""
        from hdap_tui.dashboard.screens.confirm import ConfirmScreen

        self.push_screen(ConfirmScreen(text, touched), lambda answer: then() if answer else None)

    # ------------------------------------------------------------------------------ screens

    def open_view(self, view: str, call: Call, typed: bool = False) -> None:
        """Open a view, and select in it what the call names.

        `typed` says that it was asked for in words, which never hide what they name.
        """
        if view == "device":
            from hdap_tui.dashboard.screens.device import DeviceScreen

            name = str(call.given["device"])
            if isinstance(self.screen, DeviceScreen):
                self.pop_screen()
            self.push_screen(DeviceScreen(name))
            return
        target = {"job": "jobs", "compare": "models"}.get(view, view)
        there = getattr(self.screen, "view", "") == target
        if not there:
            # The fleet is always at the bottom, the other views lie on it one at a time.
            while len(self.screen_stack) > 1:
                self.pop_screen()
            if target != "fleet":
                if not self.is_screen_installed(target):
                    self.install_screen(_make_view(target), target)
                self.push_screen(target)
        if view == "job":
            job, screen = str(call.given.get("job", "")), self.get_screen(target)
            self.when_ready(lambda: screen.open_job(job))  # type: ignore[attr-defined]
        if view == "compare":
            models = self.get_screen(target)
            self.when_ready(lambda: models.compare(toggle=there and not typed))  # type: ignore[attr-defined]

    async def action_back(self) -> None:
        """One step back: what the screen can undo, else the screen below, at last the fleet."""
        screen = self.screen
        if isinstance(screen, HdapScreen) and screen.ready and screen.step_back():
            return
        if len(self.screen_stack) > 1:
            self.pop_screen()

    def action_prompt(self, text: str = "") -> None:
        """Open the prompt, with the beginning of a line where something is missing."""
        from hdap_tui.dashboard.screens.prompt import PromptScreen

        self.push_screen(PromptScreen(text), lambda line: self.desk.type(line or ""))

    def action_filter(self) -> None:
        """Open the filter of the screen's table."""
        screen = self.screen
        if isinstance(screen, TableView):
            self.when_ready(screen.action_filter)
        else:
            self.say("There is no table to filter here.")

    def action_help(self) -> None:
        """Open or close the help."""
        from hdap_tui.dashboard.screens.help import HelpScreen

        if isinstance(self.screen, HelpScreen):
            self.pop_screen()
        else:
            self.push_screen(HelpScreen())

    def action_result(self) -> None:
        """Show the latest result."""
        from hdap_tui.dashboard.screens.result import ResultScreen

        if self.desk.last is None:
            self.say("There is no result yet.")
            return
        if isinstance(self.screen, ResultScreen):
            self.pop_screen()
        self.push_screen(ResultScreen(*self.desk.last))

    def action_stop(self) -> None:
        """Stop the commands that run in the dashboard."""
        self.desk.stop()

    # ------------------------------------------------------------------------------ what is said

    def notify(
        self,
        message: str,
        *,
        title: str = "",
        severity: SeverityLevel = "information",
        timeout: float | None = None,
        markup: bool = True,
    ) -> None:
        """Show a message for some seconds, as Textual does, and never hang by it."""
        seconds = self.NOTIFICATION_TIMEOUT if timeout is None else timeout
        self.post_message(Notify(Notice(message, title, severity, seconds, markup=markup)))

    def say(self, sentence: str, severity: str = "information") -> None:
        """Show a sentence for a few seconds."""
        self.notify(clean(sentence, 400), severity=severity, markup=False)  # type: ignore[arg-type]


def _make_view(name: str) -> HdapScreen:
    """Import and make a view; the map and the charts bring numpy with them."""
    if name == "map":
        from hdap_tui.dashboard.screens.map import MapScreen

        return MapScreen()
    if name == "alerts":
        from hdap_tui.dashboard.screens.alerts import AlertsScreen

        return AlertsScreen()
    if name == "jobs":
        from hdap_tui.dashboard.screens.jobs import JobsScreen

        return JobsScreen()
    if name == "models":
        from hdap_tui.dashboard.screens.models import ModelsScreen

        return ModelsScreen()
    if name == "deployments":
        from hdap_tui.dashboard.screens.deployments import DeploymentsScreen

        return DeploymentsScreen()
    return FleetScreen()
