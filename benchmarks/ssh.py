"""SSH to one device: connecting, commands and uploads, beside paramiko's own client.

    python -m benchmarks.ssh                          # an emulated device on this machine
    python -m benchmarks.ssh --host 10.0.0.4 --user pi --identity ~/.ssh/id_ed25519 \
        --known-hosts .hdap/known_hosts

Times are medians (and 95th percentiles) on the client's wall clock.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import paramiko

from hdap_tui.ssh.connection import connect
from hdap_tui.ssh.hostkeys import KnownHosts
from hdap_tui.ssh.target import Target
from hdap_tui.ssh.transfer import Payload, remove, upload


def timed(action: Callable[[], object], times: int) -> list[float]:
    """Return how long each of so many calls took, in seconds, shortest first."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        action()
        found.append(time.perf_counter() - began)
    return sorted(found)


def row(name: str, seconds: list[float]) -> str:
    high = seconds[min(len(seconds) - 1, int(0.95 * len(seconds)))]
    return f"| {name} | {1e3 * statistics.median(seconds):.1f} ms | {1e3 * high:.1f} ms |"


def ours(target: Target, times: int) -> Iterator[str]:
    known = KnownHosts(target.known_hosts, ())

    def whole() -> None:
        opened = connect(target, known)
        opened.run("true")
        opened.close()

    yield row("connect + command + close", timed(whole, times))
    connection = connect(target, known)
    yield row("command on an open connection", timed(lambda: connection.run("true"), 5 * times))
    connection.close()


def peer(target: Target, times: int) -> Iterator[str]:
    def open_client() -> paramiko.SSHClient:
        client = paramiko.SSHClient()
        client.load_host_keys(str(target.known_hosts))
        client.connect(
            target.host, target.port, target.user, key_filename=str(target.identity),
            allow_agent=False, look_for_keys=False,
        )  # fmt: skip
        return client

    def command(client: paramiko.SSHClient) -> None:
        client.exec_command("true")[1].channel.recv_exit_status()

    def whole() -> None:
        client = open_client()
        command(client)
        client.close()

    yield row("connect + command + close, paramiko.SSHClient", timed(whole, times))
    client = open_client()
    seconds = timed(lambda: command(client), 5 * times)
    yield row("command on an open connection, paramiko.SSHClient", seconds)
    client.close()


def uploads(target: Target, size: int) -> Iterator[str]:
    connection = connect(target, KnownHosts(target.known_hosts, ()))
    with tempfile.TemporaryDirectory() as folder:
        rates, again = [], []
        for number in range(3):
            path = Path(folder) / f"{number}.onnx"
            path.write_bytes(os.urandom(size))
            payload = Payload.of(path)
            rates += timed(partial(upload, connection, [payload]), 1)
            again += timed(partial(upload, connection, [payload]), 1)
            remove(connection, [payload.name])
    connection.close()
    rate = size / 1e6 / statistics.median(rates)
    yield f"| upload of {size / 1e6:.0f} MB, hash checked on the device | {rate:.0f} MB/s | |"
    yield row("the same file again", sorted(again))


@contextmanager
def device(arguments: argparse.Namespace) -> Iterator[Target]:
    """Give the device that was named, else an emulated one."""
    if arguments.host:
        yield Target(
            name=arguments.host,
            host=arguments.host,
            port=arguments.port,
            user=arguments.user,
            identity=arguments.identity,
            known_hosts=arguments.known_hosts,
        )
        return
    from hdap_tui.lab import control

    with tempfile.TemporaryDirectory() as folder:
        lab = control.up(Path(folder), 1, detach=False)
        one = lab.devices[0]
        try:
            yield Target(
                name=one.name, host=one.host, port=one.port, user=one.user,
                identity=lab.identity, known_hosts=lab.known_hosts, emulated=True,
            )  # fmt: skip
        finally:
            control.down(Path(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int, default=22)
    parser.add_argument("--user", default="root")
    parser.add_argument("--identity", type=Path)
    parser.add_argument("--known-hosts", type=Path)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--megabytes", type=int, default=20)
    arguments = parser.parse_args()
    with device(arguments) as target:
        print("| what | median | 95th percentile |", "|---|---|---|", sep="\n")
        for table in (
            ours(target, arguments.times),
            peer(target, arguments.times),
            uploads(target, arguments.megabytes * 10**6),
        ):
            for line in table:
                print(line, flush=True)


if __name__ == "__main__":
    main()
