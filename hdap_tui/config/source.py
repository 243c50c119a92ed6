"""A settings file as text, and the sentences that say what is wrong with it."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hdap_tui.config.locate import KeyPath, key_lines
from hdap_tui.errors import SettingsError

_AT_LINE = re.compile(r" \(at line (\d+), column (\d+)\)$")


@dataclass(frozen=True)
class Source:
    """Where settings come from; every mistake in them is told through it."""

    path: Path
    text: str

    @classmethod
    def read(cls, path: Path) -> Source:
        """Read a settings file.

        Raises:
            SettingsError: it cannot be read, or is no UTF-8 text.
        """
        try:
            return cls(path, path.read_bytes().decode("utf-8-sig"))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise SettingsError(f"{path}: the settings cannot be read: {reason}.") from error
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            raise SettingsError(
                f"{_short(path)}:{line}: not UTF-8 text; save the file as UTF-8."
            ) from error

    def parse(self) -> dict[str, Any]:
        """Return what the TOML text says.

        Raises:
            SettingsError: the text is not valid TOML.
        """
        try:
            return tomllib.loads(self.text)
        except tomllib.TOMLDecodeError as error:
            message = str(error)
            place = _AT_LINE.search(message)
            line = int(place[1]) if place else self.text.count("\n") + 1
            column = f", column {place[2]}" if place else ""
            reason = message[: place.start()] if place else message
            raise SettingsError(
                f"{_short(self.path)}:{line}: not valid TOML{column}: {reason[:1].lower()}"
                f"{reason[1:]}."
            ) from error
        except RecursionError as error:
            raise SettingsError(f"{_short(self.path)}: brackets are nested too deep.") from error

    def line(self, path: KeyPath) -> int:
        """Return the line of a key, or of what holds it where the key itself is not there."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 1)

    def error(self, path: KeyPath, problem: str) -> SettingsError:
        """Return an error about a key: file, line, key, and the problem as said after it."""
        return SettingsError(f"{self.place(path)}: {dotted(path)} {problem}")

    def place(self, path: KeyPath) -> str:
        """Return file and line of a key."""
        return f"{_short(self.path)}:{self.line(path)}"

    @cached_property
    def _lines(self) -> dict[KeyPath, int]:
        return key_lines(self.text)


def dotted(path: KeyPath) -> str:
    """Return a path as people write it; the line tells which element of a list is meant."""
    return ".".join(part for part in path if isinstance(part, str)) or "the file"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return what to append to a sentence about an unknown word: the closest, or all of a few."""
    known = list(known)
    close = difflib.get_close_matches(word.lower(), known, n=2, cutoff=0.6)
    if close:
        best = difflib.SequenceMatcher(None, close[0], word.lower()).ratio()
        close = difflib.get_close_matches(word.lower(), close, n=2, cutoff=max(0.6, best - 0.2))
        return "did you mean " + " or ".join(f'"{name}"' for name in close) + "?"
    if not known:
        return "there is none."
    listed = ", ".join(f'"{name}"' for name in known[:12])
    return f"known: {listed}{', …' if len(known) > 12 else '.'}"


def _short(path: Path) -> str:
    """Return the path as seen from here, where it lies below."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
