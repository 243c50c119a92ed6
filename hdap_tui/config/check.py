"""A parsed TOML table becomes a typed section, or one clear sentence."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import FieldInfo, fields

from hdap_tui.config.locate import KeyPath
from hdap_tui.config.source import Source, did_you_mean, dotted
from hdap_tui.errors import SettingsError

S = TypeVar("S", bound=Struct)

_NUMBERS = {int: "a whole number", float: "a number"}
_WORDS = {str: "text in quotes", bool: "true or false"}


def build(root: type[S], table: Mapping[str, Any], source: Source) -> S:
    """Return the table as `root`, a Struct of Structs.

    Raises:
        SettingsError: a key is unknown or missing, or a value is not allowed there.
    """
    return _Builder(root, source).struct(root, table, ())


def struct_in(kind: Any) -> type[Struct] | None:
    """Return the Struct in a field's type: itself, or what a list or table of them holds."""
    candidates = [kind, *(get_args(kind) if get_origin(kind) in {tuple, dict} else ())]
    for candidate in candidates:
        if isinstance(candidate, type) and issubclass(candidate, Struct):
            return candidate
    return None


def allowed(kind: Any) -> str:
    """Return in words what a field's type allows: "a whole number from 1 to 65535"."""
    origin = get_origin(kind)
    if origin is Annotated:
        base, *extras = get_args(kind)
        return _bounded(base, next(extra for extra in extras if isinstance(extra, Meta)))
    if origin is Literal:
        return "one of " + ", ".join(f'"{choice}"' for choice in get_args(kind))
    if origin is tuple:
        return f"a list, each {allowed(get_args(kind)[0])}"
    if origin is not None:  # a union
        return " or ".join(allowed(a) for a in get_args(kind) if a is not type(None))
    return {**_NUMBERS, **_WORDS}.get(kind, str(kind))


def _bounded(base: type, meta: Meta) -> str:
    if base is str:
        if meta.description:
            return meta.description
        if meta.pattern:
            return "a name of letters, digits, dots, dashes and underscores"
        return "text in quotes, not empty"
    words = _NUMBERS[base]
    if meta.ge is not None and meta.le is not None:
        return f"{words} from {meta.ge} to {meta.le}"
    bounds = [
        f"{text} {bound}"
        for text, bound in (
            ("of at least", meta.ge),
            ("above", meta.gt),
            ("of at most", meta.le),
            ("below", meta.lt),
        )
        if bound is not None
    ]
    return " ".join([words, " and ".join(bounds)])


class _Builder:
    def __init__(self, root: type[Struct], source: Source) -> None:
        self._root = root
        self._source = source

    def struct(self, kind: type[S], table: Any, path: KeyPath) -> S:
        if not isinstance(table, dict):
            raise self._source.error(path, f"is {_shown(table)}; it must be a table.")
        known = _fields(kind)
        for key in table:
            if key not in known:
                raise self._unknown(key, (*path, key), list(known))
        values = {}
        for name, field in known.items():
            if name in table:
                values[name] = self._value(field.type, table[name], (*path, name))
            elif field.required:
                raise SettingsError(
                    f'{self._source.place(path)}: {dotted(path)} needs the key "{name}": '
                    f"{allowed(field.type)}."
                )
        return kind(**values)

    def _value(self, kind: Any, value: Any, path: KeyPath) -> Any:
        held = struct_in(kind)
        if held is None:
            return self._leaf(kind, value, path)
        if get_origin(kind) is tuple:
            if not isinstance(value, list):
                name = dotted(path)
                raise self._source.error(path, f"must be written [[{name}]], once for each.")
            return tuple(
                self.struct(held, item, (*path, index)) for index, item in enumerate(value)
            )
        if get_origin(kind) is dict:
            if not isinstance(value, dict):
                raise self._source.error(path, f"must be written [{dotted(path)}.NAME].")
            names = get_args(kind)[0]
            for name in value:
                self._leaf(names, name, (*path, name))
            return {name: self.struct(held, item, (*path, name)) for name, item in value.items()}
        return self.struct(held, value, path)

    def _leaf(self, kind: Any, value: Any, path: KeyPath) -> Any:
        kind = _given(kind)
        if isinstance(value, float) and not math.isfinite(value):
            raise self._source.error(path, f"is {value}; it must be {allowed(kind)}.")
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError:
            pass
        if isinstance(value, list) and get_origin(kind) is tuple:
            for index, item in enumerate(value):
                self._leaf(get_args(kind)[0], item, (*path, index))
        problem = f"is {_shown(value)}; it must be {allowed(kind)}"
        if get_origin(kind) is Literal and isinstance(value, str):
            hint = did_you_mean(value, get_args(kind))
            if hint.startswith("did"):
                raise self._source.error(path, f"{problem}; {hint}")
        raise self._source.error(path, f"{problem}.")

    def _unknown(self, key: str, path: KeyPath, known: list[str]) -> SettingsError:
        what = "a key" if len(path) > 1 else "a section"
        hint = did_you_mean(key, known)
        if not hint.startswith("did"):
            homes = [f"[{name}]" for name, fields_ in _sections(self._root) if key in fields_]
            if homes:
                hint = f"it belongs in {' or '.join(homes)}."
        return self._source.error(path, f"is not {what} here; {hint}")


def _given(kind: Any) -> Any:
    """Return the type of a value that stands in a file: there is no None, only what is left out."""
    if get_origin(kind) not in {Union, UnionType}:
        return kind
    kinds = [one for one in get_args(kind) if one is not NoneType]
    return kinds[0] if len(kinds) == 1 else kind


@lru_cache(maxsize=64)
def _fields(kind: type[Struct]) -> dict[str, FieldInfo]:
    """Return a section's fields by name; to work them out anew for every device is slow."""
    return {field.name: field for field in fields(kind)}


def _sections(root: type[Struct]) -> Iterator[tuple[str, set[str]]]:
    for name, field in ((f.name, f) for f in fields(root)):
        held = struct_in(field.type)
        if held is not None:
            yield name, {f.name for f in fields(held)}


def _shown(value: Any) -> str:
    """Return a value as it stands in the file, shortened."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        text = re.sub(r"[\x00-\x1f\x7f-\x9f]", "?", value)
        return f'"{text[:40]}{"…" if len(text) > 40 else ""}"'
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    return str(value)[:40]
