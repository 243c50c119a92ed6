"""The SSH protocol's own connection: handshake, host key, and what the server has to say."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, ClassVar

import paramiko
from paramiko.common import (
    MSG_CHANNEL_CLOSE,
    MSG_CHANNEL_DATA,
    MSG_CHANNEL_EOF,
    MSG_CHANNEL_EXTENDED_DATA,
    MSG_CHANNEL_FAILURE,
    MSG_CHANNEL_REQUEST,
)

from hdap_tui.ssh.errors import DeviceError, ErrorKind
from hdap_tui.ssh.hostkeys import HostKey
from hdap_tui.ssh.packets import Packets
from hdap_tui.ssh.sockets import Deadline, open_socket
from hdap_tui.ssh.target import Target
from hdap_tui.text import clean

WEAK = {
    "ciphers": ["3des-cbc", "aes128-cbc", "aes192-cbc", "aes256-cbc"],
    "macs": ["hmac-sha1", "hmac-sha1-96", "hmac-md5", "hmac-md5-96"],
}
"""Algorithms that paramiko still offers and that are not to be used."""
_taken: dict[tuple[tuple[str, ...], str], tuple[str, ...]] = {}
"""Which of some algorithms are used, by their names and what they are for."""
_ON_CHANNELS = frozenset(
    {MSG_CHANNEL_DATA, MSG_CHANNEL_EXTENDED_DATA, MSG_CHANNEL_EOF, MSG_CHANNEL_REQUEST}
)
"""Messages that servers take ill where there is no such channel any more."""
_LISTS = {
    "host key": ("server_key_algo_list", "host keys"),
    "kex": ("kex_algo_list", "key exchanges"),
    "cipher": ("server_encrypt_algo_list", "ciphers"),
    "mac": ("server_mac_algo_list", "checksums"),
}


class ChannelRefused(paramiko.ChannelException):  # type: ignore[misc]
    """The server does not open a channel."""

    def __init__(self, code: int, said: str) -> None:
        super().__init__(code, said)
        self.said = said


class ChannelClosed(paramiko.SSHException):  # type: ignore[misc]
    """The server closed a channel before it answered anything on it."""


class _Errands:
    """What a transport's thread has done by the thread that waits for the handshake.

    OpenSSL keeps its random numbers' state for each thread that used them, and key exchanges need
    a deep stack: 17 kB that a connection would hold on to for as long as its thread lives.
    """

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[tuple[Callable[[], None], Future[None]] | None]
        self._asked = queue.SimpleQueue()
        self._over = False
        self._lock = threading.Lock()

    def set(self) -> None:
        """Take the handshake to be over, as paramiko says of an event."""
        self._asked.put(None)

    def do(self, work: Callable[[], None]) -> None:
        """Have it done; when nobody waits any more, as in a later key exchange, do it here."""
        done: Future[None] = Future()
        with self._lock:
            if not (over := self._over):
                self._asked.put((work, done))
        if over:
            work()
        else:
            done.result()

    def serve(self, deadline: Deadline) -> None:
        """Do what is asked for until the handshake is over.

        Raises:
            Cancelled, TimeoutError: see `Deadline.check`.
        """
        try:
            while True:
                try:
                    asked = self._asked.get(timeout=deadline.left(0.25))
                except queue.Empty:
                    deadline.check()
                    continue
                if asked is None:
                    return
                work, done = asked
                try:
                    work()
                except Exception as error:
                    done.set_exception(error)
                else:
                    done.set_result(None)
        finally:
            with self._lock:
                self._over = True
            with contextlib.suppress(queue.Empty):
                while True:
                    if left := self._asked.get_nowait():
                        left[1].set_exception(EOFError())


class _LentKex:
    """A key exchange whose work is an errand."""

    def __init__(self, kex: Any, errands: _Errands) -> None:
        self._kex, self._errands = kex, errands
        self.hash_algo = kex.hash_algo

    def start_kex(self) -> None:
        """Begin."""
        self._errands.do(self._kex.start_kex)

    def parse_next(self, kind: int, message: Any) -> None:
        """Go on with what the server said."""
        self._errands.do(partial(self._kex.parse_next, kind, message))


class _Nobody:
    """Waits for channels that a server opens."""

    def notify(self) -> None:
        """Tell nobody."""


def _refuse(channel: Any, message: Any) -> None:
    """Note that the server refused a request; paramiko only closes the channel then."""
    channel.refused = True
    channel._request_failed(message)


def was_refused(channel: Any) -> bool:
    """Whether the server refused a request on the channel, and did not just close it."""
    return getattr(channel, "refused", False)


_here = threading.local()
"""The number of the channel that a thread has asked for last."""


class FleetTransport(paramiko.Transport):  # type: ignore[misc]
    """A transport that hardly ever wakes up while idle, not ten times a second, and sends fast."""

    _active_check_timeout = 5.0  # nothing waits for it: whoever hangs up wakes the thread
    _preferred_ciphers = (  # AES-GCM first: it sends a file nearly twice as fast
        "aes128-gcm@openssh.com",
        "aes256-gcm@openssh.com",
        "aes128-ctr",
        "aes192-ctr",
        "aes256-ctr",
    )

    _channel_handler_table: ClassVar = {
        **paramiko.Transport._channel_handler_table,
        MSG_CHANNEL_FAILURE: _refuse,
    }

    kex_engine: Any
    farewell = ""
    """What the server said when it hung up."""

    def __init__(self, sock: Any) -> None:
        super().__init__(sock, disabled_algorithms=WEAK, packetizer_class=Packets)
        self.offered: dict[str, list[str]] = {}
        """The algorithms that the server offers."""
        self._errands: _Errands | None = _Errands()
        self._refused: dict[int, ChannelRefused] = {}
        self._ended: set[int] = set()
        """Channels that have been closed from here, by the server's numbers."""
        self._held_back: list[Any] = []
        """What this thread has to send once the keys are agreed on anew."""

    def shake_hands(self, deadline: Deadline) -> None:
        """Agree on keys, or find that there is no way to; the heavy part is done in this thread.

        Raises:
            Cancelled, TimeoutError: see `Deadline.check`.
        """
        assert self._errands is not None
        self.start_client(event=self._errands)
        self._errands.serve(deadline)

    def ask(self, kind: str, limit_s: float, destination: tuple[str, int] | None = None) -> Any:
        """Open a channel.

        Raises:
            ChannelRefused: the server said no, to this thread's channel and to no other.
            ChannelClosed: it said yes, and closed it.
            paramiko.SSHException, EOFError: it did not answer in time, or was lost.
        """
        try:
            return self.open_channel(kind, destination, ("127.0.0.1", 0), timeout=limit_s)
        except paramiko.SSHException as error:
            refusal = self._refused.pop(getattr(_here, "channel", -1), None)
            if refusal is not None:
                raise refusal from None
            if self.is_active() and str(error) == "Unable to open channel.":
                raise ChannelClosed from None
            raise

    def keep_alive(self) -> None:
        """Ask for a sign of life; any answer will do, and nobody waits for it here."""
        message = paramiko.Message()
        message.add_byte(b"\x50")  # SSH_MSG_GLOBAL_REQUEST
        message.add_string("keepalive@openssh.com")
        message.add_boolean(True)
        self._send_user_message(message)

    def slim_down(self) -> None:
        """Let go of what was only needed to get in: a fifth of what a connection takes."""
        self.offered, self._errands = {}, None
        self.kex_engine = self.local_kex_init = self.remote_kex_init = None
        self.completion_event = self._latest_kex_init = self._remote_ext_info = None
        self.host_key = None
        self.auth_handler.auth_event = self.auth_handler.private_key = None
        self.server_accept_cv = _Nobody()

    # Between making a message and sending it paramiko lets other threads go first, as long as keys
    # are agreed on anew: a channel's last words come after its end, and servers hang up at that.

    def _send_user_message(self, message: Any) -> None:
        """Send once no keys are being agreed on; nothing on a channel that has ended.

        The transport's own thread does not wait, for it is the one that keys are agreed on by.
        """
        end = time.monotonic() + self.clear_to_send_timeout
        own = threading.current_thread() is self
        while self.active:
            with self.clear_to_send_lock:
                if self.clear_to_send.is_set():
                    if self._may_follow(message.asbytes()[:5]):
                        self._send_message(message)
                    return
                if own:
                    self._held_back.append(message)
                    return
            if time.monotonic() > end:
                raise paramiko.SSHException("timed out: keys are still being agreed on")
            self.clear_to_send.wait(0.1)

    def _may_follow(self, head: bytes) -> bool:
        """Whether a message with these first bytes may follow what was sent before."""
        kind, number = head[0], int.from_bytes(head[1:], "big")
        if kind == MSG_CHANNEL_CLOSE:
            self._ended.add(number)
        return kind not in _ON_CHANNELS or number not in self._ended

    def _parse_newkeys(self, message: Any) -> None:
        super()._parse_newkeys(message)
        held, self._held_back = self._held_back, []
        for one in held:
            self._send_user_message(one)

    def _parse_channel_open_success(self, message: Any) -> None:
        copy = paramiko.Message(message.asbytes())
        copy.get_int()
        self._ended.discard(copy.get_int())  # the server's numbers come again
        super()._parse_channel_open_success(message)

    # paramiko keeps one error for all threads: two channels refused at once would be mixed up.

    def _next_channel(self) -> int:
        number: int = super()._next_channel()
        _here.channel = number
        return number

    def _parse_channel_open_failure(self, message: Any) -> None:
        copy = paramiko.Message(message.asbytes())
        number, code = copy.get_int(), copy.get_int()
        if number in self.channel_events:
            self._refused[number] = ChannelRefused(code, clean(copy.get_text(), 100))
        super()._parse_channel_open_failure(message)

    def _really_parse_kex_init(self, message: Any, ignore_first_byte: bool = False) -> Any:
        parsed = super()._really_parse_kex_init(message, ignore_first_byte)
        if not ignore_first_byte:  # else it is our own
            self.offered = parsed
        return parsed

    def _parse_kex_init(self, message: Any) -> None:
        super()._parse_kex_init(message)
        if self._errands is not None:
            self.kex_engine = _LentKex(self.kex_engine, self._errands)

    def _filter_algorithm(self, kind: str) -> tuple[str, ...]:
        """Filter once what paramiko filters sixteen times for each connection."""
        wanted = tuple(getattr(self, f"_preferred_{kind}"))
        if (wanted, kind) not in _taken:
            _taken[wanted, kind] = tuple(n for n in wanted if n not in WEAK.get(kind, ()))
        return _taken[wanted, kind]

    def _parse_debug(self, message: Any) -> None:
        """Leave unread what the server says for its own debugging."""

    def _parse_disconnect(self, message: Any) -> None:
        message.get_int()
        self.farewell = clean(message.get_text())


def handshake(
    target: Target,
    deadline: Deadline,
    pinned: list[str],
    way: Callable[[Deadline], Any] | None = None,
) -> FleetTransport:
    """Connect and agree on keys; with pinned types the server must show a key of one of them.

    `way` opens what is used in place of a socket.

    Raises:
        DeviceError: the two have no algorithm in common.
        OSError, EOFError, paramiko.SSHException, Cancelled: see `classify`.
    """
    limits = target.timeouts
    stage = deadline.within(limits.connect)
    if way is not None:
        raw = way(stage)
    else:
        raw = open_socket(target.host, target.port, stage, limits.dead_after)
    stage = deadline.within(limits.handshake)
    try:
        transport = FleetTransport(raw)
    except BaseException:
        raw.close()
        raise
    transport.banner_timeout = transport.handshake_timeout = stage.left()
    transport.channel_timeout = limits.channel
    options = transport.get_security_options()
    wanted = [
        algorithm
        for kind in pinned
        for algorithm in (("rsa-sha2-512", "rsa-sha2-256") if kind == "ssh-rsa" else (kind,))
        if algorithm in options.key_types
    ]
    if wanted:
        options.key_types = tuple(wanted)
    try:
        transport.shake_hands(stage)
        if not transport.is_active():
            error = transport.get_exception() or EOFError()
            raise _no_common(error, transport, target.place, bool(wanted)) or error
    except BaseException:
        hang_up(transport)
        raise
    return transport


class NoKnownKey(Exception):
    """The server has no host key of a type that is known of it."""


def _no_common(
    error: BaseException, transport: FleetTransport, place: str, pinned: bool
) -> Exception | None:
    """Say which side lacks what, where that is what went wrong."""
    text = str(error)
    if not isinstance(error, paramiko.SSHException) or "no acceptable" not in text:
        return None
    what = next((key for key in _LISTS if key in text.lower()), "")
    if what == "host key" and pinned:
        return NoKnownKey()
    if not what:
        return None
    listed, name = _LISTS[what]
    theirs = clean(", ".join(transport.offered.get(listed, [])), 160)
    options = transport.get_security_options()
    ours = {
        "host key": options.key_types,
        "kex": options.kex,
        "cipher": options.ciphers,
        "mac": options.digests,
    }[what]
    remedy = "update its SSH server"
    if what == "host key":
        remedy += ", or give it a key of another type: ssh-keygen -A, then restart sshd"
    return DeviceError(
        ErrorKind.NO_COMMON_ALGORITHM,
        f"{place}: its SSH server has only {name} that are no longer safe ({theirs}), and this"
        f" program takes {', '.join(ours[:4])}; {remedy}",
    )


def shown(transport: FleetTransport) -> HostKey:
    """Return the host key that the server showed."""
    key = transport.get_remote_server_key()
    return HostKey(key.get_name(), key.get_base64())


def close_channel(channel: Any) -> None:
    """Close a channel; whoever is at its other end may have gone before."""
    with contextlib.suppress(OSError, EOFError):
        channel.close()


def hang_up(transport: FleetTransport) -> None:
    """Close a transport; its thread ends at once."""
    with contextlib.suppress(OSError):  # wakes the transport's thread out of its read
        transport.sock.shutdown(socket.SHUT_RDWR)
    transport.close()
    transport.sock.close()
