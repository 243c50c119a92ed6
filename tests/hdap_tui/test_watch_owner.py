"""One watcher a fleet: by a lock on this machine, by signs of life where no lock reaches."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sshd import wait_for

from hdap_tui.errors import RefusedError
from hdap_tui.store import watchers
from hdap_tui.store.database import Store, open_store
from hdap_tui.store.watchers import WatcherRow
from hdap_tui.watching import owner, service
from hdap_tui.watching.owner import owning, running

HOLD = """
import sys, time
from pathlib import Path
from hdap_tui.store.database import open_store
from hdap_tui.watching.owner import owning
with owning(open_store(Path(sys.argv[1]))):
    print("mine", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "state" / "fleet.db")
    yield opened
    opened.close()


@contextlib.contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that watches a fleet."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "mine\n"
        yield process
    finally:
        process.kill()
        process.wait()


def elsewhere(store: Store, host: str = "far-away") -> WatcherRow:
    """Enter a watcher of another machine, which says that it lives for as long as a test wants."""
    number = watchers.begin(store, host, "its boot", 4711, watchers.latest(store))
    assert number is not None
    found = watchers.latest(store)
    assert found is not None
    return found


def test_a_second_one_is_refused_and_told_who_watches(store: Store, tmp_path: Path) -> None:
    other = tmp_path / "other" / "fleet.db"
    other.parent.mkdir()
    other.symlink_to(store.path)  # the same database by another path
    with holder(store.path) as process:
        for path in (store.path, other):
            with contextlib.closing(open_store(path)) as opened:
                who = f"process {process.pid} on"
                with pytest.raises(RefusedError, match=who), owning(opened):
                    pass
                row = running(opened)
                assert row is not None
                assert (row.pid, row.host) == (process.pid, socket.gethostname())
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert running(store) is None
        with owning(store) as mine:  # at once: the kernel knows that it is dead
            assert mine.number == 2
    row = watchers.latest(store)
    assert row is not None
    assert row.ended_at
    assert running(store) is None


def test_one_on_another_machine_is_noticed_by_its_signs_of_life(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "BEAT_S", 0.2)
    row = elsewhere(store)
    ended = threading.Event()

    def live() -> None:
        while not ended.wait(0.1):
            assert watchers.beat(store, row.id)

    thread = threading.Thread(target=live)
    thread.start()
    try:
        seen = running(store)
        assert seen is not None
        assert seen.host == "far-away"
        with pytest.raises(RefusedError, match="process 4711 on far-away"), owning(store):
            pass
    finally:
        ended.set()
        thread.join()
    with owning(store) as mine:  # it was watched for a while, and said nothing
        assert mine.number == row.id + 1
        # Should it come back to life, it learns that another has taken over.
        assert not watchers.beat(store, row.id)
        assert watchers.beat(store, mine.number)


def test_whoever_has_lost_its_place_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "BEAT_S", 0.05)
    with owning(store) as mine:
        time.sleep(0.2)
        assert not mine.lost
        elsewhere(store)
        wait_for(lambda: mine.lost, 5)


def test_of_two_that_find_the_last_one_dead_at_the_same_time_one_wins(store: Store) -> None:
    dead = elsewhere(store)
    first = watchers.begin(store, "a", "", 1, dead)
    second = watchers.begin(store, "b", "", 1, dead)
    assert first == dead.id + 1
    assert second is None


def test_a_machine_that_was_started_anew_waits_for_nobody(store: Store) -> None:
    elsewhere(store, socket.gethostname())
    began = time.monotonic()
    with owning(store):
        assert time.monotonic() - began < 10


def test_a_sign_of_life_makes_no_screen_look_anew(store: Store) -> None:
    row, before = elsewhere(store), store.version()
    assert watchers.beat(store, row.id)
    assert store.version() == before
    watchers.say(store, row.id, "sweep", "", "")
    assert store.version() > before


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told_on_the_socket_that_it_names(
    abstract: bool, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"@hdap-{os.getpid()}" if abstract else str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    monkeypatch.setenv("WATCHDOG_USEC", "300000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(name.replace("@", "\0"))
        heard.settimeout(5)
        service.notify("READY=1", "STATUS=watching")
        assert heard.recv(100) == b"READY=1\nSTATUS=watching"
        with owning(store):
            assert heard.recv(100) == b"WATCHDOG=1"
        monkeypatch.setattr(owner, "STUCK_S", -1.0)
        heard.settimeout(0.4)
        with pytest.raises(TimeoutError), owning(store):  # one that is stuck gives no sign
            heard.recv(100)


def test_nobody_is_told_where_systemd_did_not_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setenv("WATCHDOG_USEC", "300000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    service.notify("READY=1")
    assert service.watchdog_s() is None
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/notify")
    service.notify("READY=1")
