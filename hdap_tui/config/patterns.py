"""Names by the dozen: ``edge-[01:12]`` stands for edge-01 … edge-12."""

from __future__ import annotations

import re
from fnmatch import translate
from functools import lru_cache

_PART = r"\d{1,9}(?::\d{1,9})?"
_LIST = re.compile(rf"\[({_PART}(?:,{_PART})*)\]", re.ASCII)
LIMIT = 100_000
"""Names that one pattern may stand for."""


def expand(text: str) -> list[str]:
    """Return what a text stands for: itself, or one text for every number of its list.

    A list has ranges and single numbers; the numbers of a range are padded with zeros to the
    width of its first.

        >>> expand("rack-[08:10]")
        ['rack-08', 'rack-09', 'rack-10']
        >>> expand("rack-[1:2,7].lab")
        ['rack-1.lab', 'rack-2.lab', 'rack-7.lab']

    Raises:
        ValueError: a range is backward or too long, or there are two lists.
    """
    found = [match for match in _LIST.finditer(text) if not match[1].isdecimal()]
    if not found:
        return [text]
    if len(found) > 1:
        raise ValueError(
            "has two ranges; one is allowed in a pattern, which may hold a list: [01:10,20:25]"
        )
    head, tail = text[: found[0].start()], text[found[0].end() :]
    return [f"{head}{number}{tail}" for number in _numbers(found[0][1])]


def is_pattern(text: str) -> bool:
    """Say whether a text stands for more than itself where devices are selected."""
    return any(sign in text for sign in "*?[")


@lru_cache(maxsize=512)
def matcher(pattern: str) -> re.Pattern[str]:
    """Return what matches the texts that a pattern stands for, large and small letters alike.

    Besides ranges it knows the shell's `*`, `?` and `[abc]`; it is to be used with `fullmatch`.

    Raises:
        ValueError: a range is backward or too long, or there are two lists.
    """
    expand(pattern)
    parts = _LIST.split(pattern)  # texts and lists take turns
    expression = "".join(
        _alternatives(part, part_of_list=bool(index % 2)) for index, part in enumerate(parts)
    )
    return re.compile(expression, re.IGNORECASE | re.DOTALL)


def _alternatives(part: str, part_of_list: bool) -> str:
    if not part_of_list:
        return translate(part)[len("(?s:") : -len(r")\Z")]
    if part.isdecimal():  # [7] is the shell's own: one of these letters
        return f"[{part}]"
    return f"(?:{'|'.join(_numbers(part))})"


def _numbers(text: str) -> list[str]:
    """Return the numbers of a list such as "01:10,20"."""
    numbers: list[str] = []
    for part in text.split(","):
        first, colon, last = part.partition(":")
        if not colon:
            numbers.append(first)
            continue
        if int(last) < int(first):
            raise ValueError(f"counts backward; write [{last}:{first}]")
        if int(last) - int(first) + len(numbers) >= LIMIT:
            raise ValueError(f"stands for more than {LIMIT} names")
        width = len(first)
        numbers += [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
    return numbers
