"""A question that names what will be touched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Static

from hdap_tui.text import clean

SHOWN = 500
"""Lines of what is touched that are listed one by one."""


class ConfirmScreen(ModalScreen[bool]):
    """Yes or no; no is the answer of whoever only presses enter or escape."""

    AUTO_FOCUS = "#no"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "yes"),
        Binding("n,escape,q", "answer(False)", "no"),
        Binding("left,right", "app.focus_next", "other", show=False),
        Binding("up", "scroll(-1)", "up", show=False),
        Binding("down", "scroll(1)", "down", show=False),
    ]

    def __init__(self, question: str, touched: Sequence[str] = (), note: str = "") -> None:
        super().__init__()
        self.question = clean(question, 400)
        self.touched = tuple(clean(line, 200) for line in touched)
        self.note = clean(note, 400)

    def compose(self) -> ComposeResult:
        """Lay the question out."""
        with Vertical(id="dialog"):
            yield Static(Text(self.question, style="bold"), id="question")
            if self.touched:
                with VerticalScroll(id="touched"):
                    yield Static(Text("\n".join(self._lines())))
            if self.note:
                yield Static(Text(self.note), id="note")
            with Horizontal(id="answers"):
                yield Button("Yes (y)", id="yes", compact=True)
                yield Button("No (n)", id="no", compact=True)

    def _lines(self) -> list[str]:
        lines = [f"• {line}" for line in self.touched[:SHOWN]]
        more = len(self.touched) - SHOWN
        return [*lines, f"and {more} more"] if more > 0 else lines

    def action_answer(self, answer: bool) -> None:
        """Close with an answer."""
        self.dismiss(answer)

    def action_scroll(self, by: int) -> None:
        """Scroll the list."""
        for area in self.query(VerticalScroll):
            area.scroll_relative(y=by, animate=False)

    @on(Button.Pressed)
    def _pressed(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "yes")
