"""A parsed selector: which records it matches, and how one would write it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hdap_tui.config.fields import FIELDS, Kind
from hdap_tui.config.patterns import expand, is_pattern, matcher
from hdap_tui.text import clean

KEYWORDS = frozenset({"and", "or", "not"})
ORDERED = frozenset({"<", "<=", ">", ">="})
_LETTER = r"""(?:\[[^\]\s]*\]|[^\s,()"'=<>!])"""
WORD = rf"{_LETTER}(?:{_LETTER}|!(?!=))*"
"""A name or value that needs no quotation marks; what stands in square brackets is one letter."""
_YES = frozenset({"yes", "true", "1"})
_NO = frozenset({"no", "false", "0"})
_VERSION = re.compile(r"\d{1,9}(?:\.\d{1,9})*", re.ASCII)

Record = Mapping[str, object]
"""What a device is selected by: values by field; what is unknown is missing."""


class Expression:
    """Something that a device matches or does not."""

    def matches(self, record: Record) -> bool:
        """Say whether a device matches."""
        raise NotImplementedError

    def leaves(self) -> Iterator[Named | Compared]:
        """Yield the names and comparisons that it is made of."""
        raise NotImplementedError

    @property
    def fields(self) -> frozenset[str]:
        """The fields that must be in a record."""
        return frozenset(
            leaf.field if isinstance(leaf, Compared) else "name" for leaf in self.leaves()
        )

    def replaced(self, change: Callable[[Named | Compared], Expression]) -> Expression:
        """Return the expression with every name and comparison changed."""
        raise NotImplementedError


@dataclass(frozen=True)
class Named(Expression):
    """A bare word: a device's name, or a pattern of names."""

    word: str

    def matches(self, record: Record) -> bool:
        """Compare with the name."""
        name = str(record.get("name", ""))
        if self.names:
            return name.lower() in self.names
        return self._pattern.fullmatch(name) is not None

    @cached_property
    def names(self) -> frozenset[str]:
        """The names that it stands for, in small letters; empty where `*` or `?` leave it open."""
        listed = expand(self.word)
        return frozenset() if is_pattern(listed[0]) else frozenset(map(str.lower, listed))

    def leaves(self) -> Iterator[Named | Compared]:
        """Yield itself."""
        yield self

    def replaced(self, change: Callable[[Named | Compared], Expression]) -> Expression:
        """Return what it is changed into."""
        return change(self)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return matcher(self.word)

    def __str__(self) -> str:
        return quote(self.word)


@dataclass(frozen=True)
class Compared(Expression):
    """A field, an operator and a value: `latency>5`."""

    field: str
    operator: str
    value: str

    def matches(self, record: Record) -> bool:
        """Compare with the field's value; one that is a list by any of its elements."""
        held = record.get(self.field)
        if self.operator == "!=":
            return not self._equals(held)
        return self._equals(held)

    def leaves(self) -> Iterator[Named | Compared]:
        """Yield itself."""
        yield self

    def replaced(self, change: Callable[[Named | Compared], Expression]) -> Expression:
        """Return what it is changed into."""
        return change(self)

    @property
    def is_ordering(self) -> bool:
        """Whether it asks for less or more."""
        return self.operator in ORDERED

    @property
    def problem(self) -> str:
        """Why the comparison makes no sense, as a sentence; empty where it does."""
        kind, value = FIELDS[self.field].kind, clean(self.value, 40)
        if self.is_ordering and kind in {"text", "flag"}:
            return f"{self.field} is no number; compare it with = or !=."
        free = not self.is_ordering and (is_pattern(self.value) or not self.value)
        if kind == "number" and _number(self.value) is None and not free:
            return f'{self.field} is compared with a number, and "{value}" is none.'
        if kind == "version" and self.is_ordering and not _VERSION.match(self.value):
            return f'{self.field} is compared with a version such as 1.20, and "{value}" is none.'
        if kind == "flag" and self.value.lower() not in {*_YES, *_NO, "", "*"}:
            return f'{self.field} is yes or no, not "{value}".'
        return ""

    def _equals(self, held: object) -> bool:
        """Whether a value, or any element of a list, passes the test."""
        if isinstance(held, (list, tuple, frozenset, set)):
            there = [value for value in held if value is not None and value != ""]
            return any(map(self._test, there)) if self.value else not there
        if held is None or held == "":
            return not self.value
        return bool(self.value) and self._test(held)

    @cached_property
    def _test(self) -> Callable[[Any], bool]:
        """What one value of a record must pass."""
        kind = FIELDS[self.field].kind
        if self.is_ordering:
            return self._ordering(kind)
        if kind == "flag" and self.value != "*":
            wanted = self.value.lower() in _YES
            return lambda value: bool(value) is wanted
        number = _number(self.value) if kind == "number" else None
        if number is not None:
            return lambda value: _number(value) == number
        if not is_pattern(self.value):
            word = self.value.lower()
            return lambda value: str(value).lower() == word
        pattern = matcher(self.value)
        return lambda value: pattern.fullmatch(str(value)) is not None

    def _ordering(self, kind: Kind) -> Callable[[Any], bool]:
        measure: Callable[[Any], Any] = _version if kind == "version" else _number
        limit, operator = measure(self.value), self.operator

        def test(value: Any) -> bool:
            held = measure(value)
            if held is None or limit is None:
                return False
            below, same = bool(held < limit), bool(held == limit)
            return {"<": below, "<=": below or same, ">": not (below or same), ">=": not below}[
                operator
            ]

        return test

    def __str__(self) -> str:
        return f"{self.field}{self.operator}{quote(self.value)}"


@dataclass(frozen=True)
class Not(Expression):
    """Everything else."""

    inner: Expression

    def matches(self, record: Record) -> bool:
        """Turn the answer round."""
        return not self.inner.matches(record)

    def leaves(self) -> Iterator[Named | Compared]:
        """Yield those of what it turns round."""
        return self.inner.leaves()

    def replaced(self, change: Callable[[Named | Compared], Expression]) -> Expression:
        """Change what it turns round."""
        return Not(self.inner.replaced(change))

    def __str__(self) -> str:
        return f"not {_bracketed(self.inner)}"


@dataclass(frozen=True)
class AllOf(Expression):
    """Several at once; of none is all there is."""

    parts: tuple[Expression, ...]

    def matches(self, record: Record) -> bool:
        """Ask all parts."""
        return all(part.matches(record) for part in self.parts)

    def leaves(self) -> Iterator[Named | Compared]:
        """Yield those of the parts."""
        for part in self.parts:
            yield from part.leaves()

    def replaced(self, change: Callable[[Named | Compared], Expression]) -> Expression:
        """Change all parts."""
        return AllOf(tuple(part.replaced(change) for part in self.parts))

    def __str__(self) -> str:
        return " and ".join(map(_bracketed, self.parts))


@dataclass(frozen=True)
class AnyOf(Expression):
    """At least one of several."""

    parts: tuple[Expression, ...]

    def matches(self, record: Record) -> bool:
        """Ask the parts; plain names, of which there may be thousands, all in one."""
        return str(record.get("name", "")).lower() in self._names or any(
            part.matches(record) for part in self._others
        )

    def leaves(self) -> Iterator[Named | Compared]:
        """Yield those of the parts."""
        for part in self.parts:
            yield from part.leaves()

    def replaced(self, change: Callable[[Named | Compared], Expression]) -> Expression:
        """Change all parts."""
        return AnyOf(tuple(part.replaced(change) for part in self.parts))

    @cached_property
    def _names(self) -> frozenset[str]:
        named = [part.names for part in self.parts if isinstance(part, Named)]
        return frozenset().union(*named)

    @cached_property
    def _others(self) -> tuple[Expression, ...]:
        return tuple(part for part in self.parts if not (isinstance(part, Named) and part.names))

    def __str__(self) -> str:
        return " or ".join(map(_bracketed, self.parts))


def quote(word: str) -> str:
    """Return a name or value as it can stand in an expression."""
    if re.fullmatch(WORD, word) and word.lower() not in KEYWORDS:
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _bracketed(part: Expression) -> str:
    return f"({part})" if isinstance(part, (AllOf, AnyOf)) else str(part)


def _number(value: object) -> float | None:
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _version(value: object) -> tuple[int, ...] | None:
    found = _VERSION.search(str(value))
    # 1.20 and 1.20.0 are the same version.
    text = re.sub(r"(\.0+)+\Z", "", found.group()) if found else ""
    return tuple(int(part) for part in text.split(".")) if text else None
