"""Which facts there are, and what each may hold; whatever else a device says is dropped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hdap_tui.text import clean

Fact = str | int | float | bool | list[str]
Facts = dict[str, Fact]

_TEXT, _ITEM, _ITEMS = 120, 120, 64
_MOST = 1e15


@dataclass(frozen=True)
class Name:
    """One fact."""

    name: str
    title: str
    """Head of its column."""
    help: str
    kind: Literal["text", "whole", "number", "flag", "list"] = "text"
    volatile: bool = False
    """Changes by itself; no reason to write a new line into a device's history."""
    unit: str = ""


NAMES: tuple[Name, ...] = (
    Name("board", "board", "What the board or the machine calls itself."),
    Name("machine", "machine", "The processor's family, as the kernel names it."),
    Name("cpu_model", "processor", "The processor; the names of its cores where they are Arm's."),
    Name("isa", "instructions", "Vector and matrix instructions.", "list"),
    Name("vnni", "VNNI", "Whether it multiplies 8-bit numbers by VNNI.", "flag"),
    Name("dot_product", "dot product", "Whether it has Arm's 8-bit dot product.", "flag"),
    Name("cores", "cores", "Processors that are there.", "whole"),
    Name("cores_usable", "usable", "Processors that a process may use: affinity, quota.", "number"),
    Name("memory_mb", "memory", "Memory, in units of 10^6 bytes.", "whole", unit="MB"),
    Name("bits", "bits", "Size of a pointer of its programs.", "whole"),
    Name("os", "system", "The distribution."),
    Name("kernel", "kernel", "Release of the kernel."),
    Name("libc", "libc", "The C library with its version."),
    Name("hostname", "host name", "What it calls itself."),
    Name("python", "Python", "Version of the Python that benchmarks run in."),
    Name("onnxruntime", "ORT", "Version of ONNX Runtime."),
    Name("providers", "providers", "Execution providers of ONNX Runtime.", "list"),
    Name("numpy", "numpy", "Version of numpy."),
    Name("runner", "runner", "Which runner spoke: the start of its hash."),
    Name("pythons", "Pythons", "All its Pythons: version, interface, modules, path.", "list"),
    Name("power_mode", "power mode", "nvpmodel, platform profile or energy preference."),
    Name("governor", "governor", "How the clock is governed."),
    Name("sensors", "sensors", "Thermal zones and power rails.", "list"),
    Name("channel_multiple", "multiple", "Channels at whose multiples it is fastest.", "whole"),
    Name("channel_gain_percent", "worth", "What other widths cost more.", "number", True, "%"),
    Name(
        "disk_free_mb", "disk free", "Room in the home folder, in 10^6 bytes.", "whole", True, "MB"
    ),
    Name("boot_id", "boot", "Changes with every start.", volatile=True),
    Name("uptime_s", "up", "Seconds since its start.", "number", True, "s"),
    Name("clock_offset_s", "clock", "Its clock minus this machine's.", "number", True, "s"),
)
"""All facts, in the order in which they are shown."""

BY_NAME: dict[str, Name] = {name.name: name for name in NAMES}
VOLATILE = frozenset(name.name for name in NAMES if name.volatile)
PROBED = frozenset({"channel_multiple", "channel_gain_percent"})
"""Facts that are measured, and so are kept when a device is only looked at again."""


def checked(found: Mapping[str, Any]) -> Facts:
    """Return what is a fact, of the right type and bounded; the rest is dropped."""
    values = ((name, _checked(name, found[name.name])) for name in NAMES if name.name in found)
    return {name.name: value for name, value in values if value is not None}


def steady(facts: Mapping[str, Fact]) -> Facts:
    """Return the facts that do not change by themselves."""
    return {name: value for name, value in facts.items() if name not in VOLATILE}


def shown(name: str, value: Fact | None) -> str:
    """Return a fact as a person reads it; empty for None."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case int() | float():
            unit = BY_NAME[name].unit if name in BY_NAME else ""
            return f"{value:,.10g} {unit}".rstrip().replace(",", " ")
        case list():
            if name == "pythons":  # version, interface, modules, path: first and last tell most
                return ", ".join(f"{v.partition('|')[0]} {v.rpartition('|')[2]}" for v in value)
            return ", ".join(value)
        case _:
            return value


def _checked(name: Name, value: Any) -> Fact | None:
    match name.kind:
        case "text":
            return clean(value, _TEXT).strip() or None if isinstance(value, str) else None
        case "flag":
            return value if isinstance(value, bool) else None
        case "list":
            return _list(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not -_MOST <= value <= _MOST:  # no number at all is not between them either
        return None
    return round(value) if name.kind == "whole" else value


def _list(value: Any) -> list[str] | None:
    if not isinstance(value, list):
        return None
    items = [clean(item, _ITEM).strip() for item in value[:_ITEMS] if isinstance(item, str)]
    return [item for item in items if item] or None
