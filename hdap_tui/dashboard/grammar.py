"""The language of the `:` prompt: the registry's commands as they stand on the command line."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hdap_tui.alerting.silencing import selector_of
from hdap_tui.commands import BY_NAME, COMMANDS, Command, Parameter
from hdap_tui.config.expression import quote
from hdap_tui.errors import SettingsError
from hdap_tui.store.records import FleetSnapshot
from hdap_tui.text import clean

WORDS = {"quit": "quit", "q": "quit", "exit": "quit", "help": "help", "?": "help", "back": "back"}
"""What the prompt knows besides the registry, and the dashboard's own action for it."""
SHORT = {
    "fleet": "devices list",
    "map": "clusters",
    "devices": "devices list",
    "alerts": "alerts list",
    "jobs": "jobs list",
    "models": "models list",
    "deployments": "deployments list",
    "policy": "policy check",
    "lab": "lab status",
    "config": "config show",
}
_DETACHED = {"detach": True, "headless": True}
"""The dashboard never waits for a job, and is itself the screen."""


@dataclass(frozen=True)
class Call:
    """A command, and what was said with it."""

    command: Command
    given: Mapping[str, Any] = field(default_factory=dict)

    @property
    def arguments(self) -> dict[str, Any]:
        """Everything the command's function takes, defaults filled in."""
        filled = {
            parameter.argument: self.given.get(parameter.name, empty(parameter))
            for parameter in self.command.parameters
        }
        return filled | {k: v for k, v in _DETACHED.items() if k in filled}

    @property
    def missing(self) -> Parameter | None:
        """The first parameter that the command needs and has not."""
        for parameter in self.command.parameters:
            if parameter.required and not self.given.get(parameter.name):
                return parameter
        return None

    @property
    def text(self) -> str:
        """How one would type it."""
        parts = [self.command.name]
        for parameter in self.command.parameters:
            if parameter.name not in self.given:
                continue
            value = self.given[parameter.name]
            if parameter.positional:
                values = value if parameter.multiple else (value,)
                parts += [shlex.quote(str(v)) for v in values]
            elif parameter.kind == "flag":
                parts += [f"--{parameter.name}"] if value else []
            else:
                parts += [f"--{parameter.name}", shlex.quote(str(value))]
        return " ".join(parts)


@dataclass(frozen=True)
class Selection:
    """What is selected on the screen that is open."""

    device: str = ""
    marked: tuple[str, ...] = ()
    """Marked devices that the filter shows."""
    hidden: int = 0
    """Marked devices that it does not show; nothing is done to those."""
    alert: int | None = None
    matter: str = ""
    """What the alert is about, as a selector."""
    silence: int | None = None
    """What keeps the alert quiet."""
    decision: int | None = None
    """What should follow from the alert."""
    job: str = ""
    model: str = ""
    deployment: int | None = None

    @property
    def devices(self) -> tuple[str, ...]:
        """The marked devices, or the one under the cursor."""
        return self.marked or ((self.device,) if self.device else ())


def empty(parameter: Parameter) -> Any:
    """Return what a command gets where nothing was said."""
    if parameter.kind == "flag":
        return False
    return () if parameter.multiple else parameter.default


def parse(text: str) -> Call:
    """Return what a line of the prompt asks for.

    Raises:
        SettingsError: one sentence about what is wrong with it.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise SettingsError("A quotation mark is open: close it, or write \\' for it.") from error
    command, rest = _find(words)
    return Call(command, _read(command, rest))


def fill(call: Call, selection: Selection, typed: bool = False) -> Call:
    """Return the call with what the screen's selection adds to it.

    A key acts on the marked devices, or on the one under the cursor. What was typed acts on the
    marked ones, and without marks on all, as on the command line.

    Raises:
        SettingsError: the command needs a subject, and none is selected.
    """
    command, given = call.command, dict(call.given)
    names = {parameter.name for parameter in command.parameters}
    subject = next((p for p in command.parameters if p.positional), None)
    if command.subject == "devices" and "select" not in given and not typed:
        if not selection.devices:
            raise SettingsError(_nothing("device", command, selection))
        given["select"] = ",".join(map(quote, selection.devices))
    elif "select" in names and "select" not in given and selection.marked:
        given["select"] = ",".join(map(quote, selection.marked))
    if command.subject not in {"", "devices"} and subject and subject.name not in given:
        chosen = getattr(selection, command.subject)
        if chosen in {"", None}:
            if subject.required:
                raise SettingsError(_nothing(command.subject, command, selection))
        else:
            given[subject.name] = chosen
    return Call(command, given)


def complete(text: str, snapshot: FleetSnapshot | None) -> list[str]:
    """Return what the line may become, whole lines, best first."""
    head, _, last = text.rpartition(" ")
    starts = [n for n in (*BY_NAME, *SHORT, *WORDS) if n.startswith(text) and len(n) > 1]
    try:
        words = shlex.split(head)
        command, rest = _find(words) if words else (None, [])
    except (ValueError, SettingsError):
        command, rest = None, []
    if command is None:
        return starts[:50]
    found = [n for n in starts if n != text]
    options = [f"--{p.name}" for p in command.parameters if not p.positional]
    if last.startswith("-"):
        words_here = [o for o in options if o not in rest]
    else:
        words_here = _values(_expected(command, rest), snapshot)
        words_here += [] if last else [o for o in options if o not in rest]
    return (found + [f"{head} {w}" for w in words_here if w.startswith(last)])[:50]


def hint(text: str) -> str:
    """Return one sentence about what is being typed."""
    try:
        words = shlex.split(text)
        command, rest = _find(words)
    except (ValueError, SettingsError):
        return ""
    before = rest if text.endswith(" ") else rest[:-1]
    asked = (text.endswith(" ") or rest) and _expected(command, before)
    option = next((p for p in command.parameters if rest and rest[-1] == f"--{p.name}"), None)
    parameter = option or asked
    if not parameter:
        return command.help
    choices = f" One of: {', '.join(parameter.choices)}." if parameter.choices else ""
    return f"{parameter.name}: {parameter.help}{choices}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "did you mean …?", or where to find what there is."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else "press ? for all commands."


def _find(words: Sequence[str]) -> tuple[Command, list[str]]:
    if not words:
        raise SettingsError("Type a command; tab completes, and ? shows them all.")
    for length in (2, 1):
        name = " ".join(words[:length])
        if len(words) >= length and name in BY_NAME:
            return BY_NAME[name], list(words[length:])
    if words[0] in SHORT:
        rest = list(words[1:])
        group = [c.name.partition(" ")[2] for c in COMMANDS if c.name.startswith(f"{words[0]} ")]
        if group and rest and not rest[0].startswith("-"):
            mean = did_you_mean(rest[0], group).replace("mean ", f"mean {words[0]} ")
            raise SettingsError(f'{words[0]} knows no "{clean(rest[0], 40)}"; {mean}')
        return BY_NAME[SHORT[words[0]]], rest
    typed = clean(" ".join(words[:2]), 40)
    known = [*BY_NAME, *SHORT, *WORDS]
    mean = did_you_mean(words[0], known) if len(words) == 1 else did_you_mean(typed, known)
    raise SettingsError(f'There is no command "{typed}"; {mean}')


def _read(command: Command, words: Sequence[str]) -> dict[str, Any]:
    options = {f"--{p.name}": p for p in command.parameters if not p.positional}
    places = [p for p in command.parameters if p.positional]
    given: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            if name not in options:
                known = did_you_mean(name, options) if options else "it has none."
                raise SettingsError(f"{command.name} has no option {clean(name, 40)}; {known}")
            parameter = options[name]
            if parameter.kind == "flag":
                given[parameter.name] = True
                continue
            if not equals:
                if not rest:
                    raise SettingsError(f"{name} needs a value: {parameter.help}")
                value = rest.pop(0)
            given[parameter.name] = _value(parameter, value)
        elif places and places[0].multiple:
            given[places[0].name] = (*given.get(places[0].name, ()), _value(places[0], word))
        elif places:
            parameter = places.pop(0)
            given[parameter.name] = _value(parameter, word)
        else:
            raise SettingsError(f'{command.name} takes no "{clean(word, 40)}"; leave it out.')
    return given


def _value(parameter: Parameter, word: str) -> Any:
    try:
        match parameter.kind:
            case "integer":
                return int(word)
            case "number":
                return float(word)
    except ValueError as error:
        what = "a whole number" if parameter.kind == "integer" else "a number"
        raise SettingsError(
            f'{parameter.name} must be {what}, and "{clean(word, 40)}" is none.'
        ) from error
    if parameter.kind == "choice" and word not in parameter.choices:
        close = difflib.get_close_matches(word, parameter.choices, n=1)
        mean = f" Did you mean {close[0]}?" if close else ""
        raise SettingsError(
            f"{parameter.name} must be one of {', '.join(parameter.choices)}, not "
            f'"{clean(word, 40)}".{mean}'
        )
    return Path(word).expanduser() if parameter.kind == "path" else word


def _expected(command: Command, rest: Sequence[str]) -> Parameter | None:
    """Return the parameter whose value comes next."""
    options = {f"--{p.name}": p for p in command.parameters if not p.positional}
    if rest and rest[-1] in options and options[rest[-1]].kind != "flag":
        return options[rest[-1]]
    values = [
        word
        for before, word in zip(["", *rest], rest, strict=False)
        if not word.startswith("--") and (before not in options or options[before].kind == "flag")
    ]
    places = [p for p in command.parameters if p.positional]
    if places and places[-1].multiple:
        return places[min(len(values), len(places) - 1)]
    return places[len(values)] if len(values) < len(places) else None


def _values(parameter: Parameter | None, snapshot: FleetSnapshot | None) -> list[str]:
    """Return the values that a parameter may have, as far as the screen knows them."""
    if parameter is None:
        return []
    if parameter.choices:
        return list(parameter.choices)
    if snapshot is None:
        return []
    match parameter.name:
        case "device" | "select":
            tags = sorted({f"tag={tag}" for row in snapshot.devices for tag in row.tags})
            tags += sorted({f"state={row.state}" for row in snapshot.devices})
            names = [row.name for row in snapshot.devices]
            found = names + (tags if parameter.name == "select" else [])
        case "model" | "models":
            found = [row.name for row in snapshot.models]
        case "job":
            found = [row.id for row in snapshot.jobs]
        case "deployment":
            found = [str(row.id) for row in snapshot.deployments]
        case "alert":
            found = [str(row.id) for row in snapshot.alerts if row.state != "resolved"]
        case "selector" | "decision" | "silence":
            found = _of_alerts(parameter.name, snapshot)
        case "for":
            found = ["30m", "2h", "1d"]
        case _:
            found = []
    return [shlex.quote(clean(name, 80)) for name in found]


def _of_alerts(name: str, snapshot: FleetSnapshot) -> list[str]:
    """Return what alerts are about, what keeps them quiet, or what follows from them."""
    match name:
        case "decision":
            return [str(row.id) for row in snapshot.decisions]
        case "silence":
            return sorted({str(row.silence) for row in snapshot.alerts if row.silence})
    return sorted({selector_of(row) for row in snapshot.alerts if row.state != "resolved"})


def _nothing(subject: str, command: Command, selection: Selection) -> str:
    if subject == "device" and selection.hidden:
        return (
            f"{command.name}: the filter hides all {selection.hidden} marked devices; "
            "clear the filter with escape."
        )
    place = {
        "device": "press 1 and move to it",
        "alert": "press 3 and move to it",
        "matter": "press 3 and move to an alert",
        "job": "press 4 and move to it",
        "model": "press 5 and move to it",
        "deployment": "press 6 and move to it",
    }[subject]
    return f"{command.name} needs {'an' if subject == 'alert' else 'a'} {subject}: {place}."
