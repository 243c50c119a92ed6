from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sshd import QUICK, Sshd, free_port, opened

from hdap_tui.errors import UserError
from hdap_tui.ssh import pool as pool_module
from hdap_tui.ssh.errors import Cancelled, DeviceError, ErrorKind, classify
from hdap_tui.ssh.pool import Connections, backoff
from hdap_tui.ssh.target import Jump, Target

SHORT = replace(QUICK, connect=1.0, handshake=1.0, auth=1.0, total=1.5)


@pytest.fixture
def pool() -> Iterator[Connections]:
    with Connections() as opened:
        yield opened


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as listener:
        yield int(listener.getsockname()[1])


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "backoff", lambda _attempt: 0.01)


def test_a_connection_is_opened_once_and_kept(
    sshd: Sshd, tmp_path: Path, pool: Connections
) -> None:
    target = sshd.trusted(tmp_path / "known_hosts")
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(pool.get(target))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(map(id, found))) == 1


def test_a_connection_that_was_lost_is_opened_anew(
    sshd: Sshd, tmp_path: Path, pool: Connections
) -> None:
    target = sshd.trusted(tmp_path / "known_hosts")
    first = pool.get(target)
    first.transport.sock.shutdown(socket.SHUT_RDWR)
    first.transport.join(5)
    second = pool.get(target)
    assert second is not first
    assert second.run("echo hello").out == b"hello\n"


def test_one_dead_device_delays_no_other(
    sshd: Sshd, tmp_path: Path, pool: Connections, silent_port: int
) -> None:
    good = [sshd.trusted(tmp_path / "known_hosts", name=f"good-{n}") for n in range(3)]
    dead = sshd.target(tmp_path / "known_hosts", name="dead", port=silent_port, timeouts=SHORT)
    began = time.monotonic()
    order = [(target.name, found) for target, found in opened(pool, [dead, *good])]
    assert time.monotonic() - began < 4
    assert [name for name, _ in order][-1] == "dead"
    assert all(not isinstance(found, DeviceError) for _, found in order[:3])
    error = order[3][1]
    assert isinstance(error, DeviceError)
    assert error.kind is ErrorKind.TIMEOUT


def test_only_what_may_heal_is_tried_again(
    sshd: Sshd, tmp_path: Path, pool: Connections, no_pause: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []
    real = pool_module.connect

    def counted(target: Target, *more: Any, **options: Any) -> Any:
        tries.append(target.name)
        return real(target, *more, **options)

    monkeypatch.setattr(pool_module, "connect", counted)
    refusing = sshd.target(tmp_path / "none", name="refusing", port=free_port())
    unknown = sshd.target(tmp_path / "none", name="unknown")
    for target, kind in ((refusing, ErrorKind.REFUSED), (unknown, ErrorKind.HOST_KEY_UNKNOWN)):
        with pytest.raises(DeviceError) as caught:
            pool.get(target)
        assert caught.value.kind is kind
    assert tries.count("refusing") == pool_module.ATTEMPTS
    assert tries.count("unknown") == 1


def test_a_device_that_comes_back_is_reached_by_another_try(
    lab: Any, fault: Callable[..., None], pool: Connections, no_pause: None
) -> None:
    from hdap_tui.lab import control

    device = lab.devices[2]
    target = Target(
        name=device.name, host=device.host, port=device.port, user=device.user,
        identity=lab.identity, known_hosts=lab.known_hosts, timeouts=QUICK,
    )  # fmt: skip
    fault(device.name, "refuse")
    tries = pool.opening(target)
    next(tries)  # the first try has failed
    control.fault(lab.state, device.name, "none")
    with pytest.raises(StopIteration) as ended:
        next(tries)
    assert ended.value.value.alive


def test_at_most_as_many_as_allowed_are_opened_at_once(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, most, lock = 0, 0, threading.Lock()

    def slow(target: Target, *_: Any, **__: Any) -> Any:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.03)
        with lock:
            now -= 1
        raise DeviceError(ErrorKind.FAILED, target.name)

    monkeypatch.setattr(pool_module, "connect", slow)
    ports = [sshd.target(tmp_path / "n", name=f"d{n}", port=2000 + n) for n in range(20)]
    with Connections(bound=5) as pool:
        assert len(list(opened(pool, ports))) == 20
    assert most == 5
    same = [sshd.target(tmp_path / "n", name=f"d{n}") for n in range(20)]
    most = 0
    with Connections(handshakes=3) as pool:
        assert len(list(opened(pool, same))) == 20
    assert most == 3


def test_opening_many_ends_once_nobody_wants_it(
    sshd: Sshd, tmp_path: Path, pool: Connections, silent_port: int
) -> None:
    dead = [sshd.target(tmp_path / "n", name=f"d{n}", port=silent_port) for n in range(4)]
    unwanted = threading.Event()
    threading.Timer(0.3, unwanted.set).start()
    began = time.monotonic()
    assert list(opened(pool, dead, unwanted.is_set)) == []
    assert time.monotonic() - began < 3


def test_a_closed_pool_opens_nothing_more(sshd: Sshd, tmp_path: Path) -> None:
    target = sshd.trusted(tmp_path / "known_hosts")
    pool = Connections()
    first = pool.get(target)
    pool.close()
    assert not first.alive
    with pytest.raises(Cancelled):
        pool.open(target)


def test_the_pauses_grow_and_differ() -> None:
    for attempt, most in ((1, 0.5), (2, 1.5), (3, 4.5), (9, 8.0)):
        drawn = [backoff(attempt) for _ in range(200)]
        assert 0.5 * most < max(drawn) <= most
        assert min(drawn) < 0.5 * most


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectionRefusedError(111, "x"), ErrorKind.REFUSED),
        (OSError(113, "x"), ErrorKind.UNREACHABLE),
        (OSError(101, "x"), ErrorKind.UNREACHABLE),
        (OSError(110, "x"), ErrorKind.TIMEOUT),
        (TimeoutError(), ErrorKind.TIMEOUT),
        (ConnectionResetError(104, "x"), ErrorKind.DISCONNECTED),
        (BrokenPipeError(32, "x"), ErrorKind.DISCONNECTED),
        (EOFError(), ErrorKind.DISCONNECTED),
        (OSError(28, "x"), ErrorKind.DISK_FULL),
        (OSError("No space left on device"), ErrorKind.DISK_FULL),
        (OSError("Failure"), ErrorKind.FAILED),
        (KeyError("odd"), ErrorKind.GARBAGE),
        (UserError("fleet.db: the disk is full."), ErrorKind.FAILED),
    ],
)
def test_every_error_has_a_class_and_one_sentence(error: Exception, kind: ErrorKind) -> None:
    found = classify(error, "edge-01")
    assert found.kind is kind
    assert str(found).startswith("edge-01: ")
    assert classify(found, "elsewhere") is found


def test_a_jump_host_that_opens_while_all_is_closed_is_closed_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool, closed = Connections(), threading.Event()
    late = SimpleNamespace(alive=True, close=closed.set)

    def late_bastion(*_: object) -> object:
        pool.close()
        return late

    monkeypatch.setattr(pool, "_open_bastion", late_bastion)
    jump = Jump(name="jump", host="jump", known_hosts=Path("/none"))
    with pytest.raises(Cancelled):
        pool._bastion((jump,), lambda: False)
    assert closed.is_set()
