"""What devices can be selected by: every field of the selector language."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hdap_tui.fact_names import NAMES, Name

Kind = Literal["text", "number", "version", "flag"]
Home = Literal["settings", "store", "facts", "alert"]


@dataclass(frozen=True)
class Field:
    """One field."""

    name: str
    help: str
    """What it is, in a few words."""
    kind: Kind = "text"
    """How it is compared: numbers and versions know less and more, a flag is yes or no."""
    home: Home = "facts"
    """Where its value comes from; what comes from an alert selects alerts, and no devices."""
    values: tuple[str, ...] = ()
    """All the values that there are; empty: any."""


_FIELDS = (
    Field("name", "its name", home="settings"),
    Field("host", "host name or address", home="settings"),
    Field("user", "whom one logs in as", home="settings"),
    Field("port", "port of its SSH server", "number", "settings"),
    Field("tag", "each of its tags", home="settings"),
    Field("group", "the host group that it shares a machine with", home="settings"),
    Field("emulated", "whether it belongs to the emulated lab", "flag", "settings"),
    Field("state", "how it was when last seen", home="store",
          values=("unknown", "ok", "busy", "failed", "off")),
    Field("error", "class of what went wrong last", home="store"),
    Field("model", "name of the deployed model", home="store"),
    Field("cluster", "letter of its cluster; noise: it is like no other", home="store"),
    Field("alert", "how its alert stands", home="store",
          values=("pending", "firing", "acknowledged", "recovering")),
    Field("latency", "measured latency of the deployed model, in ms", "number", "store"),
    Field("change", "that against the baseline, in per cent", "number", "store"),
    Field("subject", 'what an alert is about: a device, "cluster 2", fleet', home="alert"),
    Field("scope", "how wide an alert is", home="alert", values=("device", "cluster", "fleet")),
    Field("kind", "what an alert says", home="alert",
          values=("step", "ramp", "spread", "migration", "no data")),
    Field("direction", "up: slower, down: faster", home="alert", values=("up", "down")),
)  # fmt: skip
_VERSIONS = frozenset({"kernel", "libc", "python", "onnxruntime", "numpy"})
_KINDS: dict[str, Kind] = {"whole": "number", "number": "number", "flag": "flag"}


def _of_fact(fact: Name) -> Field:
    kind = "version" if fact.name in _VERSIONS else _KINDS.get(fact.kind, "text")
    return Field(fact.name, fact.help, kind)


FIELDS: dict[str, Field] = {field.name: field for field in (*_FIELDS, *map(_of_fact, NAMES))}
