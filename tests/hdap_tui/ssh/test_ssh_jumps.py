"""Devices behind jump hosts, all of them real OpenSSH servers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sshd import QUICK, Sshd, free_port, make_key, opened, wait_for

from hdap_tui.ssh.errors import DeviceError, ErrorKind
from hdap_tui.ssh.hostkeys import KnownHosts
from hdap_tui.ssh.pool import Connections
from hdap_tui.ssh.target import Jump, Target

SHORT = replace(QUICK, connect=1.5, handshake=1.5, auth=1.5, channel=1.5, total=2.5)


@pytest.fixture(scope="module")
def servers(make_sshds: Callable[..., list[Sshd]]) -> list[Sshd]:
    """Two jump hosts and three devices."""
    return make_sshds(5)


@pytest.fixture
def pool() -> Iterator[Connections]:
    with Connections() as opened:
        yield opened


def jump(server: Sshd, **changes: Any) -> Jump:
    values = {name: getattr(server.target(), name) for name in server.target().__dataclass_fields__}
    return Jump(**{**values, **changes})


def behind(server: Sshd, *jumps: Jump, **changes: Any) -> Target:
    return replace(server.target(), jumps=jumps, **changes)


def fails(pool: Connections, target: Target) -> DeviceError:
    with pytest.raises(DeviceError) as caught:
        pool.get(target)
    return caught.value


def logins(server: Sshd) -> int:
    return server.log.read_text().count("Accepted publickey")


def test_devices_behind_a_jump_host_share_one_connection_to_it(
    servers: list[Sshd], pool: Connections
) -> None:
    first, _, *devices = servers
    before = logins(first)
    targets = [behind(device, jump(first)) for device in devices]
    answers = dict(opened(pool, targets))
    assert all(not isinstance(answer, DeviceError) for answer in answers.values()), answers
    homes = {pool.get(target).run("echo $HOME").out.decode().strip() for target in targets}
    assert homes == {str(device.home) for device in devices}
    assert logins(first) == before + 1


def test_two_jump_hosts_in_a_row_lead_to_a_device(servers: list[Sshd], pool: Connections) -> None:
    first, second, device, *_ = servers
    target = behind(device, jump(first), jump(second))
    assert pool.get(target).run("echo hello").out == b"hello\n"
    assert pool.get(replace(target, name="other")).run("echo again").out == b"again\n"


def test_many_sessions_of_a_jump_host_are_no_matter(
    make_sshds: Callable[..., list[Sshd]], pool: Connections
) -> None:
    first, *devices = make_sshds(4, options={0: {"MaxSessions": "1"}})
    targets = [behind(device, jump(first)) for device in devices]
    assert {type(answer).__name__ for _, answer in opened(pool, targets)} == {"Connection"}


def test_a_dead_jump_host_is_named_for_every_device_and_tried_once(
    servers: list[Sshd], pool: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hdap_tui.ssh import pool as pool_module

    monkeypatch.setattr(pool_module, "backoff", lambda _attempt: 0.01)
    tried: list[str] = []
    real = pool_module.connect

    def counted(target: Target, *more: Any, **options: Any) -> Any:
        tried.append(target.name)
        return real(target, *more, **options)

    monkeypatch.setattr(pool_module, "connect", counted)
    dead = jump(servers[0], name="bastion", port=free_port())
    targets = [behind(device, dead) for device in servers[2:]]
    began = time.monotonic()
    for target, error in opened(pool, targets):
        assert isinstance(error, DeviceError)
        assert error.kind is ErrorKind.REFUSED
        assert error.behind == "bastion"
        assert str(error) == (
            f"{target.name}: behind bastion ({dead.address}): nothing listens on that port"
        )
    assert tried == ["bastion"] * pool_module.ATTEMPTS
    assert time.monotonic() - began < 5


def test_a_jump_host_that_refused_the_login_is_asked_again_only_with_other_keys(
    make_sshds: Callable[..., list[Sshd]], servers: list[Sshd], tmp_path: Path
) -> None:
    (strict,) = make_sshds(1, options={0: {"LogLevel": "VERBOSE"}})
    key = make_key(tmp_path / "id")
    target = behind(servers[2], jump(strict, identity=key))
    with Connections() as pool:
        pool.believed_s = 0.0
        for _ in range(3):
            error = fails(pool, target)
            assert error.kind is ErrorKind.AUTHENTICATION
            assert error.behind == strict.name
            assert "asked again once there are other keys" in str(error)
        assert strict.log.read_text().count("Failed publickey") == 1
        for suffix in ("", ".pub"):
            key.with_suffix(suffix).write_bytes(strict.identity.with_suffix(suffix).read_bytes())
        assert pool.get(target).run("echo in").out == b"in\n"


def test_a_device_that_is_off_behind_a_jump_host_is_not_the_jump_hosts_fault(
    servers: list[Sshd], pool: Connections
) -> None:
    first, _, device, *_ = servers
    off = fails(pool, behind(device, jump(first), port=free_port(), timeouts=SHORT))
    assert off.kind is ErrorKind.REFUSED
    assert not off.behind
    nowhere = fails(pool, behind(device, jump(first), host="nowhere.invalid", timeouts=SHORT))
    assert nowhere.kind is ErrorKind.UNREACHABLE
    assert "the jump host" in str(nowhere)


def test_a_jump_host_that_forwards_nothing_says_what_it_needs(
    make_sshds: Callable[..., list[Sshd]], servers: list[Sshd], pool: Connections
) -> None:
    (strict,) = make_sshds(1, options={0: {"AllowTcpForwarding": "no"}})
    error = fails(pool, behind(servers[2], jump(strict)))
    assert error.kind is ErrorKind.UNREACHABLE
    assert "AllowTcpForwarding yes" in str(error)


def test_each_host_key_is_checked_under_its_own_name(
    servers: list[Sshd], pool: Connections, tmp_path: Path
) -> None:
    first, _, device, *_ = servers
    none = tmp_path / "none"
    unknown_jump = fails(pool, behind(device, jump(first, known_hosts=none)))
    assert unknown_jump.kind is ErrorKind.HOST_KEY_UNKNOWN
    assert unknown_jump.behind == first.name
    assert first.host_key().fingerprint in str(unknown_jump)
    unknown = fails(pool, behind(device, jump(first), known_hosts=none))
    assert unknown.kind is ErrorKind.HOST_KEY_UNKNOWN
    assert not unknown.behind
    assert device.host_key().fingerprint in str(unknown)
    assert f"hdap devices trust --select {device.name}" in str(unknown)
    KnownHosts(none, ()).trust("the-device", 0, device.host_key())
    assert pool.get(behind(device, jump(first), known_hosts=none, key_alias="the-device")).alive


def test_a_jump_host_that_was_lost_is_reached_anew(
    make_sshds: Callable[..., list[Sshd]], servers: list[Sshd], pool: Connections
) -> None:
    (first,) = make_sshds(1)
    target = behind(servers[2], jump(first))
    opened = pool.get(target)
    first.stop()
    wait_for(lambda: not opened.alive, 5)
    with pytest.raises(DeviceError) as caught:
        opened.run("true")
    assert caught.value.kind is ErrorKind.DISCONNECTED
    first.restart()
    assert pool.get(target).run("echo back").out == b"back\n"


def test_a_device_that_falls_silent_behind_a_jump_host_is_noticed(
    make_sshds: Callable[..., list[Sshd]], servers: list[Sshd], pool: Connections
) -> None:
    (device,) = make_sshds(1)
    limits = replace(QUICK, command=60, dead_after=3)
    target = behind(device, jump(servers[0]), timeouts=limits)
    other = behind(servers[2], jump(servers[0]), timeouts=limits)
    pool.get(other)
    opened = pool.get(target)
    threading.Timer(0.3, device.freeze).start()
    began = time.monotonic()
    try:
        with pytest.raises(DeviceError) as caught:
            opened.run("sleep 60")
    finally:
        device.thaw()
    assert caught.value.kind is ErrorKind.DISCONNECTED
    assert time.monotonic() - began < 15
    assert pool.get(other).run("sleep 4 && echo fine").out == b"fine\n"


def test_closing_leaves_no_thread_and_no_session(servers: list[Sshd]) -> None:
    first, second, device, *_ = servers
    with Connections() as pool:
        opened = pool.get(behind(device, jump(first), jump(second)))
        threads = [opened.transport]
        opened.run("true")
    assert not any(thread.is_alive() for thread in threads)
    for server in (first, second, device):
        wait_for(lambda server=server: not server.sessions(), 5)  # type: ignore[misc]
