"""The `:` prompt: one line, with completion, history and a sentence about what is being typed."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Label, Static

from hdap_tui.dashboard.grammar import complete, hint

if TYPE_CHECKING:
    from hdap_tui.dashboard.application import HdapApp

SHOWN = 8


class PromptScreen(ModalScreen[str]):
    """Closes with the line, or with an empty one."""

    AUTO_FOCUS = "#line"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "close", "close"),
        Binding("tab", "complete", "complete", priority=True),
        Binding("up", "recall(-1)", "earlier", priority=True),
        Binding("down", "recall(1)", "later", priority=True),
    ]

    def __init__(self, text: str = "") -> None:
        super().__init__()
        self._text = text
        self._found: list[str] = []
        self._place = 0

    @property
    def dash(self) -> HdapApp:
        """The application."""
        return cast("HdapApp", self.app)

    def compose(self) -> ComposeResult:
        """Lay the prompt out at the foot of the screen."""
        self._list, self._hint = Static(id="found"), Static(id="hint")
        self._line = Input(self._text, id="line", compact=True, select_on_focus=False)
        with Vertical(id="prompt"):
            yield self._list
            yield self._hint
            with Horizontal(id="prompt-line"):
                yield Label(":", id="colon")
                yield self._line

    def on_mount(self) -> None:
        """Show what may be typed."""
        self._suggest(self._text)

    @on(Input.Changed)
    def _changed(self, event: Input.Changed) -> None:
        self._suggest(event.value)

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        self.dismiss(event.value)

    def action_close(self) -> None:
        """Close without doing anything."""
        self.dismiss("")

    def action_complete(self) -> None:
        """Type on as far as all suggestions agree; the first one where they do not."""
        if not self._found:
            return
        line = self._line
        shared = _beginning(self._found)
        text = shared if len(shared) > len(line.value) else self._found[0]
        line.value = text if text != line.value else f"{text} "
        line.cursor_position = len(line.value)

    def action_recall(self, by: int) -> None:
        """Go through the lines typed before."""
        history = self.dash.desk.history
        self._place = max(-len(history), min(0, self._place + by))
        line = self._line
        line.value = history[self._place] if self._place else ""
        line.cursor_position = len(line.value)

    def _suggest(self, text: str) -> None:
        self._found = complete(text, self.dash.snapshot)
        palette = self.dash.palette
        lines = Text("\n").join(
            Text(found, no_wrap=True, overflow="ellipsis") for found in self._found[:SHOWN]
        )
        if len(self._found) > SHOWN:
            lines.append(f"\n… {len(self._found) - SHOWN} more", palette["muted"])
        self._list.display = bool(self._found)
        self._list.update(lines)
        said = hint(text)
        self._hint.display = bool(said)
        self._hint.update(Text(said, style=palette["muted"]))


def _beginning(lines: list[str]) -> str:
    """Return what all lines begin with."""
    first, last = min(lines), max(lines)
    same = (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    return first[: next(same, min(len(first), len(last)))]
