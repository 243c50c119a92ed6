"""Inventories that people have already: their hosts become devices of `fleet.toml`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from hdap_tui.inventory import ansible_ini, ansible_yaml, csv_table, ssh_hosts
from hdap_tui.inventory.found import Found
from hdap_tui.inventory.source import InventoryError, Text, read_text

FORMATS = ("ssh-config", "ansible", "csv")

__all__ = ["FORMATS", "Found", "InventoryError", "read"]

_SSH = re.compile(r"^[ \t]*(?:Host|Match|Include)[ \t=]+\S", re.IGNORECASE | re.MULTILINE)
_SECTION = re.compile(r"^[ \t]*\[[^\]\n]+\][ \t]*(?:[#;].*)?$", re.MULTILINE)
_YAML = re.compile(r"^(?:---|[\w.-]+:[ \t]*(?:#.*)?$)", re.MULTILINE)
_INI_HOST = re.compile(r"^[\w.\[\]:-]+(?:[ \t]+ansible_\w+=.*)?$", re.MULTILINE)


def read(path: Path, format: str = "") -> Found:
    """Read the hosts of an inventory; "-" is the standard input.

    Args:
        path: The file.
        format: One of FORMATS; empty: found from the name and the content.

    Raises:
        InventoryError: it cannot be read as such; the sentence names file and line.
    """
    text = read_text(path)
    reader = _reader(text, format or _guess(text))
    found = reader(text).unique()
    if not found.hosts and not found.left_out:
        raise InventoryError(f"{text.name}: it names no host.")
    return found


def _reader(text: Text, format: str) -> Callable[[Text], Found]:
    match format:
        case "ssh-config":
            return ssh_hosts.read
        case "csv":
            return csv_table.read
    is_yaml = text.suffix in {".yml", ".yaml", ".json"} or text.body.lstrip()[:1] == "{"
    is_ini = text.suffix in {".ini", ".cfg"} or _SECTION.search(text.body)
    if is_yaml or (not is_ini and _YAML.search(text.body)):
        return ansible_yaml.read
    return ansible_ini.read


def _guess(text: Text) -> str:
    """Return the format of a text.

    Raises:
        InventoryError: it looks like none of them.
    """
    if text.suffix in {".csv", ".tsv"}:
        return "csv"
    if text.suffix in {".yml", ".yaml", ".ini", ".json"}:
        return "ansible"
    if _SECTION.search(text.body) or text.body.lstrip().startswith("$ANSIBLE_VAULT"):
        return "ansible"
    if _SSH.search(text.body):
        return "ssh-config"
    if csv_table.looks_like(text):
        return "csv"
    lines = [line for line in text.body.splitlines() if line.strip() and line[0] not in "#;"]
    if _YAML.search(text.body) or (lines and all(map(_INI_HOST.match, lines))):
        return "ansible"
    raise InventoryError(
        f"{text.name}: what kind of inventory this is cannot be told from it; say it with "
        f"--format ({', '.join(FORMATS)})."
    )
