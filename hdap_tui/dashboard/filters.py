"""What the line behind `/` picks from a table: words, and on the fleet the selector language.

Whatever `--select` takes means the same on the fleet. Beyond that a bare word may be a part of
anything that the row says, and while one types, the last value may be cut short.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

from hdap_tui.config.expression import WORD, Compared, Expression, Named, Record
from hdap_tui.config.fields import FIELDS
from hdap_tui.config.patterns import is_pattern
from hdap_tui.config.selector import SelectorError, open_range, parse
from hdap_tui.selection import row_record
from hdap_tui.store.records import DeviceRow

if TYPE_CHECKING:
    from hdap_tui.config.settings import Device

Row = TypeVar("Row")

TEXT = "text"
"""The field of a record that holds all that a row says, in small letters."""

_HALF_KEYWORD = re.compile(r"[\s)](a|an|n|no|o)\Z", re.IGNORECASE)
_LAST_VALUE = re.compile(rf"(\w+)\s*==?\s*({WORD})\Z")


class Filter(Protocol[Row]):
    """Picks the rows that a typed text asks for."""

    def __call__(self, text: str, rows: Sequence[Row], typing: bool) -> list[Row]:
        """Return these rows, in their order; all for an empty text.

        `typing` says that the text may not be finished.

        Raises:
            SelectorError: the text means nothing (yet).
        """


@dataclass(frozen=True)
class Words(Filter[Row]):
    """Rows whose text holds every word, and none of the words after a `!`."""

    text_of: Callable[[Row], str]

    def __call__(self, text: str, rows: Sequence[Row], typing: bool) -> list[Row]:
        """Return these rows."""
        words = text.lower().split()
        wanted = [word for word in words if not word.startswith("!")]
        left_out = [word[1:] for word in words if word.startswith("!") and len(word) > 1]
        if not (wanted or left_out):
            return list(rows)
        texts = ((row, self.text_of(row).lower()) for row in rows)
        return [
            row
            for row, said in texts
            if all(word in said for word in wanted) and not any(word in said for word in left_out)
        ]


@dataclass(frozen=True)
class Part(Named):
    """A word that is no device's name: a part of anything that the row says."""

    def matches(self, record: Record) -> bool:
        """Look into the row's text."""
        return self.word.lower() in str(record[TEXT])

    @property
    def names(self) -> frozenset[str]:
        """It names no device."""
        return frozenset()


@dataclass(frozen=True)
class Selector(Filter[DeviceRow]):
    """Devices that an expression of the selector language names."""

    text_of: Callable[[DeviceRow], str]
    """What a bare word is looked for in."""
    devices: Callable[[], Mapping[str, Device]]
    """The settings' devices by name, which know the addresses."""
    _texts: dict[int, tuple[DeviceRow, str]] = field(default_factory=dict, repr=False)

    def __call__(self, text: str, rows: Sequence[DeviceRow], typing: bool) -> list[DeviceRow]:
        """Return these devices."""
        expression = self._expression(text, rows, typing)
        fields = expression.fields
        if not fields:
            return list(rows)
        has_parts = any(isinstance(leaf, Part) for leaf in expression.leaves())
        devices = self.devices()
        found = []
        for row in rows:
            record = row_record(row, fields, devices.get(row.name))
            if has_parts:
                record[TEXT] = self._text(row)
            if expression.matches(record):
                found.append(row)
        return found

    def _text(self, row: DeviceRow) -> str:
        """Return all that a row says; a row that has not changed is the same object as before."""
        known = self._texts.get(row.id)
        if known is None or known[0] is not row:
            known = self._texts[row.id] = (row, self.text_of(row).lower())
        return known[1]

    def _expression(self, text: str, rows: Sequence[DeviceRow], typing: bool) -> Expression:
        if typing:
            self._check_half(text)
        try:
            expression = parse(text)
        except SelectorError as error:
            # What is wrong with the last word may come right when it is finished.
            error.unfinished |= re.fullmatch(WORD, text[error.position :]) is not None
            raise
        if typing and self._cut_short(text, rows):
            expression = parse(text + "*")
        names = {row.name.lower() for row in rows}

        def loosened(leaf: Named | Compared) -> Expression:
            if not isinstance(leaf, Named) or is_pattern(leaf.word):
                return leaf
            return leaf if leaf.word.lower() in names else Part(leaf.word)

        return expression.replaced(loosened)

    @staticmethod
    def _check_half(text: str) -> None:
        """Refuse the beginning of a keyword or a range, which would show other rows for a moment.

        Raises:
            SelectorError: it ends in one.
        """
        half = _HALF_KEYWORD.search(text)
        if half:
            raise SelectorError("and, or, not, or a word that goes on.", half.start(1), True)
        if open_range(text):
            raise SelectorError("the range is not closed: [01:12]", len(text), True)

    def _cut_short(self, text: str, rows: Sequence[DeviceRow]) -> bool:
        """Say whether a text ends in a value that no row has, so that it may go on."""
        last = _LAST_VALUE.search(text)
        if last is None or last[1].lower() not in FIELDS:
            return False
        leaf = Compared(last[1].lower(), "=", last[2])
        if leaf.problem or FIELDS[leaf.field].kind == "flag":
            return False
        devices = self.devices()
        return not any(
            leaf.matches(row_record(row, leaf.fields, devices.get(row.name))) for row in rows
        )
