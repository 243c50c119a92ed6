"""What a device is, asked on it: by a shell script, and the runner for what only Python knows."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import engine.runner
from hdap_tui.fact_names import Facts, checked
from hdap_tui.facts.reading import parse
from hdap_tui.facts.script import LOOK
from hdap_tui.ssh.connection import Connection
from hdap_tui.ssh.errors import DeviceError, ErrorKind
from hdap_tui.ssh.scripts import PYTHON, ROOT, ask
from hdap_tui.ssh.transfer import Payload, upload

_RUNNER = f"""{PYTHON}
interpreter "$1"
runner={ROOT}/$2
shift 2
exec "$python" "$runner" "$@"
"""
_RUNNER_S = 45
"""Seconds for its Python, which a given-up command would leave behind."""
_BOTH = f"""{LOOK}
{PYTHON}
if [ -n "${{3:-}}" ] && [ -e "{ROOT}/$3" ]; then
  interpreter "$2"
  printf '\\nrunner='
  seconds={_RUNNER_S}; limited "$python" "{ROOT}/$3" --facts
fi
true
"""
_LIMIT = 256 * 1024
_FROM_RUNNER = ("python", "onnxruntime", "providers", "numpy")
"""What only the Python that benchmarks run in knows."""


def ask_runner(connection: Connection, runner: Payload, *arguments: str, **options: Any) -> bytes:
    """Run the uploaded runner on a device in one of its short modes; return what it prints.

    Options are those of `ask`.

    Raises:
        DeviceError: it cannot be run, or its answer is too long.
    """
    python = connection.target.python
    return ask(connection, _RUNNER, python, runner.name, *arguments, limit=65536, **options)


def look(connection: Connection) -> Facts:
    """Return what a device is, as far as a shell can tell; it needs no Python there.

    Raises:
        DeviceError: it cannot be asked, or its answer makes no sense.
    """
    return _facts(connection, None)


def gather(connection: Connection) -> Facts:
    """Return what a device is: what a shell can tell, and versions and providers of its runtime.

    Where it has no Python, or the runner does not work, the latter are missing.

    Raises:
        DeviceError: it cannot be asked, or its answer makes no sense.
    """
    runner = Payload.of(Path(engine.runner.__file__), "runner")
    try:
        upload(connection, [runner])
    except DeviceError as error:
        if error.kind is not ErrorKind.DISK_FULL:
            raise
        return look(connection)
    return _facts(connection, runner)


def gather_again(connection: Connection) -> Facts:
    """Return the same as `gather` in a single command; the runner must be on the device already.

    Raises:
        DeviceError: it cannot be asked, or its answer makes no sense.
    """
    return _facts(connection, Payload.of(Path(engine.runner.__file__), "runner"))


def merged(seen: Facts, told: Mapping[str, Any]) -> Facts:
    """Return what the shell saw, with what the runner says of its Python.

    The shell decodes more of the hardware; the runner only fills what it could not find.
    """
    own = dict(told)
    memory = own.get("memory_kb")
    if isinstance(memory, int) and not isinstance(memory, bool):
        own["memory_mb"] = memory * 1024 // 1_000_000
    found = checked(own)
    return {**found, **seen, **{name: found[name] for name in _FROM_RUNNER if name in found}}


def _facts(connection: Connection, runner: Payload | None) -> Facts:
    name = runner.name if runner else ""
    answer = ask(connection, _BOTH, "", connection.target.python, name, limit=_LIMIT)
    shell, _, rest = answer.decode("utf-8", "replace").partition("\nrunner=")
    facts = parse(shell, time.time())
    if "machine" not in facts:
        raise DeviceError(
            ErrorKind.GARBAGE, f"{connection.where}: what it says of itself makes no sense"
        )
    told = _told(rest)
    if runner is None or not told:
        return facts
    return {**merged(facts, told), "runner": runner.digest[:12]}


def _told(text: str) -> dict[str, Any]:
    """Return the last line of what the runner printed; nothing where it did not work."""
    try:
        told = json.loads(text.strip().splitlines()[-1])
    except (ValueError, IndexError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}
