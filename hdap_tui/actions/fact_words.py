"""Facts and other fields in words: what columns there are, and what stands in them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from hdap_tui.config.source import did_you_mean
from hdap_tui.errors import SettingsError
from hdap_tui.fact_names import BY_NAME, shown
from hdap_tui.text import clean

if TYPE_CHECKING:
    from hdap_tui.store.facts import Change, Moment

SHOWN = 48
"""Characters of a fact in a table; all of it is in the JSON."""


def columns_of(text: str, known: Iterable[str]) -> list[str]:
    """Return the names in a list apart by commas or blanks, each once.

    Raises:
        SettingsError: one of them is unknown.
    """
    known = list(known)
    names = list(dict.fromkeys(text.replace(",", " ").split()))
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known)
            raise SettingsError(f'there is no column "{clean(name, 40)}"; {hint}')
    return names


def title(name: str) -> str:
    """Return the head of a column."""
    return BY_NAME[name].title if name in BY_NAME else name


def word_of(name: str, value: object) -> str:
    """Return a field's value as a person reads it."""
    if isinstance(value, tuple | list):
        # A cluster has a letter and a number for the same thing.
        return ", ".join(map(str, value[:1] if name == "cluster" else value))
    return shown(name, value if isinstance(value, str | int | float) else None)


def change_words(change: Change) -> str:
    """Return a change as a person reads it: "kernel 6.1.0 → 6.6.20"."""
    values = (change.before, change.after)
    before, after = (clean(shown(change.name, value), SHOWN) or "–" for value in values)
    return f"{title(change.name)} {before} → {after}"


def moment_document(moment: Moment) -> dict[str, Any]:
    """Return a line of a device's history as the JSON that the command line prints."""
    return {
        "at": moment.at,
        "changes": [
            {"name": one.name, "before": one.before, "after": one.after} for one in moment.changes
        ],
    }
