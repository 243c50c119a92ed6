"""The text of an inventory, and how a place in it is called."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from hdap_tui.errors import SettingsError

LIMIT = 64 * 2**20
"""Bytes that an inventory may have."""
STANDARD_INPUT = Path("-")
VAULT = "$ANSIBLE_VAULT"


class InventoryError(SettingsError):
    """An inventory that cannot be read."""


@dataclass(frozen=True)
class Text:
    """A whole inventory file."""

    path: Path
    body: str

    @property
    def name(self) -> str:
        """What to call it in a sentence: the path as seen from here, where it lies below."""
        if self.path == STANDARD_INPUT:
            return "the standard input"
        relative = os.path.relpath(self.path)
        return str(self.path) if relative.startswith("..") else relative

    @property
    def suffix(self) -> str:
        """End of the file's name, in small letters."""
        return self.path.suffix.lower()

    @property
    def folder(self) -> Path:
        """What relative paths in it are relative to."""
        return Path.cwd() if self.path == STANDARD_INPUT else self.path.absolute().parent

    def place(self, line: int) -> str:
        """Return file and line, counted from 1."""
        return f"{self.name}:{line}"

    def error(self, line: int, problem: str) -> InventoryError:
        """Return an error about a line."""
        return InventoryError(f"{self.place(line)}: {problem}")

    def key_file(self, value: str) -> str:
        """Return the path of a key as it stands in the settings: absolute, or of the home."""
        if not value or value.startswith(("~", "/")):
            return value
        return os.path.normpath(self.folder / value)


def read_text(path: Path) -> Text:
    """Read a file whole.

    Raises:
        InventoryError: it cannot be read, is no UTF-8 text, is encrypted, or is too long.
    """
    if path == STANDARD_INPUT:
        return _decoded(path, sys.stdin.buffer.read(LIMIT + 1))
    path = path.expanduser()
    if path.is_dir():
        raise InventoryError(f"{path}: this is a folder; name one inventory file in it.")
    try:
        with open(path, "rb") as file:
            return _decoded(path, file.read(LIMIT + 1))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InventoryError(f"{path}: the inventory cannot be read: {reason}.") from error


def _decoded(path: Path, data: bytes) -> Text:
    text = Text(path, "")
    if len(data) > LIMIT:
        raise InventoryError(
            f"{text.name}: it has more than {LIMIT >> 20} MB; that is no inventory."
        )
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\x00" in data[:4096]:
        raise InventoryError(f"{text.name}: not UTF-8 text; save the file as UTF-8.")
    try:
        body = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise text.error(line, "not UTF-8 text; save the file as UTF-8.") from error
    # A form feed or another rare separator is no new line to the programs that wrote this.
    return Text(path, body.replace("\r\n", "\n").replace("\r", "\n"))
