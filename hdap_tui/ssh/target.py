"""What is needed to reach one device."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hdap_tui.ssh.config import SshConfig


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
    """What people call it: the device's name in the fleet, or the jump host as it was written."""
    host: str
    known_hosts: Path
    """The fleet's own file of host keys."""
    port: int = 22
    """0: as the SSH configuration says, else 22."""
    user: str = "root"
    """Empty: as the SSH configuration says, else whoever runs this."""
    identity: Path | None = None
    """The only key to offer."""
    certificate: Path | None = None
    """Certificate of the key; one that lies beside its key is found by itself."""
    password_command: str = ""
    """Command on this machine whose first line of output is the password."""
    ask_password: bool = False
    """Whether the operator may be asked for a password."""
    timeouts: Timeouts = field(default_factory=Timeouts)
    identities: tuple[Path, ...] = ()
    """Keys to offer before others, where there is no only one; without any, the usual files."""
    identities_only: bool = False
    """Whether the agent's other keys are left alone."""
    certificates: tuple[Path, ...] = ()
    """Certificates of any of the keys."""
    agent: str = ""
    """Socket of the SSH agent; empty: as the environment says; "none": no agent."""
    key_alias: str = ""
    """Name under which its host key is known, in place of host and port."""
    other_known_hosts: tuple[Path, ...] | None = None
    """Further files of host keys, only read; None: those that ssh reads by itself."""
    host_group: str = ""
    """Devices of one group share a machine; empty is a group of its own."""
    emulated: bool = False
    python: str = ""
    """The interpreter on the device that has ONNX Runtime; a leading ~/ is its home; empty: that of
    the environment which provisioning built, or else python3."""
    jumps: tuple[Jump, ...] = ()
    """Jump hosts on the way to it, the first to be reached first."""
    config: SshConfig | None = None
    """The SSH configuration that says what is left open here; None once it has been asked."""
    proxy_jump: str = ""
    """Jump hosts as written: "user@first:22,second", or "none"; empty: as `config` says."""
    jump_identity: Path | None = None
    """Key for jump hosts that the SSH configuration names no key for."""

    @property
    def address(self) -> str:
        """Host and port, for people."""
        return f"{self.host}:{self.port or 22}"

    @property
    def known_as(self) -> tuple[str, int]:
        """Host and port under which its host key is known."""
        return (self.key_alias, 0) if self.key_alias else (self.host, self.port)

    @property
    def acceptance(self) -> str:
        """The command that shows its host key and accepts it."""
        return f"hdap devices trust --select {self.name}"

    @property
    def place(self) -> str:
        """Name, address and the way to it, for sentences."""
        way = f" behind {self.jumps[-1].name}" if self.jumps else ""
        return f"{self.name} ({self.address}{way})"


@dataclass(frozen=True, kw_only=True)
class Jump(Target):
    """A jump host; devices with an equal one share its connection."""

    @property
    def acceptance(self) -> str:
        """The command that shows its host key, and those behind it, and accepts them."""
        return "hdap devices trust"
