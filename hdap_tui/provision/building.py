"""Carries a plan out on a device: pushes the wheels, has the environment built, removes it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import engine.runner
import hdap_tui.provision.builder
from hdap_tui.provision.planning import Plan
from hdap_tui.ssh.connection import Connection
from hdap_tui.ssh.errors import DeviceError, ErrorKind
from hdap_tui.ssh.scripts import ALIVE, PYTHON, ROOT, ask, lines_of
from hdap_tui.ssh.transfer import Payload, upload
from hdap_tui.text import clean

Say = Callable[[str], None]
"""Told what is being done: "upload 40 %", "unpacking 2/5", "checking"."""

_UNPACK_RATE = 5e5  # bytes a second that the slowest device is trusted to unpack
_PATIENCE_S = 900.0  # seconds that waiting for another and checking may take besides

_ATTEMPTS = 3
_BUILDS_S = 5
"""Seconds for which removing waits for a build that may just be ending."""

_BUILD = f'exec "$1" -I {ROOT}/"$2" build "$3"'
_CHECK = f'{PYTHON}\ninterpreter "$1"\nexec "$python" {ROOT}/"$2" check "$3"'

# The lock's file stays: whoever waits for it has it open, and must not meet somebody with another.
# The shell holds the lock while its descriptor is open; mksh passes that on only where it is named.
_UNDO = f"""{ALIVE}{PYTHON}
cd {ROOT} 2>/dev/null || {{ echo nothing; exit 0; }}
look() {{
  found=
  for one in environment environment.* wheels; do
    if [ -e "$one" ] || [ -L "$one" ]; then
      [ "$one" = environment.lock ] || found="$found $one"
    fi
  done
}}
lock() {{
  if command -v flock >/dev/null 2>&1; then flock -n 9 9>&9 2>/dev/null || [ $? -ne 1 ]
  else interpreter ""; "$python" -I -S -c '
import errno, fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError as error:
    sys.exit(75 if error.errno in (errno.EAGAIN, errno.EACCES) else 0)
' 9>&9 2>/dev/null; [ $? -ne 75 ]; fi
}}
look
[ -n "$found" ] || {{ echo nothing; exit 0; }}
exec 9>>environment.lock || exit 1
n=0
until lock; do
  [ $n -lt {_BUILDS_S} ] || {{ echo building; exit 0; }}
  n=$((n + 1)); sleep 1
done
for job in jobs/*/pid; do
  [ -s "$job" ] || continue
  id=${{job%/pid}}; id=${{id##*/}}; pid=$(cat "$job")
  alive "$id" || continue
  echo running; exit 0
done
if [ -e environment ] && [ ! -L environment ]; then echo foreign; exit 0; fi
look
set -- $(du -sk $found 2>/dev/null | awk '{{ n += $1 }} END {{ print n + 0 }}')
rm -f environment && rm -rf $found || exit 1
echo "removed ${{1:-0}}"
"""


def works(connection: Connection, cancelled: Callable[[], bool]) -> str:
    """Return what is wrong with the Python that benchmarks use on a device; empty: nothing.

    Raises:
        DeviceError: the device cannot be asked.
        Cancelled: it is no longer wanted.
    """
    runner, builder = _programs()
    upload(connection, [runner, builder], cancelled=cancelled)
    python = connection.target.python
    answer = ask(
        connection, _CHECK, python, builder.name, runner.name,
        timeout=_PATIENCE_S, limit=65536, leash=True, cancelled=cancelled,
    )  # fmt: skip
    said = _last(connection, answer)
    return "" if said.get("ok") is True else clean(said.get("why") or "it does not work", 300)


def provision(connection: Connection, plan: Plan, say: Say, cancelled: Callable[[], bool]) -> None:
    """Push what is missing, and have the environment of a plan built, checked and switched to.

    Cut at any moment, it leaves the environment that was in use; again, it goes on.

    Raises:
        DeviceError: disk full, failed (the text says what was wrong), disconnected, …
        Cancelled: it is no longer wanted.
    """
    for attempt in range(_ATTEMPTS):
        last = attempt == _ATTEMPTS - 1
        try:
            _push(connection, plan, say, cancelled)
        except DeviceError as error:
            # Somebody who has just built the same took the wheels away below us.
            if last or error.kind is not ErrorKind.FAILED:
                raise
            continue
        said = _build(connection, plan, say, cancelled)
        if said.get("ok") is True:
            return
        if said.get("gone") is not True or last:
            kind = ErrorKind.DISK_FULL if said.get("full") is True else ErrorKind.FAILED
            why = clean(said.get("why") or "the environment could not be built", 400)
            raise DeviceError(kind, f"{connection.where}: {why}")


def _push(connection: Connection, plan: Plan, say: Say, cancelled: Callable[[], bool]) -> None:
    assert plan.chosen is not None
    shown = 0

    def progress(sent: int, total: int) -> None:
        nonlocal shown
        percent = 100 * sent // max(total, 1)
        if percent // 10 != shown // 10:
            shown = percent
            say(f"upload {percent} %")

    upload(connection, [*_programs(), *plan.chosen.payloads], progress, cancelled)


def _build(
    connection: Connection, plan: Plan, say: Say, cancelled: Callable[[], bool]
) -> dict[str, Any]:
    """Run the builder on the device; return its answer."""
    assert plan.interpreter is not None
    assert plan.chosen is not None
    runner, builder = _programs()
    request = {
        "plan": plan.digest,
        "wheels": [payload.name for payload in plan.chosen.payloads],
        "runner": runner.name,
        "python": plan.interpreter.short,
    }
    say("unpacking")

    def told(line: str) -> None:
        if line.startswith("stage "):
            say(clean(line.removeprefix("stage "), 40))

    answer = ask(
        connection, _BUILD, plan.interpreter.path, builder.name, json.dumps(request),
        timeout=_PATIENCE_S + plan.chosen.unpacked / _UNPACK_RATE, limit=65536, leash=True,
        cancelled=cancelled, told=told,
    )  # fmt: skip
    return _last(connection, answer)


def undo(connection: Connection) -> int | None:
    """Remove the environment and the wheels; return the bytes freed, None where there were none.

    Raises:
        DeviceError: busy where a benchmark runs or it is being built; failed where the
            environment is not ours.
    """
    lines = lines_of(ask(connection, _UNDO, timeout=_PATIENCE_S, limit=4096))
    word, _, number = (lines[-1] if lines else "").partition(" ")
    if word == "running":
        raise DeviceError(
            ErrorKind.BUSY, f"{connection.where}: a benchmark runs on it; try again afterwards"
        )
    if word == "building":
        raise DeviceError(
            ErrorKind.BUSY,
            f"{connection.where}: another hdap builds its environment; try again afterwards",
        )
    if word == "foreign":
        raise DeviceError(
            ErrorKind.FAILED, f"{connection.where}: ~/.hdap/environment is not one that hdap built"
        )
    if word == "nothing":
        return None
    if word != "removed" or not number.isdecimal():
        raise _garbage(connection)
    return int(number[:15]) * 1024


def _programs() -> tuple[Payload, Payload]:
    of = partial(Payload.of, folder="runner")
    return of(Path(engine.runner.__file__)), of(Path(hdap_tui.provision.builder.__file__))


def _last(connection: Connection, answer: bytes) -> dict[str, Any]:
    """Return the JSON object in the last line."""
    try:
        return dict(json.loads(lines_of(answer)[-1]))
    except (ValueError, TypeError, IndexError) as error:
        raise _garbage(connection) from error


def _garbage(connection: Connection) -> DeviceError:
    return DeviceError(
        ErrorKind.GARBAGE, f"{connection.where}: what it says of its environment makes no sense"
    )
