"""One way to connect, run a command and close, many times: a process of its own for each.

    python -m benchmarks.ssh_ways WAY REQUEST.json

Prints one JSON line: median of one at a time in milliseconds, connections a second by how many at
once, the client's CPU time for one connection in milliseconds. Started by `benchmarks.ssh`.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


def cpu_s() -> float:
    """CPU time of this process and of its ended children."""
    own, others = (resource.getrusage(who) for who in (0, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime


def measured(
    request: dict[str, Any],
    one: Callable[[int], object] | None,
    many: Callable[[Sequence[int], int], object],
) -> dict[str, Any]:
    """Run serially, then at each concurrency; ports are used in turn."""
    ports, times, count = request["ports"], [], request["count"]
    cpu = 0.0
    if one is not None:
        one(ports[0])
        cpu = cpu_s()
        for number in range(request["serial"]):
            began = time.perf_counter()
            one(ports[number % len(ports)])
            times.append(1e3 * (time.perf_counter() - began))
        cpu = 1e3 * (cpu_s() - cpu) / request["serial"]
    rates, costs = {}, {}
    for at_once in request["at_once"]:
        chosen = [ports[number % len(ports)] for number in range(count)]
        before, began = cpu_s(), time.perf_counter()
        many(chosen, at_once)
        rates[str(at_once)] = count / (time.perf_counter() - began)
        costs[str(at_once)] = 1e3 * (cpu_s() - before) / count
    best = max(rates, key=lambda key: rates[key])
    return {
        "median_ms": statistics.median(times) if times else None,
        "cpu_ms": cpu or costs[best],
        "cpu_best_ms": costs[best],
        "rates": rates,
    }


def ours(request: dict[str, Any]) -> dict[str, Any]:
    from benchmarks.servers import PATIENT
    from hdap_tui.ssh.connection import connect
    from hdap_tui.ssh.hostkeys import KnownHosts
    from hdap_tui.ssh.target import Target

    known_hosts = Path(request["known_hosts"])
    known = KnownHosts(known_hosts, ())
    targets = {
        port: Target(
            name=str(port), host="127.0.0.1", port=port, user=request["user"],
            identity=Path(request["identity"]), known_hosts=known_hosts, timeouts=PATIENT,
        )
        for port in request["ports"]
    }  # fmt: skip

    def one(port: int) -> None:
        connection = connect(targets[port], known)
        connection.call("true")
        connection.close()

    def many(ports: Sequence[int], at_once: int) -> None:
        with ThreadPoolExecutor(at_once) as workers:
            list(workers.map(one, ports))

    return measured(request, one, many)


def bare_paramiko(request: dict[str, Any]) -> dict[str, Any]:
    """The library alone: no host key is checked, nothing has a limit, nobody cleans up."""

    def one(port: int) -> None:
        transport = bare(port, request["user"], request["identity"])
        bare_command(transport)
        transport.close()

    def many(ports: Sequence[int], at_once: int) -> None:
        with ThreadPoolExecutor(at_once) as workers:
            list(workers.map(one, ports))

    return measured(request, one, many)


def bare(port: int, user: str, identity: str) -> Any:
    """Return a paramiko transport on a socket that neither collects small packets nor waits to
    acknowledge them, logged in."""
    import paramiko

    class Quick(socket.socket):
        def recv(self, *arguments: int) -> bytes:
            data = super().recv(*arguments)
            self.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            return data

    link = Quick()
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.connect(("127.0.0.1", port))
    transport = paramiko.Transport(link)
    transport.start_client()
    transport.auth_publickey(user, paramiko.Ed25519Key.from_private_key_file(identity))
    return transport


def bare_command(transport: Any) -> None:
    """Run `true` on it."""
    channel = transport.open_session()
    channel.exec_command("true")
    channel.recv(100)
    assert channel.recv_exit_status() == 0
    channel.close()


def with_asyncssh(request: dict[str, Any]) -> dict[str, Any]:
    import asyncssh

    async def connect_once(port: int) -> None:
        options = {
            "username": request["user"], "client_keys": [request["identity"]],
            "known_hosts": request["known_hosts"], "config": None, "agent_path": None,
        }  # fmt: skip
        async with asyncssh.connect("127.0.0.1", port, **options) as connection:
            await connection.run("true", check=True)

    def many(ports: Sequence[int], at_once: int) -> None:
        async def together() -> None:
            room = asyncio.Semaphore(at_once)

            async def one(port: int) -> None:
                async with room:
                    await connect_once(port)

            await asyncio.gather(*map(one, ports))

        asyncio.run(together())

    with asyncio.Runner() as runner:
        return measured(request, lambda port: runner.run(connect_once(port)), many)


def with_parallel_ssh(request: dict[str, Any]) -> dict[str, Any]:
    from pssh.clients import ParallelSSHClient
    from pssh.config import HostConfig

    def many(ports: Sequence[int], at_once: int) -> None:
        # One client object a batch keeps its connections; a host is connected to once in each.
        done = 0
        while done < len(ports):
            batch = ports[done : done + len(set(ports))]
            configs = [HostConfig(port=port) for port in batch]
            client = ParallelSSHClient(
                ["127.0.0.1"] * len(batch), user=request["user"], pkey=request["identity"],
                host_config=configs, pool_size=at_once, allow_agent=False,
            )  # fmt: skip
            output = client.run_command("true")
            client.join(output)
            if any(host.exit_code for host in output):
                raise SystemExit("parallel-ssh: a command failed")
            done += len(batch)
            del output, client

    return measured(request, lambda port: many([port], 1), many)


def with_openssh(request: dict[str, Any]) -> dict[str, Any]:
    def one(port: int) -> None:
        subprocess.run([*openssh(request, port), "true"], check=True, stdin=subprocess.DEVNULL)

    def many(ports: Sequence[int], at_once: int) -> None:
        with ThreadPoolExecutor(at_once) as workers:
            list(workers.map(one, ports))

    return measured(request, one, many)


def openssh(request: dict[str, Any], port: int, *more: str) -> list[str]:
    """Return the command line of OpenSSH's client, up to the command."""
    return [
        "ssh", "-F", "none", "-q", "-o", f"UserKnownHostsFile={request['known_hosts']}",
        "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-i", request["identity"],
        "-p", str(port), *more, f"{request['user']}@127.0.0.1",
    ]  # fmt: skip


WAYS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "hdap": ours,
    "paramiko alone": bare_paramiko,
    "asyncssh": with_asyncssh,
    "parallel-ssh": with_parallel_ssh,
    "ssh": with_openssh,
}


if __name__ == "__main__":
    threading.stack_size(512 << 10)
    print(json.dumps(WAYS[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text()))), flush=True)
    os._exit(0)
