"""Colours: one accent, states, and a palette of clusters that colour-blind people can tell apart.

Colour only ever repeats what a letter or a word says as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Literal

from rich.style import Style
from textual.theme import Theme

Look = Literal["dark", "ansi", "mono"]

DARK = Theme(
    name="hdap",
    primary="#56b4e9",
    secondary="#7d8ca0",
    accent="#56b4e9",
    warning="#e69f00",
    error="#e8704a",
    success="#2fb38a",
    foreground="#d3dae3",
    background="#10151b",
    surface="#161c24",
    panel="#1d2530",
    dark=True,
    variables={
        "muted": "#7f8b9a",
        "rule": "#2b3542",
        "border": "#2b3542",
        "border-blurred": "#2b3542",
        "scrollbar": "#2b3542",
        "scrollbar-hover": "#3c4a5b",
        "scrollbar-active": "#56b4e9",
        "scrollbar-background": "#10151b",
        "scrollbar-background-hover": "#10151b",
        "scrollbar-background-active": "#10151b",
        "scrollbar-corner-color": "#10151b",
        "input-cursor-background": "#d3dae3",
        "input-selection-background": "#56b4e9 30%",
    },
)
ANSI = Theme(
    name="hdap-ansi",
    primary="ansi_cyan",
    secondary="ansi_blue",
    accent="ansi_cyan",
    warning="ansi_yellow",
    error="ansi_red",
    success="ansi_green",
    foreground="ansi_default",
    background="ansi_default",
    surface="ansi_default",
    panel="ansi_default",
    boost="ansi_default",
    dark=True,
    ansi=True,
    variables={
        "muted": "ansi_default",
        "rule": "ansi_bright_black",
        "border": "ansi_bright_black",
        "border-blurred": "ansi_bright_black",
        "scrollbar": "ansi_bright_black",
        "scrollbar-hover": "ansi_white",
        "scrollbar-active": "ansi_cyan",
        "scrollbar-background": "ansi_default",
        "scrollbar-background-hover": "ansi_default",
        "scrollbar-background-active": "ansi_default",
        "scrollbar-corner-color": "ansi_default",
        "ansi-background": "ansi_black",
        "ansi-foreground": "ansi_white",
    },
)

# Okabe and Ito's palette (2008), the two darkest made lighter for a dark ground.
_CLUSTERS = (
    "#e69f00", "#56b4e9", "#1fb58a", "#f0e442", "#cc79a7", "#e8704a", "#3d8fd1", "#b8c0cc",
)  # fmt: skip
_CLUSTERS_ANSI = ("yellow", "cyan", "green", "bright_yellow", "magenta", "red", "blue", "white")

_DARK_STYLES: Mapping[str, str] = {
    "": "",
    "muted": "#7f8b9a",
    "faint": "#46525f",
    "strong": "bold",
    "accent": "#56b4e9",
    "title": "bold #56b4e9",
    "header": "#7f8b9a",
    "sorted": "bold #d3dae3",
    "trend": "#4d7ba1",
    "cursor": "on #22354a",
    "mark": "bold #56b4e9",
    "emulated": "#cc9a4a",
    "badge": "bold #10151b on #cc9a4a",
    "good": "#2fb38a",
    "warn": "#e69f00",
    "bad": "bold #e8704a",
    "ok": "#2fb38a",
    "busy": "#56b4e9",
    "failed": "bold #e8704a",
    "off": "#7f8b9a",
    "unknown": "#7f8b9a",
    "firing": "bold #e8704a",
    "acknowledged": "#e69f00",
    "pending": "#7f8b9a",
    "recovering": "#2fb38a",
    "silenced": "#7f8b9a",
    "resolved": "#7f8b9a",
    "queued": "#7f8b9a",
    "running": "#56b4e9",
    "finished": "#2fb38a",
    "partly": "#e69f00",
    "rolled back": "#e69f00",
    "cancelled": "#7f8b9a",
    "interrupted": "#e69f00",
    "noise": "#97a3b3",
    "key": "bold #56b4e9",
    "tab": "bold #10151b on #56b4e9",
    "filled": "reverse",
    "picked": "underline",
    "pointer": "#d3dae3",
}
_ANSI_STYLES: Mapping[str, str] = {
    **dict.fromkeys(_DARK_STYLES, ""),
    "muted": "dim",
    "faint": "dim",
    "strong": "bold",
    "accent": "cyan",
    "title": "bold cyan",
    "header": "dim",
    "sorted": "bold",
    "trend": "cyan",
    "cursor": "reverse",
    "mark": "bold cyan",
    "emulated": "yellow",
    "badge": "reverse yellow",
    "good": "green",
    "warn": "yellow",
    "bad": "bold red",
    "ok": "green",
    "busy": "cyan",
    "failed": "bold red",
    "off": "dim",
    "firing": "bold red",
    "acknowledged": "yellow",
    "pending": "dim",
    "recovering": "green",
    "silenced": "dim",
    "running": "cyan",
    "finished": "green",
    "partly": "yellow",
    "rolled back": "yellow",
    "interrupted": "yellow",
    "key": "bold cyan",
    "tab": "reverse cyan",
    "filled": "reverse",
    "picked": "underline",
}


class Palette:
    """Styles by name, for one look."""

    def __init__(self, look: Look) -> None:
        self.look = look
        named = _DARK_STYLES if look == "dark" else _ANSI_STYLES
        self._styles = {name: Style.parse(text) for name, text in named.items()}
        colours = _CLUSTERS if look == "dark" else _CLUSTERS_ANSI
        self._clusters = [Style.parse(f"bold {colour}") for colour in colours]
        if look == "mono":
            self._styles = {n: s.without_color for n, s in self._styles.items()}
            self._clusters = [s.without_color for s in self._clusters]

    def __getitem__(self, name: str) -> Style:
        if name.startswith("cluster"):
            return self.cluster(int(name.removeprefix("cluster")))
        return self._styles.get(name, self._styles[""])

    def cluster(self, label: int | None) -> Style:
        """Return a cluster's style; noise is grey."""
        if label is None or label < 0:
            return self._styles["noise"]
        return self._clusters[label % len(self._clusters)]


@cache
def palette(look: Look) -> Palette:
    """Return the styles of a look."""
    return Palette(look)


def pick_look(environ: Mapping[str, str]) -> Look:
    """Return what the terminal can show, or what HDAP_THEME asks for.

    `NO_COLOR` wins over everything; a terminal of 16 colours keeps its own.
    """
    if "NO_COLOR" in environ:
        return "mono"
    wanted = environ.get("HDAP_THEME", "")
    if wanted in {"dark", "ansi"}:
        return "ansi" if wanted == "ansi" else "dark"
    term = environ.get("TERM", "")
    rich_colours = "COLORTERM" in environ or "256color" in term or "direct" in term
    return "dark" if rich_colours else "ansi"
