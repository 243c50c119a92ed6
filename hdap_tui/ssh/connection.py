"""One connection to one device: opened safely, commands with limits, closed at once."""

from __future__ import annotations

import contextlib
import logging
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import paramiko

from hdap_tui.ssh.alarm import alarm
from hdap_tui.ssh.config import resolve
from hdap_tui.ssh.errors import Cancelled, DeviceError, ErrorKind, classify, out_of_space
from hdap_tui.ssh.hostkeys import HostKey, KnownHosts
from hdap_tui.ssh.keys import Offers
from hdap_tui.ssh.login import log_in
from hdap_tui.ssh.secret import Secrets
from hdap_tui.ssh.sockets import Deadline, never
from hdap_tui.ssh.target import Target
from hdap_tui.ssh.transport import (
    ChannelClosed,
    ChannelRefused,
    FleetTransport,
    NoKnownKey,
    close_channel,
    handshake,
    hang_up,
    shown,
    was_refused,
)
from hdap_tui.ssh.tunnel import Tunnel, dig, way_refused
from hdap_tui.text import clean

logging.getLogger("paramiko").addHandler(logging.NullHandler())  # or tracebacks reach the screen

OUTPUT_LIMIT = 8 << 20
"""Bytes kept of each output stream, unless a command brings a limit of its own."""
_PIECE = 65536
_UNHEARD = 4
"""How often a request is made at most of a server that closes channels unheard."""


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
        self._sessions = 0
        self._allowed = 0  # sessions at once; 0 while nobody knows
        self._counting = threading.Lock()
        self._ended: threading.Condition | None = None  # made when somebody has to wait

    @property
    def alive(self) -> bool:
        """Whether it stands, as far as is known."""
        return bool(self.transport.is_active())

    @property
    def busy(self) -> bool:
        """Whether a session is open."""
        return self._sessions > 0

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
        told: Callable[[bytes], None] | None = None,
    ) -> Completed:
        """Run a command and return what it said, whatever its exit status.

        Both streams are read all the time, so that neither can block the other; what goes
        beyond `limit` bytes a stream is dropped. A command that is given up goes on running on
        the device, unless it is on the leash: then it has no input, and its process group ends
        with the channel. `told` gets the output so far, whenever there is more of it.

        Raises:
            DeviceError: timeout, disconnected, killed (by a signal), or busy.
            Cancelled: it is no longer wanted.
        """
        deadline = Deadline(timeout or self.target.timeouts.command, cancelled)
        text = _leashed(command) if leash else command
        with self.session(lambda channel: channel.exec_command(text), deadline) as channel:
            exchange = _Exchange(channel, stdin, limit, keep_open=leash)
            seen = 0
            while not exchange.step():
                if told is not None and len(exchange.out) > seen:
                    seen = len(exchange.out)
                    told(bytes(exchange.out))
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
    def session(self, request: Callable[[Any], None], deadline: Deadline) -> Iterator[Any]:
        """Give a session channel with a request granted, closed at the end.

        Errors inside come out classified.

        Raises:
            DeviceError: failed where the device refuses the request; timeout, disconnected, …
        """
        try:
            channel = self._begin(request, deadline)
            try:
                yield channel
            finally:
                close_channel(channel)
                self._release()
        except Cancelled:
            raise
        except Exception as error:
            if not self.alive and not isinstance(error, DeviceError | TimeoutError):
                error = EOFError()
            raise classify(error, self.where) from error

    def _begin(self, request: Callable[[Any], None], deadline: Deadline) -> Any:
        """Open a channel and make the request.

        Dropbear now and then closes a channel when another one was closed just before: it has not
        looked at the request then.
        """
        for _ in range(_UNHEARD):
            try:
                channel = self._open_session(deadline)
                try:
                    self._ask(channel, request, deadline)
                    return channel
                except BaseException:
                    close_channel(channel)
                    self._release()
                    raise
            except ChannelClosed:
                continue
        raise DeviceError(ErrorKind.FAILED, f"{self.where}: it closes every session unheard")

    def _open_session(self, deadline: Deadline) -> Any:
        """Open a channel; where the server allows but few at once, wait for one of ours to end.

        A server learns a little later than we do that a session has ended.
        """
        limit = deadline.within(self.target.timeouts.channel)
        pause = 0.01
        while True:
            with limit.paused():  # each session of ours has a limit of its own
                self._reserve(deadline.cancelled)
            try:
                channel = self.transport.ask("session", limit.left())
                self._served = True
                return channel
            except BaseException as error:
                others = self._release()
                if not isinstance(error, ChannelRefused):
                    raise
                if others:
                    self._allowed = others
                elif not self._served or limit.left() <= pause:
                    raise
                else:
                    limit.within(pause).rest()
                    pause = min(2 * pause, 0.25)

    def _reserve(self, cancelled: Callable[[], bool]) -> None:
        """Wait until a session more is allowed, as far as is known, and count it."""
        with self._counting:
            while 0 < self._allowed <= self._sessions and self.alive:
                self._ended = self._ended or threading.Condition(self._counting)
                self._ended.wait(0.25)
                if cancelled():
                    raise Cancelled
            self._sessions += 1

    def _release(self) -> int:
        """Count a session less; return how many are left."""
        with self._counting:
            self._sessions -= 1
            if self._ended is not None:
                self._ended.notify_all()
            return self._sessions

    def way_to(self, target: Target) -> Callable[[Deadline], Tunnel]:
        """Return what opens the way to a server behind this jump host."""

        def way(deadline: Deadline) -> Tunnel:
            try:
                return dig(self.transport, target.host, target.port, deadline)
            except ChannelRefused as error:
                raise way_refused(error, target.place, self.target) from None

        return way

    def _ask(self, channel: Any, request: Callable[[Any], None], deadline: Deadline) -> None:
        """Make a request of a channel; paramiko by itself would wait for the answer for ever.

        Raises:
            TimeoutError: there was no answer in time.
            DeviceError: the device refused.
            ChannelClosed: it closed the channel without an answer.
        """
        late = threading.Event()

        def give_up() -> None:
            late.set()
            close_channel(channel)

        try:
            with alarm.after(deadline.left(self.target.timeouts.channel), give_up):
                request(channel)
        except paramiko.SSHException:
            if late.is_set():
                raise TimeoutError from None
            if not self.alive:
                raise EOFError from None
            if not was_refused(channel):
                raise ChannelClosed from None
            raise DeviceError(ErrorKind.FAILED, f"{self.where}: it refuses that request") from None

    def close(self) -> None:
        """Close it; its thread ends at once, too."""
        hang_up(self.transport)


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
    """Wrap a command so that its process group ends when its input does.

    On a device without `setsid` it is the command's own process alone.
    """
    return (
        "exec 3<&0; S=setsid G=-; command -v setsid >/dev/null 2>&1 || S= G=; "
        f"$S sh -c {shlex.quote(command)} </dev/null 3<&- & P=$!; "
        "{ cat <&3; kill -s TERM -- $G$P; sleep 2; kill -s KILL -- $G$P; } >/dev/null 2>&1 & W=$!; "
        "exec 3<&-; wait $P; R=$?; kill $W 2>/dev/null; exit $R"
    )


# ---- opening ------------------------------------------------------------------------------------


def connect(
    target: Target,
    known: KnownHosts | None = None,
    *,
    secrets: Secrets | None = None,
    through: Connection | None = None,
    cancelled: Callable[[], bool] = never,
    deadline: Deadline | None = None,
) -> Connection:
    """Open one connection: one try, no stage longer than the target allows.

    The host key is checked before anything about a credential leaves this machine. A passphrase
    that is needed for certain is asked for before anybody is connected to. `through` is the
    connection to the last of the target's jump hosts.

    Raises:
        DeviceError: with the class of what went wrong.
        Cancelled: it is no longer wanted.
    """
    target = resolve(target)
    known = known or KnownHosts(target.known_hosts, target.other_known_hosts)
    deadline = deadline or Deadline(target.timeouts.total, cancelled)
    secrets = secrets or Secrets()
    offers = Offers(target, secrets, deadline)
    transport = None
    try:
        offers.peek()
        transport = _shaken(target, known, deadline, through)
        key = shown(transport)
        known.check(*target.known_as, key, target.place, target.acceptance)
        log_in(transport, target, offers, secrets, deadline.within(target.timeouts.auth))
        transport.slim_down()
        return Connection(target, transport, key)
    except BaseException as error:
        if transport is not None:
            hang_up(transport)
        if isinstance(error, Cancelled) or not isinstance(error, Exception):
            raise
        raise classify(error, target.place) from error
    finally:
        offers.close()


def _shaken(
    target: Target, known: KnownHosts, deadline: Deadline, through: Connection | None
) -> FleetTransport:
    """Connect; the server is asked for a host key of a known type, and shows another if it must."""
    way = through.way_to(target) if through is not None else None
    types = known.types(*target.known_as)
    try:
        transport = handshake(target, deadline, types, way)
        if types or not (types := known.other_types(*target.known_as, shown(transport))):
            return transport
        hang_up(transport)  # it may have the known key as well
        return handshake(target, deadline, types, way)
    except NoKnownKey:
        return handshake(target, deadline, [], way)


def scan(
    target: Target,
    deadline: Deadline | None = None,
    *,
    known: KnownHosts | None = None,
    through: Connection | None = None,
) -> HostKey:
    """Return the host key that a device shows, without logging in; nothing is believed yet.

    Raises:
        DeviceError: with the class of what went wrong.
        Cancelled: it is no longer wanted.
    """
    target = resolve(target)
    deadline = deadline or Deadline(target.timeouts.total)
    known = known or KnownHosts(target.known_hosts, target.other_known_hosts)
    try:
        transport = _shaken(target, known, deadline, through)
    except Cancelled:
        raise
    except Exception as error:
        raise classify(error, target.place) from error
    try:
        return shown(transport)
    finally:
        hang_up(transport)
