from __future__ import annotations

import resource
import subprocess
import sys
import threading
import time

import pytest
from sshd import wait_for

from hdap_tui.ssh import places
from hdap_tui.ssh.limits import allow_connections
from hdap_tui.ssh.places import Places


def test_no_more_than_so_many_work_at_once() -> None:
    room = Places(2)
    assert room.acquire(0)
    other = threading.Thread(target=lambda: room.acquire(1))
    other.start()
    other.join()
    refused: list[bool] = []
    third = threading.Thread(target=lambda: refused.append(room.acquire(0.05)))
    third.start()
    third.join()
    assert refused == [False]
    room.release()
    assert room.acquire(0)


def test_who_waits_long_keeps_nobody_waiting_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_MOMENT_S", 0.1)
    room, inside, leave = Places(1), [], threading.Event()

    def stay() -> None:
        if room.acquire(1.5):
            inside.append(1)
            leave.wait(20)
            room.release()

    threads = [threading.Thread(target=stay) for _ in range(6)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(inside) == 4)
    time.sleep(0.3)
    assert len(inside) == 4, "four times as many, and no more"
    leave.set()
    for thread in threads:
        thread.join()
    assert len(inside) == 6
    assert room.acquire(0)


def test_the_limit_of_open_files_is_raised_or_told() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    script = (
        "import resource as r; from hdap_tui.ssh.limits import allow_connections as a;"
        "r.setrlimit(r.RLIMIT_NOFILE, (256, 1500)); a(600); print(*r.getrlimit(r.RLIMIT_NOFILE));"
        "a(2000)"
    )
    if hard != resource.RLIM_INFINITY and hard < 1500:
        pytest.skip("this system allows too few open files")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["1400", "1500"]
    assert "2000 devices at once need 4200 open files, and this system allows" in done.stderr
    allow_connections(1)
