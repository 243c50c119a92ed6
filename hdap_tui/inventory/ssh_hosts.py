"""The hosts of an OpenSSH client configuration (ssh_config(5))."""

from __future__ import annotations

import fnmatch
import getpass
from collections import defaultdict
from pathlib import Path

from hdap_tui.inventory.arguments import jump_of_command
from hdap_tui.inventory.found import PROXY, Found, Host
from hdap_tui.inventory.source import STANDARD_INPUT, InventoryError, Text
from hdap_tui.ssh.config_file import Alias, Line, Lines
from hdap_tui.ssh.config_file import read as read_lines
from hdap_tui.ssh.jumps import Hop, parse_jumps
from hdap_tui.text import clean

_DEPTH = 8
"""How many jump hosts may stand behind each other."""


def read(text: Text) -> Found:
    """Read the `Host` blocks that name hosts; those with patterns only add to them.

    Raises:
        InventoryError: it comes from the standard input, where nothing can be included from.
    """
    if text.path == STANDARD_INPUT:
        raise InventoryError("an SSH configuration is read from its file; name it.")
    own = Path.home() / ".ssh"
    path = text.path.expanduser().absolute()
    return _Reader(text, read_lines([(path, own)]), path == own / "config").found()


class _Reader:
    def __init__(self, text: Text, lines: Lines, keep_jumps: bool) -> None:
        self._text = text
        self._lines = lines
        self._keep_jumps = keep_jumps
        """Jump hosts stay as written: connections look into the operator's own file themselves."""
        self._by_blocks: defaultdict[tuple[int, ...], list[tuple[int, Line]]] = defaultdict(list)
        for number, line in enumerate(lines.lines):
            self._by_blocks[line.blocks].append((number, line))
        self._literal: defaultdict[str, set[int]] = defaultdict(set)
        self._patterns: list[int] = []
        for block, patterns in enumerate(lines.hosts):
            if any(set("*?!") & set(pattern) for pattern in patterns):
                self._patterns.append(block)
            for pattern in patterns:
                self._literal[pattern].add(block)
        self._innermost: defaultdict[int, list[tuple[int, ...]]] = defaultdict(list)
        for blocks in self._by_blocks:
            if blocks:
                self._innermost[blocks[-1]].append(blocks)

    def found(self) -> Found:
        result = Found("ssh-config")
        if self._lines.matches:
            result.note(
                f"{self._text.name}: Match blocks are not looked into; what they set is not taken"
                " over."
            )
        seen: set[str] = set()
        for alias in self._lines.aliases:
            if alias.name.lower() not in seen:
                seen.add(alias.name.lower())
                self._take(alias, result)
        return result

    def _take(self, alias: Alias, result: Found) -> None:
        values = self._values(alias.name)
        user = values.get("user", "")
        place = Text(alias.path, "").place(alias.line)
        if user == "git":
            result.note(f"{place}: {clean(alias.name, 63)} is a Git server (User git), no device.")
            return
        host = _expanded(values.get("hostname", ""), h=alias.name) or alias.name
        jump = values.get("proxyjump", "")
        command = values.get("proxycommand", "none")
        if not jump and command.lower() != "none":
            jump = jump_of_command(command)
            if not jump:
                result.leave_out(place, alias.name, PROXY)
                return
        host_entry = Host(
            name=alias.name,
            host=host,
            user=user,
            identity=_file(values.get("identityfile", ""), host, user),
            certificate=_file(values.get("certificatefile", ""), host, user),
            proxy_jump=self._jump(jump, result),
            place=place,
        )
        result.take(host_entry, values.get("port", ""))

    def _jump(self, jump: str, result: Found) -> str:
        """Return jump hosts as the settings need them."""
        if not jump or jump.lower() == "none" or self._keep_jumps:
            return jump
        try:
            for hop in parse_jumps(jump):
                if key := self._values(hop.host).get("identityfile"):
                    result.note(
                        f"{self._text.name}: the jump host {clean(hop.host, 63)} has a key of its"
                        f" own ({clean(key, 80)}); say so in ~/.ssh/config, where it is looked for."
                    )
            return ",".join(self._hops(jump, 0))
        except ValueError:
            return jump  # whoever takes the host says what is wrong with it

    def _hops(self, written: str, depth: int) -> list[str]:
        """Return jump hosts as they are reached without this file."""
        hops: list[str] = []
        for hop in parse_jumps(written):
            values = self._values(hop.host)
            before = values.get("proxyjump", "none")
            if not hops and before.lower() != "none" and depth < _DEPTH:
                hops += self._hops(before, depth + 1)
            hops.append(_written(hop, values))
        return hops

    def _values(self, name: str) -> dict[str, str]:
        """Return what holds for a host: of every key the first value."""
        name = name.lower()
        hits = {block for block in self._literal.get(name, ()) if block not in self._patterns}
        hits |= {block for block in self._patterns if _hit(name, self._lines.hosts[block])}
        lines = list(self._by_blocks.get((), ()))
        for block in hits:
            for blocks in self._innermost[block]:
                if set(blocks) <= hits:
                    lines += self._by_blocks[blocks]
        values: dict[str, str] = {}
        for _, line in sorted(lines, key=lambda pair: pair[0]):
            if line.values:
                values.setdefault(line.key, " ".join(line.values))
        return values


def _written(hop: Hop, values: dict[str, str]) -> str:
    user = hop.user or values.get("user", "")
    port = hop.port or values.get("port", "")
    host = _expanded(values.get("hostname", ""), h=hop.host) or hop.host
    host = f"[{host}]" if ":" in host else host
    return f"{user}@{host}".lstrip("@") + (f":{port}" if port else "")


def _hit(name: str, patterns: tuple[str, ...]) -> bool:
    hits = [
        pattern.startswith("!")
        for pattern in patterns
        if fnmatch.fnmatchcase(name, pattern.removeprefix("!").replace("[", "[[]"))
    ]
    return bool(hits) and not any(hits)


def _file(value: str, host: str, user: str) -> str:
    if value.lower() == "none":
        return ""
    return _expanded(value, h=host, r=user, d="~", u=_own_name())


def _expanded(value: str, **known: str) -> str:
    """Replace the tokens of ssh_config(5) that can be known here."""
    known["%"] = "%"
    pieces, rest = [], value
    while "%" in rest:
        head, _, rest = rest.partition("%")
        pieces += [head, known.get(rest[:1], f"%{rest[:1]}")]
        rest = rest[1:]
    return "".join([*pieces, rest])


def _own_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user that nobody has named
        return ""
