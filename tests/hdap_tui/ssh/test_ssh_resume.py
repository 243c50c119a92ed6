from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sshd import QUICK, Sshd, start_sshds, wait_for

from hdap_tui.ssh import transfer
from hdap_tui.ssh.connection import Connection, connect
from hdap_tui.ssh.errors import Cancelled, DeviceError, ErrorKind
from hdap_tui.ssh.transfer import Payload, upload

Told = list[tuple[int, int]]


@pytest.fixture(scope="module")
def shared(make_sshds: Callable[..., list[Sshd]]) -> Iterator[Sshd]:
    (one,) = make_sshds(1)
    yield one
    one.stop()


@pytest.fixture
def server(shared: Sshd) -> Iterator[Sshd]:
    """A server whose device has nothing of ours on it."""
    yield shared
    shutil.rmtree(shared.home / ".hdap", ignore_errors=True)


@pytest.fixture
def dial(server: Sshd) -> Iterator[Callable[..., Connection]]:
    """Connect as somebody, `dial("a")`: another name is another sender."""
    opened: list[Connection] = []

    def one(name: str, **changes: object) -> Connection:
        opened.append(connect(server.target(name=name, **changes)))
        return opened[-1]

    yield one
    for connection in opened:
        connection.close()


@pytest.fixture
def model(tmp_path: Path) -> Payload:
    path = tmp_path / "model.onnx"
    path.write_bytes(os.urandom(12_000_000))
    return Payload.of(path)


def part(server: Sshd, one: Payload) -> Path:
    return server.home / ".hdap" / "parts" / one.part


def left_over(server: Sshd) -> list[str]:
    return sorted(path.name for path in (server.home / ".hdap" / "parts").iterdir())


def arrived(server: Sshd, one: Payload) -> bool:
    return (server.home / ".hdap" / one.name).read_bytes() == one.path.read_bytes()


def cut_upload(server: Sshd, connection: Connection, one: Payload) -> None:
    def cut(sent: int, total: int) -> None:
        if sent > total // 2:
            server.cut()

    with pytest.raises(DeviceError) as caught:
        upload(connection, [one], cut)
    assert caught.value.kind is ErrorKind.DISCONNECTED
    assert not (server.home / ".hdap" / one.name).exists()


def test_another_process_goes_on_where_a_cut_upload_ended(
    server: Sshd, dial: Callable[..., Connection], model: Payload
) -> None:
    cut_upload(server, dial("a"), model)
    told: Told = []
    assert upload(dial("b"), [model], lambda *so_far: told.append(so_far)) == (model,)
    assert told[0][0] > model.size // 2 - 1_000_000, "what had arrived was sent again"
    assert arrived(server, model)
    assert left_over(server) == []


def test_a_part_that_was_spoilt_is_not_gone_on_with(
    server: Sshd, dial: Callable[..., Connection], model: Payload
) -> None:
    cut_upload(server, dial("a"), model)
    with open(part(server, model), "r+b") as file:
        file.seek(1_000_000)
        file.write(bytes(4096))
    told: Told = []
    upload(dial("a"), [model], lambda *so_far: told.append(so_far))
    assert told[0][0] < 1_000_000
    assert arrived(server, model)


def test_a_part_that_ends_in_zeros_after_a_power_cut_is_gone_on_with_before_them(
    server: Sshd, dial: Callable[..., Connection], model: Payload
) -> None:
    cut_upload(server, dial("a"), model)
    have = part(server, model).stat().st_size
    with open(part(server, model), "r+b") as file:
        file.seek(have - 2_000_000)
        file.write(bytes(2_000_000))
    told: Told = []
    upload(dial("a"), [model], lambda *so_far: told.append(so_far))
    assert have // 2 <= told[0][0] < have - 1_500_000
    assert arrived(server, model)


def test_without_sftp_a_cut_upload_is_gone_on_with_too(tmp_path: Path, model: Payload) -> None:
    (server,) = start_sshds(tmp_path / "plain", 1, sftp=False)
    opened = connect(server.target())
    try:
        cut_upload(server, opened, model)
        opened.close()
        opened = connect(server.target())
        told: Told = []
        upload(opened, [model], lambda *so_far: told.append(so_far))
        assert told[0][0] > model.size // 4
        assert arrived(server, model)
    finally:
        opened.close()
        server.stop()


def test_a_second_sender_waits_and_sends_nothing(
    server: Sshd, dial: Callable[..., Connection], model: Payload
) -> None:
    begun, told = threading.Event(), []
    brought: list[tuple[Payload, ...]] = []

    def slowly(_sent: int, _total: int) -> None:
        begun.set()
        time.sleep(0.02)

    first = threading.Thread(target=lambda: brought.append(upload(dial("a"), [model], slowly)))
    first.start()
    assert begun.wait(10)
    assert upload(dial("b"), [model], lambda *so_far: told.append(so_far)) == ()
    first.join()
    assert brought == [(model,)]
    assert told == []
    assert arrived(server, model)
    assert left_over(server) == []


def test_a_sender_whose_link_is_gone_is_written_past(
    server: Sshd,
    dial: Callable[..., Connection],
    model: Payload,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transfer, "PATIENCE_S", 0.5)
    frozen: list[int] = []
    brought: list[tuple[Payload, ...]] = []

    def freeze(sent: int, total: int) -> None:
        if sent > total // 2 and not frozen:
            frozen.extend(server.sessions())
            for pid in frozen:
                os.kill(pid, 19)  # SIGSTOP

    def first() -> None:
        brought.append(upload(dial("a", timeouts=replace(QUICK, stall=30)), [model], freeze))

    thread = threading.Thread(target=first)
    thread.start()
    try:
        wait_for(lambda: frozen)
        told: Told = []
        assert upload(dial("b"), [model], lambda *so_far: told.append(so_far)) == (model,)
        assert told[0][0] > 1_000_000, "what had arrived was sent again"
    finally:
        for pid in frozen:
            os.kill(pid, 18)  # SIGCONT: what it has still to write must not reach the file
    thread.join()
    assert brought == [()], "the one that was written past did not notice"
    assert arrived(server, model)
    assert left_over(server) == []


def test_a_cancelled_upload_keeps_the_connection_and_what_has_arrived(
    server: Sshd, dial: Callable[..., Connection], model: Payload
) -> None:
    connection, unwanted = dial("a"), threading.Event()

    def stop(sent: int, total: int) -> None:
        if sent > total // 2:
            unwanted.set()

    with pytest.raises(Cancelled):
        upload(connection, [model], stop, unwanted.is_set)
    assert connection.alive
    assert left_over(server) == [model.part]
    told: Told = []
    upload(connection, [model], lambda *so_far: told.append(so_far))
    assert told[0][0] > model.size // 4
    assert arrived(server, model)


def test_many_files_go_through_one_channel_where_only_one_is_allowed(
    make_sshds: Callable[..., list[Sshd]], tmp_path: Path
) -> None:
    (server,) = make_sshds(1, options={0: {"MaxSessions": "1"}})
    wheels = []
    for number in range(5):
        path = tmp_path / f"wheel_{number}-1.0-py3-none-any.whl"
        path.write_bytes(os.urandom(200_000 + number))
        wheels.append(path)
    payloads = Payload.all_of(wheels, "wheels")
    connection = connect(server.target())
    told: Told = []
    assert upload(connection, payloads, lambda *so_far: told.append(so_far)) == tuple(payloads)
    connection.close()
    assert told[-1] == (1_000_010, 1_000_010)
    assert all(arrived(server, one) for one in payloads)


def test_a_file_that_was_touched_is_looked_at_again(
    server: Sshd, dial: Callable[..., Connection], model: Payload
) -> None:
    connection = dial("a")
    upload(connection, [model])
    file = server.home / ".hdap" / model.name
    status = file.stat()
    with open(file, "r+b") as spoilt:
        spoilt.write(b"rotten")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # as by a clock that was set back
    assert upload(connection, [model]) == (model,)
    assert arrived(server, model)


@pytest.fixture
def small_disk(server: Sshd) -> Iterator[Path]:
    """The product's folder on the device, on a disk of 8 MB."""
    if os.geteuid():
        pytest.skip("only root can mount a small disk")
    folder = server.home / ".hdap"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_file_that_does_not_fit_is_not_begun(
    server: Sshd, dial: Callable[..., Connection], model: Payload, small_disk: Path
) -> None:
    told: Told = []
    with pytest.raises(DeviceError, match=r"12\.1 MB are needed, 8\.\d MB are free") as caught:
        upload(dial("a"), [model], lambda *so_far: told.append(so_far))
    assert caught.value.kind is ErrorKind.DISK_FULL
    assert told == []
    assert left_over(server) == []


def test_a_disk_that_fills_up_meanwhile_is_told_and_left_clean(
    server: Sshd, dial: Callable[..., Connection], small_disk: Path, tmp_path: Path
) -> None:
    path = tmp_path / "small.onnx"
    path.write_bytes(os.urandom(7_000_000))
    one, connection = Payload.of(path), dial("a")

    def fill(_sent: int, _total: int) -> None:
        with open(small_disk / "filler", "ab") as file:
            for _ in range(8):
                try:
                    file.write(bytes(1 << 20))
                    file.flush()
                except OSError:
                    return

    with pytest.raises(DeviceError) as caught:
        upload(connection, [one], fill)
    assert caught.value.kind is ErrorKind.DISK_FULL
    assert left_over(server) == []
    (small_disk / "filler").unlink()
    assert upload(connection, [one]) == (one,)
    assert arrived(server, one)


def test_a_device_without_any_space_is_told_as_such(
    server: Sshd, dial: Callable[..., Connection], small_disk: Path, tmp_path: Path
) -> None:
    path = tmp_path / "tiny.onnx"
    path.write_bytes(b"tiny")
    connection = dial("a")
    upload(connection, [Payload.of(path)])  # the folders are there
    with pytest.raises(OSError, match="No space"), open(small_disk / "filler", "wb") as file:
        file.write(bytes(9 << 20))
    path.write_bytes(b"another")
    with pytest.raises(DeviceError) as caught:
        upload(connection, [Payload.of(path)])
    assert caught.value.kind is ErrorKind.DISK_FULL
    assert left_over(server) == []


@pytest.fixture
def vanish(server: Sshd) -> Iterator[Callable[[], None]]:
    """Let no packet to or from the server through any more, and answer nothing."""
    if os.geteuid() or not shutil.which("nft"):
        pytest.skip("only root can cut a link, with nft")
    table = f"hdap_test_{server.port}"
    rules = (
        f"table inet {table} {{\nchain cut {{\ntype filter hook input priority 0;\n"
        f"tcp dport {server.port} drop\ntcp sport {server.port} drop\n}}\n}}\n"
    )

    probe = subprocess.run(["nft", "-c", "-f", "-"], input=rules.encode(), capture_output=True)
    if probe.returncode:
        pytest.skip("no link can be cut here")

    def cut() -> None:
        subprocess.run(["nft", "-f", "-"], input=rules.encode(), check=True)

    yield cut
    subprocess.run(["nft", "delete", "table", "inet", table], capture_output=True, check=False)


def test_a_peer_that_vanishes_in_an_upload_is_noticed(
    server: Sshd, dial: Callable[..., Connection], model: Payload, vanish: Callable[[], None]
) -> None:
    connection = dial("a", timeouts=replace(QUICK, stall=60, dead_after=2))
    cut: list[float] = []

    def cut_once(sent: int, total: int) -> None:
        if sent > total // 2 and not cut:
            vanish()
            cut.append(time.monotonic())

    with pytest.raises(DeviceError) as caught:
        upload(connection, [model], cut_once)
    assert caught.value.kind is ErrorKind.DISCONNECTED
    assert time.monotonic() - cut[0] < 10


def test_a_peer_that_vanishes_in_a_command_is_noticed(
    dial: Callable[..., Connection], vanish: Callable[[], None]
) -> None:
    connection = dial("a", timeouts=replace(QUICK, command=20, dead_after=2))
    threading.Timer(0.3, vanish).start()
    began = time.monotonic()
    with pytest.raises(DeviceError) as caught:
        connection.run("sleep 20", timeout=20)
    assert caught.value.kind is ErrorKind.DISCONNECTED
    assert time.monotonic() - began < 12


def test_keys_that_are_agreed_on_anew_meanwhile_do_no_harm(
    make_sshds: Callable[..., list[Sshd]], model: Payload
) -> None:
    (server,) = make_sshds(1, options={0: {"RekeyLimit": "1M"}})
    connection = connect(server.target())
    upload(connection, [model])
    connection.transport.packetizer.REKEY_BYTES = 1 << 20
    again = Payload.of(model.path, "again")
    upload(connection, [again])
    assert connection.call("echo still there").out == b"still there\n"
    connection.close()
    assert arrived(server, model)
    assert arrived(server, again)
