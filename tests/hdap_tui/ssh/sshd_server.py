"""A real OpenSSH server on loopback, unprivileged as far as it goes, with a home of its own."""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hdap_tui.ssh.hostkeys import HostKey, KnownHosts
from hdap_tui.ssh.target import Target, Timeouts

QUICK = Timeouts(
    connect=5, handshake=5, auth=5, channel=5, command=10, stall=5, total=8, dead_after=6
)


@dataclass
class Sshd:
    """A running server."""

    folder: Path
    port: int
    identity: Path
    pid: int

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def host_key(self, kind: str = "ed25519") -> HostKey:
        parts = (self.folder / f"host_{kind}.pub").read_text().split()
        return HostKey(parts[0], parts[1])

    def target(self, known_hosts: Path, **changes: Any) -> Target:
        values = {
            "name": "real",
            "host": "127.0.0.1",
            "port": self.port,
            "user": getpass.getuser(),
            "identity": self.identity,
            "known_hosts": known_hosts,
            "timeouts": QUICK,
        }
        return Target(**{**values, **changes})

    def trusted(self, known_hosts: Path, kind: str = "ed25519", **changes: Any) -> Target:
        KnownHosts(known_hosts, others=()).trust("127.0.0.1", self.port, self.host_key(kind))
        return self.target(known_hosts, **changes)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_key(path: Path, kind: str = "ed25519", passphrase: str = "") -> Path:
    size = ["-b", "2048"] if kind == "rsa" else []
    subprocess.run(
        ["ssh-keygen", "-q", "-t", kind, *size, "-N", passphrase, "-f", str(path)], check=True
    )
    return path


def start_sshd(
    folder: Path,
    *options: str,
    kinds: tuple[str, ...] = ("ed25519", "rsa"),
    sftp: bool = True,
) -> Sshd:
    """Start a server that lets this user in with the folder's key."""
    home = folder / "home"
    home.mkdir(parents=True, exist_ok=True)
    for kind in kinds:
        if not (folder / f"host_{kind}").exists():
            make_key(folder / f"host_{kind}", kind)
    identity = folder / "id"
    if not identity.exists():
        make_key(identity)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    port = free_port()
    config = folder / f"sshd_{port}"
    config.write_text(
        "\n".join(
            [
                *options,  # the first of two equal settings counts
                f"Port {port}",
                "ListenAddress 127.0.0.1",
                *(f"HostKey {folder}/host_{kind}" for kind in kinds),
                f"AuthorizedKeysFile {folder}/id.pub",
                "PidFile none",
                "UsePAM no",
                "StrictModes no",
                "PasswordAuthentication no",
                "KbdInteractiveAuthentication no",
                f"Subsystem sftp {_sftp_server()} -d {home}" if sftp else "",
                f"SetEnv HOME={home}",  # else the user's own start files run for every command
            ]
        )
    )
    process = subprocess.Popen(
        ["/usr/sbin/sshd", "-D", "-e", "-f", str(config)],
        stdin=subprocess.DEVNULL,
        stderr=open(folder / "log", "ab"),  # noqa: SIM115
    )
    deadline = time.monotonic() + 10
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return Sshd(folder, port, identity, process.pid)
        assert process.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < deadline, "sshd does not listen"
        time.sleep(0.02)


def _sftp_server() -> str:
    for path in ("/usr/lib/openssh/sftp-server", "/usr/libexec/sftp-server"):
        if os.path.exists(path):
            return path
    pytest.skip("there is no sftp-server here")


@dataclass(frozen=True)
class Process:
    """One process of this machine."""

    pid: int
    parent: int
    group: int
    command: str
    """Empty where it has ended and nobody has collected it."""


def processes() -> list[Process]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                command = (
                    (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                )
                found.append(Process(int(entry.name), int(stat[1]), int(stat[2]), command))
    return found


def sessions(server: Sshd) -> list[int]:
    """Numbers of the processes that look after a server's connections, and what they started."""
    everything = processes()
    found: list[int] = []
    parents = {server.pid}
    while parents:
        parents = {p.pid for p in everything if p.parent in parents}
        found += parents
    return found


def wait_for(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)
