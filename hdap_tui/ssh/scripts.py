"""Shell scripts on a device, in any POSIX shell, with an answer that noise cannot spoil."""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Callable

from hdap_tui.ssh.connection import OUTPUT_LIMIT, Connection
from hdap_tui.ssh.errors import DeviceError, ErrorKind
from hdap_tui.ssh.sockets import never

ROOT = ".hdap"
"""Folder of everything on a device, in the user's home."""

PYTHON = f"""
interpreter() {{
  case $1 in
    "") python=$HOME/{ROOT}/environment/bin/python
      if [ -x "$python" ]; then unset PYTHONPATH PYTHONHOME; else python=python3; fi ;;
    "~/"*) python=$HOME/${{1#??}} ;;
    *) python=$1 ;;
  esac
}}
"""
"""Shell function that sets `python` to the interpreter that a target's `python` means: where it is
empty, that of the environment which provisioning built, or else the device's python3."""

# A number in a file may belong to somebody else after a restart of the device, so the command
# line must name the job. It is empty for a moment while a process becomes another program, and for
# good once it has ended and nobody has collected it.
ALIVE = """
alive() {
  [ -n "$pid" ] && kill -s 0 "$pid" 2>/dev/null || return 1
  [ -d /proc/self ] || return 0
  grep -q -e "$1" "/proc/$pid/cmdline" 2>/dev/null && return 0
  grep -q . "/proc/$pid/cmdline" 2>/dev/null && return 1
  grep -q '^State:[[:space:]]*[DRS]' "/proc/$pid/status" 2>/dev/null
}
"""
"""Shell function that says whether the process `$pid` is the job that its argument names."""

# openssl uses the processor's own instructions, which coreutils and busybox do not.
DIGEST = """
sha=
digest() {
  case $sha in "")
    case $(openssl dgst -sha256 -r </dev/null 2>/dev/null) in e3b0c442*) sha=openssl ;; *)
      for sha in sha256sum shasum none; do command -v $sha >/dev/null 2>&1 && break; done
    esac
  esac
  case $sha in
    openssl) sum=$(openssl dgst -sha256 -r) ;;
    sha256sum) sum=$(sha256sum) ;;
    shasum) sum=$(shasum -a 256) ;;
    *) echo "no program here computes SHA-256" >&2; exit 1 ;;
  esac
  echo "${sum%% *}"
}
"""
"""Shell function that prints the SHA-256 of its input; without a program for it the script ends."""


def ask(
    connection: Connection,
    script: str,
    *arguments: str,
    stdin: bytes = b"",
    timeout: float | None = None,
    limit: int = OUTPUT_LIMIT,
    leash: bool = False,
    cancelled: Callable[[], bool] = never,
    told: Callable[[str], None] | None = None,
) -> bytes:
    """Run a script in the home folder with its arguments as $1, $2, …; return what it prints.

    What the login shell prints by itself comes before a mark and is left out. On the leash it
    has no input, and ends with all its children when the channel does. `told` gets each line while
    it runs.

    Raises:
        DeviceError: as `Connection.call`; garbage where the mark is missing.
    """
    mark = "hdap:" + secrets.token_hex(8)
    text = f"cd || exit 1\necho; echo {mark}\n{script}"
    words = " ".join(map(shlex.quote, ("sh", "-c", text, "hdap", *arguments)))
    done = connection.call(
        f"exec {words}", stdin=stdin, timeout=timeout, limit=limit + 65536, leash=leash,
        cancelled=cancelled, told=_by_lines(told, mark) if told else None,
    )  # fmt: skip
    _, found, answer = done.out.partition(f"\n{mark}\n".encode())
    if not found or len(answer) > limit or done.dropped:
        raise DeviceError(
            ErrorKind.GARBAGE, f"{connection.where}: a command's answer makes no sense"
        )
    return answer


def _by_lines(told: Callable[[str], None], mark: str) -> Callable[[bytes], None]:
    count = 0

    def progress(out: bytes) -> None:
        nonlocal count
        whole = out.partition(f"\n{mark}\n".encode())[2].rpartition(b"\n")[0]
        lines = lines_of(whole)
        for line in lines[count:]:
            told(line)
        count = len(lines)

    return progress


def lines_of(answer: bytes) -> list[str]:
    """Return an answer's lines as text."""
    return answer.decode("utf-8", "replace").splitlines()
