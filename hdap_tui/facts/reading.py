"""From what the script on a device printed to facts; never raises on any text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hdap_tui.fact_names import Fact, Facts, checked
from hdap_tui.facts import processors

_MB = 1_000_000
_NO_BOARD = ("to be filled", "system product name", "default string", "none", "not specified")
"""What makers leave in the firmware where a name should be."""
_LINES, _CPUS = 4096, 8192
_Found = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Python:
    """One Python on a device."""

    path: str
    version: tuple[int, int, int]
    abi: str
    """What names its compiled modules: "cpython-311-aarch64-linux-gnu"."""
    venv: bool
    """Whether it can make environments."""
    ensurepip: bool
    """Whether it can put pip into them."""


def pythons(facts: Mapping[str, Fact]) -> tuple[Python, ...]:
    """Return a device's Pythons out of its facts, in the order in which it finds them."""
    listed = facts.get("pythons", [])
    found = (_python(entry) for entry in (listed if isinstance(listed, list) else []))
    return tuple(one for one in found if one is not None)


def parse(text: str, now: float | None = None) -> Facts:
    """Return the facts in the script's answer; `now` is this machine's time when it came."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines()[:_LINES]:
        key, equals, value = line.partition("=")
        value = value.replace("\0", "").strip()
        if equals and value:
            found.setdefault(key, []).append(value)
    flags = _first(found, "flags").lower().split()
    cores = _whole(_first(found, "processors")) or _counted(_first(found, "online"))
    return checked(
        _present(
            machine=_first(found, "machine"),
            kernel=_first(found, "kernel"),
            hostname=_first(found, "hostname"),
            board=_board(found),
            cpu_model=_cpu(found),
            isa=processors.matters(flags),
            vnni=processors.has_vnni(flags) if flags else None,
            dot_product=processors.has_dot_product(flags) if flags else None,
            cores=cores,
            cores_usable=_usable(found, cores),
            memory_mb=_memory(found),
            bits=_whole(_first(found, "bits")),
            os=_first(found, "os").strip("\"'") or _first(found, "system"),
            libc=_libc(_first(found, "libc")),
            pythons=found.get("python"),
            power_mode=_first(found, "power_mode") or _first(found, "preference"),
            governor=" + ".join(dict.fromkeys(found.get("governor", []))),
            sensors=_sensors(found),
            disk_free_mb=_disk(_first(found, "disk")),
            boot_id=_first(found, "boot_id"),
            uptime_s=_number(_first(found, "uptime")),
            clock_offset_s=_offset(_first(found, "clock"), now),
        )
    )


def _present(**values: object) -> dict[str, object]:
    """Drop what is not there: a missing thing is a missing key, never a zero."""
    return {k: v for k, v in values.items() if v is not None and v != "" and v != []}


def _first(found: _Found, key: str) -> str:
    return found.get(key, [""])[0]


def _board(found: _Found) -> str:
    tree = _first(found, "tree")
    if tree:
        return tree
    product, vendor = _first(found, "product"), _first(found, "vendor")
    if not product or product.lower().startswith(_NO_BOARD):
        return ""
    known = product.lower().startswith(vendor.lower()) or vendor.lower().startswith(_NO_BOARD)
    return product if known else f"{vendor} {product}"


def _cpu(found: _Found) -> str:
    """Return Arm's own names of the cores before all else: what is there besides names a board."""
    cores = zip(found.get("implementer", []), found.get("part", []), strict=False)
    return processors.arm_names(cores) or " ".join(_first(found, "cpu").split())


def _usable(found: _Found, cores: int | None) -> float | int | None:
    """Return how many processors affinity and quotas leave."""
    limits: list[float] = [n for n in (cores, _counted(_first(found, "allowed"))) if n]
    for quota in found.get("quota", []):
        share, period = (_number(part) for part in (*quota.split(), "", "")[:2])
        if share and period and share > 0 and period > 0:
            limits.append(round(share / period, 2))
    least = min(limits, default=None)
    return int(least) if least is not None and least == int(least) else least


def _memory(found: _Found) -> int | None:
    kilobytes = _whole(_first(found, "memory_kb").partition(" ")[0])
    return kilobytes * 1024 // _MB if kilobytes else None


def _disk(line: str) -> int | None:
    """Return the free megabytes of a line of `df -Pk`; a device's name may hold blanks."""
    free = re.search(r"\s\d+\s+\d+\s+(\d+)\s+\d+%\s", f" {line} ")
    return int(free[1][:15]) * 1024 // _MB if free else None


def _libc(text: str) -> str:
    """Return "glibc 2.36", "musl 1.2.4" or "uclibc", from whatever named it."""
    version = re.search(r"(\d+\.\d+(?:\.\d+)?)\s*$", text[:200])
    if text.startswith(("musl", "uclibc")):
        return text
    if re.search(r"glibc|gnu libc|\bldd\b", text, re.IGNORECASE) and version:
        return f"glibc {version[1]}"
    return ""


def _sensors(found: _Found) -> list[str]:
    kinds = (("zone", "zone"), ("chip", "chip"), ("rail", "rail"), ("rapl", "RAPL"))
    listed = [f"{word} {name}" for key, word in kinds for name in found.get(key, [])]
    listed += ["PMIC"] if "pmic" in found else []
    return sorted(set(listed))


def _offset(clock: str, now: float | None) -> float | None:
    own = _number(clock)
    return float(round(own - now)) if own is not None and now is not None else None


def _counted(ranges: str) -> int | None:
    """Return how many numbers a list such as "0-3,8" stands for."""
    total = 0
    for part in ranges.split(","):
        ends = re.fullmatch(r"\s*(\d{1,6})(?:-(\d{1,6}))?\s*", part)
        if ends is None:
            return None
        total += int(ends[2] or ends[1]) - int(ends[1]) + 1
    return total if 0 < total <= _CPUS else None


def _whole(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\d{1,15}", text) and int(text) > 0 else None


def _number(text: str) -> float | None:
    try:
        value = float(text.split()[0][:30]) if text.split() else None
    except ValueError:
        return None
    return value if value is not None and math.isfinite(value) else None


def _python(entry: str) -> Python | None:
    version, _, rest = entry.partition("|")
    abi, _, rest = rest.partition("|")
    modules, bar, path = rest.partition("|")
    numbers = re.fullmatch(r"(\d{1,3})\.(\d{1,3})\.(\d{1,3})", version)
    if numbers is None or not bar or not path.startswith("/"):
        return None
    has = modules.split(",")
    return Python(
        path=path,
        version=(int(numbers[1]), int(numbers[2]), int(numbers[3])),
        abi=abi,
        venv="venv" in has,
        ensurepip="ensurepip" in has,
    )
