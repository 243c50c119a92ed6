"""Which model a device runs: two links that are switched by rename.

``~/.hdap/current`` names the model in use, ``~/.hdap/previous`` the one before. A link is made
aside and renamed into place, so whoever reads it finds the old model or the new one, at any moment
and after a power cut as well.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from hdap_tui.ssh.connection import Connection
from hdap_tui.ssh.errors import DeviceError, ErrorKind
from hdap_tui.ssh.scripts import ROOT, ask, lines_of

_NAME = re.compile(r"models/([0-9a-f]{64})\.onnx")

_SHOW = f"""
cd {ROOT} 2>/dev/null || exit 0
echo "current $(readlink current)"
echo "previous $(readlink previous)"
"""

# The model is on the disk before a link names it, and the links are before this returns.
_SWITCH = f"""
cd {ROOT} || exit 1
[ -f "$1" ] || {{ echo "missing"; exit 0; }}
point() {{ ln -sfn "$1" "$2.part" && mv -f "$2.part" "$2"; }}
sync "$1" 2>/dev/null || sync
old=$(readlink current)
if [ "$old" != "$1" ]; then
  if [ -n "$old" ]; then point "$old" previous; fi
  point "$1" current || exit 1
fi
sync . 2>/dev/null || sync
echo "current $(readlink current)"
echo "previous $(readlink previous)"
"""


# What is taken back must not be what a later roll-back brings, so it leaves no link.
_RESTORE = f"""
cd {ROOT} || exit 1
old=$(readlink previous)
[ -n "$old" ] && [ -f "$old" ] || {{ echo "missing"; exit 0; }}
ln -sfn "$old" current.part && mv -f current.part current && rm -f previous || exit 1
sync . 2>/dev/null || sync
echo "current $(readlink current)"
"""


@dataclass(frozen=True)
class Release:
    """The models that a device's links name, as digests; None where there is no link."""

    current: str | None
    previous: str | None


def show(connection: Connection) -> Release:
    """Return what the device runs.

    Raises:
        DeviceError: the device cannot be asked.
    """
    return _parse(lines_of(ask(connection, _SHOW)))


def switch(connection: Connection, digest: str) -> Release:
    """Let the device run a model that has been uploaded; the one in use becomes the previous.

    Raises:
        DeviceError: failed where the model is not there or the link does not name it afterwards.
    """
    lines = lines_of(ask(connection, _SWITCH, f"models/{digest}.onnx"))
    release = _parse(lines)
    if release.current != digest:
        what = "the model is not on the device" if "missing" in lines else "the link did not move"
        raise DeviceError(ErrorKind.FAILED, f"{connection.where}: not switched: {what}")
    return release


def restore(connection: Connection) -> str:
    """Let the device run its previous model again; return that model's digest.

    Raises:
        DeviceError: failed where there is no previous model, or it is gone.
    """
    current = _parse(lines_of(ask(connection, _RESTORE))).current
    if current is None:
        raise DeviceError(
            ErrorKind.FAILED, f"{connection.where}: it has no previous model to go back to"
        )
    return current


def _parse(lines: list[str]) -> Release:
    found: dict[str, str | None] = {}
    for line in lines:
        which, _, name = line.partition(" ")
        match = _NAME.fullmatch(name)
        found[which] = match[1] if match else None
    return Release(found.get("current"), found.get("previous"))
