"""What has to be done on each device, and what is in the way."""

from __future__ import annotations

import hashlib
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from packaging.version import Version

from hdap_tui.provision.closure import RUNTIME, LackingError, closure
from hdap_tui.provision.downloading import download, own_version
from hdap_tui.provision.fitting import Interpreter, impossible, unfit
from hdap_tui.provision.survey import Survey
from hdap_tui.provision.wheels import Wheel, WheelError, in_folder, unpacked_size
from hdap_tui.ssh.target import Target
from hdap_tui.ssh.transfer import Payload

State = Literal["ready", "todo", "lacking"]

LAYOUT = 1
"""Goes into each plan: another number has every environment built anew."""
FOLDER = "wheels"
_SPARE = 64 << 20  # bytes that stay free: byte code, and whatever else grows


@dataclass(frozen=True)
class Set:
    """The wheels of one environment, with what each needs on a device."""

    wheels: tuple[Wheel, ...]
    payloads: tuple[Payload, ...]
    unpacked: int
    """Bytes."""

    @property
    def version(self) -> Version:
        """Of ONNX Runtime."""
        return next(wheel.version for wheel in self.wheels if wheel.name == RUNTIME)


@dataclass(frozen=True)
class Plan:
    """What is to be done on one device."""

    device: str
    state: State
    detail: str = ""
    """Why nothing is to be done, or what is lacking and what would help."""
    interpreter: Interpreter | None = None
    chosen: Set | None = None
    missing: tuple[Payload, ...] = ()
    """Wheels that are not there yet."""
    free: int | None = None
    """Bytes free on the device."""

    @property
    def push(self) -> int:
        """Bytes to send."""
        return sum(payload.size for payload in self.missing)

    @property
    def needed(self) -> int:
        """Bytes that must be free."""
        return self.push + (self.chosen.unpacked if self.chosen else 0) + _SPARE

    @property
    def digest(self) -> str:
        """The same for the same environment: 16 hex digits."""
        assert self.interpreter is not None
        assert self.chosen is not None
        parts = [str(LAYOUT), self.interpreter.path, self.interpreter.short, self.interpreter.abi]
        parts += sorted(payload.digest for payload in self.chosen.payloads)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@dataclass
class Shelf:
    """Where wheels come from: a folder of the operator's, or PyPI by way of a cache.

    Devices that are alike share one answer; safe to use from several threads.
    """

    cache: Path
    folder: Path | None = None
    version: Version | None = None
    """Of ONNX Runtime; None: the newest in the folder, or this machine's own."""
    cancelled: Callable[[], bool] = lambda: False
    _answers: dict[str, Set | LackingError | WheelError] = field(default_factory=dict)
    _locks: defaultdict[str, threading.Lock] = field(
        default_factory=lambda: defaultdict(threading.Lock)
    )

    def wheels_for(self, interpreter: Interpreter) -> Set:
        """Return the wheels for an interpreter.

        Raises:
            LackingError: none fit; the text says what would help.
            WheelError: one is damaged.
            Cancelled: it is no longer wanted.
        """
        key = f"{interpreter.key}-{'.'.join(map(str, interpreter.version))}"
        with self._locks[key]:
            if key not in self._answers:
                try:
                    self._answers[key] = self._look(interpreter)
                except (LackingError, WheelError) as error:
                    self._answers[key] = error
            answer = self._answers[key]
        if isinstance(answer, Set):
            return answer
        raise answer

    def _look(self, interpreter: Interpreter) -> Set:
        if self.folder is not None:
            found, version = in_folder(self.folder), self.version
        else:
            version = self.version or own_version()
            found = download(interpreter, version, self.cache, self.cancelled)
        wheels = closure(found, interpreter, version)
        payloads = Payload.all_of([wheel.path for wheel in wheels], FOLDER)
        pairs = zip(wheels, payloads, strict=True)
        unpacked = sum(unpacked_size(wheel, p.digest, self.cache) for wheel, p in pairs)
        return Set(tuple(wheels), tuple(payloads), unpacked)


def make_plan(target: Target, found: Survey, shelf: Shelf, works: Callable[[], str]) -> Plan:
    """Return what is to be done on a device.

    `works` says what is wrong with the Python that benchmarks would use now, empty where nothing
    is; it is asked only where that Python claims to have all that it needs.

    Raises:
        DeviceError: the device cannot be asked.
        Cancelled: it is no longer wanted.
    """

    def lacking(detail: str) -> Plan:
        return Plan(target.name, "lacking", detail, free=found.free)

    own = found.environment not in ("", "?")
    if not own or target.python:
        if _suits(found, shelf) and not works():
            return Plan(target.name, "ready", _has(found, target), free=found.free)
        if target.python:
            has = _lacks(found)
            return lacking(
                f'the settings name python = "{target.python}", which {has}: remove that key, so'
                " that the environment that is built here is used, or install it there"
            )
    if found.environment == "?":
        return lacking("~/.hdap/environment is not one that hdap built; move it away")
    if found.read_only:
        return lacking(f"its folder {found.read_only} cannot be written to by {target.user}")
    if not found.interpreters:
        return lacking(
            "it has no Python 3 that was found: install python3 (3.8 or newer; pip and venv are not"
            " needed), or unpack a standalone build in its home folder and name it with --python"
        )
    try:
        interpreter, chosen = _choose(found, shelf)
    except (LackingError, WheelError) as error:
        return lacking(str(error))
    missing = tuple(p for p in chosen.payloads if p.name not in found.wheels)
    plan = Plan(target.name, "todo", "", interpreter, chosen, missing, found.free)
    if found.environment == plan.digest and not works():
        detail = f"ONNX Runtime {chosen.version} on Python {interpreter.short}, built by hdap"
        return Plan(target.name, "ready", detail, interpreter, chosen, (), found.free)
    if found.running:
        return lacking("a benchmark runs on it; try again when that has ended")
    if found.free < plan.needed:
        return lacking(
            f"its disk is too full: {megabytes(plan.needed)} are needed for a while"
            f" ({megabytes(plan.push)} of wheels, {megabytes(chosen.unpacked)} unpacked, some to"
            f" spare) and {megabytes(found.free)} are free in the home folder"
        )
    return plan


def _choose(found: Survey, shelf: Shelf) -> tuple[Interpreter, Set]:
    """Return the newest interpreter that wheels exist for.

    Raises:
        LackingError: what is wrong with the newest, where none will do.
        WheelError: a wheel that would do is damaged.
    """
    first: LackingError | None = None
    for interpreter in found.interpreters:
        reason = unfit(interpreter)
        if not reason and shelf.folder is None:
            reason = impossible(interpreter)
        try:
            if reason:
                raise LackingError(reason)
            return interpreter, shelf.wheels_for(interpreter)
        except LackingError as error:
            first = first or error
    assert first is not None
    raise first


def _suits(found: Survey, shelf: Shelf) -> bool:
    """Whether the Python that is there claims to have what is wanted."""
    if not all(found.used.get(name) for name in (RUNTIME, "numpy")):
        return False
    return shelf.version is None or found.used[RUNTIME] == str(shelf.version)


def _has(found: Survey, target: Target) -> str:
    which = f'"{target.python}"' if target.python else "python3"
    return f"its {which} has ONNX Runtime {found.used[RUNTIME]} already"


def _lacks(found: Survey) -> str:
    if "python" not in found.used:
        return "does not run"
    missing = [name for name in ("numpy", RUNTIME) if not found.used.get(name)]
    if missing:
        return f"has no {' and no '.join(missing)}"
    return f"has ONNX Runtime {found.used[RUNTIME]}, and that is not what was asked for or broken"


def megabytes(count: int) -> str:
    """Return a number of bytes for people."""
    return f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"
