"""What is needed to reach one device."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """How long each stage may take, in seconds."""

    connect: float = 10.0
    """Looking up the name and opening the TCP connection, all addresses together."""
    handshake: float = 10.0
    """The server's banner and the key exchange."""
    auth: float = 10.0
    channel: float = 10.0
    """Opening a session and having a command accepted."""
    command: float = 60.0
    """A whole command, unless it brings a limit of its own."""
    stall: float = 30.0
    """A transfer that moves nothing."""
    total: float = 30.0
    """Opening a connection, retries and the pauses between them included."""
    dead_after: int = 15
    """After how long a peer that has gone silent counts as lost."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """One device, as the connections see it."""

    name: str
    """The device's name in the fleet."""
    host: str
    known_hosts: Path
    """The fleet's own file of host keys."""
    port: int = 22
    user: str = "root"
    identity: Path | None = None
    """Private key file; without one, the agent's keys and the usual files are offered."""
    timeouts: Timeouts = field(default_factory=Timeouts)
    host_group: str = ""
    """Devices of one group share a machine; empty is a group of its own."""
    emulated: bool = False
    python: str = "python3"
    """The interpreter on the device that has ONNX Runtime; a leading ~/ is its home."""

    @property
    def address(self) -> str:
        """Host and port, for people."""
        return f"{self.host}:{self.port}"
