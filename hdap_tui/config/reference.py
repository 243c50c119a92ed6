"""The reference of `fleet.toml`, read off the schema itself."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_origin

from msgspec import NODEFAULT, Struct
from msgspec.structs import fields

from hdap_tui.config import schema
from hdap_tui.config.check import allowed, struct_in


@dataclass(frozen=True)
class Entry:
    """One key of the settings file."""

    section: str
    """As written in the file: "[benchmark.canary]", "[[devices]]"."""
    key: str
    type: str
    """What is allowed, in words."""
    default: str
    """As TOML; "required" where there is none, empty where the meaning says what holds."""
    meaning: str


def describe() -> Iterator[Entry]:
    """Yield every key of the settings file, in the order of the schema."""
    for heading, kind in _sections(schema.File, ""):
        for field in fields(kind):
            if struct_in(field.type) is None:
                yield Entry(
                    section=heading,
                    key=field.name,
                    type=allowed(field.type),
                    default=_default(field.default),
                    meaning=_meanings()[kind.__name__][field.name],
                )


def markdown() -> str:
    """Return the reference as a Markdown page."""
    meanings = _meanings()
    lines = [
        "# fleet.toml",
        "",
        "<!-- Generated: python -m hdap_tui.config > docs/fleet-toml.md -->",
        "",
        "The settings of one fleet, as [TOML](https://toml.io). `hdap` takes the file named by",
        "`--config`, else by the variable `HDAP_CONFIG`, else the nearest `fleet.toml` from the",
        "working folder upwards, else `hdap/fleet.toml` in the user's configuration folder.",
        "`hdap config check` checks it, `hdap config show` prints what is in force.",
        "",
        "Every section and every key may be left out, but for those marked *required*. Paths may",
        "begin with `~`; relative ones are relative to the file. A range in square brackets makes",
        'a pattern: `"edge-[01:12]"` stands for twelve names, `"edge-[01:10,20]"` for eleven, and',
        "patterns in several keys of one entry go in step.",
    ]
    entries = list(describe())
    for heading, kind in _sections(schema.File, ""):
        lines += ["", f"## {heading}", "", meanings[kind.__name__][""], ""]
        lines += ["| key | what is allowed | default | meaning |", "|---|---|---|---|"]
        lines += [
            f"| `{e.key}` | {e.type} | {_code(e.default)} | {e.meaning} |"
            for e in entries
            if e.section == heading
        ]
    return "\n".join(lines) + "\n"


def _sections(kind: type[Struct], prefix: str) -> Iterator[tuple[str, type[Struct]]]:
    for field in fields(kind):
        held = struct_in(field.type)
        if held is None:
            continue
        path = prefix + field.name
        origin = get_origin(field.type)
        heading = f"[[{path}]]" if origin is tuple else f"[{path}]"
        if origin is dict:
            path += ".NAME"
            heading = f"[{path}]"
        yield heading, held
        yield from _sections(held, f"{path}.")


def _default(value: Any) -> str:
    if value is NODEFAULT:
        return "required"
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return f"[{', '.join(map(_default, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _code(default: str) -> str:
    return f"*{default}*" if default == "required" else f"`{default}`" if default else ""


def _meanings() -> dict[str, dict[str, str]]:
    """Return the sentence under each key of each class; under "" stands that of the class."""
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(schema)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        texts = {"": _joined(ast.get_docstring(node) or "")}
        for key, text in zip(node.body, node.body[1:], strict=False):
            match key, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(
                    value=ast.Constant(value=str(sentence))
                ):
                    texts[name] = _joined(sentence)
        found[node.name] = texts
    return found


def _joined(text: str) -> str:
    return " ".join(text.split())
