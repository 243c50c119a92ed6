"""One connection to one device: opened safely, commands with limits, closed at once."""

from __future__ import annotations

import contextlib
import logging
import shlex
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import paramiko

from hdap_tui.ssh.errors import Cancelled, DeviceError, ErrorKind, classify, out_of_space
from hdap_tui.ssh.hostkeys import HostKey, KnownHosts
from hdap_tui.ssh.keys import Passphrase, offered
from hdap_tui.ssh.sockets import Deadline, never, open_socket
from hdap_tui.ssh.target import Target
from hdap_tui.text import clean

logging.getLogger("paramiko").addHandler(logging.NullHandler())  # or tracebacks reach the screen

WEAK = {
    "ciphers": ["3des-cbc", "aes128-cbc", "aes192-cbc", "aes256-cbc"],
    "macs": ["hmac-sha1", "hmac-sha1-96", "hmac-md5", "hmac-md5-96"],
}
"""Algorithms that paramiko still offers and that are not to be used."""

OUTPUT_LIMIT = 8 << 20
"""Bytes kept of each output stream, unless a command brings a limit of its own."""
_PIECE = 65536


class FleetTransport(paramiko.Transport):  # type: ignore[misc]
    """A transport that wakes up once a second while idle, not ten times."""

    _active_check_timeout = 1.0

    farewell = ""
    """What the server said when it hung up."""

    def _parse_disconnect(self, message: Any) -> None:
        message.get_int()
        self.farewell = clean(message.get_text())


@dataclass(frozen=True)
class Completed:
    """A command that ended."""

    status: int
    out: bytes
    err: bytes
    dropped: int = 0
    """Bytes beyond the limit that were thrown away."""


class Connection:
    """An authenticated connection. Safe to use from several threads."""

    def __init__(self, target: Target, transport: Any, host_key: HostKey) -> None:
        self.target = target
        self.host_key = host_key
        self.transport = transport
        self.opened = time.monotonic()
        self._served = False

    @property
    def alive(self) -> bool:
        """Whether it stands, as far as is known."""
        return bool(self.transport.is_active())

    @property
    def where(self) -> str:
        """The device, for sentences."""
        return self.target.name

    def run(
        self,
        command: str,
        *,
        timeout: float | None = None,
        stdin: bytes = b"",
        limit: int = OUTPUT_LIMIT,
        leash: bool = False,
        cancelled: Callable[[], bool] = never,
    ) -> Completed:
        """Run a command and return what it said, whatever its exit status.

        Both streams are read all the time, so that neither can block the other; what goes
        beyond `limit` bytes a stream is dropped. A command that is given up goes on running on
        the device, unless it is on the leash: then it has no input, and its process group ends
        with the channel.

        Raises:
            DeviceError: timeout, disconnected, killed (by a signal), or busy.
            Cancelled: it is no longer wanted.
        """
        deadline = Deadline(timeout or self.target.timeouts.command, cancelled)
        with self.channel(deadline) as channel:
            exchange = _Exchange(channel, stdin, limit, keep_open=leash)
            text = _leashed(command) if leash else command
            self.accepted(channel, lambda: channel.exec_command(text), deadline)
            while not exchange.step():
                deadline.check()
                if not self.alive:
                    raise EOFError
            status = channel.recv_exit_status()
            if status == -1:
                self.transport.join(0.2)  # a lost connection looks the same for a moment
                if not self.alive:
                    raise EOFError
                raise DeviceError(
                    ErrorKind.KILLED, f"{self.where}: a command was ended by a signal"
                )
            return Completed(status, bytes(exchange.out), bytes(exchange.err), exchange.dropped)

    def call(self, command: str, **options: Any) -> Completed:
        """Run a command that must succeed; options as in `run`.

        Raises:
            DeviceError: as `run`, and failed or disk full where its status is not 0.
        """
        done = self.run(command, **options)
        if done.status:
            said = clean(done.err.decode("utf-8", "replace"), 300)
            kind = ErrorKind.DISK_FULL if out_of_space(said) else ErrorKind.FAILED
            raise DeviceError(
                kind, f"{self.where}: a command ended with status {done.status}: {said}"
            )
        return done

    @contextlib.contextmanager
    def channel(self, deadline: Deadline) -> Iterator[Any]:
        """Give a session channel, closed at the end; errors inside come out classified."""
        try:
            channel = self._open_session(deadline.within(self.target.timeouts.channel))
            try:
                yield channel
            finally:
                channel.close()
        except Cancelled:
            raise
        except Exception as error:
            if not self.alive and not isinstance(error, DeviceError | TimeoutError):
                error = EOFError()
            raise classify(error, self.where) from error

    def _open_session(self, deadline: Deadline) -> Any:
        """Open a channel; where the server allows but few at once, wait for one to end.

        A server learns a little later than we do that a session has ended.
        """
        pause = 0.01
        while True:
            try:
                channel = self.transport.open_session(timeout=deadline.left())
                self._served = True
                return channel
            except paramiko.ChannelException:
                if not self._served or deadline.left() <= pause:
                    raise
            deadline.within(pause).rest()
            pause = min(2 * pause, 0.25)

    def accepted(self, channel: Any, ask: Callable[[], None], deadline: Deadline) -> None:
        """Make a request of a channel; paramiko by itself would wait for the answer for ever.

        Raises:
            TimeoutError: there was no answer in time.
            DeviceError: the device refused.
        """
        late = threading.Event()

        def give_up() -> None:
            late.set()
            channel.close()

        timer = threading.Timer(deadline.left(self.target.timeouts.channel), give_up)
        timer.start()
        try:
            ask()
        except paramiko.SSHException:
            if late.is_set():
                raise TimeoutError from None
            if not self.alive:
                raise EOFError from None
            raise DeviceError(ErrorKind.FAILED, f"{self.where}: it refuses that request") from None
        finally:
            timer.cancel()

    def close(self) -> None:
        """Close it; its thread ends at once, too."""
        _hang_up(self.transport)


class _Exchange:
    """Input and both outputs of one running command."""

    def __init__(self, channel: Any, stdin: bytes, limit: int, keep_open: bool) -> None:
        self.out, self.err, self.dropped = bytearray(), bytearray(), 0
        self._channel, self._limit = channel, limit
        self._input = memoryview(stdin)
        self._open = True
        self._keep_open = keep_open
        self._changed = threading.Event()  # data or end, on either stream
        channel.in_buffer.set_event(self._changed)
        channel.in_stderr_buffer.set_event(self._changed)
        channel.settimeout(0.0)

    def step(self) -> bool:
        """Move what can be moved, or wait a little; return whether the command has ended."""
        channel = self._channel
        self._changed.clear()
        moved = self._feed()
        moved |= self._drain(channel.recv_ready, channel.recv, self.out)
        moved |= self._drain(channel.recv_stderr_ready, channel.recv_stderr, self.err)
        if moved:
            return False
        if channel.exit_status_ready() and (channel.eof_received or channel.closed):
            return not (channel.recv_ready() or channel.recv_stderr_ready())
        if self._input:
            self._changed.wait(0.002)  # for room in the peer's window
        elif channel.eof_received:
            channel.status_event.wait(0.2)  # the exit status is still to come
        else:
            self._changed.wait(0.2)
        return False

    def _feed(self) -> bool:
        moved = False
        try:
            while self._input and self._channel.send_ready():
                sent = self._channel.send(self._input[:32768])
                self._input = self._input[sent:] if sent else self._input[:0]
                moved = True
            if self._open and not self._input and not self._keep_open:
                self._open = False
                self._channel.shutdown_write()
        except OSError:  # the command ended without reading all of it
            self._input, self._open = self._input[:0], False
        return moved

    def _drain(
        self, ready: Callable[[], bool], receive: Callable[[int], bytes], kept: bytearray
    ) -> bool:
        moved = False
        while ready():
            data = receive(_PIECE)
            room = max(0, self._limit - len(kept))
            kept += data[:room]
            self.dropped += max(0, len(data) - room)
            moved = True
        return moved


def _leashed(command: str) -> str:
    """Wrap a command so that its process group ends when its input does."""
    return (
        f"exec 3<&0; setsid sh -c {shlex.quote(command)} </dev/null 3<&- & P=$!; "
        "{ cat <&3; kill -s TERM -- -$P; sleep 2; kill -s KILL -- -$P; } >/dev/null 2>&1 & W=$!; "
        "exec 3<&-; wait $P; R=$?; kill $W 2>/dev/null; exit $R"
    )


# ---- opening ------------------------------------------------------------------------------------


def connect(
    target: Target,
    known: KnownHosts | None = None,
    *,
    passphrase: Passphrase | None = None,
    cancelled: Callable[[], bool] = never,
    deadline: Deadline | None = None,
) -> Connection:
    """Open one connection: one try, no stage longer than the target allows.

    The host key is checked before anything about a credential leaves this machine.

    Raises:
        DeviceError: with the class of what went wrong.
        Cancelled: it is no longer wanted.
    """
    known = known or KnownHosts(target.known_hosts)
    deadline = deadline or Deadline(target.timeouts.total, cancelled)
    transport = None
    try:
        keys = known.lookup(target.host, target.port)
        transport = _handshake(target, deadline, pinned=sorted({key.type for key in keys}))
        key = _shown(transport)
        known.check(target.host, target.port, key, target.name)
        _log_in(transport, target, passphrase, deadline.within(target.timeouts.auth))
        return Connection(target, transport, key)
    except BaseException as error:
        if transport is not None:
            _hang_up(transport)
        if isinstance(error, Cancelled) or not isinstance(error, Exception):
            raise
        if "no acceptable host key" in str(error) and keys:
            # It has no key of the known type: look at the one it has, to show both.
            known.check(target.host, target.port, scan(target, deadline), target.name)
        raise classify(error, _place(target)) from error


def scan(target: Target, deadline: Deadline | None = None) -> HostKey:
    """Return the host key that a device shows, without logging in; nothing is believed yet.

    Raises:
        DeviceError: with the class of what went wrong.
    """
    deadline = deadline or Deadline(target.timeouts.total)
    try:
        transport = _handshake(target, deadline, pinned=[])
    except Cancelled:
        raise
    except Exception as error:
        raise classify(error, _place(target)) from error
    try:
        return _shown(transport)
    finally:
        _hang_up(transport)


def _place(target: Target) -> str:
    return f"{target.name} ({target.address})"


def _handshake(target: Target, deadline: Deadline, pinned: list[str]) -> FleetTransport:
    """Connect and agree on keys; with pinned types the server must show a key of one of them."""
    limits = target.timeouts
    raw = open_socket(target.host, target.port, deadline.within(limits.connect), limits.dead_after)
    stage = deadline.within(limits.handshake)
    try:
        transport = FleetTransport(raw, disabled_algorithms=WEAK)
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
    done = threading.Event()
    try:
        transport.start_client(event=done)
        stage.wait(done)
        if not transport.is_active():
            raise transport.get_exception() or EOFError()
    except BaseException:
        _hang_up(transport)
        raise
    return transport


def _shown(transport: FleetTransport) -> HostKey:
    key = transport.get_remote_server_key()
    return HostKey(key.get_name(), key.get_base64())


def _log_in(
    transport: FleetTransport, target: Target, passphrase: Passphrase | None, deadline: Deadline
) -> None:
    where = _place(target)
    refused = False
    with offered(target, passphrase) as keys:
        for key in keys:
            answered = threading.Event()
            transport.auth_publickey(target.user, key, answered)
            deadline.wait(answered)
            if transport.is_authenticated():
                return
            error = transport.get_exception()
            if not transport.is_active():
                if not refused and "authentication" not in transport.farewell.lower():
                    raise error or EOFError()
                break
            if isinstance(error, paramiko.ssh_exception.PartialAuthentication):
                further = clean(", ".join(error.allowed_types))
                raise DeviceError(
                    ErrorKind.AUTHENTICATION,
                    f"{where}: after the key it asks for more ({further}), which is not supported",
                )
            refused = True
    tried = f" ({transport.farewell})" if transport.farewell else ""
    raise DeviceError(
        ErrorKind.AUTHENTICATION,
        f'{where}: it refused the login of user "{target.user}" with'
        f" {_named_keys(len(keys), target)}{tried}",
    )


def _named_keys(count: int, target: Target) -> str:
    if target.identity is not None:
        return f"the key {target.identity}"
    return f"{count} keys of the SSH agent and ~/.ssh" if count > 1 else "the only key found"


def _hang_up(transport: FleetTransport) -> None:
    with contextlib.suppress(OSError):  # wakes the transport's thread out of its read
        transport.sock.shutdown(socket.SHUT_RDWR)
    transport.close()
    transport.sock.close()
