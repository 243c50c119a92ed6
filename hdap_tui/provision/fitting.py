"""Which wheels fit a device's Python: its version, its C library, its processor."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from packaging.tags import Tag, compatible_tags, cpython_tags

OLDEST, NEWEST = (3, 8), (3, 14)
"""Versions of Python that are looked for: the runner needs 3.8."""

_LEGACY = {(2, 17): "manylinux2014", (2, 12): "manylinux2010", (2, 5): "manylinux1"}
_FIRST_GLIBC = {"x86_64": 5, "i686": 5}  # PEP 600: others begin with 2.17
_USUAL = {"arm64": "aarch64", "amd64": "x86_64"}
_32_BIT = {"x86_64": "i686", "aarch64": "armv7l", "armv8l": "armv7l"}


@dataclass(frozen=True)
class Interpreter:
    """One Python on a device, as it describes itself."""

    path: str
    """Where it lies, links followed."""
    version: tuple[int, int, int]
    abi: str
    """As wheels call it: cp311; cp313t without the lock, cp311d for debugging."""
    bits: int
    """Size of its pointers: 32 on a 32-bit system below a 64-bit kernel."""
    kernel_machine: str
    """What uname says."""
    libc: str
    """"glibc 2.36", "musl 1.2", or empty where it is unknown."""
    implementation: str = "cpython"
    unpacks: bool = True
    """Whether it has the modules zipfile and zlib."""

    @property
    def machine(self) -> str:
        """The processor as its programs see it."""
        name = _USUAL.get(self.kernel_machine, self.kernel_machine)
        return _32_BIT.get(name, name) if self.bits == 32 else name

    @property
    def glibc(self) -> tuple[int, int] | None:
        """Version of glibc; None where the C library is another one."""
        return self._library("glibc")

    @property
    def musl(self) -> tuple[int, int] | None:
        """Version of musl; None where the C library is another one."""
        return self._library("musl")

    def _library(self, name: str) -> tuple[int, int] | None:
        found = re.fullmatch(rf"{name} (\d{{1,3}})\.(\d{{1,4}}).*", self.libc)
        return (int(found[1]), int(found[2])) if found else None

    @property
    def short(self) -> str:
        """Its version, for people: "3.11"."""
        return f"{self.version[0]}.{self.version[1]}"

    @property
    def label(self) -> str:
        """What wheels have to fit, for people."""
        kind = " (free-threaded)" if self.abi.endswith("t") else ""
        return f"Python {self.short}{kind}, {self.libc or 'an unknown C library'}, {self.machine}"

    @property
    def key(self) -> str:
        """The same for all devices that the same wheels fit."""
        return f"{self.abi}-{(self.libc or 'unknown').replace(' ', '-')}-{self.machine}"

    @property
    def platforms(self) -> tuple[str, ...]:
        """Platform tags, the best first."""
        return tuple(self._platforms())

    def _platforms(self) -> Iterator[str]:
        machine = self.machine
        if self.glibc and self.glibc[0] == 2:
            first = _FIRST_GLIBC.get(machine, 17)
            for minor in range(self.glibc[1], first - 1, -1):
                yield f"manylinux_2_{minor}_{machine}"
                if (2, minor) in _LEGACY:
                    yield f"{_LEGACY[2, minor]}_{machine}"
        elif self.musl:
            for minor in range(self.musl[1], -1, -1):
                yield f"musllinux_{self.musl[0]}_{minor}_{machine}"
        yield f"linux_{machine}"

    @cached_property
    def tags(self) -> dict[Tag, int]:
        """Every tag that fits, with its rank: 0 is the best."""
        version, platforms = self.version[:2], self.platforms
        found = list(cpython_tags(version, abis=[self.abi], platforms=platforms))
        found += compatible_tags(version, f"cp{version[0]}{version[1]}", platforms)
        return {tag: rank for rank, tag in reversed(list(enumerate(found)))}

    @property
    def markers(self) -> dict[str, str]:
        """What a wheel's requirements ask about (PEP 508)."""
        return {
            "implementation_name": "cpython",
            "implementation_version": ".".join(map(str, self.version)),
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": ".".join(map(str, self.version)),
            "python_version": self.short,
            "sys_platform": "linux",
            "extra": "",
        }


def unfit(interpreter: Interpreter) -> str:
    """Return why no wheels can fit, and what would help; empty where some may."""
    short, version = interpreter.short, interpreter.version[:2]
    if interpreter.implementation != "cpython":
        return f"its Python {short} is {interpreter.implementation}; CPython is needed"
    if version < OLDEST:
        return (
            f"its newest Python is {short}, and the runner needs 3.8: put a newer one on the device"
            " (a standalone build in the home folder will do) and name it with --python"
        )
    if not interpreter.unpacks:
        return (
            f"its Python {short} lacks the modules zipfile or zlib: install the whole of Python"
            " (python3, not only python3-minimal), or name another one with --python"
        )
    return ""


def impossible(interpreter: Interpreter) -> str:
    """Return why PyPI has no wheels of ONNX Runtime for it; empty where it may."""
    machine = interpreter.machine
    if machine.startswith("arm") or interpreter.bits == 32:
        return (
            f"its system is 32-bit ({machine}), and nobody publishes ONNX Runtime for that: a"
            " 64-bit system helps, or wheels of your own build with --wheels"
        )
    if interpreter.musl:
        return (
            f"its C library is {interpreter.libc}, and ONNX Runtime is published for glibc only: a"
            " system with glibc (Debian, Ubuntu) helps, or wheels of your own build with --wheels"
        )
    if not interpreter.glibc:
        return (
            "its C library is unknown, and wheels of ONNX Runtime need glibc: give wheels of your"
            " own build with --wheels, or name another Python with --python"
        )
    return ""
