"""What a device has that an environment can be built of."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from hdap_tui.provision.fitting import NEWEST, OLDEST, Interpreter
from hdap_tui.ssh.connection import Connection
from hdap_tui.ssh.errors import DeviceError, ErrorKind
from hdap_tui.ssh.scripts import ALIVE, PYTHON, ROOT, ask, lines_of
from hdap_tui.text import clean

ENVIRONMENT = f"{ROOT}/environment"
"""Link to the environment in use."""

_VERSIONS = " ".join(f"python3.{minor}" for minor in range(NEWEST[1], OLDEST[1] - 1, -1))

# Each fact alone: a small Python may lack any module.
_DESCRIBE = r"""
import os, sys
def tell(name, ask):
    try:
        print("py %s %s" % (name, ask()))
    except Exception:
        pass
path = getattr(sys, "_base_executable", None) or sys.executable
v = sys.version_info
def libc():
    return os.confstr("CS_GNU_LIBC_VERSION")
def suffix():
    from importlib.machinery import EXTENSION_SUFFIXES
    return EXTENSION_SUFFIXES[0]
def unpacks():
    import zipfile, zlib
    return 1
tell("path", lambda: os.path.realpath(path))
tell("version", lambda: "%d.%d.%d" % v[:3])
tell("implementation", lambda: sys.implementation.name)
tell("abi", lambda: "cp%d%d%s" % (v[0], v[1], getattr(sys, "abiflags", "")))
tell("bits", lambda: 64 if sys.maxsize > 2 ** 32 else 32)
tell("libc", libc)
tell("suffix", suffix)
tell("unpacks", unpacks)
print("py end .")
"""

_VERSION_OF = """
import sys
try:
    from importlib.metadata import version
except ImportError:
    version = None
for name in ("onnxruntime", "numpy"):
    try:
        print("used " + name + " " + version(name))
    except Exception:
        pass
print("used python %d.%d.%d" % sys.version_info[:3])
"""

_LOOK = f"""{PYTHON}{ALIVE}
echo "machine $(uname -m)"
loader=$(ls /lib/ld-musl-* 2>/dev/null | head -n 1)
[ -z "$loader" ] || "$loader" 2>&1 </dev/null | sed -n 's/^Version /musl /p' | head -n 1
df -Pk . | tail -n 1 | {{ read -r device size used free rest && echo "free $free"; }}
[ -d {ROOT} ] && [ ! -w {ROOT} ] && echo "readonly {ROOT}"
[ -w . ] || echo "readonly $HOME"
if [ -e {ENVIRONMENT} ]; then
  if [ -L {ENVIRONMENT} ]; then echo "link $(readlink {ENVIRONMENT})"; else echo "link ?"; fi
fi
for file in {ROOT}/wheels/*/*.whl; do [ -f "$file" ] && echo "wheel ${{file#{ROOT}/}}"; done
for job in {ROOT}/jobs/*/pid; do
  [ -s "$job" ] || continue
  id=${{job%/pid}}; id=${{id##*/}}; pid=$(cat "$job")
  alive "$id" || continue
  echo "running $id"
done
if command -v timeout >/dev/null 2>&1 && timeout 5 true 2>/dev/null
then limited() {{ timeout 20 "$@" </dev/null 2>/dev/null; }}  # an old BusyBox wants it otherwise
else limited() {{ "$@" </dev/null 2>/dev/null; }}
fi
probe() {{
  [ -n "$1" ] && [ -f "$1" ] && [ -x "$1" ] || return 0
  case $1 in */shims/*) return 0 ;; esac  # a slow script that starts one of the others
  real=$(readlink -f "$1" 2>/dev/null || echo "$1")
  case $seen in *":$real:"*) return 0 ;; esac
  seen=$seen$real:
  limited "$1" -I -S -c "$describe"
}}
wanted=$2 describe=$3 versions=$4 seen=:
interpreter "$1"
command -v "$python" >/dev/null 2>&1 && limited "$python" -c "$versions"
if [ -n "$wanted" ]; then
  case $wanted in
    "~/"*) probe "$HOME/${{wanted#??}}" ;;
    *) probe "$(command -v "$wanted" 2>/dev/null)" ;;
  esac
  exit 0
fi
for name in {_VERSIONS} python3 python; do
  for path in "$(command -v "$name" 2>/dev/null)" "/usr/bin/$name" "/usr/local/bin/$name" \
    "$HOME/.local/bin/$name" "$HOME"/*/bin/"$name" "$HOME"/.pyenv/versions/*/bin/"$name" \
    "$HOME"/.local/share/uv/python/*/bin/"$name" /opt/*/bin/"$name"
  do probe "$path"; done
done
true
"""
_LIBC = re.compile(r"(glibc|musl) \d{1,3}\.\d{1,4}[A-Za-z0-9._+-]{0,20}|musl")  # names files here
_LIMIT = 262144
_TIME_S = 120.0
"""Each interpreter may be slow to start on a small device."""


@dataclass(frozen=True)
class Survey:
    """What was found on a device."""

    interpreters: tuple[Interpreter, ...] = ()
    """The newest first."""
    free: int = 0
    """Bytes free where the home folder lies."""
    environment: str = ""
    """What the environment in use is called; "?" where it is none of ours."""
    wheels: frozenset[str] = field(default_factory=frozenset)
    """Names of the wheels that lie there whole, below the product's folder."""
    running: tuple[str, ...] = ()
    """Benchmarks that run now."""
    used: dict[str, str] = field(default_factory=dict)
    """Versions of Python, ONNX Runtime and numpy that benchmarks on it would run with."""
    read_only: str = ""
    """Folder that cannot be written to."""


def survey(connection: Connection, python: str = "") -> Survey:
    """Look at a device; with `python`, only at that interpreter.

    Raises:
        DeviceError: it cannot be asked, or its answer makes no sense.
    """
    answer = ask(
        connection, _LOOK, connection.target.python, python, _DESCRIBE, _VERSION_OF,
        timeout=max(_TIME_S, connection.target.timeouts.command), limit=_LIMIT,
    )  # fmt: skip
    found = parse(lines_of(answer))
    if found is None:
        raise DeviceError(
            ErrorKind.GARBAGE, f"{connection.where}: what it says of itself makes no sense"
        )
    return found


def parse(lines: list[str]) -> Survey | None:
    """Return what the script's lines say; None where the most basic is missing."""
    single: dict[str, str] = {}
    wheels: set[str] = set()
    running: list[str] = []
    used: dict[str, str] = {}
    descriptions: list[dict[str, str]] = []
    current: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(" ")
        value = clean(value, 300)
        if key == "py":
            name, _, content = value.partition(" ")
            if name == "end":
                descriptions.append(current)
                current = {}
            else:
                current[name] = content
        elif key == "used":
            name, _, content = value.partition(" ")
            used[name] = clean(content, 40)
        elif key == "wheel":
            wheels.add(value)
        elif key == "running":
            running.append(clean(value, 80))
        elif key in ("machine", "musl", "free", "link", "readonly"):
            single[key] = value
    if "machine" not in single or not single.get("free", "").isdecimal():
        return None
    interpreters = {
        one.path: one for d in descriptions[:64] if (one := _interpreter(d, single)) is not None
    }
    return Survey(
        interpreters=tuple(sorted(interpreters.values(), key=_newest_first)),
        free=int(single["free"][:15]) * 1024,
        environment=_environment(single.get("link", "")),
        wheels=frozenset(wheels),
        running=tuple(running),
        used=used,
        read_only=single.get("readonly", ""),
    )


def _environment(link: str) -> str:
    found = re.fullmatch(r"environment\.([0-9a-f]{16})", link)
    return found[1] if found else "?" if link else ""


def _interpreter(said: dict[str, str], single: dict[str, str]) -> Interpreter | None:
    version = re.fullmatch(r"(\d{1,2})\.(\d{1,3})\.(\d{1,4})", said.get("version", ""))
    path = said.get("path", "")
    if not version or not path.startswith("/"):
        return None
    libc = said.get("libc", "")
    if not libc and ("musl" in said.get("suffix", "") or single.get("musl")):
        libc = f"musl {'.'.join(single.get('musl', '').split('.')[:2])}".strip()
    numbers = (int(version[1]), int(version[2]), int(version[3]))
    return Interpreter(
        path=path,
        version=numbers,
        abi=_word(said.get("abi"), f"cp{numbers[0]}{numbers[1]}"),
        bits=32 if said.get("bits") == "32" else 64,
        kernel_machine=_word(single["machine"], "unknown"),
        libc=libc if _LIBC.fullmatch(libc) else "",
        implementation=_word(said.get("implementation"), "cpython"),
        unpacks="unpacks" in said,
    )


def _word(text: str | None, default: str) -> str:
    return text if text and re.fullmatch(r"[a-z0-9_]{1,20}", text) else default


def _newest_first(one: Interpreter) -> tuple[object, ...]:
    """Ordinary builds go before those without the lock."""
    return not one.abi[-1].isdigit(), tuple(-number for number in one.version), one.path
