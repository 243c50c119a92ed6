"""A benchmark on a device: started detached, fetched while its lease is renewed, ended, removed.

A lost connection loses nothing: the runner goes on, and its results lie in its folder. A runner
that nobody fetches from ends by itself once its lease has run out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hdap_tui.ssh.connection import Connection
from hdap_tui.ssh.errors import DeviceError, ErrorKind
from hdap_tui.ssh.scripts import ALIVE, PYTHON, ROOT, ask, lines_of
from hdap_tui.ssh.sockets import never
from hdap_tui.text import clean

State = Literal["starting", "running", "ended", "gone"]

FETCH_LIMIT = 4 << 20
"""Bytes of results that one fetch brings."""
RESULTS_LIMIT = 64 << 20
"""Bytes of results beyond which a device is taken to talk nonsense."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

# A job that nobody has come for is removed once it was found a day old twice, a day apart: the
# device's clock may have been wrong, and set right in one jump, since the folder was made.
_START = f"""{PYTHON}{ALIVE}
umask 077
job={ROOT}/jobs/$1
mkdir -p {ROOT}/jobs || exit 1
find {ROOT}/jobs/* -prune -mtime +1 2>/dev/null | while read -r old; do
  pid=$(cat "$old/pid" 2>/dev/null)
  alive "${{old##*/}}" && continue
  if [ -e "$old/stale" ]; then rm -rf -- "$old"; else : >"$old/stale"; fi
done
if [ -s "$job/pid" ] || [ -e "$job/results.jsonl" ]; then exit 0; fi
mkdir -p "$job" && cat >"$job/request.part" || exit 1
[ "$(wc -c <"$job/request.part")" -eq "$2" ] || exit 1
mv -f "$job/request.part" "$job/request.json" && : >"$job/lease" || exit 1
interpreter "$3"
command -v setsid >/dev/null 2>&1 || setsid() {{ "$@"; }}
setsid sh -c 'echo $$ >"$1/pid"; exec "$2" "$3" "$1"' \\
  sh "$PWD/$job" "$python" "$PWD/{ROOT}/$4" </dev/null >>"$job/runner.log" 2>&1 &
"""

_FETCH = f"""{ALIVE}
cd {ROOT}/jobs/"$1" 2>/dev/null || {{ echo gone 0; exit 0; }}
touch lease
pid=$(cat pid 2>/dev/null)
if alive "$1"; then state=running
elif [ -n "$pid" ] || [ -e results.jsonl ]; then state=ended
else state=starting; fi
[ -e results.jsonl ] || {{ echo "$state" 0; exit 0; }}
echo "$state" $(wc -c <results.jsonl)
tail -c +"$2" results.jsonl | head -c "$3"
"""

_CANCEL = f"""{ALIVE}
cd {ROOT}/jobs/"$1" 2>/dev/null || exit 0
: >cancel
pid=$(cat pid 2>/dev/null)
alive "$1" || exit 0
group() {{ kill -s "$1" -- "-$pid" 2>/dev/null; }}
group TERM
n=0
while alive "$1" && [ $n -lt 20 ]; do sleep 0.1 2>/dev/null || sleep 1; n=$((n + 1)); done
group KILL
true
"""

_CLEAN = f'rm -rf -- {ROOT}/jobs/"$1"'
_LOG = f'tail -c 2000 {ROOT}/jobs/"$1"/runner.log 2>/dev/null; true'


@dataclass(frozen=True)
class Fetched:
    """What one fetch brought."""

    state: State
    """The state before the lines were read: once ended, nothing more will come."""
    data: bytes
    """New results, whole lines."""
    offset: int
    """Where the next fetch goes on."""
    more: bool
    """Whether lines are left that did not fit."""


class RemoteJob:
    """One job in its folder on a device; it needs no connection of its own."""

    def __init__(self, job: str) -> None:
        if not _ID.fullmatch(job):
            raise ValueError(
                f"{job!r} cannot name a job: letters, digits, dots, dashes and underscores only"
            )
        self.id = job
        self.folder = f"{ROOT}/jobs/{job}"

    def start(
        self,
        connection: Connection,
        request: Mapping[str, Any],
        runner: str,
    ) -> None:
        """Start the runner, detached, in a process group of its own; again does no harm.

        `runner` is its file's name below the product's folder.

        Raises:
            DeviceError: disk full, failed, …
        """
        data = json.dumps(request).encode()
        python = connection.target.python
        ask(connection, _START, self.id, str(len(data)), python, runner, stdin=data)

    def fetch(
        self, connection: Connection, offset: int = 0, cancelled: Callable[[], bool] = never
    ) -> Fetched:
        """Return the results from a byte on, and renew the lease in the same command.

        Raises:
            DeviceError: garbage where the answer is none, disconnected, …
        """
        answer = ask(
            connection, _FETCH, self.id, str(offset + 1), str(FETCH_LIMIT),
            limit=FETCH_LIMIT + 1024, cancelled=cancelled,
        )  # fmt: skip
        head, _, data = answer.partition(b"\n")
        found = re.fullmatch(rb"(starting|running|ended|gone)\s+(\d+)", head.strip())
        if not found or int(found[2]) > RESULTS_LIMIT:
            raise self._garbage(connection)
        state: State = found[1].decode()  # type: ignore[assignment]
        whole = data.rfind(b"\n") + 1
        if not whole and len(data) == FETCH_LIMIT:
            raise self._garbage(connection)
        return Fetched(state, data[:whole], offset + whole, more=len(data) == FETCH_LIMIT)

    def cancel(self, connection: Connection) -> None:
        """End the runner's whole process group: asked first, killed after two seconds.

        Raises:
            DeviceError: the device cannot be asked.
        """
        ask(connection, _CANCEL, self.id, timeout=connection.target.timeouts.channel + 5)

    def clean(self, connection: Connection) -> None:
        """Remove the job's folder.

        Raises:
            DeviceError: the device cannot be asked.
        """
        ask(connection, _CLEAN, self.id)

    def log(self, connection: Connection) -> str:
        """Return the end of what the runner wrote to its log, fit to be shown.

        Raises:
            DeviceError: the device cannot be asked.
        """
        lines = [line for line in lines_of(ask(connection, _LOG, self.id)) if line.strip()]
        return clean(lines[-1]) if lines else ""

    def _garbage(self, connection: Connection) -> DeviceError:
        return DeviceError(
            ErrorKind.GARBAGE, f"{connection.where}: what it calls results makes no sense"
        )
