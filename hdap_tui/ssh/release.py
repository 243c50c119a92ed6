"""Which model a device runs: two links that are switched by rename, under a lock.

``~/.hdap/current`` names the model in use, ``~/.hdap/previous`` the one before, and ``older`` what
was the previous before that: it is again once the switch is taken back. A link is made aside and
renamed into place, so whoever reads it finds the old model or the new one, at any moment and after
a power cut as well. What is half done is finished or undone by the next script that runs here. The
scripts keep to what POSIX, BusyBox and Android's shell have in common.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from hdap_tui.ssh.connection import Connection
from hdap_tui.ssh.errors import DeviceError, ErrorKind
from hdap_tui.ssh.locks import LOCK, Claim, claimed
from hdap_tui.ssh.scripts import ALIVE, DIGEST, ROOT, ask, lines_of

_NAME = re.compile(r"models/([0-9a-f]{64})\.onnx")
_HASH_RATE = 5e6  # bytes a second that the slowest device is trusted to hash

_SHOW = f"""
cd {ROOT} 2>/dev/null || exit 0
echo "current $(readlink current)"
echo "previous $(readlink previous)"
"""

# `previous` moves before `current` does; what it named until then is kept in `pending`, and
# afterwards in `older`, so that a cut between two steps loses none. Each step is on the disk before
# the next begins.
_LINKS = """
flush() { sync "$1" 2>/dev/null || sync; }
point() { ln -sfn "$1" "$2.part" && mv -f "$2.part" "$2" && flush .; }
recall() {
  if [ -f "$1" ] && [ "$1" != "$now" ]; then before=$1; point "$1" previous || exit 1
  else before=; rm -f previous && flush .; fi
}
age() {
  if [ "$saved" = none ]; then rm -f older pending; else mv -f pending older; fi && flush .
}
mend() {
  saved=$(readlink pending) || saved=
  now=$(readlink current) || now=
  before=$(readlink previous) || before=
  older=$(readlink older) || older=
  if [ -n "$now" ] && [ "$now" = "$before" ]; then
    if [ -n "$saved" ]; then recall "$saved"
    else recall "$older"; rm -f older; older=; fi
  elif [ -n "$saved" ] && [ "$saved" != "${before:-none}" ]; then
    age || exit 1
    older=$saved
  fi
  rm -f pending current.part previous.part pending.part
}
tell() { echo "current $(readlink current)"; echo "previous $(readlink previous)"; }
"""

_SWITCH = f"""{DIGEST}{LOCK}{_LINKS}
cd {ROOT} || exit 1
new=models/$4.onnx base=models/$5.onnx
take "$1" "$2" "$3" || exit 0
mend
[ -f "$new" ] || {{ echo missing; exit 0; }}
if [ "$now" = "$new" ]; then tell; exit 0; fi
[ -z "$now" ] || [ "$now" = "$base" ] || {{ echo foreign; tell; exit 0; }}
[ "$(digest <"$new")" = "$4" ] || {{ echo damaged; exit 0; }}
flush "$new"; flush models
mine || {{ echo overtaken; exit 0; }}
if [ -z "$now" ] && [ -f "$base" ]; then point "$base" current && now=$base || exit 1; fi
saved=none
if [ -n "$now" ]; then
  saved=${{before:-none}}
  point "$saved" pending && point "$now" previous || exit 1
fi
mine || {{ mend; echo overtaken; exit 0; }}
point "$new" current && age || exit 1
tell
"""

# What is taken back must not be what a later roll-back brings, so no link names it any more.
_RESTORE = f"""{LOCK}{_LINKS}
cd {ROOT} || exit 1
take "$1" "$2" "$3" || exit 0
mend
new=${{4:+models/$4.onnx}} old=${{5:+models/$5.onnx}}
old=${{old:-$before}}
if [ -n "$old" ] && [ "$now" = "$old" ]; then tell; exit 0; fi
[ -z "$new" ] || [ "$now" = "$new" ] || {{ echo foreign; tell; exit 0; }}
[ -n "$old" ] && [ -f "$old" ] || {{ echo missing; exit 0; }}
mine || {{ echo overtaken; exit 0; }}
[ "$older" != "$now" ] || {{ older=; rm -f older; }}
point "$old" current || exit 1
if [ "$before" = "$old" ]; then now=$old; recall "$older"; rm -f older; fi
tell
"""

# What a killed operator's measurement left: its group ends, and its folder goes.
_END_LEFT = f"""{LOCK}{ALIVE}
cd {ROOT} 2>/dev/null || exit 0
take "$1" "$2" "$3" || exit 0
for request in jobs/*/request.json; do
  grep -q -s -e "$4" "$request" || continue
  job=${{request%/request.json}}
  pid=$(cat "$job/pid" 2>/dev/null)
  if alive "${{job#jobs/}}"; then
    : >"$job/cancel"
    kill -s TERM -- "-$pid" 2>/dev/null
    sleep 1
    kill -s KILL -- "-$pid" 2>/dev/null
  fi
  rm -rf -- "$job"
done
true
"""

_RELEASE = f"""{LOCK}
cd {ROOT} 2>/dev/null || exit 0
give "$1"
"""

# A model that was brought within the hour may be about to be measured.
_TIDY = f"""
cd {ROOT}/models 2>/dev/null || exit 0
used=" $(readlink ../current) $(readlink ../previous) $(readlink ../pending) $* "
for file in $(find . -name '*.onnx' -mmin +60 2>/dev/null); do
  digest=${{file#./}}; digest=${{digest%.onnx}}
  case $used in *"$digest"*) continue ;; esac
  grep -q -s -e "$digest" ../jobs/*/request.json && continue
  rm -f -- "$file" && echo "$digest"
done
"""


@dataclass(frozen=True)
class Release:
    """The models that a device's links name, as digests; None where there is no link."""

    current: str | None
    previous: str | None


class ForeignError(DeviceError):
    """The device runs another model than expected: somebody else has changed it."""

    def __init__(self, text: str, current: str | None) -> None:
        super().__init__(ErrorKind.FAILED, text)
        self.current = current


def show(connection: Connection) -> Release:
    """Return what the device runs.

    Raises:
        DeviceError: the device cannot be asked.
    """
    return _parse(lines_of(ask(connection, _SHOW)))


def switch(connection: Connection, claim: Claim, digest: str, base: str, size: int = 0) -> Release:
    """Let the device run a model that has been uploaded; the one in use becomes the previous.

    The file's hash is checked first. `base` is what the device is expected to run; where it has
    no link yet, that becomes the previous. `size` in bytes says how long the hash may take.

    Raises:
        HeldError: somebody else works on the device.
        ForeignError: it runs neither `base` nor the model itself.
        DeviceError: failed where the model is not there, is damaged, or the link does not name
            it afterwards.
    """
    seconds = connection.target.timeouts.command + size / _HASH_RATE
    answer = ask(connection, _SWITCH, *claim.words, digest, base, timeout=seconds)
    lines = claimed(connection, lines_of(answer))
    found = _parse(lines)
    if "foreign" in lines:
        raise foreign(connection, found, base)
    if found.current != digest:
        what = "the link did not move"
        if "missing" in lines:
            what = "the model is not on the device"
        if "damaged" in lines:
            what = "the model's file is damaged there: its hash is another"
        raise DeviceError(ErrorKind.FAILED, f"{connection.where}: not switched: {what}")
    return found


def restore(connection: Connection, claim: Claim, *, taken: str = "", to: str = "") -> Release:
    """Let the device run its previous model again; return what its links name then.

    The previous one is now what it was before the switch that is taken back, if it is still there.
    With `taken` only where it runs that model now; with `to` that model whatever the link says.

    Raises:
        HeldError: somebody else works on the device.
        ForeignError: it runs neither `taken` nor what it is to go back to.
        DeviceError: failed where there is no previous model, or it is gone.
    """
    lines = claimed(connection, lines_of(ask(connection, _RESTORE, *claim.words, taken, to)))
    found = _parse(lines)
    if "foreign" in lines:
        raise foreign(connection, found, taken)
    if found.current is None or (to and found.current != to):
        raise DeviceError(
            ErrorKind.FAILED, f"{connection.where}: it has no previous model to go back to"
        )
    return found


def end_left(connection: Connection, claim: Claim, digest: str) -> None:
    """End what an earlier process of this deployment left running, measurements of the model.

    Raises:
        HeldError: somebody else works on the device.
        DeviceError: the device cannot be asked.
    """
    claimed(connection, lines_of(ask(connection, _END_LEFT, *claim.words, digest)))


def let_go(connection: Connection, claim: Claim) -> None:
    """Give the device free for others.

    Raises:
        DeviceError: the device cannot be asked; it is free by itself once the claim has expired.
    """
    ask(connection, _RELEASE, claim.token)


def tidy(connection: Connection, keep: Sequence[str]) -> tuple[str, ...]:
    """Remove models that neither a link, a measurement nor `keep` names; return their digests.

    Raises:
        DeviceError: the device cannot be asked.
    """
    found = lines_of(ask(connection, _TIDY, *keep))
    return tuple(line for line in found if re.fullmatch(r"[0-9a-f]{64}", line))


def foreign(connection: Connection, found: Release, expected: str) -> ForeignError:
    """Return what to say of a device that runs neither the one nor the other model."""
    runs = f"it runs {found.current[:12]}" if found.current else "its link names no model"
    return ForeignError(
        f"{connection.where}: {runs}, not {expected[:12]}: somebody else has changed it; "
        '"hdap deployments check" takes over what runs there',
        found.current,
    )


def _parse(lines: list[str]) -> Release:
    found: dict[str, str | None] = {}
    for line in lines:
        which, _, name = line.partition(" ")
        match = _NAME.fullmatch(name)
        found[which] = match[1] if match else None
    return Release(found.get("current"), found.get("previous"))
