"""Text from elsewhere, made fit for a screen."""

from __future__ import annotations

import unicodedata

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories that draw nothing and may drive a terminal or turn a line around."""


def clean(text: object, limit: int = 200) -> str:
    """Return text without control characters, on one line, and at most `limit` long.

    What a device or a file says may hold escape sequences that a terminal would obey.

        >>> clean("edge\\x1b[2J-01\\n")
        'edge[2J-01'
    """
    head = str(text)[: 4 * limit]
    if not head.isprintable():  # blanks other than the common one count as not printable
        head = "".join(
            " " if char.isspace() else char
            for char in head.strip()
            if char.isspace() or unicodedata.category(char) not in _HIDDEN
        )
    return head if len(head) <= limit else head[: limit - 1] + "…"
