"""SSH: connecting, commands, uploads, host keys and lost peers, beside asyncssh and others.

    python -m benchmarks.ssh [connect] [command] [upload] [known-hosts] [vanish]

Real OpenSSH servers on this machine take part, and share its cores with the client: compare ratios
within one run. parallel-ssh is asked where it is installed (pip install parallel-ssh).
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import hmac
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.servers import make_key, real, row
from benchmarks.ssh_ways import bare, bare_command, openssh
from hdap_tui.ssh.connection import Connection, connect
from hdap_tui.ssh.errors import DeviceError
from hdap_tui.ssh.hostkeys import HostKey, KnownHosts
from hdap_tui.ssh.target import Target, Timeouts
from hdap_tui.ssh.transfer import Payload, upload

_NEEDS = {"asyncssh": "asyncssh", "parallel-ssh": "pssh"}


def connecting(arguments: argparse.Namespace) -> Iterator[str]:
    """Connect + `true` + close at 64 servers, by each client, in turn."""
    yield row("client", "one at a time, median", "client CPU each", "best rate", "at once")
    yield row("---", "---", "---", "---", "---")
    with real(arguments.servers) as targets, tempfile.TemporaryDirectory() as folder:
        found: dict[str, list[dict[str, Any]]] = {}
        for number in range(arguments.rounds):
            for way in ("hdap", "paramiko alone", "asyncssh", "parallel-ssh", "ssh"):
                needed = _NEEDS.get(way)
                if needed is not None and importlib.util.find_spec(needed) is None:
                    if not number:
                        yield row(way, "skipped: not installed", "", "", "")
                    continue
                slow = way in ("ssh", "parallel-ssh")
                request = {
                    **_request(targets),
                    "serial": 20 if way == "parallel-ssh" else 64,
                    "count": 128 if slow else arguments.connections,
                    "at_once": [16, 64] if way == "parallel-ssh" else [16] if slow else [8, 16, 64],
                }
                path = Path(folder) / "request.json"
                path.write_text(json.dumps(request))
                command = [sys.executable, "-m", "benchmarks.ssh_ways", way, str(path)]
                done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
                found.setdefault(way, []).append(json.loads(done.stdout))
        for way, results in found.items():
            median = min(result["median_ms"] for result in results)
            cpu = min(result["cpu_ms"] for result in results)
            at_once = min(result["cpu_best_ms"] for result in results)
            rate, most = max(
                (rate, key) for result in results for key, rate in result["rates"].items()
            )
            yield row(
                way, f"{median:.1f} ms", f"{cpu:.1f} ms alone, {at_once:.1f} ms at once",
                f"{rate:.0f}/s", most,
            )  # fmt: skip


def command(_arguments: argparse.Namespace) -> Iterator[str]:
    """`true` on a connection that is open, in turn with the others."""
    yield row("client", "median", "95th percentile")
    yield row("---", "---", "---")
    times: dict[str, list[float]] = {}
    with real(1) as (target,), _control_master(target) as master:
        connection = connect(target)
        transport = bare(target.port, target.user, str(target.identity))
        with _asyncssh(target) as other:
            ways: dict[str, Callable[[], object]] = {
                "hdap": lambda: connection.call("true"),
                "paramiko alone": lambda: bare_command(transport),
                **({"asyncssh": other} if other else {}),
                "ssh, ControlMaster": master,
            }
            for _ in range(20):
                for name, way in ways.items():
                    for _ in range(10 if "ssh," not in name else 3):
                        began = time.perf_counter()
                        way()
                        times.setdefault(name, []).append(1e3 * (time.perf_counter() - began))
        connection.close()
        transport.close()
    for name, each in times.items():
        high = sorted(each)[int(0.95 * len(each))]
        yield row(name, f"{statistics.median(each):.2f} ms", f"{high:.2f} ms")


def uploading(arguments: argparse.Namespace) -> Iterator[str]:
    """50 MB: as fast as scp? What is sent after a cut, and of an unchanged file?"""
    size = arguments.megabytes * 10**6
    yield row("upload", "median", "best")
    yield row("---", "---", "---")
    rates: dict[str, list[float]] = {}
    with real(1) as (target,), tempfile.TemporaryDirectory() as folder:
        connection = connect(target)
        for number in range(arguments.times):
            path = Path(folder) / f"{number}.bin"
            path.write_bytes(os.urandom(size))
            payload = Payload.of(path)
            seen: list[tuple[float, int]] = []
            began = time.perf_counter()
            upload(connection, [payload], partial(_note, seen))
            whole = time.perf_counter() - began
            sent = (seen[-1][1] - seen[0][1]) / (seen[-1][0] - seen[0][0])
            rates.setdefault("hdap, sending", []).append(sent)
            rates.setdefault("hdap, all: found missing, sent, hashed, synced, named", []).append(
                size / whole
            )
            began = time.perf_counter()
            assert upload(connection, [payload], _must_not_send) == ()
            rates.setdefault("again", []).append(time.perf_counter() - began)
            for name, cipher in (
                ("scp, aes128-gcm", ["-c", "aes128-gcm@openssh.com"]),
                ("scp", []),
            ):
                rates.setdefault(name, []).append(size / _scp(target, path, cipher))
        cipher = connection.transport.local_cipher
        again = 1e3 * statistics.median(rates.pop("again"))
        for name, each in rates.items():
            best, median = max(each) / 1e6, statistics.median(each) / 1e6
            yield row(name, f"{median:.0f} MB/s", f"{best:.0f} MB/s")
        yield row(f"hdap, the same file again ({cipher})", f"nothing sent, {again:.0f} ms", "")
        yield _cut(connection, target, Path(folder), size)


def _note(seen: list[tuple[float, int]], sent: int, _total: int) -> None:
    seen.append((time.perf_counter(), sent))


def _must_not_send(_sent: int, _total: int) -> None:
    raise AssertionError("an unchanged file was sent")


def _cut(connection: Connection, target: Target, folder: Path, size: int) -> str:
    """Cut an upload in the middle, and let somebody else go on."""
    path = folder / "cut.bin"
    path.write_bytes(os.urandom(size))
    payload = Payload.of(path)

    def cut(sent: int, total: int) -> None:
        if sent > total // 2:
            connection.transport.sock.close()

    try:
        upload(connection, [payload], cut)
    except DeviceError:
        pass
    else:
        raise AssertionError("nothing was cut")
    other = connect(replace(target, name="another"))
    seen: list[int] = []
    began = time.perf_counter()
    assert upload(other, [payload], lambda sent, _total: seen.append(sent)) == (payload,)
    took = time.perf_counter() - began
    answer = other.call(f"cd; sha256sum .hdap/{payload.name}").out.decode()
    assert answer.startswith(payload.digest)
    other.close()
    left = (size - seen[0]) / 1e6
    return row("hdap, cut in the middle, gone on", f"{took:.2f} s", f"{left:.0f} MB were left")


def _scp(target: Target, path: Path, more: list[str]) -> float:
    command = [
        "scp", "-F", "none", "-q", "-o", f"UserKnownHostsFile={target.known_hosts}",
        "-i", str(target.identity), "-P", str(target.port), *more, str(path),
        f"{target.user}@{target.host}:scp.bin",
    ]  # fmt: skip
    began = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - began


def known_hosts(_arguments: argparse.Namespace) -> Iterator[str]:
    """5000 entries, plain and hashed."""
    yield row("known hosts, 5000 entries", "load", "look up")
    yield row("---", "---", "---")
    with tempfile.TemporaryDirectory() as folder:
        keys = [make_key(Path(folder) / "key").split() for _ in range(50)]
        for kind in ("plain", "hashed"):
            loads, looks = [], []
            for number in range(9):
                path = Path(folder) / f"{kind}-{number}"
                lines = []
                for n in range(5000):
                    name = f"edge-{n:04d}.lab"
                    lines.append(
                        " ".join([name if kind == "plain" else _hashed(name), *keys[n % 50]])
                    )
                path.write_text("\n".join(lines) + "\n")
                known = KnownHosts(path, ())
                key = HostKey(*keys[4321 % 50])
                began = time.perf_counter()
                known.is_revoked(key)  # reads the file
                loads.append(time.perf_counter() - began)
                began = time.perf_counter()
                known.check("edge-4321.lab", 22, key, "edge-4321")
                looks.append(time.perf_counter() - began)
            load, look = (1e3 * statistics.median(each) for each in (loads, looks))
            yield row(kind, f"{load:.1f} ms", f"{look:.2f} ms")


def _hashed(name: str) -> str:
    salt = hashlib.sha1(name.encode()).digest()
    digest = hmac.digest(salt, name.encode(), "sha1")
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


def vanishing(_arguments: argparse.Namespace) -> Iterator[str]:
    """A link that is cut without a word; needs root and nft."""
    yield row("a peer that vanishes", "noticed after")
    yield row("---", "---")
    if os.geteuid() or not shutil.which("nft"):
        yield row("skipped: needs root and nft", "")
        return
    limits = Timeouts(command=120, stall=120)
    noticed: dict[str, float] = {}
    with real(1) as (target,), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.bin"
        path.write_bytes(os.urandom(100_000_000))
        payload = Payload.of(path)
        target = replace(target, timeouts=limits)
        first, second = connect(target), connect(replace(target, name="another"))
        cut = threading.Event()

        def slowly(sent: int, total: int) -> None:
            if sent > total // 4:
                cut.set()
                time.sleep(0.005)  # so that much is left when the link goes

        def until(name: str, action: Callable[[], object]) -> None:
            try:
                action()
            except DeviceError:
                noticed[name] = time.monotonic()

        actions: dict[str, Callable[[], object]] = {
            "in the middle of a command": lambda: first.run("sleep 100", timeout=110),
            "in the middle of an upload": lambda: upload(second, [payload], slowly),
        }
        threads = [threading.Thread(target=until, args=item) for item in actions.items()]
        for thread in threads:
            thread.start()
        cut.wait(60)
        with _cut_link(target.port):
            began = time.monotonic()
            for thread in threads:
                thread.join(60)
    for name in actions:
        after = f"{noticed[name] - began:.1f} s" if name in noticed else "not within 60 s"
        yield row(name, after)


@contextmanager
def _cut_link(port: int) -> Iterator[None]:
    table = f"hdap_benchmark_{port}"
    rules = (
        f"table inet {table} {{\nchain cut {{\ntype filter hook input priority 0;\n"
        f"tcp dport {port} drop\ntcp sport {port} drop\n}}\n}}\n"
    )
    subprocess.run(["nft", "-f", "-"], input=rules.encode(), check=True)
    try:
        yield
    finally:
        subprocess.run(["nft", "delete", "table", "inet", table], check=False)


@contextmanager
def _control_master(target: Target) -> Iterator[Callable[[], object]]:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/control"
        request = _request([target])
        line = openssh(request, target.port, "-o", f"ControlPath={path}")
        subprocess.run([*line[:1], "-M", "-f", "-N", *line[1:]], check=True)
        try:
            yield lambda: subprocess.run([*line, "true"], check=True, stdin=subprocess.DEVNULL)
        finally:
            subprocess.run([*line[:1], "-O", "exit", *line[1:]], check=False)


@contextmanager
def _asyncssh(target: Target) -> Iterator[Callable[[], object] | None]:
    if importlib.util.find_spec("asyncssh") is None:
        yield None
        return
    import asyncio

    import asyncssh

    async def opened() -> asyncssh.SSHClientConnection:
        return await asyncssh.connect(
            target.host, target.port, username=target.user, known_hosts=str(target.known_hosts),
            client_keys=[str(target.identity)], config=None, agent_path=None,
        )  # fmt: skip

    with asyncio.Runner() as runner:
        connection = runner.run(opened())
        yield lambda: runner.run(connection.run("true", check=True))
        connection.abort()


def _request(targets: list[Target]) -> dict[str, Any]:
    first = targets[0]
    return {
        "ports": [target.port for target in targets],
        "user": first.user,
        "identity": str(first.identity),
        "known_hosts": str(first.known_hosts),
    }


ALL: dict[str, Callable[[argparse.Namespace], Iterator[str]]] = {
    "connect": connecting,
    "command": command,
    "upload": uploading,
    "known-hosts": known_hosts,
    "vanish": vanishing,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("which", nargs="*", choices=[*ALL, []], default=[])
    parser.add_argument("--servers", type=int, default=64)
    parser.add_argument("--connections", type=int, default=300, help="for each rate")
    parser.add_argument("--rounds", type=int, default=2, help="of all clients, in turn")
    parser.add_argument("--megabytes", type=int, default=50)
    parser.add_argument("--times", type=int, default=7, help="uploads")
    arguments = parser.parse_args()
    for name in arguments.which or list(ALL):
        print(f"\n{name}\n", flush=True)
        for line in ALL[name](arguments):
            print(line, flush=True)


if __name__ == "__main__":
    main()
