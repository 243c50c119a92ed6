"""Wheels for a device, fetched by pip on the operator's machine into a cache."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from packaging.version import InvalidVersion, Version

import engine.files
from hdap_tui.provision.closure import RUNTIME, LackingError
from hdap_tui.provision.fitting import Interpreter, impossible
from hdap_tui.provision.wheels import Wheel, parsed
from hdap_tui.ssh.errors import Cancelled
from hdap_tui.text import clean

RETRIES = 2
"""How often pip asks again of an index that does not answer."""
LIMIT_S = 900.0
"""Seconds that one call of pip may take."""
_OFFLINE = ("Retrying (", "Failed to establish", "Temporary failure in name resolution")
_locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

# Where wheels of nearly every version of ONNX Runtime can be found.
_REFERENCES = tuple(
    Interpreter("", (3, minor, 0), f"cp3{minor}", 64, "x86_64", "glibc 2.39")
    for minor in (sys.version_info.minor, 8)
)


def cache_folder() -> Path:
    """Return the folder of this user's downloaded wheels."""
    return Path(platformdirs.user_cache_dir("hdap-tui")) / "wheels"


def own_version() -> Version:
    """Return the version of ONNX Runtime on this machine: what devices get, if nobody says."""
    return Version(importlib.metadata.version(RUNTIME))


@dataclass(frozen=True)
class _Answer:
    status: int
    said: str

    @property
    def offered(self) -> list[Version]:
        """Versions that would fit, oldest first, from pip's complaint that none does."""
        found = re.search(r"\(from versions: ([^)]*)\)", self.said)
        versions = []
        for word in found[1].split(",") if found else []:
            with contextlib.suppress(InvalidVersion):
                versions.append(Version(word.strip()))
        return sorted(versions)

    @property
    def offline(self) -> bool:
        return any(word in self.said for word in _OFFLINE)


def download(
    interpreter: Interpreter,
    version: Version,
    cache: Path,
    cancelled: Callable[[], bool],
) -> list[Wheel]:
    """Return wheels of that version and all that it needs, from the cache or from PyPI.

    Which index pip asks is the operator's own setting. The sums of what came are kept beside.

    Raises:
        LackingError: there are none that fit, PyPI cannot be reached, or pip is missing.
        Cancelled: it is no longer wanted.
    """
    note = cache / "sets" / f"{RUNTIME}-{version}-{interpreter.key}.json"
    with _locks[str(note)]:
        known = _known(note, cache)
        if known:
            return known
        if reason := impossible(interpreter):
            raise LackingError(reason)
        if importlib.util.find_spec("pip") is None:
            raise LackingError(
                "the Python that runs hdap has no pip to download wheels with: install pip there,"
                " or give a folder of wheels with --wheels"
            )
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="download-") as aside:
            answer = _pip(interpreter, f"{RUNTIME}=={version}", Path(aside), cancelled)
            if answer.status:
                raise LackingError(_why(answer, interpreter, version, cache, cancelled))
            return _keep(Path(aside), cache, note)


def _pip(
    interpreter: Interpreter,
    requirement: str,
    folder: Path,
    cancelled: Callable[[], bool],
    *more: str,
) -> _Answer:
    command = [
        sys.executable, "-m", "pip", "download", "--only-binary=:all:", "--progress-bar=off",
        "--no-input", "--disable-pip-version-check", f"--retries={RETRIES}", "--timeout=20",
        "--implementation=cp", f"--python-version={interpreter.short}", f"--abi={interpreter.abi}",
        *(f"--platform={platform}" for platform in interpreter.platforms),
        f"--dest={folder}", *more, requirement,
    ]  # fmt: skip
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        until = time.monotonic() + LIMIT_S
        try:
            while process.poll() is None:
                if cancelled():
                    raise Cancelled
                if time.monotonic() > until:
                    raise LackingError(f"pip did not end within {LIMIT_S / 60:.0f} min")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.1)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        output.seek(0)
        return _Answer(process.returncode, output.read(1 << 20).decode("utf-8", "replace"))


def _why(
    answer: _Answer,
    interpreter: Interpreter,
    version: Version,
    cache: Path,
    cancelled: Callable[[], bool],
) -> str:
    offered, label = answer.offered, interpreter.label
    if "No matching distribution" not in answer.said:
        lines = [line for line in answer.said.splitlines() if "ERROR" in line]
        said = clean(lines[0] if lines else answer.said.strip(), 200)
        return f"pip could not get ONNX Runtime {version} for {label}: {said}"
    if answer.offline:
        return (
            "the package index (PyPI) cannot be reached from this machine: give a folder of wheels"
            " with --wheels, or try again when it can"
        )
    lacking = re.search(r"No matching distribution found for ([A-Za-z0-9._-]+)", answer.said)
    if lacking and lacking[1].lower() != RUNTIME:
        return f"ONNX Runtime {version} needs {lacking[1]}, which has no wheel for {label}"
    if not _exists(version, cache, cancelled):
        newest = f"; {offered[-1]} is the newest for {label}" if offered else ""
        return f"there is no ONNX Runtime {version}{newest}"
    if not offered:
        return (
            f"ONNX Runtime has no wheel for {label}: put another Python on the device and name it"
            " with --python, or give wheels of your own build with --wheels"
        )
    return (
        f"ONNX Runtime {version} has no wheel for {label}; {offered[-1]} is the newest that has:"
        f" --onnxruntime {offered[-1]}, or another Python with --python (a standalone build in the"
        " device's home folder will do)"
    )


def _exists(version: Version, cache: Path, cancelled: Callable[[], bool]) -> bool:
    """Whether any of the usual systems has that version, as far as the index tells."""
    for reference in _REFERENCES:
        answer = _pip(reference, f"{RUNTIME}==0", cache, cancelled, "--no-deps")
        if version in answer.offered:
            return True
    return False


def _keep(aside: Path, cache: Path, note: Path) -> list[Wheel]:
    """Move downloaded wheels into the cache, and write down which they are."""
    sums: dict[str, str] = {}
    for path in sorted(aside.iterdir()):
        if parsed(path) is None:
            continue
        sums[path.name] = _digest(path)
        shutil.move(path, cache / path.name)
    note.parent.mkdir(parents=True, exist_ok=True)
    engine.files.write(note, json.dumps({"wheels": sums}, indent=1))
    return _known(note, cache)


def _known(note: Path, cache: Path) -> list[Wheel]:
    """Return the wheels of a set that was downloaded before; none where it is not as it was."""
    try:
        sums = json.loads(note.read_text())["wheels"]
        found = [wheel for name in sums if (wheel := parsed(cache / str(name)))]
        whole = all(_digest(wheel.path) == sums[wheel.path.name] for wheel in found)
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return found if whole and len(found) == len(sums) else []


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
