"""Devices that are machines of their own: started, on bad links, vanishing, slowed for real.

    python -m benchmarks.devices            # needs root, namespaces, TUN and a C compiler

Each has a network, process table, file system and sensors of its own on this machine, and a link
in user space (tests/devices). Times are this machine's wall clock; nothing here is emulated but
the places where sensors are read.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

# What starts such devices belongs to the tests.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from devices import hog, machine
from devices.machine import Machine, machines

from hdap_tui.ssh.connection import connect
from hdap_tui.ssh.errors import DeviceError
from hdap_tui.ssh.target import Timeouts
from hdap_tui.ssh.transfer import Payload, upload

DEVICES = 8
USUAL = Timeouts()
"""What the settings' own figures come to: how soon a silent peer counts as lost."""
WORK = "s=0; for i in range(150000): s += i * i"
LOOP = (
    "import time\n"
    "def once():\n"
    "    t = time.perf_counter()\n"
    f"    {WORK.replace('; ', chr(10) + '    ', 1)}\n"
    "    return time.perf_counter() - t\n"
    "print(sorted(once() for _ in range(60))[30] * 1000)\n"
)


def seconds(action: Callable[[], Any]) -> float:
    """Return how long a call takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def link(device: Machine, folder: Path) -> None:
    """Print how long a command and an upload take, by the quality of the link."""
    big = folder / "big.onnx"
    print(f"\n{'link':>28} {'command':>12} {'upload of 20 MB':>18}")
    for delay_ms, loss, rate in ((0, 0, 0), (10, 0, 0), (10, 1, 0), (50, 1, 0), (10, 0, 100)):
        big.write_bytes(os.urandom(20 << 20))
        payload = Payload.of(big)
        device.link.shape(delay_s=delay_ms / 1e3, loss=loss / 100, rate_mbit=rate)
        connection = connect(device.target(timeouts=USUAL))
        ask = partial(connection.run, "true")
        command = statistics.median(seconds(ask) for _ in range(20))
        sending = seconds(partial(upload, connection, [payload]))
        connection.close()
        name = f"2 x {delay_ms} ms, {loss} % lost" + (f", {rate} Mbit/s" if rate else "")
        print(f"{name:>28} {1e3 * command:9.1f} ms {20.97 / sending:12.1f} MB/s")
    device.link.shape()


def vanish(devices: list[Machine], folder: Path) -> None:
    """Print after how long a peer that vanished is noticed, with the usual limits."""
    big = folder / "vanish.onnx"
    big.write_bytes(os.urandom(20 << 20))
    actions: dict[str, Callable[[Any], object]] = {
        "command": lambda connection: connection.run("sleep 100", timeout=100),
        "upload": lambda connection: upload(connection, [Payload.of(big)]),
    }
    noticed: dict[str, str] = {}

    def lose(name: str, device: Machine) -> None:
        device.link.shape(rate_mbit=20)
        connection = connect(device.target(timeouts=USUAL))
        threading.Timer(1.0, device.link.cut).start()
        cut = time.monotonic() + 1.0
        try:
            actions[name](connection)
        except DeviceError as error:
            noticed[name] = f"{time.monotonic() - cut:.1f} s ({error.kind})"
        connection.close()

    threads = [
        threading.Thread(target=lose, args=given) for given in zip(actions, devices, strict=False)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in actions:
        print(f"a peer that vanishes during {name:8}: noticed after {noticed.get(name, 'never')}")


def slow(device: Machine, folder: Path, cpu: int) -> None:
    """Print how much slower a device really becomes, by the share that is taken from it."""
    print(f"\n{'share taken':>12} {'median':>12} {'slower by':>10} {'in theory':>10}")
    connection = connect(device.target(timeouts=USUAL))
    first = 0.0
    for share in (0.0, 0.25, 0.5, 0.75):
        thief = hog.Hog(folder, cpu)
        thief.take(share)
        median = float(connection.call(f"{sys.executable} -", stdin=LOOP.encode()).out)
        thief.close()
        first = first or median
        print(f"{share:12.0%} {median:9.2f} ms {median / first:10.2f} {1 / (1 - share):10.2f}")
    connection.close()


def main() -> int:
    """Run all of it."""
    why = machine.missing() or hog.missing()
    if why:
        print(f"cannot be run here: {why}", file=sys.stderr)
        return 1
    cpu = max(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.perf_counter()
        with machines(folder / "devices", DEVICES, cpus=[cpu]) as devices:
            took = time.perf_counter() - began
            print(f"{DEVICES} devices started and listening in {took:.2f} s")
            link(devices[0], folder)
            print()
            vanish(devices[1:3], folder)
            slow(devices[3], folder, cpu)
    return 0


if __name__ == "__main__":
    sys.exit(main())
