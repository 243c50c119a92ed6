"""The one language that names devices: ``tag=orin and not state=off``.

edge-01, edge-02        devices by name; a comma or a blank is an "or" that binds tightest
edge-* edge-[01:12]     by pattern
edge-* !edge-07         without these
tag=orin                by a field; the value may be a pattern, a list matches by any element
latency>5 python<3.9    numbers and versions
not, and, or, ( )       in this order
"two words"             a value or a name with blanks in it
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn

from hdap_tui.config.expression import (
    KEYWORDS,
    ORDERED,
    WORD,
    AllOf,
    AnyOf,
    Compared,
    Expression,
    Named,
    Not,
)
from hdap_tui.config.fields import FIELDS
from hdap_tui.config.patterns import is_pattern, matcher
from hdap_tui.config.source import did_you_mean
from hdap_tui.errors import SettingsError
from hdap_tui.text import clean

DEPTH = 60
"""How deep brackets and `not` may nest."""
_TOKEN = re.compile(
    rf"""(?P<blank>\s+)
    |(?P<operator><=|>=|!=|==|=|<|>)
    |(?P<sign>[(),!])
    |(?P<quoted>"(?:[^"\\]|\\.)*"|'[^']*')
    |(?P<word>{WORD})""",
    re.VERBOSE | re.DOTALL,
)
_OPEN_RANGE = re.compile(r"\[[\d:,]*\Z")


class SelectorError(SettingsError):
    """An expression that means nothing."""

    def __init__(self, problem: str, position: int, unfinished: bool = False) -> None:
        self.problem = problem
        """What is wrong, without the place."""
        self.position = position
        """Where: characters before it."""
        self.unfinished = unfinished
        """Whether going on could make it right."""
        super().__init__(f"selector, character {position + 1}: {problem}")


@dataclass(frozen=True)
class Token:
    """A word, a sign or an operator, and where it stands."""

    kind: str
    text: str
    start: int
    end: int

    @property
    def keyword(self) -> str:
        """Which of and, or, not it is; else empty."""
        word = self.text.lower() if self.kind == "word" else ""
        return word if word in KEYWORDS else ""


def parse(text: str) -> Expression:
    """Return what a text asks for; an empty one asks for all.

    Raises:
        SelectorError: it is no expression; the sentence says where, and what is known there.
    """
    return _Parser(text).parse()


def open_range(text: str) -> bool:
    """Say whether a text ends inside a range, as ``edge-[01:`` does."""
    return _OPEN_RANGE.search(text) is not None


def check(expression: Expression, known: Mapping[str, frozenset[str]]) -> None:
    """Check that all names, tags and the like exist; `known` has those of the fleet by field.

    Raises:
        SettingsError: nobody has one of them, so that it is a mistake.
    """
    for leaf in expression.leaves():
        field, value = ("name", leaf.word) if isinstance(leaf, Named) else (leaf.field, leaf.value)
        there = frozenset(FIELDS[field].values) or known.get(field)
        if there is None or value == "" or (isinstance(leaf, Compared) and leaf.is_ordering):
            continue
        if value in there or any(map(matcher(value).fullmatch, there)):
            continue
        shown, hint = clean(value, 80), did_you_mean(value, sorted(there))
        if isinstance(leaf, Named) and value in known.get("tag", ()):
            hint = f'did you mean "tag={shown}"?'
        if isinstance(leaf, Named):
            raise SettingsError(f'no device is called "{shown}"; {hint}')
        raise SettingsError(
            f'no {field} is called "{shown}"; {hint}'
            if FIELDS[field].values
            else f'no device has the {field} "{shown}"; {hint}'
        )


def _tokens(text: str) -> Iterator[Token]:
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:  # only an open quotation mark is no token
            raise SelectorError(f"the quotation mark {text[at]} is not closed.", at, True)
        kind = str(found.lastgroup)
        if kind != "blank":
            yield Token(kind, found.group(), at, found.end())
        at = found.end()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(_tokens(text))
        self._at = 0
        self._depth = 0

    def parse(self) -> Expression:
        if not self._tokens:
            return AllOf(())
        found = self._either()
        if self._now is not None:
            self._fail(f'"{self._now.text}" closes nothing; take it out.')
        return found

    @property
    def _now(self) -> Token | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _is(self, keyword: str) -> bool:
        return self._now is not None and self._now.keyword == keyword

    def _sign(self, sign: str) -> bool:
        return self._now is not None and self._now.kind == "sign" and self._now.text == sign

    def _fail(self, problem: str) -> NoReturn:
        place = self._now.start if self._now is not None else len(self._text)
        raise SelectorError(problem, place, unfinished=self._now is None)

    def _either(self) -> Expression:
        parts = [self._all()]
        while self._is("or"):
            self._at += 1
            parts.append(self._all())
        return parts[0] if len(parts) == 1 else AnyOf(tuple(parts))

    def _all(self) -> Expression:
        parts = [self._negated()]
        while self._is("and"):
            self._at += 1
            parts.append(self._negated())
        return parts[0] if len(parts) == 1 else AllOf(tuple(parts))

    def _negated(self) -> Expression:
        if not self._is("not"):
            return self._list()
        self._at += 1
        return Not(self._deeper(self._negated))

    def _list(self) -> Expression:
        """Read what stands side by side: any of these, without those after a `!`."""
        taken: list[Expression] = []
        left_out: list[Expression] = []
        self._skip_commas()
        while True:
            excluded = self._sign("!")
            self._at += excluded
            (left_out if excluded else taken).append(self._one())
            self._skip_commas()
            if self._is("not"):
                self._fail('write "and not" or "or not", or ! in front of what to leave out.')
            if self._now is None or self._now.keyword or self._sign(")"):
                break
        parts: list[Expression] = []
        if taken:
            parts.append(taken[0] if len(taken) == 1 else AnyOf(tuple(taken)))
        parts += [Not(part) for part in left_out]
        return parts[0] if len(parts) == 1 else AllOf(tuple(parts))

    def _skip_commas(self) -> None:
        while self._sign(","):
            self._at += 1

    def _one(self) -> Expression:
        now = self._now
        if now is not None and now.kind == "sign" and now.text == "(":
            return self._bracket()
        if now is None or now.keyword or now.kind in {"sign", "operator"}:
            before = self._tokens[self._at - 1].text if self._at else ""
            after = f' after "{clean(before, 40)}"' if before else ""
            self._fail(f"a name, a field or a bracket is missing{after}.")
        self._at += 1
        follower = self._now
        if follower is not None and follower.kind == "operator":
            return self._comparison(now, follower)
        word = self._value_of(now)
        if not word:
            raise SelectorError("a name cannot be empty.", now.start)
        self._check_pattern(word, now)
        return Named(word)

    def _bracket(self) -> Expression:
        opened = self._tokens[self._at]
        self._at += 1
        inner = self._deeper(self._either)
        if not self._sign(")"):
            raise SelectorError("the bracket ( is not closed.", opened.start, True)
        self._at += 1
        return inner

    def _deeper(self, read: Callable[[], Expression]) -> Expression:
        self._depth += 1
        if self._depth > DEPTH:
            self._fail(f"it nests deeper than {DEPTH} levels.")
        found = read()
        self._depth -= 1
        return found

    def _comparison(self, word: Token, operator: Token) -> Expression:
        name = word.text.lower()
        if name not in FIELDS:
            hint = did_you_mean(name, FIELDS)
            raise SelectorError(f'there is no field "{clean(word.text, 40)}"; {hint}', word.start)
        self._at += 1
        given = self._now
        missing = given is None or given.kind in {"sign", "operator"}
        if missing or (given is not None and given.keyword and given.start > operator.end):
            self._fail(f'"{word.text}{operator.text}" needs a value.')
        assert given is not None
        self._at += 1
        value = self._value_of(given)
        sign = "=" if operator.text == "==" else operator.text
        self._check_value(name, sign, value, given)
        return Compared(name, sign, value)

    def _check_value(self, name: str, sign: str, value: str, given: Token) -> None:
        problem = Compared(name, sign, value).problem
        if problem:
            raise SelectorError(problem, given.start)
        if sign not in ORDERED:
            self._check_pattern(value, given)

    def _check_pattern(self, word: str, given: Token) -> None:
        if is_pattern(word):
            try:
                matcher(word)
            except ValueError as error:
                raise SelectorError(f'"{clean(word, 60)}" {error}.', given.start) from error

    @staticmethod
    def _value_of(token: Token) -> str:
        if token.kind != "quoted":
            return token.text
        inner = token.text[1:-1]
        return re.sub(r"\\(.)", r"\1", inner, flags=re.DOTALL) if token.text[0] == '"' else inner
