"""A watcher that is killed at random moments during sweeps: what is left, and how it goes on.

    python -m benchmarks.watcher [--kills 100] [--devices 6] [--seed 1] [--folder FOLDER]

Real OpenSSH servers on this machine are the devices. `hdap watch` sweeps them without a pause, with
canary rounds in between, and writes a line for every measurement once that is saved. Its process is
killed (SIGKILL) at a random moment of a sweep and started again; now and then it may not take up
what it began. After every kill the database is held against what the watcher had said.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from benchmarks.deploy import DEVICE, chain, on_device
from benchmarks.servers import real, row
from hdap_tui.config import load
from hdap_tui.ssh.target import Target
from hdap_tui.store import clusters, measurements, sweeps
from hdap_tui.store.database import Store, open_store

_GONE_S = 30.0
"""Seconds after which nothing runs on a device that nobody fetches from: lease and run."""
_START_S = 60.0
_FIGURES = (
    "kills during a sweep",
    "kills besides, as the sweep was over",
    "measurements said to be saved",
    "of these, not there after a kill",
    "whole sweeps",
    "whole canary rounds",
    "sweeps that stayed half",
    "half sweeps or rounds that count as whole, or were used",
    "starts that took up a sweep",
    "looks for processes left on devices, after a kill",
    "processes found",
    "starts that did not go on",
)
SETTINGS = """
[fleet]
name = "kills"
state = "{folder}/state"
[ssh]
identity = "{identity}"
known_hosts = "{known_hosts}"
python = "{python}"
config = "none"
connect_timeout_s = 30
[[models]]
name = "net"
path = "net.onnx"
[[models]]
name = "probe"
path = "probe.onnx"
probe = true
[benchmark]
runs = 3
warmup_runs = 1
warmup_s = 0.0
block_s = 0.01
blocks_min = 2
blocks_max = 2
interval_percent = 1000
time_limit_s = 20
lease_s = 6
[watch]
sweep_every_s = 0.2
canary_every_s = 0.2
probe_channels = false
resume_within_s = {resume_s}
[host_groups.here]
cores = {cores}
"""
DRIVER = """
import os, sys
from hdap_tui.cli.app import run
from hdap_tui.store import measurements

said = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
begin, add = measurements.begin, measurements.add

def tell(*words):
    os.write(said, ("\\t".join(map(str, words)) + "\\n").encode())

def begin_and_tell(store, kind, *more):
    number = begin(store, kind, *more)
    tell("begun", number, kind)
    return number

def add_and_tell(store, sweep, latency, *more):
    add(store, sweep, latency, *more)
    tell("saved", sweep, latency.device, latency.model, repr(latency.median_ms))

measurements.begin, measurements.add = begin_and_tell, add_and_tell
sys.exit(run(["--config", sys.argv[2], "watch"], lambda _: 0))
"""
"""The command line, which says what is saved; nothing else is other than in `hdap watch`."""


class Kills:
    """The whole run."""

    def __init__(self, folder: Path, targets: Sequence[Target], kills: int, seed: int) -> None:
        self.folder, self.targets, self.wanted = folder, targets, kills
        self.random = random.Random(seed)
        self.homes = [targets[0].known_hosts.parent / str(n) for n in range(len(targets))]
        self.file, self.said = folder / "fleet.toml", folder / "said"
        self.models = [chain(folder / "net.onnx", 4), chain(folder / "probe.onnx", 1)]
        self.counts: Counter[str] = Counter(dict.fromkeys(_FIGURES, 0))
        self.wrong: list[str] = []
        self.log = (folder / "log").open("ab")
        self._checked = 0
        self._write(resume_s=60)

    def __call__(self) -> Iterator[str]:
        """Kill as often as is wanted; yield lines of what came of it."""
        start = time.monotonic()
        sweep_s = self._undisturbed()
        while self.counts["kills during a sweep"] < self.wanted:
            self._one(sweep_s)
        self._last()
        yield row("what", "figure")
        yield row("---", "---")
        for what, number in self.counts.items():
            yield row(what, f"{number:,}".replace(",", " "))
        yield row("one sweep without kills", f"{sweep_s:.1f} s")
        yield row("the whole run", f"{time.monotonic() - start:.0f} s")
        for line in dict.fromkeys(self.wrong):
            yield f"! {line}"

    def _undisturbed(self) -> float:
        """Return how long a sweep takes."""
        process = self._start()
        self._await("begun", "sweep", 1)
        began = time.monotonic()
        self._await("begun", "canary", 1)
        took = time.monotonic() - began
        self._stop(process)
        return took

    def _one(self, sweep_s: float) -> None:
        """Start the watcher, kill it in a sweep, and see what is left."""
        leaves = self.random.random() < 0.15
        self._write(resume_s=0 if leaves else 60)
        with closing(self._store()) as store:
            half = sweeps.half(store)
        saved, begun = self._lines("saved"), self._lines("begun")
        process = self._start()
        if half is not None and not leaves:
            # Taken up: it measures what is missing, or clusters at once where nothing is.
            self._until(lambda: self._lines("saved") > saved or self._lines("begun") > begun)
        else:
            self._await("begun", "sweep", self._lines("begun", "sweep") + 1)
        time.sleep(self.random.uniform(0.0, 0.8 * sweep_s))
        process.send_signal(signal.SIGKILL)
        process.wait()
        self._check(half is not None and not leaves)
        if self.random.random() < 0.2:
            self._nothing_runs()

    def _check(self, taken_up: bool) -> None:
        """Hold the database against what was said, and against itself."""
        with closing(self._store()) as store:
            half = sweeps.half(store)
            during = "kills during a sweep" if half else "kills besides, as the sweep was over"
            self.counts[during] += 1
            self.counts["starts that took up a sweep"] += taken_up
            self._saved_is_there(store)
            self._whole_is_whole(store)
            if problem := store.check():
                self.wrong.append(f"the database: {problem}")

    def _saved_is_there(self, store: Store) -> None:
        lines = [line.split("\t") for line in self.said.read_text().splitlines()]
        said = [words[1:] for words in lines if words[0] == "saved"]
        rows = store.rows(
            """SELECT s.sweep_id, d.name, m.digest, s.median_ms FROM samples s
            JOIN devices d ON d.id = s.device_id JOIN models m ON m.id = s.model_id"""
        )
        there = Counter((str(r[0]), r[1], r[2], repr(r[3])) for r in rows if r[3] is not None)
        good = Counter(tuple(words) for words in said if words[3] != "nan")
        for missing in (good - there).elements():
            self.wrong.append(f"said to be saved, and not there: {missing}")
        self.counts["measurements said to be saved"] = len(said)
        self.counts["of these, not there after a kill"] = sum((good - there).values())

    def _whole_is_whole(self, store: Store) -> None:
        """Check every sweep that counts as whole, and all that is told from sweeps."""
        whole = store.rows("SELECT id, kind FROM sweeps WHERE finished_at IS NOT NULL")
        everything = len(self.targets) * len(self.models)
        for found in whole:
            count = store.rows(
                "SELECT count(DISTINCT device_id || ' ' || model_id) FROM samples"
                " WHERE sweep_id = ?", (found["id"],),
            )[0][0]  # fmt: skip
            if count != (everything if found["kind"] == "sweep" else len(self.targets)):
                self.wrong.append(f"{found['kind']} {found['id']} is half and counts as whole")
        kinds = Counter(found["kind"] for found in whole)
        clustered = store.rows("SELECT count(*) FROM clusterings")[0][0]
        if clustered != kinds["sweep"]:
            self.wrong.append(f"{kinds['sweep']} whole sweeps, and {clustered} clusterings")
        state = store.row("SELECT state FROM drift_states WHERE scope = 'fleet'")
        judged = json.loads(state["state"])["round"] if state else 0
        if judged != kinds["canary"]:
            self.wrong.append(f"{kinds['canary']} whole rounds, and drift was told from {judged}")
        last = measurements.last_of_deployed(store)
        if last is not None:  # a device that failed has a record, and no latency
            expected = len(self.targets) - len(sweeps.failed(store, last[0]))
            if last[0] not in {found["id"] for found in whole} or len(last[1]) < expected:
                self.wrong.append(f"the fleet's mean is estimated from {last}")
        if len(clusters.latest(store).devices) not in (0, len(self.targets)):
            self.wrong.append("the map shows a part of the fleet")
        self.counts["whole sweeps"] = kinds["sweep"]
        self.counts["whole canary rounds"] = kinds["canary"]
        half = "SELECT count(*) FROM sweeps WHERE finished_at IS NULL AND kind = 'sweep'"
        self.counts["sweeps that stayed half"] = store.rows(half)[0][0]
        self.counts["half sweeps or rounds that count as whole, or were used"] = len(
            [line for line in self.wrong if not line.startswith("said")]
        )

    def _nothing_runs(self) -> None:
        """Wait until the leases are over, and see that nothing is left on a device."""
        until = time.monotonic() + _GONE_S
        while (left := [p for h in self.homes for p in on_device(h)]) and time.monotonic() < until:
            time.sleep(0.2)
        self.counts["looks for processes left on devices, after a kill"] += 1
        self.counts["processes found"] += len(left)
        self.wrong += [f"process {pid} is left on a device" for pid in left]

    def _last(self) -> None:
        """Start it once more, let it end a sweep, and stop it by SIGTERM."""
        self._write(resume_s=60)
        with closing(self._store()) as store:
            whole = sweeps.last(store, "sweep")
        process = self._start()
        self._until(lambda: self._newer(whole.id if whole else 0))
        self._stop(process)
        self._nothing_runs()

    def _newer(self, than: int) -> bool:
        with closing(self._store()) as store:
            last = sweeps.last(store, "sweep")
        return last is not None and last.id > than

    # -- the watcher

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(self.said), str(self.file)],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
        )  # fmt: skip

    def _stop(self, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        process.wait(30)

    def _lines(self, first: str, last: str = "") -> int:
        text = self.said.read_text() if self.said.exists() else ""
        return sum(
            line.startswith(f"{first}\t") and line.endswith(last) for line in text.splitlines()
        )

    def _await(self, first: str, last: str, count: int) -> None:
        self._until(lambda: self._lines(first, last) >= count)

    def _until(self, condition: object) -> None:
        assert callable(condition)
        until = time.monotonic() + _START_S
        while not condition():
            if time.monotonic() > until:
                self.counts["starts that did not go on"] += 1
                raise SystemExit(f"the watcher does not go on; see {self.log.name}")
            time.sleep(0.02)

    def _store(self) -> Store:
        return open_store(load(self.file).database)

    def _write(self, resume_s: float) -> None:
        first = self.targets[0]
        text = SETTINGS.format(
            folder=self.folder, identity=first.identity, known_hosts=first.known_hosts,
            python=sys.executable, resume_s=resume_s, cores=os.cpu_count() or 1,
        )  # fmt: skip
        for target in self.targets:
            text += DEVICE.format(
                name=target.name, host=target.host, port=target.port, user=target.user
            )
        self.file.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--devices", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="Keep state and log there.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, real(arguments.devices) as targets:
        folder = arguments.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        for line in Kills(folder, targets, arguments.kills, arguments.seed)():
            print(line, flush=True)


if __name__ == "__main__":
    main()
