"""The lines of an SSH configuration, with the `Host` blocks that they stand in (ssh_config(5)).

What holds for a host is for `ssh -G` to say. Read here is only which hosts need that question at
all, and which may share an answer; and the simple keys, for machines that have no `ssh`.
"""

from __future__ import annotations

import fnmatch
import glob
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SINGLE = frozenset(
    {
        "hostname", "port", "user", "identitiesonly", "identityagent", "proxyjump",
        "proxycommand", "hostkeyalias", "userknownhostsfile", "globalknownhostsfile",
    }
)  # fmt: skip
"""Keys that matter here and of which the first value counts."""
MANY = frozenset({"identityfile", "certificatefile"})
"""Keys that matter here and of which all values count."""
_DEPTH = 16  # as many files may include each other


@dataclass(frozen=True)
class Line:
    """One setting."""

    key: str
    """In small letters."""
    values: tuple[str, ...]
    blocks: tuple[int, ...]
    """The blocks around it, by number; all of them must match."""


@dataclass(frozen=True)
class Alias:
    """A name that a `Host` block is for, where it is no pattern."""

    name: str
    path: Path
    line: int


@dataclass
class Lines:
    """All settings of some files, and those that they include."""

    lines: list[Line] = field(default_factory=list)
    hosts: list[tuple[str, ...]] = field(default_factory=list)
    """The patterns of each `Host` block, by its number."""
    aliases: list[Alias] = field(default_factory=list)
    """The names among them, as written."""
    stamps: dict[Path, object] = field(default_factory=dict)
    """What the files looked like when they were read."""
    matches: bool = False
    """Whether there is a `Match`, which only ssh itself can judge."""

    def holding(self, host: str) -> list[Line]:
        """Return the settings in blocks that match a host, as far as `Host` decides."""
        hits = [_hit(host.lower(), patterns) for patterns in self.hosts]
        return [line for line in self.lines if all(hits[block] for block in line.blocks)]

    @property
    def current(self) -> bool:
        """Whether the files are still those that were read."""
        return all(stamp(path) == seen for path, seen in self.stamps.items())


def read(files: Sequence[tuple[Path, Path]]) -> Lines:
    """Read configuration files, each with the folder that its `Include` starts from."""
    found = Lines()
    for path, base in files:
        _read(found, path, base, (), 0)
    return found


def stamp(path: Path) -> object:
    """Return what changes when a file does; None where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _read(found: Lines, path: Path, base: Path, around: tuple[int, ...], depth: int) -> None:
    found.stamps[path] = stamp(path)
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    blocks = around
    for number, key, values in _settings(text):
        if key == "host":
            found.hosts.append(tuple(value.lower() for value in values))
            names = (value for value in values if not set("*?!") & set(value))
            found.aliases += [Alias(name, path, number) for name in names]
            blocks = (*around, len(found.hosts) - 1)
        elif key == "match":
            found.matches = True
            found.hosts.append(())  # matches nothing, as far as this reader knows
            blocks = (*around, len(found.hosts) - 1)
        elif key == "include" and depth < _DEPTH:
            for value in values:
                pattern = str(base / Path(value).expanduser())
                for name in sorted(glob.glob(pattern)):
                    _read(found, Path(name), base, blocks, depth + 1)
        else:
            found.lines.append(Line(key, values, blocks))


def _settings(text: str) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        key, _, rest = re.sub(r"^(\w+)\s*=\s*", r"\1 ", line).partition(" ")
        if "\t" in key:
            key, _, more = key.partition("\t")
            rest = f"{more} {rest}"
        try:
            values = shlex.split(rest, comments=True)
        except ValueError:  # a quote that nobody closed: ssh says so when it is asked
            values = rest.split()
        yield number, key.lower(), tuple(values)


def _hit(host: str, patterns: tuple[str, ...]) -> bool:
    hits = [p.startswith("!") for p in patterns if _like(host, p.removeprefix("!"))]
    return bool(hits) and not any(hits)


def _like(host: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(host, pattern.replace("[", "[[]"))
