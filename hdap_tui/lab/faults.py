"""How an emulated device can fail, on request."""

from __future__ import annotations

import random
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cached_property
from typing import Annotated, Any, Literal, get_args

import msgspec

from hdap_tui.errors import SettingsError

Kind = Literal[
    "none",
    "refuse",
    "hang",
    "hang-after-auth",
    "drop",
    "full-disk",
    "garbage",
    "host-key-changed",
    "slow",
]
KINDS: tuple[str, ...] = get_args(Kind)
RECONNECT = frozenset({"refuse", "hang", "host-key-changed"})
"""Faults of new connections: the open ones are cut when such a fault begins."""
_LONG_LINE = 10_000_000


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """One fault in force.

    - refuse: the port is closed.
    - hang: connections are accepted, then nothing is ever said.
    - hang-after-auth: login works, commands and transfers never answer.
    - drop: a connection is cut `after_s` seconds after its first command or transfer; those that
      are open when the fault begins, `after_s` seconds from then.
    - full-disk: nothing more can be written, over SFTP or by a command.
    - garbage: what commands print and what is read over SFTP is replaced.
    - host-key-changed: another host key is shown.
    - slow: login, commands, each piece of output and each transfer step wait `delay_s` first.
    """

    kind: Kind = "none"
    after_s: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 0.5
    delay_s: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 0.2
    style: Literal["bytes", "escapes", "line"] = "bytes"
    """Garbage as random bytes, as terminal escapes, or as one line of 10 MB."""
    times: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """Drop and garbage end by themselves after having struck so often; None: never."""

    @cached_property
    def garbage(self) -> bytes:
        """What is sent in place of a command's output."""
        if self.style == "line":
            return b"A" * _LONG_LINE
        if self.style == "escapes":
            return _ESCAPES
        return random.Random(1).randbytes(4096)

    def spoil(self, size: int) -> bytes:
        """Garbage of a given size, for a read that must keep its length."""
        piece = self.garbage[:65536]
        return (piece * (size // len(piece) + 1))[:size]


_ESCAPES = b"".join(
    (
        b"\x1b]0;owned\x07",  # window title
        b"\x1b[2J\x1b[H\x1b[31;1m",  # clear, home, red
        b"\x1b]8;;http://example.invalid/\x1b\\link\x1b]8;;\x1b\\",
        b"\x1b[?1049h\x1b[?25l\x9b6n",  # other screen, no cursor, 8-bit report request
        b"\x1b]52;c;aGVsbG8=\x07",  # clipboard
        b'{"ok": true}\r\x08\x00\xff\xfe\xe2\x80\xae',
    )
)


def parse(kind: str, options: Mapping[str, Any]) -> Fault:
    """Build a fault, or raise SettingsError with a sentence that says what is allowed."""
    if kind not in KINDS:
        near = get_close_matches(kind, KINDS, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise SettingsError(f"There is no fault {kind!r}{hint}: choose from {', '.join(KINDS)}.")
    if options.get("times") is not None and kind not in ("drop", "garbage"):
        raise SettingsError(f"Only drop and garbage can end after some times, {kind} cannot.")
    try:
        return msgspec.convert({"kind": kind, **options}, Fault)
    except msgspec.ValidationError as error:
        raise SettingsError(f"The fault {kind} cannot be set so: {error}.") from error
