"""Files to and from a device.

A file is named by its content's hash, so one that is there already is not sent again. It is
written aside, its hash is checked on the device, and only then it gets its name: a name is there
with the right content, or not at all. What a lost connection leaves is gone on with.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import BinaryIO, TypeVar

from hdap_tui.ssh import receiving
from hdap_tui.ssh.connection import Connection
from hdap_tui.ssh.errors import Cancelled, DeviceError, ErrorKind, classify, out_of_space
from hdap_tui.ssh.payload import Payload
from hdap_tui.ssh.receiving import Claim, remove
from hdap_tui.ssh.scripts import ROOT, ask, lines_of
from hdap_tui.ssh.sftp import LocalFileError, Sftp, SftpError
from hdap_tui.ssh.sockets import Deadline, never
from hdap_tui.ssh.target import Target

T = TypeVar("T")

__all__ = ["Payload", "Progress", "download", "remove", "upload"]

Progress = Callable[[int, int], None]
"""Told how many bytes of how many have arrived, all files together."""

PATIENCE_S = 20.0
"""How long another sender may move nothing before it is written off."""
_STEP_BACK = 256 << 10  # what is sent again of a cut file, at least
_LOST = 3  # times that others may take our files over
_PIECE = 2 << 20  # bytes that one command takes where there is no SFTP
_SEND_RATE = 1e5  # bytes a second that the slowest link is trusted to carry
_GRACE_S = 1.0  # for what is just moving, to see that it is no longer wanted
_MARGIN = 64 << 10  # free space that has to be left

_OWN = secrets.token_hex(6)
_turns: defaultdict[Target, threading.Lock] = defaultdict(threading.Lock)

_CUT = f': >>{ROOT}/parts/"$1" && dd of={ROOT}/parts/"$1" bs=1 seek="$2" count=0 </dev/null 2>&1'
_APPEND = f"""
cd {ROOT}/parts || exit 1
[ "$(wc -c <"$1")" -eq "$2" ] || {{ echo "somebody else writes $1" >&2; exit 1; }}
cat >>"$1" || exit 1
echo $(($(wc -c <"$1")))
"""


def upload(
    connection: Connection,
    payloads: Sequence[Payload],
    progress: Progress = lambda _sent, _total: None,
    cancelled: Callable[[], bool] = never,
) -> tuple[Payload, ...]:
    """Bring the files onto the device; return those that this call brought.

    One that somebody else is just sending is waited for. When the connection is lost, or it is
    no longer wanted, what has arrived stays, and the next call goes on from there.

    Raises:
        DeviceError: disk full, timeout (nothing moved for the stall limit), disconnected, …
        Cancelled: it is no longer wanted.
    """
    if not payloads:
        return ()
    turn = _turns[connection.target]
    while not turn.acquire(timeout=0.25):
        if cancelled():
            raise Cancelled
    try:
        return _Upload(connection, payloads, progress, cancelled).run()
    finally:
        turn.release()


def download(connection: Connection, path: str, limit: int, timeout: float | None = None) -> bytes:
    """Return a file's content, at most `limit` bytes of it; the path is relative to the home.

    Raises:
        DeviceError: failed where there is no such file.
    """
    return ask(connection, f'head -c {limit} "$1"', path, limit=limit, timeout=timeout)


class _Upload:
    """One call of `upload`."""

    def __init__(
        self,
        connection: Connection,
        payloads: Sequence[Payload],
        progress: Progress,
        cancelled: Callable[[], bool],
    ) -> None:
        self._connection, self._progress, self._cancelled = connection, progress, cancelled
        self._wanted = list(dict.fromkeys(payloads))
        self._brought: list[Payload] = []
        self._mine = f"{_OWN}{abs(hash(connection.target)):x}"
        self._watched: dict[Payload, tuple[Claim, float]] = {}
        self._late: set[str] = set()

    def run(self) -> tuple[Payload, ...]:
        lost = 0
        while self._wanted:
            mine, free = self._claim()
            if mine:
                arrived = self._bring(mine, free)
                lost += len(arrived) < len(mine)
                if lost > _LOST:
                    raise self._failure(ErrorKind.BUSY, "others keep sending the same files to it")
            elif self._wanted:
                Deadline(0.5, self._cancelled).rest()
        return tuple(self._brought)

    def _claim(self) -> tuple[dict[Payload, int], int | None]:
        """Take what nobody else is sending; return how much of each has arrived, and the space."""
        try:
            claims, free = receiving.claim(self._connection, self._mine, self._late, self._wanted)
        except BaseException:
            self._release(self._wanted)
            raise
        self._wanted = [p for p in self._wanted if claims[p].state != "there"]
        for payload in self._wanted:
            if claims[payload].state == "busy":
                self._watch(payload, claims[payload])
        mine = {p: claims[p].size for p in self._wanted if claims[p].state == "mine"}
        return mine, free

    def _watch(self, payload: Payload, claim: Claim) -> None:
        """Write off a sender that is there and moves nothing: its own link may be gone."""
        now = time.monotonic()
        before, since = self._watched.get(payload, (claim, now))
        if before != claim:
            since = now
        elif now - since > PATIENCE_S:
            self._late.add(claim.owner)
        self._watched[payload] = (claim, since)

    def _bring(self, mine: dict[Payload, int], free: int | None) -> list[Payload]:
        """Send files and give them their names; return those that have them now."""
        try:
            needed = sum(max(0, payload.size - have) for payload, have in mine.items()) + _MARGIN
            if free is not None and free < needed:
                raise self._full(needed, free)
            starts = {payload: self._start(payload, have) for payload, have in mine.items()}
            self._send(starts)
            outcomes = receiving.settle(self._connection, self._mine, list(mine))
        except BaseException as error:
            full = isinstance(error, DeviceError) and error.kind is ErrorKind.DISK_FULL
            self._release(list(mine), remove=full)
            raise
        for payload, outcome in outcomes.items():
            if outcome == "damaged":
                self._release([p for p, other in outcomes.items() if other == "lost"])
                raise self._damaged(payload)
        arrived = [payload for payload, outcome in outcomes.items() if outcome == "settled"]
        self._brought += arrived
        self._wanted = [payload for payload in self._wanted if payload not in arrived]
        return arrived

    def _start(self, payload: Payload, have: int) -> int:
        """Return how much of what has arrived is right: power may have failed in between."""
        if have > payload.size:
            return 0
        for length in (have - _STEP_BACK, have // 2, have // 4):
            if length < _STEP_BACK:
                break
            found = receiving.prefix_digest(self._connection, payload, length)
            if found == self._locally(payload, partial(payload.prefix_digest, length)):
                return length
        return 0

    def _send(self, starts: dict[Payload, int]) -> None:
        with contextlib.ExitStack() as held:
            files = {p: held.enter_context(self._locally(p, partial(_open, p))) for p in starts}
            for payload, file in files.items():
                if os.fstat(file.fileno()).st_size != payload.size:
                    raise self._changed(payload)
            refused = self._stream({p: (files[p].fileno(), start) for p, start in starts.items()})
        if refused is not None:  # the channel has been closed: there may be no second one
            raise self._refused(*refused)

    def _stream(self, parts: dict[Payload, tuple[int, int]]) -> tuple[Payload, SftpError] | None:
        """Send open files, each from its start; return which was refused, and why."""
        total, before = sum(payload.size for payload in parts), 0
        with _guarded(self._connection, self._cancelled) as alive:

            def told(arrived: int) -> None:
                alive()
                self._progress(before + arrived, total)

            with self._sftp() as sftp:
                if sftp is not None:
                    for payload, (source, start) in parts.items():
                        path = f"{ROOT}/parts/{payload.part}"
                        try:
                            sftp.write(path, source, start, payload.size, told)
                        except SftpError as error:
                            return payload, error
                        before += payload.size
                    return None
            for payload, (source, start) in parts.items():
                self._send_by_command(payload, source, start, told)
                before += payload.size
        return None

    @contextlib.contextmanager
    def _sftp(self) -> Iterator[Sftp | None]:
        """Give an SFTP channel, closed at the end; None where the server has none."""
        connection = self._connection
        limit = Deadline(connection.target.timeouts.channel, self._cancelled)
        with contextlib.ExitStack() as stack:
            sftp = None
            try:
                channel = stack.enter_context(
                    connection.session(lambda channel: channel.invoke_subsystem("sftp"), limit)
                )
                channel.settimeout(connection.target.timeouts.channel)
                sftp = Sftp(channel)
                channel.settimeout(None)  # whoever guards the transfer ends the waiting
            except (DeviceError, SftpError, EOFError) as error:
                if not connection.alive:
                    raise classify(EOFError(), connection.where) from None
                if isinstance(error, DeviceError) and error.kind is not ErrorKind.FAILED:
                    raise
                stack.close()  # some servers allow one session at a time
            yield sftp

    def _send_by_command(
        self, payload: Payload, source: int, start: int, told: Callable[[int], None]
    ) -> None:
        """Send through commands' input, to the small SSH servers that have no SFTP."""
        connection = self._connection
        ask(connection, _CUT, payload.part, str(start), timeout=connection.target.timeouts.command)
        while start < payload.size:
            data = os.pread(source, min(_PIECE, payload.size - start), start)
            answer = ask(
                connection, _APPEND, payload.part, str(start), stdin=data, limit=1024,
                timeout=connection.target.timeouts.command + len(data) / _SEND_RATE,
                cancelled=self._cancelled,
            )  # fmt: skip
            if lines_of(answer) != [str(start + len(data))] or not data:
                raise self._damaged(payload)
            start += len(data)
            told(start)

    # -- what goes wrong

    def _release(self, payloads: Sequence[Payload], remove: bool = False) -> None:
        if self._connection.alive:
            with contextlib.suppress(DeviceError, Cancelled):
                receiving.release(self._connection, self._mine, payloads, remove)

    def _is_full(self) -> bool:
        """Whether a refusal is for want of space: servers seldom say so."""
        with contextlib.suppress(DeviceError):
            free = receiving.free_bytes(self._connection)
            return free is not None and free < _MARGIN
        return False

    def _full(self, needed: int = 0, free: int = 0) -> DeviceError:
        why = f": {needed / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free" if needed else ""
        return self._failure(ErrorKind.DISK_FULL, f"no space is left on the device{why}")

    def _refused(self, payload: Payload, error: SftpError) -> DeviceError:
        if isinstance(error, LocalFileError):
            return self._changed(payload)
        if out_of_space(str(error)) or self._is_full():
            return self._full()
        return self._failure(
            ErrorKind.FAILED, f"{payload.path.name} was refused by its SFTP server: {error}"
        )

    def _damaged(self, payload: Payload) -> DeviceError:
        with contextlib.suppress(OSError):
            if Payload.of(payload.path, payload.name.partition("/")[0]).digest != payload.digest:
                return self._changed(payload)
        if self._is_full():
            return self._full()
        return self._failure(ErrorKind.FAILED, f"{payload.path.name} arrived damaged; try again")

    def _changed(self, payload: Payload) -> DeviceError:
        return self._failure(
            ErrorKind.FAILED, f"{payload.path} was changed while it was being sent; try again"
        )

    def _locally(self, payload: Payload, action: Callable[[], T]) -> T:
        try:
            return action()
        except OSError as error:
            raise self._failure(
                ErrorKind.FAILED, f"{payload.path} cannot be read here: {error.strerror}"
            ) from None

    def _failure(self, kind: ErrorKind, text: str) -> DeviceError:
        return DeviceError(kind, f"{self._connection.where}: {text}")


def _open(payload: Payload) -> BinaryIO:
    return open(payload.path, "rb", buffering=0)


@contextlib.contextmanager
def _guarded(connection: Connection, cancelled: Callable[[], bool]) -> Iterator[Callable[[], None]]:
    """Give a function that says "something moved"; without it for too long, hang up.

    A write blocks for as long as the peer takes nothing, whatever timeouts are set, and only
    hanging up ends it. As long as something moves, a cancellation leaves the connection alone.
    """
    stall = connection.target.timeouts.stall
    moved = [time.monotonic()]
    done = threading.Event()
    why: list[BaseException] = []

    def watch() -> None:
        while not done.wait(0.2):
            if cancelled():
                if done.wait(_GRACE_S):
                    return
                why.append(Cancelled())
            elif time.monotonic() - moved[0] > stall:
                why.append(
                    DeviceError(
                        ErrorKind.TIMEOUT,
                        f"{connection.where}: the transfer stood still for {stall:.0f} s",
                    )
                )
            if why:
                connection.close()
                return

    def alive() -> None:
        moved[0] = time.monotonic()
        if cancelled():
            raise Cancelled

    watcher = threading.Thread(target=watch, name=f"transfer {connection.where}", daemon=True)
    watcher.start()
    try:
        yield alive
    except Exception as error:
        if why:
            raise why[0] from error
        raise
    finally:
        done.set()
        watcher.join()
