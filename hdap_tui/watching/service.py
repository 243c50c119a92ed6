"""What a service tells systemd (`sd_notify(3)`): a datagram on the socket that it names."""

from __future__ import annotations

import os
import socket


def notify(*lines: str) -> None:
    """Tell systemd something, such as "READY=1"; nobody is told where systemd did not ask."""
    name = os.environ.get("NOTIFY_SOCKET", "")
    if not name.startswith(("/", "@")):
        return
    address = "\0" + name[1:] if name.startswith("@") else name
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
            line.settimeout(1.0)
            line.sendto("\n".join(lines).encode(), address)
    except OSError:
        return  # a service that cannot say how it is still does its work


def watchdog_s() -> float | None:
    """Return the seconds within which systemd wants a sign of life; None where it wants none."""
    wanted, whom = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not wanted.isdecimal() or (whom and whom != str(os.getpid())):
        return None
    return int(wanted) / 1e6 or None
