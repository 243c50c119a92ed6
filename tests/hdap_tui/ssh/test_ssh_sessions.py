"""Sessions on an open connection, with a server that closes or refuses them."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import paramiko
import pytest

from hdap_tui.ssh.connection import Connection
from hdap_tui.ssh.errors import DeviceError, ErrorKind
from hdap_tui.ssh.sockets import Deadline
from hdap_tui.ssh.target import Target
from hdap_tui.ssh.transport import FleetTransport, hang_up, shown


class Closing(paramiko.Transport):  # type: ignore[misc]
    """Closes the first sessions before it reads what they are for."""

    unheard = 0

    def _queue_incoming_channel(self, channel: paramiko.Channel) -> None:
        if self.unheard:
            self.unheard -= 1
            channel.close()
        else:
            super()._queue_incoming_channel(channel)


class Server(paramiko.ServerInterface):  # type: ignore[misc]
    """Runs nothing; may refuse every command."""

    def __init__(self, refuses: bool) -> None:
        self.refuses = refuses
        self.opened = self.asked = 0

    def get_allowed_auths(self, _user: str) -> str:
        return "none"

    def check_auth_none(self, _user: str) -> int:
        return int(paramiko.AUTH_SUCCESSFUL)

    def check_channel_request(self, _kind: str, _number: int) -> int:
        self.opened += 1
        return int(paramiko.OPEN_SUCCEEDED)

    def check_channel_exec_request(self, channel: paramiko.Channel, _command: bytes) -> bool:
        self.asked += 1
        if not self.refuses:
            # Once this has returned the client is told yes; the end must come after that.
            threading.Timer(0.1, end, [channel]).start()
        return not self.refuses


def end(channel: paramiko.Channel) -> None:
    channel.send_exit_status(7)
    channel.close()


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., tuple[Connection, Server]]]:
    with contextlib.ExitStack() as stack:

        def start(unheard: int = 0, refuses: bool = False) -> tuple[Connection, Server]:
            ours, theirs = socket.socketpair()
            server = Server(refuses)
            there = Closing(theirs)
            there.unheard = unheard
            there.add_server_key(paramiko.ECDSAKey.generate())
            there.start_server(event=threading.Event(), server=server)
            transport = FleetTransport(ours)
            stack.callback(there.close)
            stack.callback(hang_up, transport)
            transport.shake_hands(Deadline(5))
            transport.auth_none("somebody")
            target = Target(
                name="edge-01", host="-", port=22, user="somebody", identity=None,
                known_hosts=tmp_path / "known_hosts",
            )  # fmt: skip
            return Connection(target, transport, shown(transport)), server

        yield start


def test_a_command_on_a_session_that_was_closed_unheard_is_asked_again(
    opened: Callable[..., tuple[Connection, Server]],
) -> None:
    connection, server = opened(unheard=2)
    assert connection.run("true").status == 7
    assert server.opened == 3
    assert not connection.busy


def test_a_server_that_closes_every_session_unheard_is_not_asked_for_ever(
    opened: Callable[..., tuple[Connection, Server]],
) -> None:
    connection, server = opened(unheard=9)
    with pytest.raises(DeviceError) as caught:
        connection.run("true")
    assert caught.value.kind is ErrorKind.FAILED
    assert server.opened == 4
    assert not connection.busy


def test_a_command_that_is_refused_is_asked_once(
    opened: Callable[..., tuple[Connection, Server]],
) -> None:
    connection, server = opened(refuses=True)
    with pytest.raises(DeviceError, match="refuses that request") as caught:
        connection.run("true")
    assert caught.value.kind is ErrorKind.FAILED
    assert (server.opened, server.asked) == (1, 1)


def test_a_session_whose_line_is_cut_while_it_is_closed_is_over_all_the_same(
    opened: Callable[..., tuple[Connection, Server]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(_data: bytes) -> None:
        raise EOFError  # as paramiko does where the other side is gone

    connection, _ = opened()
    with connection.session(lambda channel: channel.exec_command("true"), Deadline(5)):
        monkeypatch.setattr(connection.transport.packetizer, "write_all", cut)
    assert not connection.busy
