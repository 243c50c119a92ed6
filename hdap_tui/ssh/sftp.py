"""Writing files over SFTP at the link's speed.

paramiko's own file objects wait for answers in bursts and send every 32 kB as two SSH packets. Here
requests are as large as the server takes, packets are filled, and a bounded number of bytes is on
its way at any time (draft-ietf-secsh-filexfer-02; limits@openssh.com is OpenSSH's own extension).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import Any

import paramiko
from paramiko import sftp as protocol

ON_ITS_WAY = 4 << 20
"""Bytes sent and not yet confirmed, at most."""
_EVERY_SERVER = 32768  # the most that each takes in one request
_MOST = 255 << 10
_BATCH = 256 << 10  # bytes handed to the channel at once
_ANSWER_LIMIT = 256 << 10
_LIMITS = b"limits@openssh.com"


class SftpError(Exception):
    """The server refused a request; its text is what it said."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class LocalFileError(SftpError):
    """The local file became shorter while it was being sent."""


class Sftp:
    """The client's side of one SFTP channel, for writing. Not safe to use from several threads."""

    def __init__(self, channel: Any) -> None:
        """Agree on the protocol; the channel's own time limit is that of each wait.

        Raises:
            OSError, EOFError: the channel's; TimeoutError where nothing came in time.
            SftpError: what answers there is no SFTP server.
        """
        self._channel = channel
        self._number = 0
        channel.sendall(struct.pack(">IBI", 5, protocol.CMD_INIT, 3))
        kind, body = self._packet()
        if kind != protocol.CMD_VERSION:
            raise SftpError(protocol.SFTP_BAD_MESSAGE, "no SFTP server answers there")
        self.request_limit = _EVERY_SERVER
        if _LIMITS in body:
            self.request_limit = self._ask_limit()

    def write(
        self,
        path: str,
        source: int,
        start: int,
        size: int,
        confirmed: Callable[[int], None],
    ) -> None:
        """Write a local file's bytes from `start` to `size` into the remote file.

        From the start, the remote file is made anew; else what lies before stays.

        `source` is an open file's number. `confirmed` is told how far the server has got, in
        order, each time it confirms something.

        Raises:
            SftpError: the server refused: no space, no such folder, …
            LocalFileError: the local file is shorter than `size`.
            OSError: it cannot be read; TimeoutError where the server is silent for too long.
            EOFError: the connection was lost.
        """
        flags = protocol.SFTP_FLAG_WRITE | protocol.SFTP_FLAG_CREATE
        flags |= 0 if start else protocol.SFTP_FLAG_TRUNC
        mode = struct.pack(">II", paramiko.SFTPAttributes.FLAG_PERMISSIONS, 0o600)
        kind, body = self._ask(
            protocol.CMD_OPEN, _text(path.encode()) + struct.pack(">I", flags) + mode
        )
        if kind != protocol.CMD_HANDLE:
            raise _refusal(kind, body)
        handle = _text(_string(body, 4))
        try:
            self._stream(handle, source, start, size, confirmed)
        except SftpError:
            self._ask(protocol.CMD_CLOSE, handle)
            raise
        self._settled(self._ask(protocol.CMD_CLOSE, handle))

    def _stream(
        self, handle: bytes, source: int, start: int, size: int, confirmed: Callable[[int], None]
    ) -> None:
        waiting: dict[int, tuple[int, int]] = {}  # request's number: where it ends, its length
        on_its_way, position = 0, start
        refused: SftpError | None = None
        while waiting or (position < size and refused is None):
            batch: list[bytes] = []
            length = 0
            while position < size and length < _BATCH and on_its_way < ON_ITS_WAY and not refused:
                data = os.pread(source, min(self.request_limit, size - position), position)
                if not data:
                    refused = LocalFileError(0, "the local file became shorter")
                    break
                number = self._next()
                batch += (_write_head(number, handle, position, len(data)), data)
                position += len(data)
                waiting[number] = (position, len(data))
                on_its_way += len(data)
                length += len(data)
            if batch:
                self._send(b"".join(batch))
            while waiting:
                room = on_its_way <= ON_ITS_WAY - _BATCH and position < size and not refused
                if room and not self._channel.recv_ready():
                    break
                kind, body = self._packet()
                end, count = waiting.pop(_number(body), (0, 0))
                on_its_way -= count
                try:
                    self._settled((kind, body))
                    confirmed(end)
                except SftpError as error:
                    refused = refused or error  # the other answers are still to be read
        if refused is not None:
            raise refused

    def _ask_limit(self) -> int:
        """Return the longest write that the server takes."""
        kind, body = self._ask(protocol.CMD_EXTENDED, _text(_LIMITS))
        if kind != protocol.CMD_EXTENDED_REPLY or len(body) < 28:
            return _EVERY_SERVER
        longest = int(struct.unpack(">Q", body[20:28])[0])
        return min(max(longest, _EVERY_SERVER), _MOST)

    # -- packets

    def _next(self) -> int:
        self._number = (self._number + 1) & 0xFFFFFFFF
        return self._number

    def _ask(self, kind: int, body: bytes) -> tuple[int, bytes]:
        """Send one request and return the kind and body of its answer."""
        number = self._next()
        self._send(struct.pack(">IBI", len(body) + 5, kind, number) + body)
        answer, said = self._packet()
        if _number(said) != number:
            raise SftpError(protocol.SFTP_BAD_MESSAGE, "the SFTP server answers out of turn")
        return answer, said

    def _settled(self, answer: tuple[int, bytes]) -> None:
        kind, body = answer
        if kind != protocol.CMD_STATUS or struct.unpack(">I", body[4:8])[0]:
            raise _refusal(kind, body)

    def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            sent = self._channel.send(view)
            if not sent:
                raise EOFError
            view = view[sent:]

    def _packet(self) -> tuple[int, bytes]:
        length = struct.unpack(">I", self._read(4))[0]
        if not 1 <= length <= _ANSWER_LIMIT:
            raise SftpError(protocol.SFTP_BAD_MESSAGE, "no SFTP server answers there")
        data = self._read(length)
        if data[0] != protocol.CMD_VERSION and length < 5:
            raise SftpError(protocol.SFTP_BAD_MESSAGE, "the SFTP server's answer makes no sense")
        return data[0], data[1:]

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self._channel.recv(count - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data


def _write_head(number: int, handle: bytes, position: int, length: int) -> bytes:
    whole = 1 + 4 + len(handle) + 8 + 4 + length
    head = struct.pack(">IBI", whole, protocol.CMD_WRITE, number)
    return head + handle + struct.pack(">QI", position, length)


def _text(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def _string(body: bytes, at: int) -> bytes:
    """Return the string at a place of a packet's body; empty where there is none."""
    if len(body) < at + 4:
        return b""
    length = struct.unpack(">I", body[at : at + 4])[0]
    return body[at + 4 : at + 4 + length]


def _number(body: bytes) -> int:
    return int(struct.unpack(">I", body[:4])[0])


def _refusal(kind: int, body: bytes) -> SftpError:
    if kind != protocol.CMD_STATUS or len(body) < 8:
        return SftpError(protocol.SFTP_BAD_MESSAGE, "the SFTP server's answer makes no sense")
    code = int(struct.unpack(">I", body[4:8])[0])
    return SftpError(code, _string(body, 8).decode("utf-8", "replace"))
