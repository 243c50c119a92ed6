"""Ten million measurements in the store: how fast it is read, written and rolled up.

    python -m benchmarks.store [--devices 5000] [--rounds 2000] [--folder /tmp/hdap-store] [--keep]

The fleet is made up: a canary round an hour, 5 000 devices, 2 000 rounds. The rows are those that
`store.measurements.add` writes, put there in bulk, a day at a time; that both ways end in the same
tables is checked first, on a small fleet. Bars: one device's last 24 hours in at most 1 ms, the
fleet's latest latencies in at most 50 ms, and no writer that starves.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import random
import shutil
import statistics
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from engine.latency import Latency
from hdap_tui.config import Device
from hdap_tui.store import devices, measurements, models, past, retention
from hdap_tui.store.database import Store, open_store
from hdap_tui.store.values import to_micros

MODEL = "ab" * 32
START = datetime(2026, 1, 1, tzinfo=UTC)
_START = to_micros(START.isoformat())
DAY = 24
FEW = 400
"""Devices that are measured while others read."""
CONDITIONS = {
    "boot_id": "0d3b7c1e-6f0e-4f4c-9a44-1a2b3c4d5e6f", "runner": "d3d46deb055a",
    "kernel": "6.6.31-v8+", "onnxruntime": "1.22.0", "governor": "ondemand", "load": 0.21,
    "free_memory_mb": 2210, "temperature_c": 52.1, "throttled": 0,
}  # fmt: skip


def median_of(device: int, number: int) -> float:
    """Return what a device takes in a round, in ms: a level of its own, and noise."""
    noise = (device * 7919 + number * 104_729) % 1000 / 1000
    return round((4.0 + device % 7) * (0.98 + 0.04 * noise), 6)


def fails(device: int, number: int) -> bool:
    """Say whether a device does not answer in a round, as one in a hundred."""
    return (device * 31 + number * 17) % 100 == 0


def latency(device: int, number: int) -> Latency:
    """Return one measurement of a device in a round."""
    median, failed = median_of(device, number), fails(device, number)
    at = START + timedelta(hours=number, milliseconds=device)
    return Latency(
        device=f"dev-{device:05d}", model=MODEL, median_ms=float("nan") if failed else median,
        low_ms=0.99 * median, high_ms=1.01 * median, p90_ms=1.02 * median, p95_ms=1.04 * median,
        mean_ms=median, cpu_ms=median, n=40, block_medians_ms=(median,), contended=0.0,
        at=at.isoformat(timespec="milliseconds"), error="timeout" if failed else "",
        conditions=CONDITIONS, clock_offset_s=0.02,
    )  # fmt: skip


_TEMPLATE = measurements._rest(
    replace(
        latency(0, 1), p90_ms=1.25, p95_ms=2.25, mean_ms=3.25, cpu_ms=3.25, block_medians_ms=(3.25,)
    )
).replace("%", "%%")
for _number in ("1.25", "2.25", "3.25"):
    _TEMPLATE = _TEMPLATE.replace(
        _number, {"1.25": "%(p90)r", "2.25": "%(p95)r"}.get(_number, "%(median)r")
    )


def empty(path: Path, count: int) -> Store:
    """Return a new store with devices and a model that they all run."""
    store = open_store(path)
    devices.sync(
        store,
        [
            Device(name=f"dev-{i:05d}", host="h", port=22, user="u", identity=None, tags=(),
                   emulated=True, host_group="", python="python3")
            for i in range(count)
        ],
    )  # fmt: skip
    models.add(store, name="m", digest=MODEL, path="/m", kind="model", size=1)
    with store.write() as connection:
        connection.execute("UPDATE devices SET model_id = 1")
        connection.execute("UPDATE OR REPLACE device_log SET at = 0")
    return store


def rounds(store: Store, numbers: Sequence[int]) -> None:
    """Open and finish rounds with the times that they would have had."""
    with store.write() as connection:
        connection.executemany(
            "INSERT INTO sweeps (id, kind, started_at, finished_at) VALUES (?, 'canary', ?, ?)",
            [
                (
                    number + 1,
                    (START + timedelta(hours=number)).isoformat(timespec="milliseconds"),
                    (START + timedelta(hours=number, minutes=5)).isoformat(timespec="milliseconds"),
                )
                for number in numbers
            ],
        )


def bulk(store: Store, count: int, numbers: Sequence[int]) -> None:
    """Write some rounds of all devices as `measurements.add` would have done one by one."""
    recent = {
        row["device_id"]: array("f", row["recent"])
        for row in store.rows("SELECT device_id, recent FROM device_latest")
    }
    samples, details, latest = [], [], []
    for device in range(count):
        values, newest = recent.get(device + 1, array("f")), None
        for number in numbers:
            median, failed = median_of(device, number), fails(device, number)
            at = _START + number * 3_600_000_000 + device * 1000
            low, high = 0.99 * median, 1.01 * median
            samples.append((device + 1, 1, at, number + 1, None if failed else median, low, high,
                            0.0, "timeout" if failed else "", ""))  # fmt: skip
            rest = {"median": median, "p90": 1.02 * median, "p95": 1.04 * median}
            details.append((device + 1, 1, at, _TEMPLATE % rest))
            if not failed:
                values.append(median)
                newest = (at, median, low, high)
        if newest is not None:
            last = values[-measurements.RECENT :].tobytes()
            latest.append((device + 1, 1, *newest, 0.0, last))
    with store.write() as connection:
        insert = connection.executemany
        insert("INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", samples)
        insert("INSERT INTO sample_details VALUES (?, ?, ?, ?)", details)
        insert("INSERT OR REPLACE INTO device_latest VALUES (?, ?, ?, ?, ?, ?, ?, ?)", latest)


def prove_equal(folder: Path) -> None:
    """Check that the bulk path ends in the same tables as the product's own."""
    stores = [empty(folder / name / "fleet.db", 20) for name in ("one", "bulk")]
    for store in stores:
        rounds(store, range(60))
    for number, device in itertools.product(range(60), range(20)):
        measurements.add(stores[0], number + 1, latency(device, number))
    for start in range(0, 60, DAY):
        bulk(stores[1], 20, range(start, min(start + DAY, 60)))
    for table in ("samples", "sample_details", "device_latest", "sweeps"):
        first, second = ([tuple(r) for r in s.rows(f"SELECT * FROM {table}")] for s in stores)
        assert first == second, table
    for store in stores:
        store.close()


def build(path: Path, count: int, total: int) -> Store:
    store = empty(path, count)
    store.connection.execute("PRAGMA cache_size = -2000000")
    began = time.perf_counter()
    rounds(store, range(total))
    for start in range(0, total, DAY):
        bulk(store, count, range(start, min(start + DAY, total)))
    rows = count * total
    size = path.stat().st_size / 1e9
    line("built", f"{rows / (time.perf_counter() - began):,.0f} rows/s, {size:.2f} GB")
    store.close()
    return open_store(path)


def timed(work: Callable[[int], Any], times: int) -> tuple[float, float]:
    """Return the median and the 95th percentile of a call, in milliseconds."""
    took = []
    for number in range(times):
        began = time.perf_counter()
        work(number)
        took.append(1e3 * (time.perf_counter() - began))
    return statistics.median(took), sorted(took)[int(0.95 * (times - 1))]


def line(what: str, value: str) -> None:
    print(f"| {what} | {value} |", flush=True)


def read(store: Store, count: int, total: int) -> None:
    """Time the questions that screens and commands ask."""
    rng = random.Random(5)
    names = [f"dev-{rng.randrange(count):05d}" for _ in range(300)]
    ends = [to_micros((START + timedelta(hours=rng.randrange(total))).isoformat()) for _ in names]
    for what, work, times in (
        ("one device, last 24 h", lambda i: measurements.history(store, names[i], limit=24), 300),
        ("one device, the 24 h before any moment",
         lambda i: measurements.history(store, names[i], limit=24, until=ends[i]), 300),
        ("one device, 2 000 points",
         lambda i: measurements.history(store, names[i], limit=2000), 20),
        ("the fleet's latest latencies", lambda _: measurements.matrix(store, [MODEL]), 20),
        ("the fleet table, read anew",
         lambda _: (devices._row.cache_clear(), devices.rows(store)), 20),
        ("the fleet table, nothing changed", lambda _: devices.rows(store), 20),
        ("the fleet at any moment (--at)", lambda i: past.snapshot(store, "f", ends[i]), 10),
        ("the moments of all rounds", lambda _: past.rounds(store), 10),
    ):  # fmt: skip
        middle, high = timed(work, times)
        line(what, f"{middle:.2f} ms (95 %: {high:.2f} ms)")


def plans(store: Store) -> None:
    """Print how SQLite answers the two questions with a bar."""
    for name, sql in (
        ("history", "SELECT * FROM samples LEFT JOIN sample_details USING (device_id, model_id, at)"
         " WHERE device_id = 1 AND model_id = 1 ORDER BY at DESC LIMIT 24"),
        ("latest", "SELECT d.name, s.median_ms FROM device_latest s"
         " JOIN models m ON m.id = s.model_id"
         f" JOIN devices d ON d.id = s.device_id WHERE m.digest IN ('{MODEL}')"),
    ):  # fmt: skip
        for row in store.rows(f"EXPLAIN QUERY PLAN {sql}"):
            print(f"    {name}: {row['detail']}")


def _read_on(path: Path, until: float, told: Any) -> None:
    store, rng, done = open_store(path), random.Random(1), 0
    while time.time() < until:
        measurements.history(store, f"dev-{rng.randrange(FEW):05d}", limit=24)
        measurements.matrix(store, [MODEL])
        done += 1
    told.put(done)
    store.close()


def _roll_up(path: Path, until: float, told: Any) -> None:
    store = open_store(path)
    done = 0
    cut = retention.cuts(store, 30, 365)
    for step in retention.compact(store, cut, lambda: time.time() >= until):
        done += step.measurements
    told.put(done)
    store.close()


def write_among(
    store: Store, seconds: float, others: Sequence[Callable[..., None]], number: int
) -> str:
    """Write one by one while other processes read or roll up; return how that went."""
    told: Any = multiprocessing.Queue()
    until = time.time() + seconds
    processes = [
        multiprocessing.Process(target=work, args=(store.path, until, told)) for work in others
    ]
    for process in processes:
        process.start()
    waits, sweep = [], measurements.begin(store, "canary")
    for device in itertools.count():
        if time.time() >= until:
            break
        one = latency(device % FEW, number + device // FEW)
        began = time.perf_counter()
        measurements.add(store, sweep, one)
        waits.append(time.perf_counter() - began)
        time.sleep(0.001)
    done = [told.get() for _ in processes]
    for process in processes:
        process.join()
    longest, middle = 1e3 * max(waits), 1e3 * statistics.median(waits)
    return (
        f"{len(waits)} writes, {middle:.2f} ms each, the longest {longest:.0f} ms"
        f" (the others did {', '.join(map(str, done)) or 'nothing'})"
    )


def roll_up(store: Store, days: int, seconds: float) -> Iterator[str]:
    """Roll up, for so long at most; yield how fast, the longest step, and what the file became."""
    began, before = time.perf_counter(), store.path.stat().st_size
    done = pages = 0
    longest = 0.0
    cut = retention.cuts(store, days, 365)
    cpu, end = time.process_time(), time.monotonic() + seconds
    for step in retention.compact(store, cut, lambda: time.monotonic() >= end):
        done, longest, pages = (
            done + step.measurements,
            max(longest, step.seconds),
            pages + step.pages,
        )
    took = time.perf_counter() - began
    yield f"{done:,} rows in {took:.0f} s ({done / took:,.0f}/s, pauses included)"
    cpu = time.process_time() - cpu
    yield f"{done / cpu:,.0f} rows a second of processor time"
    yield f"{1e3 * longest:.0f} ms"
    after = store.path.stat().st_size
    yield f"{before / 1e9:.2f} GB before, {after / 1e9:.2f} GB after"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/hdap-store"))
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--roll-up", type=float, default=120.0, help="seconds at most")
    parser.add_argument("--keep", action="store_true", help="leave the database there")
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    try:
        prove_equal(options.folder)
        print(
            f"{options.devices} devices, {options.rounds} rounds\n\n| what | measured |\n|---|---|"
        )
        path = options.folder / "big" / "fleet.db"
        store = build(path, options.devices, options.rounds)
        plans(store)
        read(store, options.devices, options.rounds)
        number = options.rounds
        line("writing alone", write_among(store, options.seconds, [], number))
        line("among 3 readers", write_among(store, options.seconds, [_read_on] * 3, number + 100))
        rolling = [_read_on, _read_on, _roll_up]
        line("beside the roll-up", write_among(store, options.seconds, rolling, number + 200))
        for what, said in zip(
            ("roll-up", "roll-up, processor", "its longest step", "file"),
            roll_up(store, 30, options.roll_up),
            strict=True,
        ):
            line(what, said)
        print("\nafter the roll-up\n")
        read(store, options.devices, options.rounds)
        store.close()
    finally:
        if not options.keep:
            shutil.rmtree(options.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
