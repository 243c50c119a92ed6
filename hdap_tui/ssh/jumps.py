"""Jump hosts as people write them: [user@]host[:port], several apart by commas."""

from __future__ import annotations

from dataclasses import dataclass

from hdap_tui.text import clean


@dataclass(frozen=True)
class Hop:
    """One jump host as it is written."""

    host: str
    user: str = ""
    port: int = 0
    """0 where none is written."""


def parse_jumps(written: str) -> list[Hop]:
    """Return the jump hosts, the first to be reached first; none for "none".

    Raises:
        ValueError: it is no such list; the text says what is wrong, without a full stop.
    """
    if written.strip().lower() == "none":
        return []
    return [_hop(part.strip()) for part in written.split(",")]


def _hop(part: str) -> Hop:
    user, at, place = part.removeprefix("ssh://").rstrip("/").rpartition("@")
    if place.startswith("["):
        host, _, port = place[1:].partition("]")
        port = port.removeprefix(":")
    else:
        host, _, port = place.partition(":")
    valid_port = not port or (port.isdecimal() and 0 < int(port) < 65536)
    if not host or (at and not user) or not valid_port or host.startswith("-") or " " in part:
        raise ValueError(
            f'"{clean(part, 80)}" names no jump host; write [user@]host[:port], several apart by'
            ' commas, or "none"'
        )
    return Hop(host, user, int(port or 0))
