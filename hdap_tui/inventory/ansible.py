"""What an Ansible inventory says of each host, put together from groups as Ansible does."""

from __future__ import annotations

import re
import string
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from hdap_tui.inventory.arguments import jump_of_arguments
from hdap_tui.inventory.found import LIMIT, PROXY, Found, Host, valid_tag
from hdap_tui.inventory.source import VAULT, Text
from hdap_tui.text import clean

ENCRYPTED = "!vault"
"""Stands for a value that is encrypted."""

_NO_TAGS = frozenset({"all", "ungrouped"})
_HOST = ("ansible_host", "ansible_ssh_host")
_PORT = ("ansible_port", "ansible_ssh_port")
_USER = ("ansible_user", "ansible_ssh_user")
_KEY = ("ansible_ssh_private_key_file", "ansible_private_key_file")
_PYTHON = ("ansible_python_interpreter",)
_ARGUMENTS = ("ansible_ssh_common_args", "ansible_ssh_extra_args", "ansible_ssh_args")
SECRETS = re.compile(r"ansible_\w*(?:pass|password|passphrase|become_pass)\Z")
"""Variables whose values nobody may see."""
_SSH = frozenset({"", "ssh", "smart", "paramiko", "paramiko_ssh", "ansible.builtin.ssh"})
_TEMPLATE = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_USUAL_PYTHON = re.compile(r"auto\w*|(?:/usr(?:/local)?)?(?:/bin/)?python[23]?")
"""What is no choice: hdap looks for that by itself."""
_RANGE = re.compile(r"\[(\w*):(\w*)(?::(\d+))?\]", re.ASCII)


@dataclass(frozen=True)
class Value:
    """A variable's value, and where it stands."""

    text: str
    place: str = ""


Variables = dict[str, Value]


@dataclass
class Group:
    """One group."""

    place: str
    hosts: list[str] = field(default_factory=list)
    children: list[str] = field(default_factory=list)
    variables: Variables = field(default_factory=dict)


@dataclass
class Inventory:
    """Groups and hosts as they are written."""

    text: Text
    groups: dict[str, Group] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    """Where each host stands first."""
    variables: defaultdict[str, Variables] = field(default_factory=lambda: defaultdict(dict))
    """Of each host."""
    notes: list[str] = field(default_factory=list)
    """What was not read."""

    def group(self, name: str, line: int) -> Group:
        """Return a group, new where it was not there."""
        return self.groups.setdefault(name, Group(self.text.place(line)))

    def add_hosts(self, group: Group, pattern: str, line: int, variables: Variables) -> None:
        """Put the hosts of a pattern into a group.

        Raises:
            InventoryError: the pattern is wrong, or there are too many hosts.
        """
        try:
            names, port = _hosts(pattern)
        except ValueError as error:
            raise self.text.error(line, f'"{clean(pattern, 80)}" {error}.') from error
        if len(self.places) + len(names) > LIMIT:
            raise self.text.error(line, f"these are more than {LIMIT} hosts.")
        if port:
            variables = {_PORT[0]: Value(port, self.text.place(line)), **variables}
        for name in names:
            self.places.setdefault(name, self.text.place(line))
            self.variables[name].update(variables)
        group.hosts += names

    def settle(self) -> Found:
        """Return the hosts with everything that holds for them.

        Raises:
            InventoryError: groups contain each other in a circle.
        """
        found = Found("ansible", notes=list(self.notes))
        above = self._above()
        member: defaultdict[str, list[str]] = defaultdict(list)
        for name, group in self.groups.items():
            for host in group.hosts:
                member[host].append(name)
        merged: dict[frozenset[str], Variables] = {}
        for host, place in self.places.items():
            direct = frozenset(member[host])
            groups = {"all", *direct, *(parent for name in direct for parent in above[name])}
            if direct not in merged:
                merged[direct] = self._merged(groups, above)
            tags = tuple(name for name in self.groups if name in groups - _NO_TAGS)
            _take(self.text, host, place, {**merged[direct], **self.variables[host]}, tags, found)
        return found

    def _above(self) -> dict[str, frozenset[str]]:
        """Return the groups that each group is in, over any number of steps."""
        parents: defaultdict[str, set[str]] = defaultdict(set)
        for name, group in self.groups.items():
            for child in group.children:
                parents[child].add(name)
        above: dict[str, frozenset[str]] = {}

        def climb(name: str, way: tuple[str, ...]) -> frozenset[str]:
            if name in way:
                circle = " -> ".join((*way[way.index(name) :], name))
                raise self.text.error(
                    1, f"the groups contain each other in a circle: {clean(circle, 120)}."
                )
            if len(way) > 100:
                raise self.text.error(1, "groups are nested deeper than 100 levels.")
            if name not in above:
                found = set(parents[name])
                for parent in parents[name]:
                    found |= climb(parent, (*way, name))
                above[name] = frozenset(found)
            return above[name]

        for name in self.groups:
            climb(name, ())
        return above

    def _merged(self, groups: set[str], above: dict[str, frozenset[str]]) -> Variables:
        """Return the groups' variables; the group that is deeper down goes before the others."""
        variables: Variables = {}
        depth = {name: len(above.get(name, ())) for name in groups}
        for name in sorted(groups, key=lambda name: (name != "all", depth[name], name)):
            if name in self.groups:
                variables.update(self.groups[name].variables)
        return variables


def _take(
    text: Text, name: str, place: str, variables: Variables, tags: tuple[str, ...], found: Found
) -> None:
    known = _Variables(name, variables)
    connection = known.one(("ansible_connection",)).text.removeprefix("community.docker.")
    if connection not in _SSH:
        found.note(
            f"{place}: {clean(name, 63)} is not reached over SSH (ansible_connection="
            f"{clean(connection, 40)}), so it is no device."
        )
        return
    for key, value in variables.items():
        if SECRETS.match(key):
            found.note(
                f"{value.place}: {clean(key, 60)} is not taken over: passwords are asked for, or"
                " come from ssh.password_command."
            )
    for key in (*_HOST, *_PORT, *_USER, *_KEY, *_ARGUMENTS):
        problem = known.problem(key)
        if problem:
            found.leave_out(known.one((key,)).place or place, name, problem)
            return
    jump = proxy = ""
    for key in _ARGUMENTS:
        arguments = known.one((key,))
        one, other = jump_of_arguments(arguments.text)
        jump = jump or one
        proxy = proxy or (arguments.place if other else "")
    if proxy and not jump:
        found.leave_out(proxy, name, PROXY)
        return
    python = known.one(_PYTHON).text
    wrong = [tag for tag in tags if not valid_tag(tag)]
    for tag in wrong:
        found.note(f'{text.name}: the group "{clean(tag, 60)}" cannot be a tag.')
    host = Host(
        name=name,
        host=known.one(_HOST).text,
        user=known.one(_USER).text,
        identity=text.key_file(known.one(_KEY).text),
        proxy_jump=jump,
        python="" if _USUAL_PYTHON.fullmatch(python) or "{{" in python else python,
        tags=tuple(tag for tag in tags if tag not in wrong),
        place=place,
    )
    if ":" in name:  # an IPv6 address is no name for a device
        host = replace(host, name=re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-"), host=name)
    found.take(host, known.one(_PORT).text)


class _Variables:
    """The variables of one host, templates worked out where they only name another variable."""

    def __init__(self, name: str, variables: Variables) -> None:
        self._variables = {
            "inventory_hostname": Value(name),
            "inventory_hostname_short": Value(name.partition(".")[0]),
            **variables,
        }

    def one(self, keys: tuple[str, ...]) -> Value:
        """Return the first that is there; an empty value where none is."""
        for key in keys:
            value = self._variables.get(key)
            if value is not None and value.text:
                return Value(self._worked_out(value.text), value.place)
        return Value("")

    def problem(self, key: str) -> str:
        """Return what makes a value unfit, to be said after the host's name; empty if nothing."""
        text = self.one((key,)).text
        if text == ENCRYPTED or text.startswith(VAULT):
            return f"has an encrypted {key}, which only Ansible can read."
        if "{{" in text or "{%" in text:
            return f'has the {key} "{clean(text, 60)}", a template that only Ansible can work out.'
        return ""

    def _worked_out(self, text: str, depth: int = 0) -> str:
        def put(match: re.Match[str]) -> str:
            value = self._variables.get(match[1])
            if value is None or depth > 4 or len(value.text) > 500:
                return match[0]
            return self._worked_out(value.text, depth + 1)

        return _TEMPLATE.sub(put, text)


def _hosts(pattern: str) -> tuple[list[str], str]:
    """Return the names that a pattern stands for, and the port behind it."""
    port = ""
    address = re.fullmatch(r"\[([0-9A-Fa-f:.]+)\](?::(\d+))?", pattern)
    if address and ("::" in address[1] or address[1].count(":") == 7):
        return [address[1]], address[2] or ""
    if pattern.count(":") > 1 and "[" not in pattern:
        return [pattern], ""
    behind = re.fullmatch(r"(.*[^:\[]):(\d+)", pattern)
    if behind and "[" not in behind[2] and behind[1].count("[") == behind[1].count("]"):
        pattern, port = behind[1], behind[2]
    return list(_expanded(pattern)), port


def _expanded(pattern: str) -> Iterator[str]:
    texts = [""]
    end = 0
    for match in _RANGE.finditer(pattern):
        head = pattern[end : match.start()]
        members = _members(match[1], match[2], int((match[3] or "1")[:9]))
        if len(texts) * len(members) > LIMIT:
            raise ValueError(f"stands for more than {LIMIT} hosts")
        texts = [f"{text}{head}{member}" for text in texts for member in members]
        end = match.end()
    for text in texts:
        yield text + pattern[end:]


def _members(first: str, last: str, step: int) -> list[str]:
    if step < 1:
        raise ValueError("counts in steps of nothing")
    if len(first) == len(last) == 1 and first.isalpha() and last.isalpha():
        letters = string.ascii_letters
        low, high = letters.index(first), letters.index(last)
        members = list(letters[low : high + 1 : step])
    elif (first or "0").isdecimal() and last.isdecimal() and len(last) < 10 > len(first):
        low, high = int(first or 0), int(last)
        if high - low >= LIMIT:
            raise ValueError(f"stands for more than {LIMIT} hosts")
        members = [f"{number:0{len(first)}d}" for number in range(low, high + 1, step)]
    else:
        raise ValueError(f'has the range "[{first}:{last}]", which is neither numbers nor letters')
    if not members:
        raise ValueError(f"counts backward: [{first}:{last}]")
    return members
