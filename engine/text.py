"""What other people's errors say, fit for a sentence."""

from __future__ import annotations


def first_line(error: BaseException, most: int = 300) -> str:
    """Return the first line of what an error says, or its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:most]
