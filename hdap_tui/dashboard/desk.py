"""From a key, a line of the prompt or a pick in the palette to a command that runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hdap_tui.actions.fact_words import columns_of
from hdap_tui.commands import BY_NAME, Command
from hdap_tui.dashboard import announce, questions
from hdap_tui.dashboard.formats import bar
from hdap_tui.dashboard.grammar import WORDS, Call, Selection, fill, parse
from hdap_tui.dashboard.screens.fleet import FleetScreen
from hdap_tui.dashboard.tasks import Task, Tasks
from hdap_tui.dashboard.widgets.line import Piece
from hdap_tui.errors import ExitCode, RefusedError, UserError
from hdap_tui.fact_names import BY_NAME as FACTS
from hdap_tui.progress import duration

if TYPE_CHECKING:
    from hdap_tui.context import Outcome
    from hdap_tui.dashboard.application import HdapApp

HISTORY = 200
"""Lines of the prompt that are remembered."""
_LONG_TEXT = 240
"""Longer texts get a screen of their own."""


class Desk:
    """Decides what a command does in the dashboard; all of it on the application's own thread."""

    def __init__(self, app: HdapApp) -> None:
        self._app = app
        self.tasks = Tasks(app.source, app.post_message)
        self.history: list[str] = []
        """Lines typed at the prompt, oldest first."""
        self.watches = False
        """Whether the fleet is to be watched from here when no other process does any more."""
        self.last: tuple[str, Outcome] | None = None
        """The latest result that is worth a screen."""

    def press(self, name: str) -> None:
        """Do what a key of the registry stands for."""
        self.invoke(Call(BY_NAME[name]))

    def enter(self) -> None:
        """Open what is selected: a device before all, else the alert, model or job."""
        chosen = self._app.selection()
        for name, value in (
            ("devices show", chosen.device),
            ("alerts show", chosen.alert),
            ("models show", chosen.model),
            ("jobs show", chosen.job),
        ):
            if value not in {"", None}:
                self.press(name)
                return
        self.press("devices show")

    def type(self, line: str) -> None:
        """Do what was typed at the prompt."""
        line = line.strip()
        if not line:
            return
        self.history = [*(h for h in self.history if h != line), line][-HISTORY:]
        if line in WORDS:
            self._app.call_next(self._app.run_action, f"app.{WORDS[line]}")
            return
        try:
            self.invoke(parse(line), typed=True)
        except UserError as error:
            self._app.say(str(error), "error")

    def invoke(self, call: Call, typed: bool = False) -> None:
        """Open the command's view, ask for what is missing, or start it."""
        app, command = self._app, call.command
        if command.dangerous and app.read_only:
            app.say(f"{command.name} is refused: the fleet is read-only (fleet.toml).", "warning")
            return
        if not app.travel.is_live and _acts_on_selection(command):
            app.say(f"{command.name} is for what is live: press backspace to come back.", "warning")
            return
        chosen = app.selection()
        try:
            filled = fill(call, chosen, typed)
        except UserError as error:
            app.say(str(error), "warning")
            return
        if command.name == "devices list" and set(call.given) == {"columns"}:
            self._choose_columns(str(call.given["columns"]))
        elif filled.missing is not None:
            missing = filled.missing
            option = "" if missing.positional else f"--{missing.name} "
            app.action_prompt(f"{filled.text} {option}")
        elif command.view and "at" in call.given and set(call.given) <= {command.subject, "at"}:
            self._travel(filled)
        elif command.view and set(call.given) <= {command.subject}:
            app.open_view(command.view, filled, typed)
        elif command.name == "jobs follow":
            app.open_view("job", filled)
        elif command.name == "watch" and not call.given:
            self.toggle_watcher()
        else:
            self._ask_and_start(filled, chosen)

    def toggle_watcher(self) -> None:
        """Have the fleet watched from here, or no longer."""
        if self._app.source.watching:
            self.watches = False
            self._app.source.stop_watcher()
            self._app.say("Watching stops after what is being measured now.")
        elif self.watches and self._app.source.elsewhere:
            self.watches = False
            self._app.say("This dashboard does not go on when the other process ends.")
        else:
            self.start_watcher()

    def start_watcher(self) -> None:
        """Watch the fleet in a process of its own; where another does it, once that has ended."""
        self.watches = True
        try:
            self._app.source.start_watcher()
        except RefusedError as error:
            self._app.say(f"{error} This dashboard goes on when it ends; w: not.")
        except UserError as error:
            self._app.say(str(error), "error")
        else:
            self._app.say("Watching: sweeps and canary rounds go on by themselves; w stops it.")

    def moved(self) -> None:
        """Show how far the running commands are."""
        self._app.refresh_frame()

    def ended(self, task: Task) -> None:
        """Show what came out of a command."""
        self.tasks.ended(task)
        self._app.refresh_frame()
        if task.outcome is not None:
            self._show(task, task.outcome)
        elif task.stop.is_set():
            self._app.say(f"{task.name} was stopped.", "warning")
        else:
            self._app.say(task.error, "information" if task.declined else "error")

    def stop(self) -> None:
        """Stop the commands that run in the dashboard."""
        if not self.tasks.running:
            self._app.say("No command runs here; x cancels the selected job.")
            return
        self.tasks.cancel()
        self._app.say(f"Stopping {announce.names(self.tasks.running)}.")

    def pieces(self) -> tuple[list[Piece], list[Piece]]:
        """Return the line about the commands that run."""
        running = self.tasks.running
        if not running:
            return [], []
        task = running[-1]
        done, rest = bar(task.state.fraction, 24)
        left = [
            Piece(f" {task.name} ", "strong"),
            Piece(done, "accent"),
            Piece(rest, "faint"),
            Piece(f" {task.state.fraction:4.0%}  "),
            Piece(task.state.step, "muted"),
        ]
        if task.state.left_s is not None:
            left.append(Piece(f"  about {duration(task.state.left_s)} left", "muted"))
        more = f"+{len(running) - 1} more  " if len(running) > 1 else ""
        stop = [Piece(" C ", "key", "app.stop"), Piece("stop ", "muted", "app.stop")]
        return left, [Piece(more, "muted"), *stop]

    def _travel(self, call: Call) -> None:
        try:
            self._app.travel_to(str(call.given["at"]))
        except UserError as error:
            self._app.say(str(error), "warning")
        else:
            self._app.open_view(call.command.view, call)

    def _choose_columns(self, text: str) -> None:
        """Show facts as columns of the fleet table; without a name none."""
        app = self._app
        try:
            names = columns_of(text, FACTS)
        except UserError as error:
            app.say(str(error), "warning")
            return
        app.open_view("fleet", Call(BY_NAME["devices list"]))
        screen = app.get_screen("fleet", FleetScreen)
        app.when_ready(lambda: screen.choose_columns(tuple(names)))

    def _ask_and_start(self, call: Call, chosen: Selection) -> None:
        question = questions.before(call, self._app.snapshot, chosen)
        if question is None:
            self._start(call, chosen)
        else:
            text, touched = question
            self._app.confirm(text, touched, lambda: self._start(call, chosen))

    def _start(self, call: Call, chosen: Selection) -> None:
        self.tasks.start(call, questions.note(call, chosen))
        self._app.refresh_frame()

    def _show(self, task: Task, outcome: Outcome) -> None:
        text = outcome.text.strip()
        big = outcome.table is not None or "\n" in text or len(text) > _LONG_TEXT
        if big:
            self.last = (task.call.text, outcome)
            if not task.call.command.long:
                self._app.action_result()
                return
        severity = "information" if outcome.exit_code == ExitCode.DONE else "warning"
        first = text.partition("\n")[0] or f"{task.name}: done."
        self._app.say(first + (" Press v to see it all." if big else ""), severity)


def _acts_on_selection(command: Command) -> bool:
    """Say whether a command does something with what is selected, which is not there any more."""
    return command.dangerous or (
        command.subject in {"devices", "device", "alert"} and not command.view
    )
