"""Real OpenSSH servers on loopback: any number, as root or not, each with its own key and home.

    first, second = start_sshds(folder, 2, options={1: {"MaxSessions": "1"}})
    connect(first.target())

A server lets in the user who runs the tests, with the folder's key. Commands run with HOME set to
the server's own home, relative paths of SFTP start there, and what runs on a "device" is found
again by that. A server ends with the process that started it, however that ends.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest

from hdap_tui.fanout import on_each
from hdap_tui.ssh.connection import Connection
from hdap_tui.ssh.errors import DeviceError
from hdap_tui.ssh.hostkeys import HostKey, KnownHosts
from hdap_tui.ssh.pool import Connections
from hdap_tui.ssh.sockets import never
from hdap_tui.ssh.target import Jump, Target, Timeouts

SSHD = "/usr/sbin/sshd"
HOST = "127.0.0.1"
QUICK = Timeouts(
    connect=5, handshake=5, auth=5, channel=5, command=10, stall=5, total=8, dead_after=6
)
_PORTS = range(20000, 32000)  # below those that the system hands out to clients
_USUAL = {
    "PidFile": "none",
    "UsePAM": "no",
    "StrictModes": "no",
    "UseDNS": "no",
    "PasswordAuthentication": "no",
    "KbdInteractiveAuthentication": "no",
}


def missing() -> str:
    """Return why no server can be started here; empty where one can."""
    if not os.path.exists(SSHD):
        return "OpenSSH's server is not installed"
    if not shutil.which("ssh-keygen"):
        return "ssh-keygen is not installed"
    return ""


@dataclass
class Sshd:
    """One server."""

    name: str
    folder: Path
    port: int
    identity: Path
    """Private key that it lets in."""
    known_hosts: Path
    """File that has its host key; shared by servers that were started together."""
    options: Mapping[str, str]
    kinds: tuple[str, ...] = ("ed25519",)
    jump: Sshd | None = None
    """The server that `target` goes through."""
    wrap: tuple[str, ...] = ()
    host: str = HOST
    user: str = field(default_factory=getpass.getuser)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def home(self) -> Path:
        """Home folder of whoever logs in."""
        return self.folder / "home"

    @property
    def log(self) -> Path:
        """What the server has to say."""
        return self.folder / "log"

    @property
    def pid(self) -> int:
        """Number of the listening process."""
        assert self._process is not None, f"{self.name} does not run"
        return self._process.pid

    def host_key(self, kind: str = "ed25519") -> HostKey:
        """Return the public half of a host key."""
        parts = (self.folder / f"host_{kind}.pub").read_text().split()
        return HostKey(parts[0], parts[1])

    def known_line(self) -> str:
        """Return its line of a known hosts file."""
        key = self.host_key(self.kinds[0])
        return f"[{self.host}]:{self.port} {key.type} {key.base64}"

    def target(self, known_hosts: Path | None = None, **changes: Any) -> Target:
        """Return how to reach it, with QUICK limits; without a file it is trusted already."""
        values: dict[str, Any] = {
            "name": self.name,
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "identity": self.identity,
            "known_hosts": known_hosts or self.known_hosts,
            "timeouts": QUICK,
            "jumps": self._jumps(),
        }
        return Target(**{**values, **changes})

    def _jumps(self) -> tuple[Jump, ...]:
        if self.jump is None:
            return ()
        way = self.jump
        own = Jump(
            name=way.name, host=way.host, port=way.port, user=way.user, identity=way.identity,
            known_hosts=way.known_hosts, timeouts=QUICK,
        )  # fmt: skip
        return (*way._jumps(), own)

    def trusted(self, known_hosts: Path, kind: str = "ed25519", **changes: Any) -> Target:
        """Put its key into a file, and return how to reach it."""
        KnownHosts(known_hosts, others=()).trust(self.host, self.port, self.host_key(kind))
        return self.target(known_hosts, **changes)

    # -- its life

    def start(self) -> None:
        """Start it, without waiting until it listens."""
        # A server that outlives a killed test run would hold its port for ever.
        tied = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        command = [*tied, *self.wrap, SSHD, "-D", "-e", "-f", str(self.folder / "config")]
        self._process = _STARTER.submit(_run, command, self.log).result()

    def wait(self) -> None:
        """Return once it listens."""
        assert self._process is not None
        deadline = time.monotonic() + 10
        while not _listens(self.port):
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, f"{self.name} does not listen"
            time.sleep(0.005)

    def stop(self) -> None:
        """End it, all its connections, and all that runs on its device, detached or not."""
        stop_all([self])

    def close(self) -> None:
        """End only the listening process, as when it crashes; connections go on."""
        os.kill(self.pid, signal.SIGKILL)
        assert self._process is not None
        self._process.wait()
        self._process = None

    def restart(self, new_host_key: bool = False) -> None:
        """Start it again on its port, as after a reboot, or as after a re-installation."""
        if self._process is not None:
            self.stop()
        if new_host_key:
            for kind in self.kinds:
                for file in (self.folder / f"host_{kind}", self.folder / f"host_{kind}.pub"):
                    file.unlink()
                make_key(self.folder / f"host_{kind}", kind)
        self.start()
        self.wait()

    # -- what runs there

    def sessions(self) -> list[int]:
        """Return the processes that look after connections, and what they started."""
        return sessions(self, processes())

    def running(self) -> list[Process]:
        """Return what runs on the device, whether or not its connection still stands."""
        mark = f"HOME={self.home}".encode()
        return [one for one in processes() if one.command and mark in environment(one.pid)]

    def cut(self) -> None:
        """End every connection, as a reset does; what was started detached goes on."""
        for pid in self.sessions():
            if b"sshd" in _command(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def freeze(self) -> None:
        """Let nobody answer any more, as when the power of the device fails."""
        for pid in (self.pid, *self.sessions()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on after `freeze`."""
        for pid in (self.pid, *self.sessions()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


_STARTER = ThreadPoolExecutor(1, "starter")
"""Its thread lives as long as this process: what is tied to whoever started it ends with that."""


def _run(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)


def opened(
    pool: Connections, targets: Sequence[Target], cancelled: Callable[[], bool] = never
) -> Iterator[tuple[Target, Connection | DeviceError]]:
    """Open the connections to all at once; yields each, or what went wrong, as they come."""
    return on_each(pool, targets, lambda connection: connection, cancelled)


def start_sshds(
    folder: Path,
    count: int,
    *,
    options: Mapping[int, Mapping[str, str]] | None = None,
    jump: Sshd | None = None,
    kinds: tuple[str, ...] = ("ed25519",),
    sftp: bool = True,
    name: str = "real",
    wrap: Sequence[str] = (),
) -> list[Sshd]:
    """Start that many servers; they are called real-1, real-2, … and share one client key.

    `options` are sshd's own by the number of the server, from 0; SetEnv adds to the environment.
    Those behind a `jump` are reached through it, and their key and known hosts file are its own.
    `wrap` is put before the command that starts a server and must run it in its own place.
    """
    folder.mkdir(parents=True, exist_ok=True)
    identity = jump.identity if jump is not None else folder / "id"
    if not identity.exists():
        make_key(identity)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    known_hosts = jump.known_hosts if jump is not None else folder / "known_hosts"
    started = []
    for number, port in enumerate(free_ports(count)):
        server = Sshd(
            f"{name}-{number + 1}", folder / f"{name}-{number + 1}", port, identity, known_hosts,
            dict((options or {}).get(number, {})), kinds, jump, tuple(wrap),
        )  # fmt: skip
        server.home.mkdir(parents=True, exist_ok=True)
        for kind in kinds:
            make_key(server.folder / f"host_{kind}", kind)
        (server.folder / "config").write_text(_config(server, sftp))
        server.start()
        started.append(server)
    with known_hosts.open("a") as lines:
        lines.writelines(f"{server.known_line()}\n" for server in started)
    for server in started:
        server.wait()
    return started


def start_sshd(folder: Path, options: Mapping[str, str] | None = None, **more: Any) -> Sshd:
    """Start one server, with an RSA host key beside the usual one; see `start_sshds`."""
    more = {"kinds": ("ed25519", "rsa")} | more
    return start_sshds(folder, 1, options={0: options or {}}, **more)[0]


def _config(server: Sshd, sftp: bool) -> str:
    values = {
        "Port": str(server.port),
        "ListenAddress": HOST,
        "AuthorizedKeysFile": f"{server.identity}.pub",
        **_USUAL,
        **server.options,
    }
    more = values.pop("SetEnv", "")
    lines = [f"{key} {value}" for key, value in values.items()]
    lines += [f"HostKey {server.folder}/host_{kind}" for kind in server.kinds]
    if sftp:
        lines.append(f"Subsystem sftp internal-sftp -d {server.home}")
    # Set last by sshd, so that it goes before the account's own home; only one such line counts.
    lines.append(f"SetEnv HOME={server.home} {more}")
    return "\n".join(lines) + "\n"


class Reached(Protocol):
    """What a settings file says of a device."""

    name: str
    host: str
    port: int
    user: str
    identity: Path
    known_hosts: Path


def fleet_toml(
    servers: Sequence[Reached],
    state: Path,
    python: str,
    extra: str = "",
    own: Mapping[str, str] | None = None,
) -> str:
    """Return a `fleet.toml` of servers; `extra` is more of the same language, put behind it.

    `own` are further lines of single devices, by name.
    """
    first = servers[0]
    parts = [
        "[fleet]",
        'name = "real"',
        f"state = {json.dumps(str(state))}",
        "[ssh]",
        f"identity = {json.dumps(str(first.identity))}",
        f"known_hosts = {json.dumps(str(first.known_hosts))}",
        f"user = {json.dumps(first.user)}",
        f"python = {json.dumps(python)}",
        'config = "none"',  # whoever runs the tests may have one
        "connect_timeout_s = 6",
        "[host_groups.here]",
        "cores = 8",  # what tests time is short, and what they look at is no number
    ]
    for server in servers:
        parts += [
            "[[devices]]",
            f"name = {json.dumps(server.name)}",
            f"host = {json.dumps(server.host)}",
            f"port = {server.port}",
            'host_group = "here"',
            (own or {}).get(server.name, ""),
        ]
        jump = getattr(server, "jump", None)
        if jump is not None:
            parts.append(f"proxy_jump = {json.dumps(f'{jump.user}@{jump.host}:{jump.port}')}")
    return "\n".join((*parts, extra, ""))


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on; no two calls at once return the same, by chance."""
    with contextlib.ExitStack() as held:
        found: list[int] = []
        for port in random.sample(_PORTS, len(_PORTS)):
            probe = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind((HOST, port))
                found.append(port)
            if len(found) == count:
                return found
    pytest.skip("no ports are free here")


def free_port() -> int:
    """Return a port that nobody listens on."""
    return free_ports(1)[0]


def make_key(path: Path, kind: str = "ed25519", passphrase: str = "") -> Path:
    """Make a pair of keys, unless it is there."""
    if not path.exists():
        size = ["-b", "2048"] if kind == "rsa" else []
        subprocess.run(
            ["ssh-keygen", "-q", "-t", kind, *size, "-N", passphrase, "-f", str(path)], check=True
        )
    return path


def _listens(port: int) -> bool:
    """Ask the kernel, not the server: a connection without a word counts as an attack."""
    wanted = f"0100007F:{port:04X} 00000000:0000 0A"
    return any(wanted in line for line in Path("/proc/net/tcp").read_text().splitlines())


@dataclass(frozen=True)
class Process:
    """One process of this machine."""

    pid: int
    parent: int
    group: int
    command: str
    """Empty where it has ended and nobody has collected it."""


def processes() -> list[Process]:
    """Return all processes of this machine."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                command = _command(int(entry.name)).decode("utf-8", "replace")
                found.append(Process(int(entry.name), int(stat[1]), int(stat[2]), command))
    return found


def stop_all(servers: Sequence[Sshd]) -> None:
    """End servers as `Sshd.stop` does; many at once need only one look at all processes."""
    up = [server for server in servers if server._process is not None]
    everything, marks = processes(), {f"HOME={server.home}".encode() for server in up}
    pids = [pid for server in up for pid in (server.pid, *sessions(server, everything))]
    pids += [p.pid for p in everything if p.command and marks.intersection(environment(p.pid))]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for server in up:
        assert server._process is not None
        server._process.wait()
        server._process = None


def sessions(server: Sshd, everything: Sequence[Process]) -> list[int]:
    """Numbers of the processes that look after a server's connections, and what they started."""
    found: list[int] = []
    parents = {server.pid}
    while parents:
        parents = {p.pid for p in everything if p.parent in parents}
        found += parents
    return found


def _command(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
    return b""


def environment(pid: int) -> list[bytes]:
    """Return the environment that a process was started with; empty where nobody may know."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return []


def wait_for(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)
