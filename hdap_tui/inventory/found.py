"""What inventories hold: hosts as the settings would describe them, and what was left out."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field, fields, replace

from hdap_tui.ssh.jumps import parse_jumps
from hdap_tui.text import clean

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,62}")
_HOST = re.compile(r"[^\s\x00-\x1f\x7f\[\]@/]+")
PROXY = (
    "is reached through a ProxyCommand, which is not supported; write it as a ProxyJump, or add the"
    ' device by hand, with proxy_jump ("none" for a direct way).'
)
"""What is said of a host that would be reached in another way than its inventory says."""
LIMIT = 100_000
"""Hosts of one inventory."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """One host; what is empty the inventory does not say."""

    name: str
    host: str = ""
    port: int = 0
    user: str = ""
    identity: str = ""
    certificate: str = ""
    proxy_jump: str = ""
    python: str = ""
    host_group: str = ""
    tags: tuple[str, ...] = ()
    place: str = field(default="", compare=False)
    """File and line."""

    @property
    def settings(self) -> dict[str, str | int | list[str]]:
        """The keys of its entry in `fleet.toml`; a host that is called as its name is left out."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "place"}
        if self.host == self.name:
            del values["host"]
        values["tags"] = list(self.tags)
        return {key: value for key, value in values.items() if value}

    @property
    def address(self) -> str:
        """How it is reached, for people."""
        user = f"{self.user}@" if self.user else ""
        port = f":{self.port}" if self.port else ""
        way = f" via {self.proxy_jump}" if self.proxy_jump else ""
        return f"{user}{self.host or self.name}{port}{way}"


@dataclass
class Found:
    """What an inventory holds."""

    format: str
    hosts: list[Host] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """A sentence for every host that cannot be taken as it stands."""
    notes: list[str] = field(default_factory=list)
    """What was not taken over on purpose."""

    def leave_out(self, place: str, name: str, problem: str) -> None:
        """Say why a host is not taken."""
        self.left_out.append(f'{place}: "{clean(name, 80)}" {problem}')

    def note(self, sentence: str) -> None:
        """Say once what was not taken over."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def take(self, host: Host, port: object = "") -> None:
        """Take a host, its port given as text, if all that it says makes sense."""
        number = str(port).strip()
        if number and not (number.isascii() and number.isdecimal() and 0 < int(number) < 65536):
            problem = f'has the port "{clean(number, 40)}"; it must be from 1 to 65535.'
        else:
            host = replace(host, port=int(number or 0))
            problem = _problem(host)
        if problem:
            self.leave_out(host.place, host.name, problem)
        else:
            self.hosts.append(host)

    def unique(self) -> Found:
        """Return the same without the hosts whose name is there twice: nobody knows which is right.

        Large and small letters count as the same.
        """
        by_name: defaultdict[str, list[Host]] = defaultdict(list)
        for host in self.hosts:
            by_name[host.name.lower()].append(host)
        kept = []
        for same in by_name.values():
            if len(same) == 1:
                kept += same
                continue
            places = " and ".join(host.place for host in same[:5])
            self.left_out.append(
                f'{places}: "{same[0].name}" is there {len(same)} times; names are unique, so'
                " none of them is taken."
            )
        return Found(self.format, kept, self.left_out, self.notes)


def valid_name(name: str) -> bool:
    """Say whether a device can be called so."""
    return _NAME.fullmatch(name) is not None


def valid_tag(tag: str) -> bool:
    """Say whether this can be a tag."""
    return _TAG.fullmatch(tag) is not None


def _problem(host: Host) -> str:
    if not valid_name(host.name):
        return (
            "is no name for a device: at most 63 letters, digits, dots, dashes and underscores, "
            "the first no sign."
        )
    if host.host and not _HOST.fullmatch(host.host):
        return f'has the address "{clean(host.host, 80)}", which is none.'
    for key in ("user", "identity", "certificate", "python"):
        value = str(getattr(host, key))
        if not value.isprintable() or "[" in value:
            return f'has the {key} "{clean(value, 80)}", which the settings cannot hold.'
    wrong = [tag for tag in host.tags if not valid_tag(tag)]
    if wrong:
        return f'has the tag "{clean(wrong[0], 80)}"; tags are letters, digits and . _ : / -'
    if host.host_group and not valid_name(host.host_group):
        return f'has the host group "{clean(host.host_group, 80)}", which is no name.'
    try:
        parse_jumps(host.proxy_jump or "none")
    except ValueError as error:
        return f"has a jump host that is none: {error}."
    return ""
