"""`hdap watch` on a real lab: paused, cut short, its settings, clock, disk and database changed."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from operating import QUICK, Ended, hdap, make_models
from sshd import Sshd, fleet_toml, wait_for

from hdap_tui.config import load
from hdap_tui.errors import ExitCode
from hdap_tui.store import measurements, sweeps
from hdap_tui.store.database import Store, open_store
from hdap_tui.store.values import to_seconds

CLOCK = Path(__file__).parents[1] / "devices" / "clock.c"
ENDLESS = re.sub(r"blocks_m(in|ax) = 1\b", r"blocks_m\1 = 900", QUICK)
"""A sweep that lasts until it is told to stop."""
DRIVER = """
from hdap_tui.store import database
database.BUSY_TIMEOUT_S = 2.0
from hdap_tui.main import main
main()
"""
"""`hdap`, which does not wait for a locked database as long as it otherwise would."""
SLOW = QUICK.replace("canary_every_s = 0.05", "canary_every_s = 3600")

pytestmark = pytest.mark.timeout(180)


@dataclass
class Site:
    """Three real devices with a settings file, and the watchers that a test starts on them."""

    servers: list[Sshd]
    file: Path
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def log(self) -> str:
        return (self.file.parent / "log").read_text()

    def write(self, settings: str, servers: int = 3) -> None:
        state = self.file.parent / "state"
        text = fleet_toml(self.servers[:servers], state, sys.executable, settings)
        part = self.file.with_suffix(".part")
        part.write_text(text)
        part.rename(self.file)

    def start(self, **environ: str) -> subprocess.Popen[str]:
        with (self.file.parent / "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", DRIVER, "--config", str(self.file), "watch"],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, text=True,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environ},
            )  # fmt: skip
        self.running.append(process)
        return process

    def says(self, sentence: str, count: int = 1) -> None:
        """Wait until the log has a line with that, a regular expression."""

        def said() -> bool:
            return len(re.findall(sentence, self.log)) >= count

        try:
            wait_for(said, 60)
        except AssertionError:
            pytest.fail(f"{sentence!r} was not said:\n{self.log}")

    def timed(self) -> set[str]:
        """Return the devices on which something is timed just now."""
        return {s.name for s in self.servers if any("/jobs/" in p.command for p in s.running())}

    @contextlib.contextmanager
    def store(self) -> Iterator[Store]:
        with contextlib.closing(open_store(load(self.file).database)) as store:
            yield store

    def hdap(self, *arguments: str) -> Ended:
        return hdap(self.file, *arguments)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.hdap("watch", "status").data
        return found


@pytest.fixture(scope="module")
def servers(make_sshds: Callable[..., list[Sshd]]) -> list[Sshd]:
    return make_sshds(3)


@pytest.fixture
def site(servers: list[Sshd], tmp_path: Path) -> Iterator[Site]:
    make_models(tmp_path)
    found = Site(servers, tmp_path / "fleet.toml")
    found.write(SLOW)
    yield found
    for process in found.running:
        if process.poll() is None:
            process.kill()
        process.wait()
    for server in servers:
        if server.running():
            server.restart()


def test_a_pause_ends_what_is_timed_within_a_second_and_the_others_go_on(site: Site) -> None:
    site.write(ENDLESS)
    site.start()
    wait_for(lambda: len(site.timed()) == 3, 60)
    site.hdap("watch", "pause", "real-2", "--for", "10m", "--reason", "fan")
    wait_for(lambda: site.timed() == {"real-1", "real-3"}, 5)
    site.says(r"paused: real-2 until .*: fan")
    site.hdap("watch", "pause", "--for", "10m")
    wait_for(lambda: not site.timed(), 5)
    wait_for(lambda: site.status()["watcher"]["doing"] == "paused")
    half = site.status()["half_sweep"]["id"]
    site.write(SLOW)
    site.says("the settings were taken up: 3 devices")
    site.hdap("watch", "resume", "real-1,real-3")
    site.says(rf"sweep {half} is taken up")
    site.says(rf"sweep {half}: 2 devices measured")
    with site.store() as store:
        assert sweeps.failed(store, half) == {}  # nobody counts as without data
        assert set(measurements.rounds(store, _digest(store), "sweep")[0].values) == {
            "real-1", "real-3",
        }  # fmt: skip
    assert site.status()["watcher"]["missed_sweeps"] == 0


def _digest(store: Store) -> str:
    row = store.row("SELECT digest FROM models WHERE name = 'slow'")
    assert row is not None
    return str(row["digest"])


def test_it_ends_quickly_and_cleanly_when_told_to_and_goes_on_where_it_was(site: Site) -> None:
    site.write(ENDLESS)
    process = site.start()
    wait_for(lambda: len(site.timed()) == 3, 60)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == ExitCode.INTERRUPTED
    assert time.monotonic() - began < 10
    assert site.timed() == set()
    assert "Traceback" not in site.log
    assert all(site.log.splitlines())
    assert not site.status()["running"]
    site.write(SLOW)
    process = site.start()
    site.says("sweep 1 is taken up")
    site.says("sweep 1: 3 devices measured")
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    assert site.status()["half_sweep"] is None
    with site.store() as store:
        assert store.rows("SELECT count(*) FROM clusterings")[0][0] == 1


def test_a_changed_fleet_is_taken_up_and_a_wrong_file_is_told(site: Site) -> None:
    site.write(SLOW, servers=2)
    site.start()
    site.says("sweep 1: 2 devices measured")
    site.write(QUICK.replace("canary_every_s = 0.05", "canary_every_s = 1"))
    site.says(r"the settings were taken up: 3 devices, 1 added \(real-3\)|1 added \(real-3\)")
    site.says(r"canary round \d+: 3 devices measured")
    site.write(QUICK + "[clusters]\neps = 3\n")
    site.says("the settings are wrong, and those from before stay in force: .*eps")
    site.write(QUICK.replace("tiny.onnx", "gone.onnx"))
    site.says("the new settings cannot be taken up, and those before stay: .*gone.onnx")
    before = site.log.count("canary round")
    wait_for(lambda: site.log.count("canary round") > before, 30)


def test_a_locked_database_costs_a_round_and_never_the_watcher(site: Site) -> None:
    site.write(QUICK.replace("canary_every_s = 0.05", "canary_every_s = 1"))
    process = site.start()
    site.says(r"canary round \d+: 3 devices measured")
    with contextlib.closing(
        sqlite3.connect(load(site.file).database, isolation_level=None, timeout=30)
    ) as other:
        other.execute("BEGIN IMMEDIATE")
        site.says("the canary round failed, the next try is in 5 s: .*another process")
        other.execute("ROLLBACK")
    rounds = len(re.findall(r"round \d+: 3 devices", site.log))
    site.says(r"round \d+: 3 devices", rounds + 1)
    assert process.poll() is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk_costs_rounds_and_never_the_watcher_nor_what_was_saved(site: Site) -> None:
    state = site.file.parent / "state"
    state.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(state)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        site.write(QUICK.replace("canary_every_s = 0.05", "canary_every_s = 1"))
        process = site.start()
        site.says(r"canary round \d+: 3 devices measured")
        filler = state / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(b"x" * 4096)
                file.flush()
        site.says("failed, the next try is in 5 s: .*(disk is full|writing failed)")
        filler.unlink()
        rounds = len(re.findall(r"round \d+: 3 devices", site.log))
        site.says(r"round \d+: 3 devices", rounds + 1)
        assert process.poll() is None
        with site.store() as store:
            assert store.check() == ""
            whole = measurements.rounds(store, _digest(store))
            assert {len(one.values) for one in whole} == {3}
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    finally:
        subprocess.run(["umount", "--lazy", str(state)], check=True)


@pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler")
def test_a_clock_that_jumps_stops_nothing_and_makes_no_burst(site: Site) -> None:
    shim, clock = site.file.parent / "clock.so", site.file.parent / "clock"
    subprocess.run(["cc", "-O2", "-fPIC", "-shared", "-o", shim, CLOCK, "-ldl"], check=True)
    site.write(QUICK.replace("canary_every_s = 0.05", "canary_every_s = 5\njitter = 0"))
    site.start(LD_PRELOAD=str(shim), HDAP_CLOCK=str(clock))
    site.says(r"canary round \d+: 3 devices measured")
    for seconds, way in ((-3600, "back"), (3600, "forward, or this machine slept")):
        clock.with_suffix(".part").write_text(str(seconds))
        clock.with_suffix(".part").rename(clock)
        site.says(rf"the clock went [12] h 00 min {way}")
        site.says(r"canary round \d+", len(re.findall(r"canary round \d+", site.log)) + 3)
        with contextlib.closing(open_store(load(site.file).database)) as store:
            found = store.rows("SELECT started_at FROM sweeps WHERE kind = 'canary' ORDER BY id")
        *_, last, latest = [to_seconds(row["started_at"]) for row in found]
        assert latest - last > 2.5, "on their grid again, after one that was due"
    assert len(re.findall(r"sweep \d+:", site.log)) == 1
