"""Ansible inventories in INI style."""

from __future__ import annotations

import ast
import re
import shlex

from hdap_tui.config.source import did_you_mean
from hdap_tui.inventory.ansible import SECRETS, Group, Inventory, Value, Variables
from hdap_tui.inventory.ansible_yaml import read_beside
from hdap_tui.inventory.found import Found
from hdap_tui.inventory.source import VAULT, InventoryError, Text
from hdap_tui.text import clean

_SECTION = re.compile(r"\[([^:\]]+)(?::([^\]]*))?\]\s*(?:[#;].*)?")
_KINDS = ("children", "vars")


def read(text: Text) -> Found:
    """Read an inventory.

    Raises:
        InventoryError: a line of it means nothing.
    """
    if text.body.lstrip().startswith(VAULT):
        raise InventoryError(f"{text.name}: encrypted; write it out with ansible-vault view.")
    inventory = Inventory(text)
    group, kind = inventory.group("ungrouped", 1), ""
    for number, line in enumerate(text.body.split("\n"), start=1):
        line = line.strip()
        if not line or line[0] in "#;":
            continue
        if line[0] == "[" and (section := _SECTION.fullmatch(line)) and not _is_host(line):
            kind = (section[2] or "").strip()
            if section[2] is not None and kind not in _KINDS:
                hint = did_you_mean(kind, _KINDS)
                raise text.error(number, f'"{clean(kind, 40)}" is no kind of section; {hint}')
            group = inventory.group(section[1].strip(), number)
        elif line[0] == "[" and "]" not in line:
            raise text.error(
                number, f'"{clean(line, 40)}" is a section whose bracket is not closed.'
            )
        elif kind == "children":
            child = line.partition("#")[0].strip()
            inventory.group(child, number)
            group.children.append(child)
        elif kind == "vars":
            group.variables.update([_variable(text, number, line)])
        else:
            _host_line(inventory, group, number, line)
    read_beside(inventory)
    return inventory.settle()


def _is_host(line: str) -> bool:
    """Say whether a line in brackets is a host: a range or an IPv6 address and not a section."""
    return re.match(r"\[[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*\](?::\d+)?(?:\s|$)", line) is not None


def _host_line(inventory: Inventory, group: Group, number: int, line: str) -> None:
    text = inventory.text
    try:
        words = shlex.split(line, comments=True)
    except ValueError as error:
        raise text.error(number, "a quotation mark is not closed.") from error
    variables: Variables = {}
    for word in words[1:]:
        key, equals, value = word.partition("=")
        if not equals:
            secret = any(map(SECRETS.match, variables))  # then this may be a piece of it
            said = "what stands behind a blank" if secret else f'"{clean(word, 40)}"'
            raise text.error(number, f"{said} is no variable; write key=value.")
        variables[key] = Value(value, text.place(number))
    if words:
        inventory.add_hosts(group, words[0], number, variables)


def _variable(text: Text, number: int, line: str) -> tuple[str, Value]:
    key, equals, value = line.partition("=")
    key, value = key.strip(), value.strip()
    if not equals or not key:
        raise text.error(number, f'"{clean(line, 40)}" is no variable; write key=value.')
    if value[:1] in {'"', "'"} and len(value) < 4096:
        try:
            said = ast.literal_eval(value)  # as Ansible does; a comment may stand behind
            value = said if isinstance(said, str) else value
        except (ValueError, SyntaxError):
            pass
    return key, Value(value, text.place(number))
