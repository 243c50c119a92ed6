"""A network link in user space: delay, loss and rate as asked for, changed while it runs.

It is a process of its own that carries packets between two TUN devices, one of them in the
network namespace of another process. Kernels for small machines often lack netem; TUN is there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import heapq
import json
import os
import random
import select
import struct
import subprocess
import sys
import time
from pathlib import Path

TUN = Path("/dev/net/tun")
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_PACKET = 65536
_BURST = 64  # packets taken from one side before the other has its turn
_QUEUE_S = 0.25  # what a limited rate keeps waiting; more is dropped


class Link:
    """A running link between this machine and one process's network."""

    def __init__(self, name: str, here: str, there: str, pid: int) -> None:
        """`here` and `there` are the addresses of the ends, `pid` lives in the other network."""
        self.here, self.there = here, there
        self._process = subprocess.Popen(
            [sys.executable, __file__, name, here, there, str(pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "up\n", f"the link {name} does not come up"

    def shape(
        self, *, delay_s: float = 0.0, loss: float = 0.0, rate_mbit: float = 0.0, up: bool = True
    ) -> None:
        """Set the one-way delay, the share of packets lost, and the rate (0: any)."""
        assert self._process.stdin is not None
        wanted = {"delay_s": delay_s, "loss": loss, "rate_mbit": rate_mbit, "up": up}
        self._process.stdin.write(json.dumps(wanted) + "\n")
        self._process.stdin.flush()

    def cut(self) -> None:
        """Let nothing through any more; both sides hear nothing of it."""
        self.shape(up=False)

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


class _Wire:
    """Both directions of a link, packet by packet."""

    def __init__(self, ends: tuple[int, int]) -> None:
        self._other = {ends[0]: ends[1], ends[1]: ends[0]}
        self._waiting: list[tuple[float, int, int, bytes]] = []
        self._free_at = dict.fromkeys(ends, 0.0)
        self._latest = dict.fromkeys(ends, 0.0)
        self._count = 0
        self.delay_s = self.loss = self.rate_mbit = 0.0
        self.up = True

    def run(self, orders: int) -> None:
        """Carry packets until there are no more orders."""
        while True:
            wait = self._waiting[0][0] - time.monotonic() if self._waiting else 1.0
            ready, _, _ = select.select([orders, *self._other], [], [], max(0.0, wait))
            if orders in ready:
                line = os.read(orders, 4096)
                if not line:
                    return
                self.__dict__.update(json.loads(line.splitlines()[-1]))
            for end in self._other:
                if end in ready:
                    self._take(end)
            self._deliver()

    def _take(self, end: int) -> None:
        now = time.monotonic()
        for _ in range(_BURST):
            try:
                packet = os.read(end, _PACKET)
            except BlockingIOError:
                return
            if not self.up or random.random() < self.loss:
                continue
            leaves = now
            if self.rate_mbit:
                begins = max(self._free_at[end], now)
                leaves = begins + len(packet) * 8 / (1e6 * self.rate_mbit)
                if leaves - now > _QUEUE_S:
                    continue
                self._free_at[end] = leaves
            # A change of the delay must not let packets overtake each other.
            self._latest[end] = max(self._latest[end], leaves + self.delay_s)
            self._count += 1
            item = (self._latest[end], self._count, self._other[end], packet)
            heapq.heappush(self._waiting, item)

    def _deliver(self) -> None:
        now = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            _, _, end, packet = heapq.heappop(self._waiting)
            try:
                os.write(end, packet)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EIO, errno.ENOBUFS, errno.EINVAL):
                    raise


def _tun(name: str) -> int:
    end = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return end


def _ip(*words: str, inside: int | None = None) -> None:
    enter = ["nsenter", f"--net=/proc/{inside}/ns/net"] if inside is not None else []
    subprocess.run([*enter, "ip", *words], check=True)


def main(name: str, here: str, there: str, pid: int) -> None:
    """Connect this machine and the network of a process until standard input ends."""
    ends = _tun(f"{name}a"), _tun(f"{name}b")
    _ip("link", "set", f"{name}b", "netns", str(pid))
    for end, own, far, inside in (("a", here, there, None), ("b", there, here, pid)):
        _ip("addr", "add", own, "peer", far, "dev", name + end, inside=inside)
        _ip("link", "set", name + end, "up", "txqueuelen", "2000", inside=inside)
    _ip("link", "set", "lo", "up", inside=pid)
    _ip("route", "add", "default", "via", here, "dev", f"{name}b", inside=pid)
    print("up", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        _Wire(ends).run(sys.stdin.fileno())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
