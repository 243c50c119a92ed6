"""SSH servers for the benchmarks: real ones on loopback, and fake ones in a process of their own.

All end with the block that started them, and with the process that started them.
"""

from __future__ import annotations

import getpass
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hdap_tui.ssh.target import Target, Timeouts

HOST = "127.0.0.1"
PORTS = range(20000, 32000)
"""Below those that the system hands out to clients."""
PATIENT = Timeouts(connect=30, handshake=60, auth=60, channel=60, command=60, total=120)
"""Limits for a machine that is servers and client at once."""


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    with ExitStack() as held:
        found: list[int] = []
        for port in random.sample(PORTS, len(PORTS)):
            probe = held.enter_context(socket.socket())
            with suppress(OSError):
                probe.bind((HOST, port))
                found.append(port)
            if len(found) == count:
                return found
    raise SystemExit(f"there are no {count} free ports between {PORTS[0]} and {PORTS[-1]}")


def make_key(path: Path) -> str:
    """Make a pair of keys and return the public one as a known_hosts file has it."""
    key = Ed25519PrivateKey.generate()
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
    )
    path.chmod(0o600)
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    Path(f"{path}.pub").write_bytes(public + b"\n")
    return public.decode()


@contextmanager
def real(count: int, folder: Path | None = None) -> Iterator[list[Target]]:
    """Start that many OpenSSH servers, each with a key and a home of its own.

    Where we are root, their user's shell is /bin/sh.
    """
    sshd = shutil.which("sshd") or "/usr/sbin/sshd"
    if not os.path.exists(sshd):
        raise SystemExit("OpenSSH's server is not installed")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as name:
        base = Path(name)
        make_key(base / "id")
        plain = _with_plain_shell(base / "passwd")
        targets, started, lines = [], [], []
        try:
            for number, port in enumerate(free_ports(count)):
                home = base / str(number)
                home.mkdir()
                lines.append(f"[{HOST}]:{port} {make_key(home / 'host_key')}")
                started.append(_sshd([*plain, sshd], base, home, port))
                targets.append(
                    Target(
                        name=f"sshd-{number:04d}", host=HOST, port=port, user=getpass.getuser(),
                        identity=base / "id", known_hosts=base / "known_hosts", timeouts=PATIENT,
                    )
                )  # fmt: skip
            (base / "known_hosts").write_text("\n".join(lines) + "\n")
            _await([target.port for target in targets])
            yield targets
        finally:
            _end(started)


def _with_plain_shell(passwd: Path) -> list[str]:
    """Return what starts a program for which our user's login shell is /bin/sh, as on a device.

    bash takes half a millisecond more to start, which is a quarter of what a command takes. The
    list of users is another for that program only; empty where that cannot be done.
    """
    lines = []
    for line in Path("/etc/passwd").read_text().splitlines():
        name, _, rest = line.partition(":")
        own = name == getpass.getuser()
        lines.append(f"{name}:{rest.rpartition(':')[0]}:/bin/sh" if own else line)
    passwd.write_text("\n".join(lines) + "\n")
    script = 'mount --bind "$0" /etc/passwd && exec "$@"'
    start = ["unshare", "--mount", "sh", "-c", script, str(passwd)]
    if os.geteuid() or not shutil.which("unshare"):
        return []
    tried = subprocess.run([*start, "true"], check=False, capture_output=True)
    return [] if tried.returncode else start


def _sshd(program: Sequence[str], base: Path, home: Path, port: int) -> subprocess.Popen[bytes]:
    config = home / "sshd_config"
    config.write_text(
        f"Port {port}\nListenAddress {HOST}\nHostKey {home}/host_key\nPidFile none\n"
        f"AuthorizedKeysFile {base}/id.pub\nPasswordAuthentication no\nUsePAM no\nUseDNS no\n"
        f"KbdInteractiveAuthentication no\nStrictModes no\nMaxStartups 200:30:400\n"
        f"MaxSessions 64\nLogLevel ERROR\nSubsystem sftp internal-sftp -d {home}\n"
        f"SetEnv HOME={home}\n"
    )
    return _tied([*program, "-D", "-e", "-f", str(config)], stderr=subprocess.DEVNULL)


def _tied(command: Sequence[str], **options: int | None) -> subprocess.Popen[bytes]:
    """Start a process that ends with this one."""
    tied = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
    return subprocess.Popen(
        [*tied, *command], start_new_session=True,
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, **options},
    )  # type: ignore[call-overload, no-any-return]  # fmt: skip


def _await(ports: Sequence[int]) -> None:
    """Wait until all listen; the kernel is asked, for a silent visit counts as an attack."""
    end = time.monotonic() + 120
    wanted = {f"0100007F:{port:04X}" for port in ports}
    while True:
        lines = Path("/proc/net/tcp").read_text().splitlines()
        if wanted <= {line.split()[1] for line in lines if line.split()[3] == "0A"}:
            return
        if time.monotonic() > end:
            raise SystemExit("the servers do not start")
        time.sleep(0.05)


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    for process in processes:
        process.wait()


@contextmanager
def fake(count: int, results: Path | None = None, seconds: float = 0.0) -> Iterator[list[Target]]:
    """Start that many fake devices in one other process; see `benchmarks.fake_devices`."""
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        make_key(base / "id")
        ports = free_ports(count)
        request = {
            "ports": ports, "folder": name, "seconds": seconds,
            "results": str(results) if results else "",
        }  # fmt: skip
        (base / "request.json").write_text(json.dumps(request))
        command = [sys.executable, "-m", "benchmarks.fake_devices", str(base / "request.json")]
        process = _tied(command, stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise SystemExit("the fake devices do not start; is asyncssh installed?")
            yield [
                Target(
                    name=f"fake-{number:04d}", host=HOST, port=port, user="fake", emulated=True,
                    identity=base / "id", known_hosts=base / "known_hosts", timeouts=PATIENT,
                )
                for number, port in enumerate(ports)
            ]  # fmt: skip
        finally:
            _end([process])


@contextmanager
def dead(like: Target, count: int, limit_s: float) -> Iterator[list[Target]]:
    """Give devices that never answer: half swallow every packet, half take the call in silence."""
    limits = Timeouts(
        connect=limit_s, handshake=limit_s, auth=limit_s, channel=limit_s, total=limit_s
    )
    with ExitStack() as held:
        targets = []
        for number in range(count):
            listener = held.enter_context(socket.socket())
            listener.bind((HOST, 0))
            listener.listen(0 if number % 2 else 8)
            if number % 2:  # with its queue full, the kernel drops whoever comes
                for _ in range(2):
                    caller = held.enter_context(socket.socket())
                    caller.setblocking(False)
                    with suppress(BlockingIOError):
                        caller.connect(listener.getsockname())
            port = listener.getsockname()[1]
            name = f"dead-{number:02d}"
            targets.append(replace(like, name=name, port=port, timeouts=limits))
        time.sleep(0.2)
        yield targets


def known_line(target: Target) -> str:
    """Return the target's line of its known hosts file."""
    start = f"[{target.host}]:{target.port} "
    lines = target.known_hosts.read_text().splitlines()
    return next(line for line in lines if line.startswith(start))


def row(*cells: object) -> str:
    """Return one row of a Markdown table."""
    return "| " + " | ".join(map(str, cells)) + " |"
