"""Ansible inventories in YAML, and the files of variables beside an inventory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from hdap_tui.config.source import did_you_mean
from hdap_tui.inventory.ansible import ENCRYPTED, Group, Inventory, Value, Variables
from hdap_tui.inventory.found import Found
from hdap_tui.inventory.source import STANDARD_INPUT, VAULT, InventoryError, Text, read_text
from hdap_tui.text import clean

_PARTS = ("hosts", "vars", "children")
_DEPTH = 100
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
Node = Any  # PyYAML has no types


def read(text: Text) -> Found:
    """Read an inventory.

    Raises:
        InventoryError: it is no YAML, or no inventory.
    """
    inventory = Inventory(text)
    root = _root(text)
    if root is None:
        raise InventoryError(f"{text.name}: it is empty.")
    pairs = _Pairs(text)
    for key, _, node in pairs.of(root, "the inventory"):
        if key == "_meta":
            raise text.error(
                _line(node), 'this is the output of "ansible-inventory --list"; add -y to it.'
            )
        _read_group(inventory, pairs, key, node, 0)
    read_beside(inventory)
    return inventory.settle()


def read_beside(inventory: Inventory) -> None:
    """Add the variables of the folders group_vars and host_vars beside the inventory.

    Raises:
        InventoryError: a file in there is no YAML.
    """
    if inventory.text.path == STANDARD_INPUT:
        return
    inventory.group("all", 1)
    for name, group in inventory.groups.items():
        group.variables.update(_variables_of(inventory, "group_vars", name))
    if (inventory.text.folder / "host_vars").is_dir():
        for name in inventory.places:
            inventory.variables[name].update(_variables_of(inventory, "host_vars", name))


def _variables_of(inventory: Inventory, kind: str, name: str) -> Variables:
    folder = inventory.text.folder / kind
    if not folder.is_dir() or "/" in name or name.startswith("."):
        return {}
    variables: Variables = {}
    for path in _files_of(folder / name):
        text = read_text(path)
        if text.body.lstrip().startswith(VAULT):
            inventory.notes.append(f"{text.name}: encrypted, so nothing in it is taken over.")
            continue
        root = _root(text)
        if root is not None:
            variables.update(_scalars(text, _Pairs(text), root))
    return variables


def _files_of(path: Path) -> Iterator[Path]:
    for suffix in ("", ".yml", ".yaml", ".json"):
        candidate = path.with_name(path.name + suffix)
        if candidate.is_file():
            yield candidate
    if path.is_dir():
        yield from sorted(p for p in path.iterdir() if p.is_file() and p.name[0] != ".")


def _read_group(inventory: Inventory, pairs: _Pairs, name: str, node: Node, depth: int) -> None:
    text = inventory.text
    if depth > _DEPTH:
        raise text.error(_line(node), f"groups are nested deeper than {_DEPTH} levels.")
    group = inventory.group(name, _line(node))
    for key, _, part in pairs.of(node, f'the group "{clean(name, 60)}"'):
        match key:
            case "hosts":
                _read_hosts(inventory, pairs, group, part)
            case "vars":
                group.variables.update(_scalars(text, pairs, part))
            case "children":
                for child, _, below in pairs.of(part, '"children"'):
                    group.children.append(child)
                    _read_group(inventory, pairs, child, below, depth + 1)
            case _:
                hint = did_you_mean(key, _PARTS)
                raise text.error(_line(part), f'a group has no "{clean(key, 60)}"; {hint}')


def _read_hosts(inventory: Inventory, pairs: _Pairs, group: Group, node: Node) -> None:
    for name, line, variables in pairs.of(node, '"hosts"'):
        inventory.add_hosts(group, name, line, _scalars(inventory.text, pairs, variables))


def _scalars(text: Text, pairs: _Pairs, node: Node) -> Variables:
    """Return the variables that are plain values; lists and tables say nothing of the way in."""
    return {
        key: Value(ENCRYPTED if value.tag == ENCRYPTED else value.value, text.place(_line(value)))
        for key, _, value in pairs.of(node, "the variables")
        if isinstance(value, yaml.ScalarNode) and not value.tag.endswith(":null")
    }


def _root(text: Text) -> Node:
    """Return the root of a YAML text as nodes, which know their lines and run no constructor.

    Raises:
        InventoryError: it is no YAML.
    """
    if text.body.lstrip().startswith(VAULT):
        raise InventoryError(f"{text.name}: encrypted; write it out with ansible-vault view.")
    try:
        _check_depth(text)
        return yaml.compose(text.body, Loader=_LOADER)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = clean(getattr(error, "problem", None) or str(error), 120)
        raise text.error(mark.line + 1 if mark else 1, f"not valid YAML: {problem}.") from error


def _check_depth(text: Text) -> None:
    """Refuse what nests so deep that building it would end the process: libyaml does not.

    Raises:
        InventoryError: it does.
        yaml.YAMLError: it is no YAML.
    """
    depth = 0
    for event in yaml.parse(text.body, Loader=_LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _DEPTH:
                raise text.error(_line(event), f"it is nested deeper than {_DEPTH} levels.")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


class _Pairs:
    """Reads mappings; counts what it gives, since an alias can make a short text very long."""

    limit = 1_000_000

    def __init__(self, text: Text) -> None:
        self._text = text
        self._given = 0

    def of(self, node: Node, what: str, depth: int = 0) -> list[tuple[str, int, Node]]:
        """Return keys, their lines and values of a mapping; nothing of an empty one.

        Raises:
            InventoryError: it is something else, or has a key twice.
        """
        if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null"):
            return []
        if not isinstance(node, yaml.MappingNode):
            hint = ""
            if what == '"hosts"' or what == '"children"':
                hint = ": NAME: with a colon, one a line"
            raise self._text.error(_line(node), f"{what} must be a mapping{hint}.")
        merged: dict[str, tuple[int, Node]] = {}
        own: dict[str, tuple[int, Node]] = {}
        for key, value in node.value:
            line = _line(key)
            self._given += 1
            if self._given > self.limit or depth > _DEPTH:
                raise self._text.error(line, "aliases make this too long to be an inventory.")
            if key.tag.endswith(":merge"):
                parts = value.value if isinstance(value, yaml.SequenceNode) else [value]
                for part in reversed(parts):
                    below = self.of(part, "what << names", depth + 1)
                    merged.update({name: (at, node) for name, at, node in below})
                continue
            if not isinstance(key, yaml.ScalarNode):
                raise self._text.error(line, "a name must be a plain text.")
            if key.value in own:
                raise self._text.error(
                    line,
                    f'"{clean(key.value, 60)}" is there already, on line {own[key.value][0]}; '
                    "names are unique.",
                )
            own[key.value] = line, value
        return [(name, line, value) for name, (line, value) in {**merged, **own}.items()]


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1
