"""Builds the environment on a device: one file, standard library only, Python 3.8 or newer.

    python3 builder.py build REQUEST    unpack wheels into a new environment, check it, switch to it
    python3 builder.py check RUNNER     whether ONNX Runtime works in the Python that runs this

REQUEST is a line of JSON: `plan` (16 hex digits, of all that goes in), `wheels` (their paths),
`runner` (the path of the benchmark's runner), `python` (the version that is expected). All paths
are below ~/.hdap, where it works. It prints "stage …" lines, and a line of JSON at the end.

An environment is what `python -m venv --without-pip` makes, made by hand, since a system may lack
that module: a link to the interpreter, pyvenv.cfg and site-packages. It is put together in
environment.new, checked there, renamed to environment.<plan>, and only then does the link
`environment` turn to it; until then the old one stays in use. Whoever builds holds a lock that
ends with its process, so what lies half done under the lock is nobody's and is removed.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
import zipfile
from typing import Any, Dict, Sequence  # noqa: UP035 (Python 3.8)

LOCK_S = 300  # seconds to wait for somebody who builds
CHECK_S = 300  # and for ONNX Runtime to load and run a model
STATE = "hdap.json"

# Y = Relu(MatMul(X, [[1, 1], [1, 1]])); opset 9 and IR 4, which every version still reads.
MODEL = base64.b64decode(
    b"CAQSADpuChEKAVgKAVcSAUgiBk1hdE11bAoMCgFIEgFZIgRSZWx1EgR0aW55KhsIAggCEAEiEAAAgD8A"
    b"AIA/AACAPwAAgD9CAVdaEwoBWBIOCgwIARIICgIIAQoCCAJiEwoBWRIOCgwIARIICgIIAQoCCAJCBAoA"
    b"EAk="
)


class Refused(Exception):
    """It cannot be built; the text says why."""


def stage(text: str) -> None:
    """Say what is being done."""
    print("stage " + text, flush=True)


# ---- putting it together ------------------------------------------------------------------------


def build(request: Dict[str, Any]) -> Dict[str, Any]:  # noqa: UP006 (Python 3.8)
    """Make the environment of a plan the one in use; return what was done."""
    plan, name = request["plan"], "environment." + request["plan"]
    with open("environment.lock", "w") as lock:
        _hold(lock)
        if not _stands(name, request):  # or cut before the switch, or built by somebody meanwhile
            _remove_all_but(_in_use())
            _put_together(request, "environment.new")
            stage("checking")
            check(os.path.abspath("environment.new/bin/python"), request["runner"])
            _write(os.path.join("environment.new", STATE), json.dumps({"plan": plan}))
            _flush()
            shutil.rmtree(name, ignore_errors=True)  # it does not work
            os.rename("environment.new", name)
        if _in_use() != name:
            _refuse_while_running()
            if os.path.lexists("environment.part"):
                os.unlink("environment.part")
            os.symlink(name, "environment.part")
            os.replace("environment.part", "environment")
            _flush()
        _remove_all_but(name)
        shutil.rmtree("wheels", ignore_errors=True)
    return {"ok": True, "plan": plan}


def _hold(lock: Any) -> None:
    """Wait for the lock; it ends with this process, however that ends."""
    until = time.monotonic() + LOCK_S
    told = False
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        if not told:
            stage("waiting for another hdap")
            told = True
        if time.monotonic() > until:
            raise Refused("another hdap is building on it; try again when that has ended")
        time.sleep(0.1)


def _in_use() -> str:
    try:
        return os.readlink("environment")
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise Refused(
                "~/.hdap/environment is no link, so it is not ours; move it away"
            ) from None
        return ""


def _stands(name: str, request: Dict[str, Any]) -> bool:  # noqa: UP006
    """Whether an environment of that plan is there, whole, and works."""
    try:
        with open(os.path.join(name, STATE)) as file:
            whole = json.load(file)["plan"] == request["plan"]
        if whole:
            stage("checking")
            check(os.path.abspath(os.path.join(name, "bin", "python")), request["runner"])
        return bool(whole)
    except (OSError, ValueError, KeyError, TypeError, Refused):
        return False


def _remove_all_but(kept: str) -> None:
    """Remove what was cut off half done, and environments that are no longer in use."""
    for name in os.listdir("."):
        if name.startswith("environment.") and name not in (kept, "environment.lock"):
            if os.path.isdir(name) and not os.path.islink(name):
                shutil.rmtree(name, ignore_errors=True)
            else:
                os.unlink(name)


def _refuse_while_running() -> None:
    """A benchmark takes each block in a fresh process: the environment must not change below it."""
    for job in sorted(os.listdir("jobs")) if os.path.isdir("jobs") else []:
        try:
            with open(os.path.join("jobs", job, "pid")) as file:
                pid = int(file.read())
            os.kill(pid, 0)
            with open(f"/proc/{pid}/cmdline") as file:
                command = file.read()
            with open(f"/proc/{pid}/status") as file:
                ended = "\nState:\tZ" in file.read()
            # Empty for a moment while a process becomes another program.
            running = job in command or not (command or ended)
        except (OSError, ValueError):
            continue
        if running:
            raise Refused("a benchmark runs on it; the environment is ready, run this again later")


def _put_together(request: Dict[str, Any], folder: str) -> None:  # noqa: UP006
    version = "{}.{}".format(*sys.version_info)
    if version != request["python"]:
        raise Refused(f"its Python is {version} now, {request['python']} was expected")
    base = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    packages = os.path.join(folder, "lib", "python" + version, "site-packages")
    if sys.abiflags.startswith("t"):
        packages = os.path.join(folder, "lib", "python" + version + "t", "site-packages")
    os.makedirs(packages)
    os.makedirs(os.path.join(folder, "bin"))
    for name in ("python", "python3"):
        os.symlink(base, os.path.join(folder, "bin", name))
    _write(
        os.path.join(folder, "pyvenv.cfg"),
        f"home = {os.path.dirname(base)}\ninclude-system-site-packages = false\n"
        "version = {}.{}.{}\n".format(*sys.version_info),
    )
    wheels = request["wheels"]
    for number, wheel in enumerate(wheels, start=1):
        stage(f"unpacking {number}/{len(wheels)}")
        unpack(wheel, packages)


def unpack(wheel: str, folder: str) -> None:
    """Unpack a wheel into site-packages; nothing lands outside of it."""
    root = os.path.realpath(folder) + os.sep
    made = set()
    try:
        with zipfile.ZipFile(wheel) as archive:
            for entry in archive.infolist():
                name = _place(entry.filename)
                if not name or name.endswith("/"):
                    continue
                path = os.path.normpath(os.path.join(root, name))
                mode = entry.external_attr >> 16
                if "\\" in name or not path.startswith(root) or stat.S_ISLNK(mode):
                    raise Refused(f"{os.path.basename(wheel)} would leave its folder")
                parent = os.path.dirname(path)
                if parent not in made:
                    os.makedirs(parent, exist_ok=True)
                    made.add(parent)
                with archive.open(entry) as source, open(path, "wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
                if mode & 0o100:
                    os.chmod(path, 0o755)
    except zipfile.BadZipFile:
        raise Refused(f"{os.path.basename(wheel)} arrived damaged; run this again") from None


def _place(name: str) -> str:
    """Return where a file of a wheel belongs below site-packages; empty: nowhere there."""
    first, _, rest = name.partition("/")
    if not first.endswith(".data"):
        return name
    kind, _, rest = rest.partition("/")
    return rest if kind in ("purelib", "platlib") else ""


# ---- whether it works ---------------------------------------------------------------------------


def check(python: str, runner: str) -> None:
    """Have the runner load and run a tiny model with that interpreter.

    Raises:
        Refused: it does not work.
    """
    model = os.path.join(os.path.dirname(runner), "check.onnx")
    with open(f"{model}.{os.getpid()}", "wb") as file:
        file.write(MODEL)
    os.replace(file.name, model)
    try:
        clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
        done = subprocess.run(
            [python, runner, "--check", model],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=CHECK_S,
            env=clean if python != sys.executable else None,
        )
    except subprocess.TimeoutExpired:
        raise Refused(f"ONNX Runtime did not load and run a model within {CHECK_S} s") from None
    lines = (done.stderr or done.stdout).decode("utf-8", "replace").strip().splitlines()
    said = lines[-1][:250] if lines else ""
    if done.returncode < 0:
        name = {int(one): one.name for one in signal.Signals}.get(-done.returncode, "")
        raise Refused(
            f"ONNX Runtime crashed while it ran a model ({name}): this version does not work on"
            " this system; another may, with --onnxruntime" + (f". It said: {said}" if said else "")
        )
    if b'"ok": true' not in done.stdout:
        raise Refused("ONNX Runtime does not work: " + (said or "no answer"))


# ---- files --------------------------------------------------------------------------------------


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _flush() -> None:
    """Have everything on the disk: after a power cut a link must not name half a folder."""
    if hasattr(os, "sync"):
        os.sync()


def main(arguments: Sequence[str]) -> int:
    """Do what the command line says; the answer is the last line."""
    answer: Dict[str, Any]  # noqa: UP006
    try:
        os.umask(0o077)
        os.chdir(os.path.join(os.path.expanduser("~"), ".hdap"))
        if arguments[0] == "build":
            answer = build(json.loads(arguments[1]))
        else:
            check(sys.executable, arguments[1])
            answer = {"ok": True}
    except Refused as error:
        answer = {"ok": False, "why": str(error)}
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        gone = error.errno == errno.ENOENT
        answer = {"ok": False, "full": full, "gone": gone, "why": error.strerror or str(error)}
    print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
