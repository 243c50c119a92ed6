"""Packets read from a socket: in few reads, and without a thread that looks at the clock.

paramiko reads the head and the rest of each packet apart, and has each read wait for the socket
first; a server sends several packets at a time.
"""

from __future__ import annotations

import time
from typing import Any

from paramiko.packet import NeedRekeyException, Packetizer

_READ = 512
"""Bytes read ahead: a few short packets. A thread that waits holds on to that much memory."""
_BANNER_LIMIT = 65536
"""Bytes in which a server must have said which version it is."""


class Packets(Packetizer):  # type: ignore[misc]
    """What paramiko reads packets with, reading ahead."""

    def __init__(self, sock: Any) -> None:
        super().__init__(sock)
        self._sock = sock
        self._ahead = b""
        """What was read and not yet asked for."""
        self._handshake_end: float | None = None

    def readline(self, timeout: float) -> str:
        """Return a line of what comes before the packets.

        Raises:
            TimeoutError: there was none in time.
            EOFError: the server hung up, or says something that has no end.
            UnicodeDecodeError: it speaks something else.
        """
        end = time.monotonic() + timeout
        while b"\n" not in self._ahead:
            if len(self._ahead) > _BANNER_LIMIT:
                raise EOFError
            if not self._more(_READ) and time.monotonic() >= end:
                raise TimeoutError
        line, _, self._ahead = self._ahead.partition(b"\n")
        return line.removesuffix(b"\r").decode()

    def read_all(self, n: int, check_rekey: bool = False) -> bytes:
        """Return so many bytes.

        Raises:
            EOFError: the server hung up, or the handshake took too long.
            NeedRekeyException: there is nothing yet, and keys are to be agreed on anew.
        """
        while len(self._ahead) < n:
            if self.handshake_timed_out():
                raise EOFError
            idle = not self._more(n - len(self._ahead) + _READ)
            if idle and check_rekey and not self._ahead and self.need_rekey():
                raise NeedRekeyException
        data, self._ahead = self._ahead[:n], self._ahead[n:]
        return data

    def _more(self, size: int) -> bool:
        """Read what there is; return False where nothing came for a while.

        Raises:
            EOFError: the server hung up, or we did.
        """
        try:
            data = self._sock.recv(size)
        except TimeoutError:
            if self.closed:
                raise EOFError from None
            return False
        except OSError:
            if self.closed:
                raise EOFError from None
            raise
        if not data:
            raise EOFError
        self._ahead = self._ahead + data if self._ahead else data
        return True

    # paramiko starts a thread for each handshake, which sleeps until it is called off.

    def start_handshake(self, timeout: float) -> None:
        """Let the handshake take so many seconds from now."""
        self._handshake_end = time.monotonic() + timeout

    def handshake_timed_out(self) -> bool:
        """Whether the handshake has taken too long."""
        return self._handshake_end is not None and time.monotonic() > self._handshake_end

    def complete_handshake(self) -> None:
        """Let the time count no more."""
        self._handshake_end = None
