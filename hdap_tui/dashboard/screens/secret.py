"""A question for a passphrase or password; what is typed is not shown, and kept nowhere."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from hdap_tui.text import clean


class SecretScreen(ModalScreen[str]):
    """Closes with what was typed; empty is the answer of whoever presses escape."""

    AUTO_FOCUS = "#secret"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "decline", "go on without")]

    def __init__(self, question: str) -> None:
        super().__init__()
        self.question = clean(question, 400)

    def compose(self) -> ComposeResult:
        """Lay the question out."""
        with Vertical(id="dialog"):
            yield Static(Text(self.question, style="bold"), id="question")
            yield Input(password=True, id="secret", compact=True)
            yield Static(Text("enter: use it for the whole fleet   esc: go on without"), id="note")

    @on(Input.Submitted)
    def _entered(self, event: Input.Submitted) -> None:
        self.dismiss(event.value)

    def action_decline(self) -> None:
        """Close without an answer."""
        self.dismiss("")
