"""On which line of a TOML text each key stands.

`tomllib` forgets where it read a key, and a message without a line sends people searching. The
text has been parsed by `tomllib` before it comes here, so this scanner may trust that it is valid
and only has to skip values correctly.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right

KeyPath = tuple[str | int, ...]
"""Keys from the root, and indices where there is a list: ("devices", 0, "port")."""

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SPACE = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SCALAR_END = re.compile(r"[,\]}\n#]")


def key_lines(text: str) -> dict[KeyPath, int]:
    """Return the line, counted from 1, of every key and list element of a valid TOML text.

    A table's line is that of its header, or of the first key that implies it.
    """
    return _Scanner(text).scan()


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line_starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self._lengths: dict[KeyPath, int] = {}
        """How many elements each array of tables has so far."""
        self._lines: dict[KeyPath, int] = {}

    def scan(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        self._skip_space()
        while self._at < len(self._text):
            if self._text[self._at] == "[":
                table = self._header()
            else:
                self._pair(table)
            self._skip_space()
        return self._lines

    def _header(self) -> KeyPath:
        """Read ``[a.b]`` or ``[[a.b]]`` and return the path that its keys have."""
        line = self._line()
        is_array = self._text.startswith("[[", self._at)
        self._at += 2 if is_array else 1
        *parents, last = self._dotted_key()
        path: KeyPath = ()
        for part in parents:
            path = self._newest((*path, part), line)
        path = (*path, last)
        if is_array:
            self._note(path, line)
            self._lengths[path] = self._lengths.get(path, 0) + 1
        path = self._newest(path, line)
        self._at += 2 if is_array else 1
        return path

    def _newest(self, path: KeyPath, line: int) -> KeyPath:
        """Return the path, or that of its newest element where it is an array of tables."""
        self._note(path, line)
        if path in self._lengths:
            path = (*path, self._lengths[path] - 1)
            self._note(path, line)
        return path

    def _pair(self, table: KeyPath) -> None:
        line = self._line()
        path = table
        for part in self._dotted_key():
            path = (*path, part)
            self._note(path, line)
        self._at += 1  # the equals sign
        self._skip_blanks()
        self._value(path)

    def _dotted_key(self) -> list[str]:
        """Read a dotted key; ends at the first character after it that is no blank."""
        parts = []
        while True:
            self._skip_blanks()
            start = self._at
            if self._text[start] in "\"'":
                self._string()
                parts.append(tomllib.loads(f"k = {self._text[start : self._at]}")["k"])
            else:
                match = _BARE_KEY.match(self._text, start)
                assert match is not None, "the text is valid TOML"
                self._at = match.end()
                parts.append(match.group())
            self._skip_blanks()
            if self._text[self._at] != ".":
                return parts
            self._at += 1

    def _value(self, path: KeyPath) -> None:
        first = self._text[self._at]
        if first in "\"'":
            self._string()
        elif first == "[":
            self._array(path)
        elif first == "{":
            self._inline_table(path)
        else:
            end = _SCALAR_END.search(self._text, self._at)
            self._at = end.start() if end else len(self._text)

    def _array(self, path: KeyPath) -> None:
        self._at += 1
        index = 0
        self._skip_space()
        while self._text[self._at] != "]":
            self._note((*path, index), self._line())
            self._value((*path, index))
            index += 1
            self._skip_separator()
        self._at += 1

    def _inline_table(self, path: KeyPath) -> None:
        self._at += 1
        self._skip_space()
        while self._text[self._at] != "}":
            self._pair(path)
            self._skip_separator()
        self._at += 1

    def _string(self) -> None:
        quote = self._text[self._at]
        multiline = self._text.startswith(quote * 3, self._at)
        end = quote * 3 if multiline else quote
        self._at += len(end)
        while not self._text.startswith(end, self._at):
            self._at += 2 if quote == '"' and self._text[self._at] == "\\" else 1
        self._at += len(end)
        if multiline:  # up to two quotes may stand right before the closing ones
            while self._text.startswith(quote, self._at):
                self._at += 1

    def _skip_separator(self) -> None:
        self._skip_space()
        if self._text[self._at] == ",":
            self._at += 1
            self._skip_space()

    def _skip_space(self) -> None:
        match = _SPACE.match(self._text, self._at)
        assert match is not None, "the pattern matches nothing, too"
        self._at = match.end()

    def _skip_blanks(self) -> None:
        while self._text[self._at] in " \t":
            self._at += 1

    def _line(self) -> int:
        return bisect_right(self._line_starts, self._at)

    def _note(self, path: KeyPath, line: int) -> None:
        self._lines.setdefault(path, line)
