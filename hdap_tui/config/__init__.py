"""`fleet.toml` becomes typed, validated settings; a mistake names file, line and key."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hdap_tui.config import schema
from hdap_tui.config.check import build
from hdap_tui.config.settings import Device, Model, Settings, settle
from hdap_tui.config.source import Source
from hdap_tui.errors import SettingsError

if TYPE_CHECKING:
    from hdap_tui.config.reference import Entry

FILE_NAME = "fleet.toml"

__all__ = [
    "FILE_NAME",
    "Device",
    "Model",
    "Settings",
    "describe",
    "find",
    "load",
    "load_text",
    "schema",
]


def load(path: Path) -> Settings:
    """Read a settings file.

    Raises:
        SettingsError: it cannot be read, or something in it is wrong; the sentence names file,
            line and key, and what is allowed there.
    """
    source = Source.read(Path(path).absolute())
    return settle(build(schema.File, source.parse(), source), source)


def load_text(path: Path, text: str) -> Settings:
    """Return the settings that a text would mean if it stood in this file.

    Raises:
        SettingsError: something in it is wrong, as in `load`.
    """
    source = Source(Path(path).absolute(), text)
    return settle(build(schema.File, source.parse(), source), source)


def find(explicit: Path | None = None) -> Path:
    """Return the settings file in force.

    That is the one named explicitly, else by the variable HDAP_CONFIG, else the nearest
    `fleet.toml` from the working folder upwards, else that of the user's configuration folder.
    A folder stands for the `fleet.toml` in it.

    Raises:
        SettingsError: there is none, or the one that was named does not exist.
    """
    named, where = explicit, "--config"
    if named is None and os.environ.get("HDAP_CONFIG"):
        named, where = Path(os.environ["HDAP_CONFIG"]), "HDAP_CONFIG"
    if named is not None:
        file = Path(named).expanduser().absolute()
        file = file / FILE_NAME if file.is_dir() else file
        if not file.exists():
            raise SettingsError(f"{where}: there is no settings file {file}.")
        return file
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / FILE_NAME).is_file():
            return folder / FILE_NAME
    from platformdirs import user_config_path

    file = user_config_path("hdap") / FILE_NAME
    if file.is_file():
        return file
    raise SettingsError(
        f"there is no {FILE_NAME} in {here} or above it, nor {file}; write one, make one with "
        '"hdap devices import", or name it with --config FILE.'
    )


def describe() -> Iterator[Entry]:
    """Yield every key of the settings file: section, key, what is allowed, default, meaning."""
    from hdap_tui.config import reference

    return reference.describe()
