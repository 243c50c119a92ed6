from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest
from paramiko.common import MSG_CHANNEL_EOF, MSG_CHANNEL_REQUEST
from paramiko.packet import NeedRekeyException
from sshd import Sshd

from hdap_tui.ssh.connection import connect
from hdap_tui.ssh.packets import Packets
from hdap_tui.ssh.sockets import Deadline
from hdap_tui.ssh.transport import _Errands

Pair = tuple[Packets, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """What reads, with a short patience, and the other end."""
    ours, theirs = socket.socketpair()
    ours.settimeout(0.05)
    with ours, theirs:
        yield Packets(ours), theirs


def test_what_follows_the_banner_is_kept_for_the_packets(pair: Pair) -> None:
    packets, peer = pair
    peer.sendall(b"hello\r\nSSH-2.0-x\n12345678")
    assert packets.readline(1) == "hello"
    assert packets.readline(1) == "SSH-2.0-x"
    assert packets.read_all(5) == b"12345"
    peer.sendall(b"9" * 100_000)
    assert packets.read_all(3) == b"678"
    assert packets.read_all(100_000) == b"9" * 100_000


def test_a_line_that_does_not_come_or_does_not_end_is_given_up(pair: Pair) -> None:
    packets, peer = pair
    with pytest.raises(TimeoutError):
        packets.readline(0.1)
    peer.sendall(b"x" * 70_000)
    with pytest.raises(EOFError):
        packets.readline(5)


def test_a_peer_that_hangs_up_within_a_packet_is_noticed(pair: Pair) -> None:
    packets, peer = pair
    peer.sendall(b"123")
    peer.close()
    with pytest.raises(EOFError):
        packets.read_all(4)


def test_closing_ends_a_read_that_waits(pair: Pair) -> None:
    packets, _ = pair
    threading.Timer(0.1, packets.close).start()
    with pytest.raises(EOFError):
        packets.read_all(1)


def test_a_handshake_has_a_limit_until_it_is_complete(pair: Pair) -> None:
    packets, peer = pair
    packets.start_handshake(0.1)
    with pytest.raises(EOFError):
        packets.read_all(1)
    packets.complete_handshake()
    threading.Timer(0.15, lambda: peer.sendall(b"1")).start()
    assert packets.read_all(1) == b"1"


def test_new_keys_are_due_between_packets_only(pair: Pair) -> None:
    packets, peer = pair
    packets._trigger_rekey()
    with pytest.raises(NeedRekeyException):
        packets.read_all(8, check_rekey=True)
    peer.sendall(b"1234")
    threading.Timer(0.15, lambda: peer.sendall(b"5678")).start()
    assert packets.read_all(8, check_rekey=True) == b"12345678"


def test_an_errand_is_done_by_who_waits_and_by_nobody_later() -> None:
    errands = _Errands()
    done: list[int] = []

    def note() -> None:
        done.append(threading.get_ident())

    def ask() -> None:
        errands.do(note)
        errands.set()

    asking = threading.Thread(target=ask)
    asking.start()
    errands.serve(Deadline(5))
    asking.join()
    errands.do(note)
    assert done == [threading.get_ident()] * 2
    assert asking.ident not in done[:1]


def test_an_errand_that_fails_or_that_nobody_does_is_told() -> None:
    told: list[type] = []

    def fail() -> None:
        raise ValueError

    def ask(errands: _Errands) -> None:
        try:
            errands.do(fail)
        except Exception as error:
            told.append(type(error))
        errands.set()

    for over in (False, True):
        errands = _Errands()
        if over:  # before anybody looks
            errands.set()
        asking = threading.Thread(target=ask, args=(errands,))
        asking.start()
        while errands._asked.qsize() < 1 + over:
            time.sleep(0.001)
        errands.serve(Deadline(5))
        asking.join(5)
        assert not asking.is_alive()
    assert told == [ValueError, EOFError]


def test_keys_are_agreed_on_anew_while_a_connection_stands(sshd: Sshd, tmp_path: Path) -> None:
    connection = connect(sshd.trusted(tmp_path / "known_hosts"))
    transport = connection.transport
    first = transport.H
    transport.packetizer.REKEY_PACKETS = 50
    try:
        for number in range(10):
            assert connection.call(f"echo {number}").out == f"{number}\n".encode()
        assert first != transport.H
    finally:
        connection.close()


def test_what_comes_too_late_for_a_channel_is_not_sent(sshd: Sshd, tmp_path: Path) -> None:
    connection = connect(sshd.trusted(tmp_path / "known_hosts"))
    transport = connection.transport
    try:
        channel = transport.ask("session", 5.0)
        number = channel.remote_chanid
        channel.close()
        for kind in (MSG_CHANNEL_EOF, MSG_CHANNEL_REQUEST):
            late = paramiko.Message()
            late.add_byte(bytes([kind]))
            late.add_int(number)
            transport._send_user_message(late)  # OpenSSH would hang up
        assert connection.call("echo still").out == b"still\n"
        # The number is given again, not always at once, and may speak again.
        assert number in {transport.ask("session", 5.0).remote_chanid for _ in range(5)}
        assert connection.call("cat", stdin=b"here").out == b"here"
    finally:
        connection.close()
