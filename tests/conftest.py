"""An emulated fleet and real OpenSSH servers, for every test that wants them."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from sshd import Sshd, missing, start_sshd, start_sshds, stop_all

MakeLab = Callable[..., Any]
SetFault = Callable[..., None]

# How long an example takes says how busy the machine is.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

_DEVICES = {"make_sshd", "make_sshds", "make_lab", "lab", "sshd", "server", "boards", "machine"}
"""Fixtures that stand for devices."""
_A_JOB_S = 300.0
"""Time limit from which a test trains networks."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that may take longest, lest one of them runs alone at the end."""
    longest: dict[Path, float] = defaultdict(float)
    for item in items:
        longest[item.path] = max(longest[item.path], _limit(item))
    items.sort(key=lambda item: -longest[item.path])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let a test that waits for devices run before those that compute, where that is allowed.

    They run side by side, and a device that has to wait for its turn seems slow or silent. So
    does what a test times, which is marked as flaky.
    """
    timed = item.get_closest_marker("flaky") is not None
    wanted = timed or _DEVICES & set(getattr(item, "fixturenames", ()))
    _go_first(bool(wanted) and _limit(item) < _A_JOB_S)
    return (yield)


def _go_first(wanted: bool) -> bool:
    """Run before ordinary processes from now on, or no longer; says how it was before."""
    with contextlib.suppress(OSError, AttributeError):
        before = os.sched_getscheduler(0) == os.SCHED_RR
        policy = os.SCHED_RR if wanted else os.SCHED_OTHER
        os.sched_setscheduler(0, policy, os.sched_param(1 if wanted else 0))
        return before
    return False


def _limit(item: pytest.Item) -> float:
    mark = item.get_closest_marker("timeout")
    return float(mark.args[0]) if mark and mark.args else 0.0


@pytest.fixture(scope="session", autouse=True)
def empty_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give the tests a home without SSH keys, agent or configuration; caches stay in place.

    What tests start keeps its compiled modules, so that the next process need not compile them.
    """
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "XDG_CACHE_HOME", os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        )
        patch.setenv("HOME", str(home))
        patch.delenv("SSH_AUTH_SOCK", raising=False)
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        yield home


@pytest.fixture(scope="session", autouse=True)
def told_to_stop() -> None:
    """Let what is started hear interrupts and hang-ups, which a run in the background ignores."""
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, usual)


@pytest.fixture(scope="session")
def make_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeLab]:
    """Start labs, `make_lab(devices, state=folder, plan=Plan(…), …)`; all end with the session."""
    pytest.importorskip("asyncssh", reason="the extra `lab` is not installed")
    from hdap_tui.lab import control

    states: list[Path] = []

    def start(devices: int = 3, state: Path | None = None, **options: Any) -> control.LabInfo:
        folder = state or tmp_path_factory.mktemp("fleet")
        states.append(folder)
        before = _go_first(True)  # devices do, whatever else the test does
        try:
            return control.up(folder, devices, **{"detach": False} | options)
        finally:
            _go_first(before)

    yield start
    for folder in states:
        control.down(folder)


@pytest.fixture(scope="session")
def lab(make_lab: MakeLab) -> Any:
    """A `LabInfo` of four devices; nothing drifts. Whoever sets a fault mends it: see `fault`."""
    from hdap_tui.lab.profiles import Plan

    return make_lab(4, plan=Plan(step_at_s=None))


@pytest.fixture
def fault(lab: Any) -> Iterator[SetFault]:
    """Make a device of `lab` fail, `fault(name, kind, **options)`; mended after the test."""
    from hdap_tui.lab import control

    touched: set[str] = set()

    def start(device: str, kind: str, **options: Any) -> None:
        touched.add(device)
        control.fault(lab.state, device, kind, **options)

    yield start
    for device in touched:
        control.fault(lab.state, device, "none")


@pytest.fixture
def fleet_file(lab: Any, tmp_path: Path) -> Path:
    """A `fleet.toml` of `lab`, in a folder of its own."""
    from hdap_tui.lab.fleet_file import fleet_toml

    path = tmp_path / "fleet.toml"
    path.write_text(fleet_toml(lab))
    return path


@pytest.fixture(scope="session")
def make_sshds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., list[Sshd]]]:
    """Start real servers, `make_sshds(8, options={…}, jump=…)`; all end with the session."""
    if missing():
        pytest.skip(missing())
    started: list[Sshd] = []

    def start(count: int, **more: Any) -> list[Sshd]:
        servers = start_sshds(tmp_path_factory.mktemp("sshds"), count, **more)
        started.extend(servers)
        return servers

    yield start
    stop_all(started)


@pytest.fixture(scope="session")
def make_sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Sshd]]:
    """Start one server, `make_sshd({"MaxSessions": "1"}, kinds=("rsa",))`; all end at the end."""
    if missing():
        pytest.skip(missing())
    started: list[Sshd] = []

    def start(options: dict[str, str] | None = None, **more: Any) -> Sshd:
        started.append(start_sshd(tmp_path_factory.mktemp("sshd"), options, **more))
        return started[-1]

    yield start
    stop_all(started)


@pytest.fixture(scope="session")
def sshd(make_sshd: Callable[..., Sshd]) -> Sshd:
    """One real server that many tests share."""
    return make_sshd()


@pytest.fixture(scope="session")
def sshds(make_sshds: Callable[..., list[Sshd]]) -> list[Sshd]:
    """Eight real servers that many tests share."""
    return make_sshds(8)
