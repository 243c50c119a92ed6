"""The device's side of an upload: what is there, who is sending what, and giving it its name.

A file on its way lies in parts/ under its content's hash, so whoever comes later goes on with it.
Beside it stands who is sending it: two never write one file. It gets its name only once its hash
was right and it was written to the disk itself.

A file that was checked is not hashed again before the device's next start, as long as nothing
touched it: its number, length and both its times are noted in verified/.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from hdap_tui.ssh.connection import Connection
from hdap_tui.ssh.errors import DeviceError, ErrorKind
from hdap_tui.ssh.payload import Payload, part_of
from hdap_tui.ssh.scripts import DIGEST, ROOT, ask, lines_of

_HASH_RATE = 5e6  # bytes a second that the slowest device is trusted to hash
_ANSWER_LIMIT = 1 << 20

State = Literal["there", "mine", "busy"]
Outcome = Literal["settled", "damaged", "lost"]

# `stat -c` is GNU's and busybox's; where it is missing, a file is hashed each time.
_TOOLS = DIGEST + """
boot=
{ read -r boot </proc/sys/kernel/random/boot_id; } 2>/dev/null
stamp() { stat -c "$boot %d %i %s %y %z" "$1" 2>/dev/null; }
note() {
  now=$(stamp "$1") || return 0
  { echo "$now" >"verified/$2.$$" && mv -f "verified/$2.$$" "verified/$2"; } 2>/dev/null ||
    rm -f "verified/$2.$$"
}
length() { if [ -e "$1" ]; then echo $(($(wc -c <"$1"))); else echo 0; fi; }
"""  # fmt: skip

# An owner is alive as long as the process that serves its connection ($PPID) is. One that is
# alive and yet writes nothing is given as "late" by whoever has watched it, and is written past:
# the part goes on as a copy.
_CLAIM = f"""{_TOOLS}
umask 077
mine=$1 late=$2
shift 2
mkdir -p {ROOT}/models {ROOT}/runner {ROOT}/jobs {ROOT}/parts {ROOT}/verified || exit 1
cd {ROOT} || exit 1
[ -w parts ] || {{ echo "$PWD/parts cannot be written" >&2; exit 1; }}
find parts verified images -type f -mtime +30 -exec rm -f {{}} \\; 2>/dev/null
there() {{
  [ -f "$1" ] || return 1
  now=$(stamp "$1") && was= && {{ read -r was <"verified/$3"; }} 2>/dev/null
  if [ -n "$now" ] && [ "$now" = "$was" ]; then return 0; fi
  [ "$(digest <"$1")" = "$2" ] && note "$1" "$3"
}}
own() {{
  (set -C; : >"$1") 2>/dev/null || return 1
  echo "$mine $PPID" | cat >"$1" || {{ rm -f "$1"; exit 1; }}
}}
claim() {{
  digest </dev/null >/dev/null  # a device that cannot do that ends here, with a sentence
  part=parts/$1 owner=parts/$1.owner who= pid=
  if ! own "$owner"; then
    {{ read -r who pid <"$owner"; }} 2>/dev/null
    gone=
    case " $late " in *" ${{who:-?}} "*) gone=late ;; esac
    if [ -z "$gone" ] && [ -n "$pid" ] && ! kill -s 0 "$pid" 2>/dev/null; then gone=dead; fi
    if [ "$who" = "$mine" ]; then :
    elif [ -z "$gone" ] || ! mv "$owner" "$owner.$mine" 2>/dev/null; then
      echo "$1 busy $(length "$part") ${{who:-?}}"; return
    else
      if [ $gone = late ] && mv "$part" "$part.$mine" 2>/dev/null; then
        cp "$part.$mine" "$part" || rm -f "$part"
        rm -f "$part.$mine"
      fi
      rm -f "$owner.$mine"
      own "$owner" || {{ echo "$1 busy 0 ?"; return; }}
    fi
  fi
  echo "$1 mine $(length "$part") ${{mine}}"
}}
echo "free $(df -Pk . | tail -n 1)"
while [ $# -ge 3 ]; do
  case $1 in */*) mkdir -p "${{1%/*}}" || exit 1 ;; esac
  if there "$1" "$2" "$3"; then echo "$3 there 0 -"; else claim "$3"; fi || exit 1
  shift 3
done
"""

_PREFIX = f"""{_TOOLS}
cd {ROOT}/parts && head -c "$2" "$1" | digest
"""

# One whose connection was cut may still be at the same files: what it moves meanwhile is lost to
# this one, and is found there at the next claim.
_SETTLE = f"""{_TOOLS}
cd {ROOT} || exit 1
mine=$1
shift
while [ $# -ge 3 ]; do
  part=parts/$3 owner=parts/$3.owner who=
  {{ read -r who pid <"$owner"; }} 2>/dev/null
  {{ found=$(digest <"$part"); }} 2>/dev/null
  if [ "$who" != "$mine" ] || [ ! -f "$part" ]; then echo "$3 lost"
  elif [ "$found" != "$2" ]; then rm -f "$part" "$owner"; echo "$3 damaged"
  else
    sync "$part" 2>/dev/null || sync
    if why=$(mv -f "$part" "$1" 2>&1); then
      sync "${{1%/*}}" 2>/dev/null
      note "$1" "$3"
      rm -f "$owner"
      echo "$3 settled"
    elif [ -f "$part" ]; then echo "$why" >&2; exit 1
    else echo "$3 lost"
    fi
  fi
  shift 3
done
"""

_RELEASE = f"""
cd {ROOT}/parts 2>/dev/null || exit 0
mine=$1 remove=$2
shift 2
for part; do
  who=
  {{ read -r who pid <"$part.owner"; }} 2>/dev/null
  [ "${{who:-$mine}}" = "$mine" ] || continue
  [ -z "$remove" ] || rm -f "$part"
  rm -f "$part.owner"
done
true
"""

_REMOVE_UNUSED = f"""
cd {ROOT} 2>/dev/null || exit 0
used="$(readlink current) $(readlink previous)"
while [ $# -ge 2 ]; do
  case " $used " in *" $1 "*) ;; *)
    rm -f -- "$1" "verified/$2"
    case $1 in */*/*) rmdir "${{1%/*}}" 2>/dev/null ;; esac
  esac
  shift 2
done
true
"""


@dataclass(frozen=True)
class Claim:
    """How one file stands on the device."""

    state: State
    size: int
    """Bytes that have arrived of a file on its way."""
    owner: str
    """Mark of whoever is sending it."""


def claim(
    connection: Connection, mine: str, late: Iterable[str], payloads: Sequence[Payload]
) -> tuple[dict[Payload, Claim], int | None]:
    """Look what is there, and take what is not; return that, and how many bytes are free.

    `mine` marks this sender; those marked as `late` are taken to have given up.

    Raises:
        DeviceError: disk full, garbage, …
    """
    words = [word for p in payloads for word in (p.name, p.digest, p.part)]
    answer = ask(
        connection, _CLAIM, mine, " ".join(late), *words,
        timeout=_seconds(connection, payloads), limit=_ANSWER_LIMIT,
    )  # fmt: skip
    by_part = {payload.part: payload for payload in payloads}
    found: dict[Payload, Claim] = {}
    free = None
    for line in lines_of(answer):
        parts = line.split()
        if parts[:1] == ["free"]:
            free = _free(parts)
        elif len(parts) == 4 and parts[0] in by_part and parts[2].isdecimal():
            state = cast(State, parts[1])
            if state in ("there", "mine", "busy"):
                found[by_part[parts[0]]] = Claim(state, int(parts[2]), parts[3])
    if len(found) < len(by_part):
        raise _garbage(connection)
    return found, free


def prefix_digest(connection: Connection, payload: Payload, length: int) -> str:
    """Return the hash of the first bytes of a file on its way.

    Raises:
        DeviceError: the device cannot be asked.
    """
    seconds = connection.target.timeouts.command + length / _HASH_RATE
    answer = ask(connection, _PREFIX, payload.part, str(length), timeout=seconds, limit=1024)
    return answer.decode("ascii", "replace").strip()


def settle(
    connection: Connection, mine: str, payloads: Sequence[Payload]
) -> Mapping[Payload, Outcome]:
    """Give files that have arrived whole their names; one whose hash is wrong is removed.

    One is lost where somebody else has taken it over meanwhile.

    Raises:
        DeviceError: disk full, garbage, …
    """
    words = [word for p in payloads for word in (p.name, p.digest, p.part)]
    answer = ask(
        connection, _SETTLE, mine, *words,
        timeout=2 * _seconds(connection, payloads), limit=_ANSWER_LIMIT,
    )  # fmt: skip
    said = {parts[0]: parts[1] for line in lines_of(answer) if len(parts := line.split()) == 2}
    found = {payload: said.get(payload.part) for payload in payloads}
    if any(outcome not in ("settled", "damaged", "lost") for outcome in found.values()):
        raise _garbage(connection)
    return cast(Mapping[Payload, Outcome], found)


def release(connection: Connection, mine: str, payloads: Sequence[Payload], remove: bool) -> None:
    """Send no more; what has arrived stays for whoever goes on, unless it is to be removed.

    Raises:
        DeviceError: the device cannot be asked.
    """
    parts = [payload.part for payload in payloads]
    ask(connection, _RELEASE, mine, "yes" if remove else "", *parts, timeout=5)


def remove(connection: Connection, names: Sequence[str]) -> None:
    """Remove files below the product's folder, but none that `current` or `previous` names.

    Raises:
        DeviceError: the device cannot be asked.
    """
    if names:
        words = [word for name in names for word in (name, part_of(name))]
        ask(connection, _REMOVE_UNUSED, *words)


def free_bytes(connection: Connection) -> int | None:
    """Return how much space is left where the product's folder is; None where it cannot be told.

    Raises:
        DeviceError: the device cannot be asked.
    """
    lines = lines_of(ask(connection, f"df -Pk {ROOT} | tail -n 1", limit=4096, timeout=10))
    return _free(["free", *lines[-1].split()]) if lines else None


def _free(parts: Sequence[str]) -> int | None:
    """Read what `df -Pk` says: file system, size, used, available, …; a name may have blanks."""
    numbers = [number for number, word in enumerate(parts) if word.endswith("%")]
    at = numbers[-1] - 1 if numbers else -1
    return int(parts[at]) * 1024 if at > 0 and parts[at].isdecimal() else None


def _seconds(connection: Connection, payloads: Sequence[Payload]) -> float:
    return connection.target.timeouts.command + sum(p.size for p in payloads) / _HASH_RATE


def _garbage(connection: Connection) -> DeviceError:
    return DeviceError(
        ErrorKind.GARBAGE, f"{connection.where}: its answer to an upload makes no sense"
    )
