from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import paramiko
import pytest
from sshd import QUICK, Sshd, free_port, make_key, processes, wait_for

from hdap_tui.errors import ExitCode
from hdap_tui.ssh import sockets
from hdap_tui.ssh.connection import connect, scan
from hdap_tui.ssh.errors import Cancelled, DeviceError, ErrorKind
from hdap_tui.ssh.hostkeys import KnownHosts
from hdap_tui.ssh.secret import Secrets
from hdap_tui.ssh.sockets import Deadline, open_socket
from hdap_tui.ssh.target import Target
from hdap_tui.ssh.transport import FleetTransport

SHORT = replace(QUICK, connect=1.0, handshake=1.0, auth=1.0, channel=1.0, total=2.0)


def fails(target: Target, **options: Any) -> DeviceError:
    with pytest.raises(DeviceError) as caught:
        connect(target, KnownHosts(target.known_hosts, ()), **options)
    return caught.value


@pytest.fixture
def target(sshd: Sshd, tmp_path: Path) -> Target:
    return sshd.trusted(tmp_path / "known_hosts")


@pytest.fixture
def connection(target: Target) -> Iterator[Any]:
    opened = connect(target)
    yield opened
    opened.close()


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[socket.socket], None]], int]]:
    """Answer every client on a port with a function of one's own."""
    listeners = []

    def start(answer: Callable[[socket.socket], None]) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client = listener.accept()[0]
                    threading.Thread(target=answer, args=(client,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        return int(listener.getsockname()[1])

    yield start
    for listener in listeners:
        listener.close()


# ---- host keys ----------------------------------------------------------------------------------


def test_an_unknown_host_key_is_refused_with_its_fingerprint(sshd: Sshd, tmp_path: Path) -> None:
    error = fails(sshd.target(tmp_path / "none"))
    assert error.kind is ErrorKind.HOST_KEY_UNKNOWN
    assert sshd.host_key().fingerprint in str(error)
    assert error.exit_code is ExitCode.REFUSED
    assert not error.transient


def test_no_credential_leaves_before_the_host_key_is_checked(
    make_sshd: Callable[..., Sshd], tmp_path: Path
) -> None:
    server = make_sshd({"LogLevel": "DEBUG2"})
    log = server.folder / "log"
    other = server.target(tmp_path / "changed")
    KnownHosts(other.known_hosts, ()).trust(other.host, other.port, _another_key(tmp_path))
    assert fails(server.target(tmp_path / "none")).kind is ErrorKind.HOST_KEY_UNKNOWN
    assert fails(other).kind is ErrorKind.HOST_KEY_CHANGED
    scan(other)
    wait_for(lambda: log.read_text().count("Connection closed by") >= 3)
    assert "userauth-request" not in log.read_text()
    connect(server.trusted(tmp_path / "right")).close()
    wait_for(lambda: "userauth-request" in log.read_text())


def test_a_changed_host_key_is_refused_with_both_fingerprints(sshd: Sshd, tmp_path: Path) -> None:
    target = sshd.target(tmp_path / "known_hosts")
    wrong = _another_key(tmp_path)
    KnownHosts(target.known_hosts, ()).trust(target.host, target.port, wrong)
    error = fails(target)
    assert error.kind is ErrorKind.HOST_KEY_CHANGED
    assert wrong.fingerprint in str(error)
    assert sshd.host_key().fingerprint in str(error)


def test_a_host_that_lost_the_known_type_of_key_counts_as_changed(
    make_sshd: Callable[..., Sshd], tmp_path: Path
) -> None:
    server = make_sshd(kinds=("rsa",))
    target = server.target(tmp_path / "known_hosts")
    expected = _another_key(tmp_path)
    KnownHosts(target.known_hosts, ()).trust(target.host, target.port, expected)
    error = fails(target)
    assert error.kind is ErrorKind.HOST_KEY_CHANGED
    assert expected.fingerprint in str(error)
    assert server.host_key("rsa").fingerprint in str(error)


def test_the_known_type_of_key_is_asked_for(sshd: Sshd, tmp_path: Path) -> None:
    opened = connect(sshd.trusted(tmp_path / "known_hosts", "rsa"))
    assert opened.host_key == sshd.host_key("rsa")
    opened.close()


def test_a_scan_shows_the_key_without_believing_it(sshd: Sshd, tmp_path: Path) -> None:
    target = sshd.target(tmp_path / "known_hosts")
    assert scan(target) == sshd.host_key()
    assert not target.known_hosts.exists()


def _another_key(tmp_path: Path) -> Any:
    from hdap_tui.ssh.hostkeys import HostKey

    parts = make_key(tmp_path / "other").with_suffix(".pub").read_text().split()
    return HostKey(parts[0], parts[1])


# ---- connecting ---------------------------------------------------------------------------------


def test_a_closed_port_is_refused(sshd: Sshd, tmp_path: Path) -> None:
    error = fails(sshd.trusted(tmp_path / "known_hosts", port=free_port()))
    assert error.kind is ErrorKind.REFUSED
    assert error.transient
    assert error.exit_code is ExitCode.UNREACHABLE


def test_a_server_that_says_nothing_costs_only_its_limit(
    serve: Callable[..., int], sshd: Sshd, tmp_path: Path
) -> None:
    port = serve(lambda client: threading.Event().wait(20))
    began = time.monotonic()
    error = fails(sshd.target(tmp_path / "none", port=port, timeouts=SHORT))
    assert error.kind is ErrorKind.TIMEOUT
    assert time.monotonic() - began < 2.0


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (b"", ErrorKind.BUSY),
        (b"Exceeded MaxStartups\r\n", ErrorKind.BUSY),
        (b"Not allowed at this time\r\n", ErrorKind.BUSY),
        (b"\xff\xfe\x00" * 3000 + b"\n", ErrorKind.GARBAGE),
        (b"nonsense\n" * 200, ErrorKind.GARBAGE),
        (b"SSH-1.5-old\r\n", ErrorKind.NO_COMMON_ALGORITHM),
    ],
)
def test_a_server_that_hangs_up_early_says_why(
    serve: Callable[..., int], sshd: Sshd, tmp_path: Path, said: bytes, kind: ErrorKind
) -> None:
    def answer(client: socket.socket) -> None:
        with contextlib.suppress(OSError):  # whoever has heard enough hangs up
            client.sendall(said)
            client.shutdown(socket.SHUT_WR)
            client.recv(100)
        client.close()

    assert fails(sshd.target(tmp_path / "none", port=serve(answer))).kind is kind


def test_a_server_with_weak_ciphers_only_is_left_alone(
    make_sshd: Callable[..., Sshd], tmp_path: Path
) -> None:
    server = make_sshd({"Ciphers": "aes128-cbc"})
    error = fails(server.trusted(tmp_path / "known_hosts"))
    assert error.kind is ErrorKind.NO_COMMON_ALGORITHM
    assert not error.transient


def test_a_name_that_nobody_knows_is_unreachable(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error = fails(sshd.target(tmp_path / "none", host="no-such-device"))
    assert error.kind is ErrorKind.UNREACHABLE


def test_a_resolver_that_hangs_costs_only_the_limit(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait(20) and [])
    began = time.monotonic()
    error = fails(sshd.target(tmp_path / "none", host="slow-name", timeouts=SHORT))
    released.set()
    assert error.kind is ErrorKind.TIMEOUT
    assert time.monotonic() - began < 2.0


def test_connecting_ends_soon_once_nobody_wants_it(
    serve: Callable[..., int], sshd: Sshd, tmp_path: Path
) -> None:
    port = serve(lambda client: threading.Event().wait(20))
    unwanted = threading.Event()
    threading.Timer(0.2, unwanted.set).start()
    began = time.monotonic()
    with pytest.raises(Cancelled):
        connect(sshd.target(tmp_path / "none", port=port), cancelled=unwanted.is_set)
    assert time.monotonic() - began < 2.0


def test_the_socket_has_the_options_that_make_ssh_quick_and_honest(sshd: Sshd) -> None:
    with open_socket("localhost", sshd.port, Deadline(5), dead_after=12) as raw:
        assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert raw.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 12000
        assert raw.gettimeout() is None


def test_systems_without_the_options_still_connect(
    sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    for option in ("TCP_QUICKACK", "TCP_USER_TIMEOUT", "TCP_KEEPIDLE"):
        monkeypatch.delattr(sockets.socket, option, raising=False)
    with open_socket("127.0.0.1", sshd.port, Deadline(5)) as raw:
        assert raw.recv(4) == b"SSH-"


def test_paramiko_still_has_the_private_parts_that_are_used() -> None:
    assert paramiko.Transport._active_check_timeout == 0.1
    assert FleetTransport._active_check_timeout == 5.0
    assert callable(paramiko.Transport._parse_disconnect)
    table = paramiko.Transport._channel_handler_table
    assert table[paramiko.common.MSG_CHANNEL_FAILURE] is paramiko.Channel._request_failed
    channel = paramiko.Channel(1)
    assert not channel.eof_received
    assert isinstance(channel.status_event, threading.Event)
    assert callable(channel.in_buffer.set_event)
    assert callable(channel.in_stderr_buffer.set_event)
    for part in ("readline", "read_all", "start_handshake", "handshake_timed_out"):
        assert callable(getattr(paramiko.packet.Packetizer, part))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        transport = paramiko.Transport(ours)
        assert {"kex_engine", "completion_event", "server_accept_cv"} <= vars(transport).keys()
        assert callable(transport._parse_kex_init)
        assert "aes128-cbc" in transport._filter_algorithm("ciphers")
        assert "aes128-cbc" not in FleetTransport(ours).preferred_ciphers
        transport.close()


# ---- logging in ---------------------------------------------------------------------------------


def test_a_key_that_the_device_does_not_know_is_refused_once(sshd: Sshd, tmp_path: Path) -> None:
    wrong = make_key(tmp_path / "wrong")
    error = fails(sshd.trusted(tmp_path / "known_hosts", identity=wrong))
    assert error.kind is ErrorKind.AUTHENTICATION
    assert not error.transient
    assert str(wrong) in str(error)


def test_a_key_file_that_is_missing_or_is_none_is_named(sshd: Sshd, tmp_path: Path) -> None:
    missing = sshd.trusted(tmp_path / "known_hosts", identity=tmp_path / "nothing")
    assert "nothing does not exist" in str(fails(missing))
    (tmp_path / "text").write_text("hello")
    error = fails(sshd.trusted(tmp_path / "known_hosts", identity=tmp_path / "text"))
    assert error.kind is ErrorKind.AUTHENTICATION
    assert "no private key" in str(error)


def test_an_encrypted_key_needs_its_passphrase(
    make_sshd: Callable[..., Sshd], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    secret = make_key(tmp_path / "secret", passphrase="open sesame")
    server = make_sshd({"AuthorizedKeysFile": f"{secret}.pub"})
    target = server.trusted(tmp_path / "known_hosts", identity=secret)
    assert f"ssh-add {secret}" in str(fails(target))
    assert "passphrase" in str(fails(target, secrets=Secrets(lambda _question: "wrong")))
    connect(target, secrets=Secrets(lambda _question: "open sesame")).close()


@pytest.mark.skipif(not shutil.which("ssh-agent"), reason="there is no ssh-agent")
def test_the_agent_lends_the_key(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = tmp_path / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(address)], stdout=subprocess.DEVNULL)
    try:
        wait_for(address.exists)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(address))
        subprocess.run(["ssh-add", "-q", str(sshd.identity)], check=True)
        monkeypatch.setenv("HOME", str(tmp_path))
        connect(sshd.trusted(tmp_path / "known_hosts", identity=None)).close()
    finally:
        agent.kill()
        agent.wait()


def test_without_any_key_the_sentence_says_what_to_do(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    error = fails(sshd.trusted(tmp_path / "known_hosts", identity=None))
    assert error.kind is ErrorKind.AUTHENTICATION
    assert "identity" in str(error)


def test_a_login_that_needs_a_second_step_has_not_succeeded(
    make_sshd: Callable[..., Sshd], tmp_path: Path
) -> None:
    server = make_sshd(
        {"PasswordAuthentication": "yes", "AuthenticationMethods": "publickey,password"}
    )
    error = fails(server.trusted(tmp_path / "known_hosts"))
    assert error.kind is ErrorKind.AUTHENTICATION
    assert "asks for more (password)" in str(error)


# ---- commands -----------------------------------------------------------------------------------


def test_a_command_tells_its_status_and_both_streams(connection: Any) -> None:
    done = connection.run("echo out; echo err >&2; exit 3")
    assert (done.status, done.out, done.err) == (3, b"out\n", b"err\n")
    with pytest.raises(DeviceError, match="status 3: err") as caught:
        connection.call("echo err >&2; exit 3")
    assert caught.value.kind is ErrorKind.FAILED


def test_eight_megabytes_on_both_streams_do_not_block(connection: Any) -> None:
    size = 8 << 20
    done = connection.run(f"head -c {size} /dev/zero >&2; head -c {size} /dev/zero")
    assert (len(done.out), len(done.err), done.dropped) == (size, size, 0)


def test_output_beyond_the_limit_is_dropped_and_counted(connection: Any) -> None:
    done = connection.run("head -c 300000 /dev/zero", limit=1000)
    assert (len(done.out), done.dropped) == (1000, 299000)


def test_ten_megabytes_of_input_come_back_whole(connection: Any) -> None:
    data = os.urandom(10 << 20)
    assert connection.run("cat", stdin=data, limit=len(data)).out == data


def test_input_that_the_command_does_not_read_does_no_harm(connection: Any) -> None:
    assert connection.run("exec <&-; exit 7", stdin=bytes(4 << 20)).status == 7


def test_a_command_that_takes_too_long_is_given_up(connection: Any) -> None:
    began = time.monotonic()
    with pytest.raises(DeviceError) as caught:
        connection.run("sleep 20", timeout=0.5)
    assert caught.value.kind is ErrorKind.TIMEOUT
    assert time.monotonic() - began < 5
    assert connection.run("echo still here").out == b"still here\n"


def test_a_command_is_given_up_once_nobody_wants_it(connection: Any) -> None:
    unwanted = threading.Event()
    threading.Timer(0.2, unwanted.set).start()
    with pytest.raises(Cancelled):
        connection.run("sleep 20", cancelled=unwanted.is_set)


def test_killed_by_a_signal_is_not_a_lost_connection(connection: Any) -> None:
    with pytest.raises(DeviceError) as caught:
        connection.run("kill -s KILL $$")
    assert caught.value.kind is ErrorKind.KILLED
    assert connection.alive


def test_a_lost_connection_is_not_a_killed_command(sshd: Sshd, connection: Any) -> None:
    before = sshd.sessions()
    assert before
    cut = threading.Timer(0.4, lambda: [_kill(pid) for pid in before])
    cut.start()
    with pytest.raises(DeviceError) as caught:
        connection.run("sleep 20")
    assert caught.value.kind is ErrorKind.DISCONNECTED
    assert caught.value.transient
    assert not connection.alive


def test_a_command_on_the_leash_ends_with_its_channel(sshd: Sshd, connection: Any) -> None:
    assert connection.run("exit 5", leash=True).status == 5
    with pytest.raises(DeviceError):
        connection.run("sleep 4321 & echo; sleep 4321; wait", timeout=0.7, leash=True)
    wait_for(lambda: "sleep 4321 " not in [process.command for process in processes()])


def test_a_session_that_never_answers_costs_only_its_limit(
    lab: Any, fault: Callable[..., None]
) -> None:
    device = lab.devices[0]
    fault(device.name, "hang-after-auth")
    opened = connect(
        Target(
            name=device.name,
            host=device.host,
            port=device.port,
            user=device.user,
            identity=lab.identity,
            known_hosts=lab.known_hosts,
            timeouts=SHORT,
        )
    )
    began = time.monotonic()
    with pytest.raises(DeviceError) as caught:
        opened.run("true", timeout=1.5)
    opened.close()
    assert caught.value.kind is ErrorKind.TIMEOUT
    assert time.monotonic() - began < 4


def test_a_server_that_allows_no_further_session_is_busy(
    make_sshd: Callable[..., Sshd], tmp_path: Path
) -> None:
    opened = connect(make_sshd({"MaxSessions": "0"}).trusted(tmp_path / "known_hosts"))
    with pytest.raises(DeviceError) as caught:
        opened.run("true")
    opened.close()
    assert caught.value.kind is ErrorKind.BUSY


def test_what_a_device_says_reaches_the_screen_without_its_escape_codes(connection: Any) -> None:
    with pytest.raises(DeviceError) as caught:
        connection.call(r"printf '\033[2Jred\033]0;owned\007' >&2; exit 1")
    assert "red" in str(caught.value)
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", str(caught.value))


def test_a_closed_connection_leaves_no_thread(target: Target) -> None:
    opened = connect(target)
    opened.close()
    wait_for(lambda: not opened.transport.is_alive(), 0.9)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
