"""Servers that allow little, know little, or became others: what is waited for and what is said."""

from __future__ import annotations

import base64
import hmac
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import paramiko
import pytest
from sshd import QUICK, Sshd, opened

from hdap_tui.ssh import pool as pool_module
from hdap_tui.ssh.connection import connect
from hdap_tui.ssh.errors import DeviceError, ErrorKind
from hdap_tui.ssh.pool import Connections


def test_one_session_at_a_time_is_enough_for_many_commands(
    make_sshd: Callable[..., Sshd], tmp_path: Path
) -> None:
    target = make_sshd({"MaxSessions": "1"}).trusted(tmp_path / "known_hosts")
    limits = replace(target.timeouts, channel=1.0, command=1.2)
    opened = connect(replace(target, timeouts=limits))
    with ThreadPoolExecutor(6) as workers:
        done = list(workers.map(lambda n: opened.run(f"sleep 0.4; echo {n}").out, range(5)))
    opened.close()
    assert done == [f"{n}\n".encode() for n in range(5)]


def test_a_waiting_command_ends_with_the_connection(
    make_sshd: Callable[..., Sshd], tmp_path: Path
) -> None:
    server = make_sshd({"MaxSessions": "1"})
    opened = connect(server.trusted(tmp_path / "known_hosts"))
    opened.run("true")
    with ThreadPoolExecutor(2) as workers:
        running = [workers.submit(opened.run, "sleep 30") for _ in range(2)]
        threading.Timer(0.5, server.cut).start()
        kinds = {type(one.exception(10)) for one in running}
    opened.close()
    assert kinds == {DeviceError}


def test_a_server_that_takes_few_logins_at_once_lets_all_in(
    make_sshd: Callable[..., Sshd], tmp_path: Path
) -> None:
    target = make_sshd({"MaxStartups": "2:100:3"}).trusted(tmp_path / "known_hosts")
    patient = replace(target, timeouts=replace(QUICK, total=30))
    with Connections() as pool:
        targets = [replace(patient, name=f"{n}") for n in range(12)]
        answers = [answer for _, answer in opened(pool, targets)]
    assert not [answer for answer in answers if isinstance(answer, DeviceError)]


def test_no_more_logins_at_one_server_than_allowed_are_under_way(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = sshd.trusted(tmp_path / "known_hosts")
    under_way, most, lock = [0], [0], threading.Lock()
    real = pool_module.connect

    def counted(*given: object, **more: object) -> object:
        with lock:
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
        try:
            return real(*given, **more)  # type: ignore[arg-type]
        finally:
            with lock:
                under_way[0] -= 1

    monkeypatch.setattr(pool_module, "connect", counted)
    with Connections(handshakes=2) as pool:
        assert len(list(opened(pool, [replace(target, name=f"{n}") for n in range(8)]))) == 8
    assert most[0] == 2


def test_a_changed_host_key_leaves_a_standing_connection_and_refuses_a_new_one(
    make_sshd: Callable[..., Sshd], tmp_path: Path
) -> None:
    server = make_sshd(kinds=("ed25519",))
    target = server.trusted(tmp_path / "known_hosts")
    before = server.host_key()
    with Connections() as pool:
        standing = pool.get(target)
        server.close()
        server.restart(new_host_key=True)
        assert pool.get(target) is standing
        assert standing.run("echo still").out == b"still\n"
        pool.drop(target)
        with pytest.raises(DeviceError) as caught:
            pool.get(target)
        assert caught.value.kind is ErrorKind.HOST_KEY_CHANGED
        assert before.fingerprint in str(caught.value)
        assert server.host_key().fingerprint in str(caught.value)
        assert f"hdap devices trust --select {target.name}" in str(caught.value)
        pool.known(target).trust(*target.known_as, server.host_key())
        assert pool.get(target).alive


def test_another_known_type_of_host_key_in_a_hashed_file_is_found(
    make_sshd: Callable[..., Sshd], tmp_path: Path
) -> None:
    server = make_sshd()  # it shows ed25519 first; the file knows its RSA key
    salt, name = b"0123456789abcdefghij", f"[127.0.0.1]:{server.port}"
    digest = hmac.digest(salt, name.encode(), "sha1")
    key = server.host_key("rsa")
    hidden = "|1|" + "|".join(base64.b64encode(part).decode() for part in (salt, digest))
    (tmp_path / "hashed").write_text(f"{hidden} {key.type} {key.base64}\n")
    target = server.target(tmp_path / "none", other_known_hosts=(tmp_path / "hashed",))
    opened = connect(target)
    assert opened.host_key == key
    opened.close()


# ---- servers too old ----------------------------------------------------------------------------


def serve_old(field: int, offered: str) -> tuple[int, socket.socket]:
    """Listen, and offer one list of algorithms only."""
    listener = socket.create_server(("127.0.0.1", 0))
    lists = [
        "ecdh-sha2-nistp256", "ssh-ed25519", "aes128-ctr", "aes128-ctr", "hmac-sha2-256",
        "hmac-sha2-256", "none", "none", "", "",
    ]  # fmt: skip
    for index in (field, field + 1) if field in (2, 4) else (field,):
        lists[index] = offered

    def answer() -> None:
        client, _ = listener.accept()
        message = paramiko.Message()
        message.add_byte(b"\x14")
        message.add_bytes(bytes(16))
        for text in lists:
            message.add_string(text)
        message.add_boolean(False)
        message.add_int(0)
        payload = message.asbytes()
        padding = 8 - (len(payload) + 5) % 8 + 8
        packet = (len(payload) + padding + 1).to_bytes(4, "big") + bytes([padding])
        client.sendall(b"SSH-2.0-old\r\n" + packet + payload + bytes(padding))
        while client.recv(4096):
            pass
        client.close()

    threading.Thread(target=answer, daemon=True).start()
    return int(listener.getsockname()[1]), listener


@pytest.mark.parametrize(
    ("field", "offered", "said"),
    [
        (0, "diffie-hellman-group1-sha1", "only key exchanges that are no longer safe"),
        (1, "ssh-rsa,ssh-dss", "only host keys that are no longer safe (ssh-rsa, ssh-dss)"),
        (2, "3des-cbc,arcfour", "only ciphers that are no longer safe (3des-cbc, arcfour)"),
        (4, "hmac-md5", "only checksums that are no longer safe (hmac-md5)"),
    ],
)
def test_a_server_that_is_too_old_is_told_what_it_lacks(
    sshd: Sshd, tmp_path: Path, field: int, offered: str, said: str
) -> None:
    port, listener = serve_old(field, offered)
    try:
        with pytest.raises(DeviceError) as caught:
            connect(sshd.target(tmp_path / "none", port=port))
    finally:
        listener.close()
    assert caught.value.kind is ErrorKind.NO_COMMON_ALGORITHM
    assert not caught.value.transient
    assert said in str(caught.value)
    assert "update its SSH server" in str(caught.value)
