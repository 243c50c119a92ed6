"""Many devices over SSH: a thousand real servers, a thousand open connections, a whole sweep.

    python -m benchmarks.fleet_ssh [servers] [open] [sweep]

Real OpenSSH servers, or fake devices in a process of their own, on this machine: they share its
cores with the client. The sweep's devices are fake: they answer at once what a device would, and
their benchmark takes two seconds in which nothing is computed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import engine.runner
from benchmarks.servers import dead, fake, real, row
from hdap_tui.fanout import on_each
from hdap_tui.ssh.connection import Connection
from hdap_tui.ssh.errors import DeviceError
from hdap_tui.ssh.limits import allow_connections
from hdap_tui.ssh.payload import Payload
from hdap_tui.ssh.pool import Connections
from hdap_tui.ssh.target import Target
from hdap_tui.sweep import Bench, Fleet

_DEAD_LIMIT_S = 8.0


def servers(arguments: argparse.Namespace) -> Iterator[str]:
    """Connect to each real server, run a command, close."""
    yield row("real servers", "connect, command, close, all", "failed", "client CPU each")
    yield row("---", "---", "---", "---")
    with real(arguments.servers) as targets:
        for bound in (32, 64):
            failed: Counter[str] = Counter()
            with Connections(bound) as pool:

                def once(connection: Connection, pool: Connections = pool) -> None:
                    connection.call("true")
                    pool.drop(connection.target)

                cpu, began = time.process_time(), time.perf_counter()
                for _, answer in on_each(pool, targets, once):
                    if isinstance(answer, DeviceError):
                        failed[str(answer)] += 1
                took = time.perf_counter() - began
                cpu = 1e3 * (time.process_time() - cpu) / len(targets)
            what = f"{len(targets)}, {bound} at once"
            yield row(what, f"{took:.1f} s", dict(failed) or "none", f"{cpu:.1f} ms")


def opened(
    pool: Connections, targets: Sequence[Target]
) -> Iterator[tuple[Target, Connection | DeviceError]]:
    """Open the connections to all, and keep them."""
    return on_each(pool, targets, lambda connection: connection)


def held_open(arguments: argparse.Namespace) -> Iterator[str]:
    """Keep many connections open and do nothing; then a command on each."""
    yield row("connections to fake servers", "memory each", "of a core, idle", "a command on each")
    yield row("---", "---", "---", "---")
    with fake(arguments.devices) as targets, Connections(64) as pool:
        allow_connections(len(targets))
        list(opened(pool, targets[:20]))  # what the first ones load is not theirs
        before = _memory()
        failed = [error for _, error in opened(pool, targets) if isinstance(error, DeviceError)]
        if failed:
            raise SystemExit(str(failed[0]))
        each = (_memory() - before) / (len(targets) - 20)
        time.sleep(2)
        cpu, began = time.process_time(), time.perf_counter()
        time.sleep(10)
        idle = (time.process_time() - cpu) / (time.perf_counter() - began)
        began = time.perf_counter()
        for _, answer in on_each(pool, targets, lambda connection: connection.call("true")):
            if isinstance(answer, DeviceError):
                raise SystemExit(str(answer))
        rate = len(targets) / (time.perf_counter() - began)
        yield row(len(targets), f"{each / 1e3:.0f} kB", f"{100 * idle:.1f} %", f"{rate:.0f}/s")


def _memory() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def sweep(arguments: argparse.Namespace) -> Iterator[str]:
    """Time a model on all fake devices at once, some of them dead."""
    yield row("sweep", "in all", "answers", "of the dead", "most threads, files, memory")
    yield row("---", "---", "---", "---", "---")
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.onnx"
        _write_model(model)
        bench = Bench(blocks_min=2, blocks_max=2, block_s=0.3, warmup_s=0.1, time_limit_s=60)
        results = _record(Path(folder), model, bench)
        with (
            fake(arguments.devices - arguments.dead, results, seconds=2.0) as alive,
            dead(alive[0], arguments.dead, _DEAD_LIMIT_S) as silent,
        ):
            for number, members in enumerate(([*alive, *silent], alive)):
                # The dead ones stand among the others, as they do in a fleet.
                members = sorted(members, key=lambda t: hashlib.sha1(t.name.encode()).digest())
                yield _sweep(members, model, bench, Path(folder) / f"slots-{number}")


def _sweep(members: list[Target], model: Path, bench: Bench, slots: Path) -> str:
    most = {"threads": 0, "files": 0, "memory": 0}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            most["threads"] = max(most["threads"], threading.active_count())
            most["files"] = max(most["files"], len(os.listdir("/proc/self/fd")))
            most["memory"] = max(most["memory"], _memory())

    before = _memory()
    watcher = threading.Thread(target=watch)
    watcher.start()
    answers: Counter[str] = Counter()
    dead_after = []
    with Fleet(members, bench, slots_folder=slots, pool=Connections(64)) as fleet:
        began = time.perf_counter()
        for latency in fleet.measure_many({target: [model] for target in members}):
            answers["measured" if latency.ok else latency.error] += 1
            if latency.device.startswith("dead"):
                dead_after.append(time.perf_counter() - began)
        took = time.perf_counter() - began
    over.set()
    watcher.join()
    silent = "none among them"
    if dead_after:
        silent = (
            f"given up after {statistics.median(dead_after):.1f} s, limit {_DEAD_LIMIT_S:.0f} s"
        )
    counts = ", ".join(f"{count} {what}" for what, count in sorted(answers.items()))
    extra = (most["memory"] - before) / 1e6
    return row(
        f"{len(members)} fake devices, 2 s each", f"{took:.1f} s", counts, silent,
        f"{most['threads']}, {most['files']}, {extra:.0f} MB",
    )  # fmt: skip


def _write_model(path: Path) -> None:
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 8]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    opset = [helper.make_opsetid("", 17)]
    path.write_bytes(
        helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    )


def _record(folder: Path, model: Path, bench: Bench) -> Path:
    """Let the real runner time the model here, once; return what it wrote."""
    payload = Payload.of(model)
    job = folder / "home" / "jobs" / "recorded"
    job.mkdir(parents=True)
    (folder / "home" / "models").mkdir()
    (folder / "home" / payload.name).write_bytes(model.read_bytes())
    (job / "request.json").write_text(json.dumps(bench.request([payload], block_s=1.0)))
    (job / "lease").touch()
    subprocess.run([sys.executable, engine.runner.__file__, str(job)], check=True)
    return job / "results.jsonl"


ALL: dict[str, Callable[[argparse.Namespace], Iterator[str]]] = {
    "servers": servers,
    "open": held_open,
    "sweep": sweep,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("which", nargs="*", choices=[*ALL, []], default=[])
    parser.add_argument("--servers", type=int, default=1024)
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--dead", type=int, default=20)
    arguments = parser.parse_args()
    which = arguments.which or list(ALL)
    if len(which) > 1:  # each in a process of its own: they look at its memory
        for name in which:
            sizes = [f"--{key}={getattr(arguments, key)}" for key in ("servers", "devices", "dead")]
            command = [sys.executable, "-m", "benchmarks.fleet_ssh", name, *sizes]
            subprocess.run(command, check=True)
        return
    for name in which:
        print(f"\n{name}\n", flush=True)
        for line in ALL[name](arguments):
            print(line, flush=True)


if __name__ == "__main__":
    main()
