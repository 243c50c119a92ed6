"""The lock on a device, so that two operators cannot change it at once.

It is a numbered symbolic link whose target says who holds it, in which boot of the device, and
until which second of its uptime; the highest number counts. Making a link is one atomic step that
only one can win, and content and existence come together. It ends by itself: when the device
restarts, and when its time has run out by a clock that nobody can set. Whoever holds it takes the
next number with every script, so that a script of theirs which a lost connection left behind
finds itself overtaken, and changes nothing any more.
"""

from __future__ import annotations

import getpass
import re
import secrets
import socket
from dataclasses import dataclass, field

from hdap_tui.errors import ExitCode
from hdap_tui.ssh.connection import Connection
from hdap_tui.ssh.errors import DeviceError, ErrorKind
from hdap_tui.ssh.scripts import ROOT, ask, lines_of

LEASE_S = 900
"""Seconds after which a lock that nobody renews is free."""

# take TOKEN SECONDS WHO: hold the lock, or say "held SECONDS-LEFT WHO".
LOCK = """
top() {
  last=0
  for one in locks/[0-9]*; do
    [ -L "$one" ] && [ "${one#locks/}" -gt "$last" ] && last=${one#locks/}
  done
  true
}
clock() {
  up=
  [ ! -r /proc/uptime ] || read -r up rest </proc/uptime
  up=${up%%.*}
  up=${up:-$(date +%s)}
  boot=
  [ ! -r /proc/sys/kernel/random/boot_id ] || read -r boot </proc/sys/kernel/random/boot_id
  boot=${boot:-none}
}
held() {
  [ "$last" -gt 0 ] || return 1
  set -- "$1" $(readlink "locks/$last")
  [ $# -eq 5 ] && [ "$2" != "$1" ] && [ "$3" = "$boot" ] && [ "$4" -gt "$up" ] 2>/dev/null &&
    [ $(($4 - up)) -le 86400 ] && left=$(($4 - up)) who=$5
}
take() {
  mkdir -p locks || exit 1
  clock
  tries=0
  while [ $tries -lt 50 ]; do
    top
    if held "$1"; then echo "held $left $who"; return 1; fi
    number=$((last + 1))
    if ln -s "$1 $boot $((up + $2)) $3" "locks/$number" 2>/dev/null; then
      if mine; then
        for one in locks/[0-9]*; do
          [ "${one#locks/}" -ge "$number" ] || rm -f "$one"
        done
        return 0
      fi
      rm -f "locks/$number"
    else
      [ -L "locks/$number" ] || ln -s none "locks/$number" || exit 1
    fi
    tries=$((tries + 1))
  done
  echo "held 1 somebody"
  return 1
}
mine() { top; [ "$last" -eq "$number" ]; }
give() {
  top
  number=$last
  [ "$number" -gt 0 ] || return 0
  set -- "$1" $(readlink "locks/$number")
  [ "$1" = "$2" ] || return 0
  ln -s free "locks/$((number + 1))" 2>/dev/null && rm -f "locks/$number"
  true
}
"""

_HOLDER = f"""{LOCK}
cd {ROOT} 2>/dev/null || exit 0
clock
top
if held nobody; then echo "held $left $who"; fi
"""
_HELD = re.compile(r"held (\d{1,6}) ([A-Za-z0-9@._-]{1,60})")


def _here() -> str:
    try:
        who = getpass.getuser()
    except (KeyError, OSError):
        who = "somebody"
    return re.sub(r"[^A-Za-z0-9@._-]", "_", f"{who}@{socket.gethostname()}")[:60]


@dataclass(frozen=True)
class Claim:
    """What the locks of one deployment say: who holds them, for how long."""

    token: str = field(default_factory=lambda: secrets.token_hex(8))
    """The same for one deployment, interrupted or not: it may go on with its own locks."""
    lease_s: int = LEASE_S
    who: str = field(default_factory=_here)

    @property
    def words(self) -> tuple[str, str, str]:
        """The arguments of the script's `take`."""
        return self.token, str(self.lease_s), self.who


class HeldError(DeviceError):
    """Somebody else works on the device; the lock ends by itself."""

    def __init__(self, text: str) -> None:
        super().__init__(ErrorKind.BUSY, text)
        self.exit_code = ExitCode.REFUSED


def holder(connection: Connection) -> str:
    """Return who works on a device now; empty where nobody does.

    Raises:
        DeviceError: the device cannot be asked.
    """
    for line in lines_of(ask(connection, _HOLDER)):
        if found := _HELD.fullmatch(line):
            return found[2]
    return ""


def claimed(connection: Connection, lines: list[str]) -> list[str]:
    """Return a script's lines where it had the lock.

    Raises:
        HeldError: it had not.
    """
    for line in lines:
        found = _HELD.fullmatch(line)
        if found:
            minutes = -(-int(found[1]) // 60)
            raise HeldError(
                f"{connection.where}: {found[2]} deploys to it; the lock ends by itself within "
                f"{minutes} min",
            )
    if "overtaken" in lines:
        raise HeldError(f"{connection.where}: another deployment took the device over")
    return lines
