"""What devices can be selected by: every field of the selector language."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "number", "version", "flag"]
Home = Literal["settings", "store", "facts"]


@dataclass(frozen=True)
class Field:
    """One field."""

    name: str
    help: str
    """What it is, in a few words."""
    kind: Kind = "text"
    """How it is compared: numbers and versions know less and more, a flag is yes or no."""
    home: Home = "facts"
    """Where its value comes from."""
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
          values=("firing", "acknowledged", "resolved")),
    Field("latency", "measured latency of the deployed model, in ms", "number", "store"),
    Field("change", "that against the baseline, in per cent", "number", "store"),
    Field("board", "model of the board"),
    Field("machine", "processor architecture: aarch64, x86_64"),
    Field("cpu_model", "name of the processor"),
    Field("isa", "each of its instruction sets that matter"),
    Field("vnni", "whether it multiplies int8 by VNNI", "flag"),
    Field("dot_product", "whether it has Arm's int8 dot product", "flag"),
    Field("cores", "processor cores", "number"),
    Field("cores_usable", "cores that a process may use", "number"),
    Field("memory_mb", "main memory", "number"),
    Field("os", "operating system"),
    Field("kernel", "version of the kernel", "version"),
    Field("libc", "C library and its version", "version"),
    Field("python", "version of Python", "version"),
    Field("onnxruntime", "version of ONNX Runtime", "version"),
    Field("providers", "each execution provider of ONNX Runtime"),
    Field("numpy", "version of NumPy", "version"),
    Field("power_mode", "power mode in force"),
    Field("governor", "CPU frequency governor"),
    Field("sensors", "each of its sensors"),
    Field("channel_multiple", "channel multiple at which convolutions are fastest", "number"),
    Field("disk_free_mb", "free space on the disk of its home folder", "number"),
    Field("boot_id", "identity of its latest start"),
    Field("hostname", "what it calls itself"),
)  # fmt: skip

FIELDS: dict[str, Field] = {field.name: field for field in _FIELDS}
