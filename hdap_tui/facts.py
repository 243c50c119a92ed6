"""What a device is: asked of the runner on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import engine.runner
from hdap_tui.ssh.connection import Connection
from hdap_tui.ssh.errors import DeviceError, ErrorKind
from hdap_tui.ssh.scripts import ROOT, ask
from hdap_tui.ssh.transfer import Payload, upload
from hdap_tui.text import clean

_RUNNER = f"""
case $1 in "~/"*) python=$HOME/${{1#??}} ;; *) python=$1 ;; esac
runner={ROOT}/$2
shift 2
exec "$python" "$runner" "$@"
"""


def ask_runner(connection: Connection, runner: Payload, *arguments: str, **options: Any) -> bytes:
    """Run the uploaded runner on a device in one of its short modes; return what it prints.

    Options are those of `ask`.

    Raises:
        DeviceError: it cannot be run, or its answer is too long.
    """
    python = connection.target.python
    return ask(connection, _RUNNER, python, runner.name, *arguments, limit=65536, **options)


def gather(connection: Connection) -> dict[str, Any]:
    """Return what the device's runner says about it: processor, memory, versions.

    Raises:
        DeviceError: it cannot be asked, or its answer makes no sense.
    """
    runner = Payload.of(Path(engine.runner.__file__), "runner")
    upload(connection, [runner])
    answer = ask_runner(connection, runner, "--facts")
    try:
        facts = json.loads(answer.decode("utf-8", "replace").strip().splitlines()[-1])
        return {clean(key, 40): _bounded(value) for key, value in dict(facts).items()}
    except (ValueError, TypeError, IndexError) as error:
        raise DeviceError(
            ErrorKind.GARBAGE, f"{connection.where}: what it says of itself makes no sense"
        ) from error


def _bounded(value: Any) -> Any:
    if isinstance(value, list):
        return [clean(item, 40) for item in value[:200]]
    if isinstance(value, dict):
        return {clean(k, 40): clean(v, 100) for k, v in list(value.items())[:50]}
    return value if isinstance(value, int | float | None) else clean(value, 200)
