from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import paramiko
import pytest
from sshd import QUICK, Sshd

from hdap_tui.ssh.connection import Connection, connect
from hdap_tui.ssh.errors import Cancelled, DeviceError, ErrorKind
from hdap_tui.ssh.target import Target
from hdap_tui.ssh.transfer import Payload, download, remove, upload


@pytest.fixture(scope="module")
def server(make_sshd: Callable[..., Sshd]) -> Sshd:
    return make_sshd()


@pytest.fixture
def connection(server: Sshd, tmp_path: Path) -> Iterator[Connection]:
    opened = connect(server.trusted(tmp_path / "known_hosts"))
    yield opened
    opened.close()


def payload(folder: Path, size: int = 300_000) -> Payload:
    path = folder / f"model-{os.urandom(4).hex()}.onnx"
    path.write_bytes(os.urandom(size))
    return Payload.of(path)


def on_device(server: Sshd, one: Payload) -> Path:
    return server.home / ".hdap" / one.name


def parts(server: Sshd, one: Payload) -> list[Path]:
    return list((server.home / ".hdap" / "parts").glob(f"{one.part}*"))


def test_a_model_arrives_whole_under_the_name_of_its_hash(
    server: Sshd, connection: Connection, tmp_path: Path
) -> None:
    one = payload(tmp_path, 3_000_001)
    told: list[tuple[int, int]] = []
    assert upload(connection, [one], lambda sent, total: told.append((sent, total))) == (one,)
    data = on_device(server, one).read_bytes()
    assert hashlib.sha256(data).hexdigest() == one.digest
    assert one.name == f"models/{one.digest}.onnx"
    assert told[-1] == (3_000_001, 3_000_001)
    assert (server.home / ".hdap").stat().st_mode & 0o777 == 0o700
    assert parts(server, one) == []


def test_a_model_that_is_there_is_not_sent_again(
    server: Sshd, connection: Connection, tmp_path: Path
) -> None:
    old, new = payload(tmp_path), payload(tmp_path)
    upload(connection, [old])
    before = on_device(server, old).stat()
    told: list[tuple[int, int]] = []
    brought = upload(connection, [old, new, new], lambda *so_far: told.append(so_far))
    assert brought == (new,)
    assert told[-1] == (new.size, new.size)
    assert upload(connection, [old, new]) == ()
    after = on_device(server, old).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_damaged_file_on_the_device_is_replaced(
    server: Sshd, connection: Connection, tmp_path: Path
) -> None:
    one = payload(tmp_path)
    upload(connection, [one])
    on_device(server, one).write_bytes(b"rotten")
    assert upload(connection, [one]) == (one,)
    assert on_device(server, one).read_bytes() == one.path.read_bytes()


def test_a_wheel_keeps_its_name_and_folders_are_checked(
    server: Sshd, connection: Connection, tmp_path: Path
) -> None:
    wheel = tmp_path / "some pkg-1.0-py3-none-any.whl"
    wheel.write_bytes(b"a wheel")
    one = Payload.of(wheel, "wheels")
    assert one.name == f"wheels/{one.digest}/some pkg-1.0-py3-none-any.whl"
    assert upload(connection, [one]) == (one,)
    assert on_device(server, one).read_bytes() == b"a wheel"
    assert upload(connection, [one]) == ()
    for folder in ("..", "", "a/b", "A"):
        with pytest.raises(ValueError, match="cannot be a name"):
            Payload.of(wheel, folder)


def test_an_empty_file_arrives_too(server: Sshd, connection: Connection, tmp_path: Path) -> None:
    one = payload(tmp_path, 0)
    upload(connection, [one])
    assert on_device(server, one).read_bytes() == b""


def test_a_cut_upload_leaves_no_wrong_file_and_the_next_one_succeeds(
    server: Sshd, connection: Connection, tmp_path: Path
) -> None:
    one = payload(tmp_path, 20_000_000)

    def cut(sent: int, total: int) -> None:
        if sent > total // 4:
            for pid in server.sessions():
                os.kill(pid, signal.SIGKILL)

    with pytest.raises(DeviceError) as caught:
        upload(connection, [one], cut)
    assert caught.value.kind is ErrorKind.DISCONNECTED
    assert not on_device(server, one).exists()
    again = connect(connection.target)
    assert upload(again, [one]) == (one,)
    again.close()
    assert on_device(server, one).stat().st_size == one.size


def test_a_line_that_is_cut_as_the_transfer_begins_is_told_as_that(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def cut(_channel: paramiko.Channel, _name: str) -> None:
        connection.close()
        raise EOFError

    monkeypatch.setattr(paramiko.Channel, "invoke_subsystem", cut)
    with pytest.raises(DeviceError) as caught:
        upload(connection, [payload(tmp_path)])
    assert caught.value.kind is ErrorKind.DISCONNECTED


def test_a_transfer_that_stands_still_is_given_up(server: Sshd, tmp_path: Path) -> None:
    target = server.trusted(tmp_path / "known_hosts", timeouts=replace(QUICK, stall=1.0))
    opened = connect(target)
    one = payload(tmp_path, 60_000_000)
    stopped: list[int] = []

    def freeze(_sent: int, _total: int) -> None:
        if not stopped:
            stopped.extend(server.sessions())
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)

    began = time.monotonic()
    try:
        with pytest.raises(DeviceError, match="stood still") as caught:
            upload(opened, [one], freeze)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGKILL)
    assert stopped
    assert caught.value.kind is ErrorKind.TIMEOUT
    assert time.monotonic() - began < 10
    assert not on_device(server, one).exists()


def test_a_cancelled_upload_ends_soon_and_names_nothing(
    server: Sshd, connection: Connection, tmp_path: Path
) -> None:
    one = payload(tmp_path, 30_000_000)
    unwanted = threading.Event()

    def stop(sent: int, _total: int) -> None:
        if sent > 10_000_000:
            unwanted.set()
            time.sleep(0.01)  # a slow link, or all of it would be gone by the next look

    with pytest.raises(Cancelled):
        upload(connection, [one], stop, unwanted.is_set)
    assert not on_device(server, one).exists()


def test_a_file_that_changes_on_its_way_gets_no_name(
    server: Sshd, connection: Connection, tmp_path: Path
) -> None:
    one = payload(tmp_path)
    one.path.write_bytes(bytes(one.size))
    with pytest.raises(DeviceError, match="was changed while") as caught:
        upload(connection, [one])
    assert caught.value.kind is ErrorKind.FAILED
    assert not on_device(server, one).exists()
    assert parts(server, one) == []


def test_a_server_without_sftp_gets_its_files_all_the_same(
    make_sshd: Callable[..., Sshd], tmp_path: Path
) -> None:
    server = make_sshd(sftp=False)
    opened = connect(server.trusted(tmp_path / "known_hosts"))
    one = payload(tmp_path, 2_000_000)
    try:
        upload(opened, [one])
    finally:
        opened.close()
    assert on_device(server, one).read_bytes() == one.path.read_bytes()


def test_a_full_disk_is_told_as_such(lab: Any, fault: Callable[..., None], tmp_path: Path) -> None:
    device = lab.devices[1]
    target = Target(
        name=device.name, host=device.host, port=device.port, user=device.user,
        identity=lab.identity, known_hosts=lab.known_hosts, timeouts=QUICK,
    )  # fmt: skip
    opened = connect(target)
    upload(opened, [payload(tmp_path, 10)])  # the folders are there
    fault(device.name, "full-disk")
    with pytest.raises(DeviceError) as caught:
        upload(opened, [payload(tmp_path, 200_000)])
    opened.close()
    assert caught.value.kind is ErrorKind.DISK_FULL
    assert device.name in str(caught.value)


def test_models_in_use_are_never_removed(
    server: Sshd, connection: Connection, tmp_path: Path
) -> None:
    used, before, idle = (payload(tmp_path) for _ in range(3))
    upload(connection, [used, before, idle])
    (server.home / ".hdap" / "current").symlink_to(used.name)
    (server.home / ".hdap" / "previous").symlink_to(before.name)
    remove(connection, [used.name, before.name, idle.name])
    assert [on_device(server, one).exists() for one in (used, before, idle)] == [True, True, False]


def test_a_download_is_bounded_and_names_with_blanks_are_safe(
    server: Sshd, connection: Connection
) -> None:
    (server.home / "a $(touch hacked) file").write_bytes(b"0123456789")
    assert download(connection, "a $(touch hacked) file", 100) == b"0123456789"
    assert download(connection, "a $(touch hacked) file", 4) == b"0123"
    assert not (server.home / "hacked").exists()
    with pytest.raises(DeviceError, match="No such file"):
        download(connection, "nothing", 10)
