"""Devices put into `fleet.toml`, with everything that stands there left as it is."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

import tomlkit

from engine.files import write
from hdap_tui.config import load_text
from hdap_tui.config.locate import key_lines
from hdap_tui.errors import SettingsError
from hdap_tui.inventory.found import Host, valid_name

_HEADER = re.compile(r"^[ \t]*\[\[[ \t]*devices[ \t]*\]\]", re.MULTILINE)
_NEW = """\
# The fleet that hdap watches. What is wrong in here: "hdap config check". What holds where nothing
# is said: "hdap config show"; every key is explained in docs/fleet-toml.md.

[fleet]
name = "{name}"
"""


def new_file(folder: Path) -> str:
    """Return the beginning of a `fleet.toml` for a real fleet; it is named after its folder."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.name).strip("-._")[:63]
    return _NEW.format(name=name if valid_name(name) else "fleet")


def with_devices(text: str, hosts: Sequence[Host]) -> str:
    """Return the text of a valid settings file with devices added behind those that are there."""
    newline = "\r\n" if "\r\n" in text else "\n"
    text = text.replace("\r\n", "\n")
    if isinstance(tomllib.loads(text).get("devices"), list) and not _HEADER.search(text):
        return _in_the_list(text, hosts).replace("\n", newline)
    lines = text.split("\n")
    at = _place(text, lines)
    head = "\n".join(lines[:at]).rstrip()
    tail = "\n".join(lines[at:]).strip("\n")
    parts = [head, *map(_block, hosts), tail]
    return ("\n\n".join(part for part in parts if part) + "\n").replace("\n", newline)


def save(path: Path, text: str, before: bytes | None) -> None:
    """Put a settings file in place, whole or not at all, if it loads.

    Args:
        path: The file; a link stays one.
        text: What it is to hold.
        before: What it held when it was read; None: it was not there.

    Raises:
        SettingsError: the text is no valid settings file, or the file was changed meanwhile, or
            cannot be written. What stands there is as it was.
    """
    load_text(path, text)
    file = path.resolve()
    try:
        now = file.read_bytes() if file.exists() else None
        if now != before:
            raise SettingsError(f"{path} was changed meanwhile; run the command again.")
        file.parent.mkdir(parents=True, exist_ok=True)
        mode = file.stat().st_mode & 0o777 if now is not None else 0o644
        write(file, text, mode)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise SettingsError(f"{path} cannot be written: {reason}.") from error


def _block(host: Host) -> str:
    table = tomlkit.table()
    table.update(host.settings)
    return f"[[devices]]\n{table.as_string().rstrip()}"


def _in_the_list(text: str, hosts: Sequence[Host]) -> str:
    """Add to ``devices = [{…}, …]``."""
    document = tomlkit.parse(text)
    devices = document["devices"]
    for host in hosts:
        entry = tomlkit.inline_table()
        entry.update(host.settings)
        devices.append(entry)
    return tomlkit.dumps(document)


def _place(text: str, lines: list[str]) -> int:
    """Return the line in front of which devices are added: behind the last, or at the end.

    A comment right above the next section belongs to that section.
    """
    known = key_lines(text)
    numbers = [path[1] for path in known if path[:1] == ("devices",) and len(path) == 2]
    if not numbers:
        return len(lines)
    last = ("devices", max(int(number) for number in numbers))
    after = [line for path, line in known.items() if line > known[last] and path[:2] != last]
    at = min(after, default=len(lines) + 1) - 1
    while after and lines[at - 1].lstrip().startswith("#"):
        at -= 1
    return at
