"""Names by the dozen: ``edge-[01:12]`` stands for edge-01 … edge-12."""

from __future__ import annotations

import re

_RANGE = re.compile(r"\[(\d{1,9}):(\d{1,9})\]")
LIMIT = 100_000
"""Names that one pattern may stand for."""


def expand(text: str) -> list[str]:
    """Return what a text stands for: itself, or one text for every number of its range.

    Numbers are padded with zeros to the width of the first.

        >>> expand("rack-[08:10]")
        ['rack-08', 'rack-09', 'rack-10']

    Raises:
        ValueError: the range is backward or too long, or there are two.
    """
    ranges = list(_RANGE.finditer(text))
    if not ranges:
        return [text]
    if len(ranges) > 1:
        raise ValueError("has two ranges; one is allowed in a pattern")
    found = ranges[0]
    first, last = int(found[1]), int(found[2])
    if last < first:
        raise ValueError(f"counts backward; write [{found[2]}:{found[1]}]")
    if last - first >= LIMIT:
        raise ValueError(f"stands for more than {LIMIT} names")
    width = len(found[1])
    head, tail = text[: found.start()], text[found.end() :]
    return [f"{head}{number:0{width}d}{tail}" for number in range(first, last + 1)]
