"""Deployments that are killed at random moments: what the devices serve, and how it goes on.

    python -m benchmarks.deploy [--kills 100] [--devices 8] [--seed 1]

Real OpenSSH servers on this machine are the devices. `hdap deploy` puts a faster model on all of
them, in stages; at random moments its process is killed, or a device's connections are, or
everything that runs on a device. Then `hdap deploy --resume` goes on, itself killed again, or
`--abort` takes back. All the time a reader opens what each device's link names.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.servers import real, row
from hdap_tui.ssh.target import Target

_MOST_S = 6.0
"""Seconds that something is let run before the next kill; what goes on is killed further on."""
SETTINGS = """
[fleet]
name = "kills"
state = "{folder}/state"
[ssh]
identity = "{identity}"
known_hosts = "{known_hosts}"
python = "{python}"
connect_timeout_s = 30
[[models]]
name = "slow"
path = "slow.onnx"
[[models]]
name = "fast"
path = "fast.onnx"
[benchmark]
runs = 3
warmup_runs = 1
warmup_s = 0.0
block_s = 0.01
[deploy]
stages = ["1", "50 %", "100 %"]
blocks = 3
max_failures = "{devices}"
hook = "true"
[host_groups.here]
cores = {cores}
"""
DEVICE = """
[[devices]]
name = "{name}"
host = "{host}"
port = {port}
user = "{user}"
host_group = "here"
"""


def chain(path: Path, layers: int) -> str:
    """Write a chain of convolutions; return its hash."""
    import onnx
    from onnx import TensorProto, helper

    kernel = np.random.default_rng(7).normal(0, 0.05, (32, 32, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", [f"x{n}", "w"], [f"x{n + 1}"], pads=[1, 1, 1, 1])
        for n in range(layers)
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 32, 24, 24])
        for name in ("x0", f"x{layers}")
    ]
    weights = [onnx.numpy_helper.from_array(kernel, "w")]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass
class Reader:
    """Reads what every device serves, all the time; counts what is neither model."""

    homes: Sequence[Path]
    digests: frozenset[str]
    reads: int = 0
    wrong: list[str] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Read until `stop`."""
        while not self._ended.wait(0.001):
            for home in self.homes:
                self.look(home)

    def look(self, home: Path) -> None:
        """Read what one device serves."""
        self.reads += 1
        try:
            found = hashlib.sha256((home / ".hdap" / "current").read_bytes()).hexdigest()
        except OSError as error:
            found = str(error)
        if found not in self.digests:
            self.wrong.append(f"{home.name}: {found}")

    def stop(self) -> None:
        """End `run`."""
        self._ended.set()


class Kills:
    """The whole run."""

    def __init__(self, folder: Path, targets: Sequence[Target], arguments: argparse.Namespace):
        self.folder, self.random = folder, random.Random(arguments.seed)
        self.wanted = arguments.kills
        self.homes = [targets[0].known_hosts.parent / str(n) for n in range(len(targets))]
        self.file = folder / "fleet.toml"
        self.slow, self.fast = chain(folder / "slow.onnx", 24), chain(folder / "fast.onnx", 1)
        text = SETTINGS.format(
            folder=folder, identity=targets[0].identity, known_hosts=targets[0].known_hosts,
            python=sys.executable, devices=len(targets), cores=os.cpu_count() or 1,
        )  # fmt: skip
        for target in targets:
            text += DEVICE.format(
                name=target.name, host=target.host, port=target.port, user=target.user
            )
        self.file.write_text(text)
        self.kills: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.late: list[str] = []
        """What ran on a device ten seconds after a deployment's end."""
        self.differing = 0
        """Devices that ran something else than the store said after a deployment's end."""
        self.locked = 0
        self.log = (folder / "log").open("wb")

    def hdap(self, *words: str) -> tuple[int, Any]:
        """Run a command to its end."""
        done = subprocess.run(
            [*self._command(*words), "--json"], stdout=subprocess.PIPE, stderr=self.log,
            stdin=subprocess.DEVNULL, cwd=self.folder,
        )  # fmt: skip
        return done.returncode, json.loads(done.stdout) if done.stdout else None

    def __call__(self) -> Iterator[str]:
        """Kill as often as is wanted; yield lines of what came of it."""
        start = time.monotonic()
        self._must(self.hdap("deploy", "fast", "--yes"))
        whole_s = time.monotonic() - start
        self._must(self.hdap("rollback", "--yes"))
        reader = Reader(self.homes, frozenset({self.slow, self.fast}))
        thread = threading.Thread(target=reader.run)
        thread.start()
        start = time.monotonic()
        try:
            while sum(self.kills.values()) < self.wanted:
                self._one(whole_s)
            if self._state() == "interrupted":
                self._until_end("deploy", "--resume", "--yes")
        finally:
            reader.stop()
            thread.join()
        for home in self.homes:
            reader.look(home)
        yield row("what", "figure")
        yield row("---", "---")
        for what, number in sorted(self.kills.items()):
            yield row(f"kills of {what}", number)
        yield row("reads of what a device serves", f"{reader.reads:,}".replace(",", " "))
        yield row("of these, neither the old nor the new model", len(reader.wrong))
        for what, number in sorted(self.ends.items()):
            yield row(f"deployments that ended {what}", number)
        yield row("devices that ran something else than recorded, after an end", self.differing)
        yield row("devices still locked after an end", self.locked)
        yield row("processes left on a device after an end", len(self.late))
        yield row("one deployment without kills", f"{whole_s:.1f} s")
        yield row("the whole run", f"{time.monotonic() - start:.0f} s")
        for line in (*reader.wrong[:5], *self.late[:5]):
            yield f"! {line}"

    def _one(self, whole_s: float) -> None:
        """Begin a deployment or go on with one; kill something in the middle of it."""
        words = ["deploy", "fast", "--yes"]
        if self._state() == "interrupted":
            words = ["deploy", self.random.choice(["--resume"] * 24 + ["--abort"]), "--yes"]
        process = subprocess.Popen(
            self._command(*words), stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL,
            cwd=self.folder,
        )  # fmt: skip
        while process.poll() is None and sum(self.kills.values()) < self.wanted:
            try:
                process.wait(self.random.uniform(0.3, min(whole_s, _MOST_S)))
            except subprocess.TimeoutExpired:
                what = self.random.choice(["operator"] * 3 + ["connections", "device"])
                self._kill(what, process)
        process.wait()
        if process.returncode >= 0:
            self._ended(" by --abort" if "--abort" in words else "")

    def _kill(self, what: str, process: subprocess.Popen[bytes]) -> None:
        home = self.random.choice(self.homes)
        if what == "operator":
            process.kill()
            process.wait()
        elif what == "connections":
            _end(_children(_listener(home)))
        else:
            _end([*_children(_listener(home)), *on_device(home)])
        self.kills[
            {"operator": "hdap's process", "connections": "all connections of a device",
             "device": "all processes of a device"}[what]
        ] += 1  # fmt: skip

    def _until_end(self, *words: str) -> None:
        self.hdap(*words)
        self._ended()

    def _ended(self, how: str = "") -> None:
        """Check what is left after a deployment's end, and make ready for the next."""
        self.ends[self._state() + how] += 1
        if self._state() == "interrupted":
            return
        self.locked += sum(bool(_lock(home)) for home in self.homes)
        until = time.monotonic() + 10
        while (left := [c for h in self.homes for c in on_device(h)]) and time.monotonic() < until:
            time.sleep(0.1)
        self.late += [f"{pid}: {_text(pid)}" for pid in left]
        _, found = self.hdap("deployments", "check")
        self.differing += sum(d["finding"] == "changed" for d in found["devices"])
        self.hdap("rollback", "--yes")

    def _state(self) -> str:
        _, found = self.hdap("deployments", "list")
        return str(found["deployments"][0]["state"])

    def _command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "hdap_tui", "--config", str(self.file), *words]

    def _must(self, done: tuple[int, Any]) -> None:
        if done[0]:
            raise SystemExit(f"a deployment without kills failed: {done}; see {self.log.name}")


def on_device(home: Path) -> list[int]:
    """Return the processes that run on a device, its SSH server apart."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"HOME={home}\0".encode() in (entry / "environ").read_bytes() + b"\0":
                found.append(int(entry.name))
    return found


def _listener(home: Path) -> int:
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f" {home}/sshd_config" in _text(int(entry.name), 400):
                return int(entry.name)
    raise SystemExit(f"the server of {home.name} is gone")


def _children(parent: int) -> list[int]:
    """Return the processes below one: those that look after a server's connections."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError, ValueError):
            stat = (entry / "stat").read_text().rpartition(")")[2].split()
            parents[int(entry.name)] = int(stat[1])
    found, before = {parent}, 0
    while len(found) > before:
        before = len(found)
        found |= {pid for pid, own in parents.items() if own in found}
    return [pid for pid in found - {parent} if b"sshd" in _text(pid).encode()]


def _end(pids: Sequence[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _text(pid: int, limit: int = 100) -> str:
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
        return words.decode(errors="replace")[:limit]
    return ""


def _lock(home: Path) -> str:
    """Return who holds a device's lock, or nothing."""
    names = [p for p in (home / ".hdap" / "locks").glob("[0-9]*") if p.is_symlink()]
    last = max(names, key=lambda p: int(p.name), default=None)
    target = os.readlink(last) if last else "free"
    return "" if target in ("free", "none") else target


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="Keep state and log there.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, real(arguments.devices) as targets:
        folder = arguments.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        for line in Kills(folder, targets, arguments)():
            print(line, flush=True)


if __name__ == "__main__":
    main()
