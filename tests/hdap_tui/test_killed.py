"""The operator's own process ends: killed at each stage, or told to stop on a real terminal."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from left_over import watch
from operating import QUICK, errors, hdap, listed, make_models
from sshd import Sshd, fleet_toml, processes, wait_for

from hdap_tui.config import load
from hdap_tui.errors import ExitCode
from hdap_tui.store import devices
from hdap_tui.store.database import open_store

DRIVER = """
import os, signal, sys
from hdap_tui import stages
from hdap_tui.cli.app import run
from hdap_tui.ssh.remote import RemoteJob
from hdap_tui.store import measurements

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def after(owner, name):
    whole = getattr(owner, name)
    def then_die(*given, **options):
        whole(*given, **options)
        die()
    setattr(owner, name, then_die)

point = sys.argv[1]
if point == "started":
    after(RemoteJob, "start")
elif point == "fetching":
    after(RemoteJob, "fetch")
elif point == "saving":
    after(measurements, "add")
else:
    say = stages.Stages.say
    stages.Stages.say = lambda *given: (say(*given), given[2].startswith(point) and die())
sys.exit(run(sys.argv[2:], lambda _: 0))
"""
POINTS = ("connecting", "upload", "starting", "started", "timing", "fetching", "saving", "done")


def fleets(
    make_sshds: Callable[..., list[Sshd]], folder: Path, names: Sequence[str], settings: str
) -> dict[str, tuple[list[Sshd], Path]]:
    """Make two servers and a settings file for each of the names."""
    servers = make_sshds(2 * len(names))
    found = {}
    for number, name in enumerate(names):
        own = servers[2 * number : 2 * number + 2]
        make_models(folder / name)
        file = folder / name / "fleet.toml"
        file.write_text(fleet_toml(own, folder / name / "state", sys.executable, settings))
        found[name] = (own, file)
    return found


@pytest.fixture(scope="module")
def killed(
    make_sshds: Callable[..., list[Sshd]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[list[Sshd], Path]]:
    """Fleets whose operator was killed at each of the points."""
    found = fleets(make_sshds, tmp_path_factory.mktemp("killed"), POINTS, QUICK)
    running = {
        point: subprocess.Popen(
            [sys.executable, "-c", DRIVER, point, "--config", str(file), "bench", "tiny"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        for point, (_, file) in found.items()
    }  # fmt: skip
    ended = {point: process.wait(60) for point, process in running.items()}
    assert ended == dict.fromkeys(POINTS, -signal.SIGKILL)
    return found


@pytest.mark.parametrize("point", POINTS)
def test_after_a_kill_the_next_start_goes_on_and_nothing_runs_on(
    killed: dict[str, tuple[list[Sshd], Path]], point: str
) -> None:
    servers, file = killed[point]
    with contextlib.closing(open_store(load(file).database)) as store:
        assert not [row for row in devices.rows(store) if row.state == "busy"]
    wait_for(lambda: not watch([server.home for server in servers]).running())
    ended = hdap(file, "bench", "tiny")
    assert ended.status == ExitCode.DONE
    assert set(errors(ended).values()) == {""}
    assert {one["state"] for one in listed(file).values()} == {"ok"}
    left = watch([], servers, load(file).state_dir).left_over()
    assert not [line for line in left if "jobs/" not in line], left


# On a terminal

LONG = re.sub(r"blocks_m(in|ax) = 1\b", r"blocks_m\1 = 900", QUICK)
COMMANDS = {"bench": ("bench", "slow"), "sweep": ("sweep",), "watch": ("watch",)}


@dataclass
class Terminal:
    """A command on a pseudo-terminal of its own."""

    process: subprocess.Popen[bytes]
    master: int
    before: list[object]
    said: bytes = b""

    @classmethod
    def start(cls, file: Path, *arguments: str) -> Terminal:
        master, slave = os.openpty()
        before = termios.tcgetattr(slave)
        process = subprocess.Popen(
            [sys.executable, "-m", "hdap_tui", "--config", str(file), *arguments],
            preexec_fn=lambda: os.login_tty(slave),
            pass_fds=[slave],
            env=os.environ | {"TERM": "xterm-256color", "PYTHONPATH": os.getcwd()},
        )
        os.close(slave)
        return cls(process, master, before)

    def read(self, seconds: float = 0.0) -> None:
        """Take in what was printed."""
        with contextlib.suppress(OSError):
            while select.select([self.master], [], [], seconds)[0]:
                data = os.read(self.master, 65536)
                if not data:
                    return
                self.said += data

    def end(self, seconds: float = 20.0) -> int:
        """Return the exit status; everything printed has been read."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.said[-2000:]
            self.read(0.02)
        self.read()
        return self.process.returncode

    def close(self) -> None:
        """Close the window."""
        with contextlib.suppress(OSError):
            os.close(self.master)


@pytest.fixture(scope="module")
def windows(
    make_sshds: Callable[..., list[Sshd]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[list[Sshd], Path]]:
    return fleets(make_sshds, tmp_path_factory.mktemp("windows"), tuple(COMMANDS), LONG)


def runners(servers: Sequence[Sshd]) -> list[str]:
    """Return the command lines of the benchmarks that run on these devices."""
    return [
        one.command for server in servers for one in server.running() if "/jobs/" in one.command
    ]


@contextlib.contextmanager
def running(
    windows: dict[str, tuple[list[Sshd], Path]], *names: str
) -> Iterator[dict[str, Terminal]]:
    """Start some of the commands, and wait until every device of theirs times something."""
    windows = {name: windows[name] for name in names}
    terminals = {name: Terminal.start(windows[name][1], *COMMANDS[name]) for name in names}
    try:
        for name, (servers, _) in windows.items():
            wait_for(lambda: [t.read() for t in terminals.values()] and all(
                runners([server]) for server in servers  # noqa: B023
            ), 40)  # fmt: skip
            assert terminals[name].process.poll() is None, terminals[name].said
        yield terminals
    finally:
        for terminal in terminals.values():
            terminal.close()
            if terminal.process.poll() is None:
                terminal.process.kill()
            terminal.process.wait()


def interrupt(terminal: Terminal) -> None:
    os.write(terminal.master, b"\x03")


def interrupt_twice(terminal: Terminal) -> None:
    interrupt(terminal)
    time.sleep(0.05)
    interrupt(terminal)


def terminate(terminal: Terminal) -> None:
    terminal.process.terminate()


@pytest.mark.parametrize(
    ("tell", "names"), [(interrupt, ("bench", "sweep", "watch")), (terminate, ("watch",))]
)
def test_a_command_that_is_told_to_stop_ends_what_it_began_on_the_devices(
    windows: dict[str, tuple[list[Sshd], Path]],
    tell: Callable[[Terminal], None],
    names: tuple[str, ...],
) -> None:
    before = {name: watch([], servers, load(file).state_dir)
              for name, (servers, file) in windows.items()}  # fmt: skip
    with running(windows, *names) as terminals:
        for terminal in terminals.values():
            tell(terminal)
        for name, terminal in terminals.items():
            status = terminal.end()
            assert runners(windows[name][0]) == [], name
            assert status == ExitCode.INTERRUPTED, (name, terminal.said)
            assert b"Traceback" not in terminal.said, terminal.said.decode()
            assert terminal.said.rfind(b"\x1b[?25l") <= terminal.said.rfind(b"\x1b[?25h")
            assert termios.tcgetattr(terminal.master) == terminal.before
    for name in names:
        wait_for(lambda: not before[name].left_over())  # noqa: B023


def test_a_closed_window_ends_what_it_began_on_the_devices(
    windows: dict[str, tuple[list[Sshd], Path]],
) -> None:
    with running(windows, "bench", "watch") as terminals:
        for terminal in terminals.values():
            terminal.close()
        for name, terminal in terminals.items():
            terminal.process.wait(20)
            assert runners(windows[name][0]) == [], name
            assert terminal.process.returncode == ExitCode.INTERRUPTED, name


def test_who_is_impatient_gets_no_traceback(
    windows: dict[str, tuple[list[Sshd], Path]],
) -> None:
    with running(windows, "sweep") as terminals:
        interrupt_twice(terminals["sweep"])
        assert terminals["sweep"].end() == ExitCode.INTERRUPTED
        assert b"Traceback" not in terminals["sweep"].said, terminals["sweep"].said.decode()
    for server in windows["sweep"][0]:
        server.restart()  # what it gave up ends by its lease, which is long here


def test_a_kill_leaves_no_lock_and_no_child(
    windows: dict[str, tuple[list[Sshd], Path]],
) -> None:
    with running(windows, "watch") as terminals:
        parent = terminals["watch"].process.pid
        terminals["watch"].process.kill()
        assert terminals["watch"].end() == -signal.SIGKILL
    servers, file = windows["watch"]
    assert not [one for one in processes() if one.parent == parent]
    assert watch([], [], load(file).state_dir).left_over() == []
    for server in servers:
        server.restart()
    file.write_text(file.read_text().replace("= 900", "= 1"))
    assert hdap(file, "watch", "--rounds", "1").status == ExitCode.DONE
