"""Clusters and the fleet's mean: each figure beside its bar.

    python -m benchmarks.clusters [million] [small] [azure] [lasting] [mean]
    python -m benchmarks.clusters million --devices 200000

`million`: simulated devices on five probes, in five groups with 1 % of strays, clustered in a
process of its own whose memory is the most that it ever held, beside exact DBSCAN (package
`dbscan`) with the same parameters. `small`: fleets of 4 to 30 devices. `azure`: nominally identical
virtual machines (--data, TUNA, EuroSys 2025). `lasting`: devices that change their cluster though
nothing changed. `mean`: how often the interval of the fleet's mean holds it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "azure_vm_noise"
LEFT_OUT = ("Sysbench|CPU", "Matrix_Math", "Memset")
"""The measurements that the data's host kinds were told from."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("which", nargs="*", choices=[*ALL, []], default=[])
    parser.add_argument("--devices", type=int, default=1_000_000, help="of the large fleet")
    parser.add_argument("--seeds", type=int, default=100, help="fleets of each kind")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with short_westus2_*.npz")
    parser.add_argument("--child", nargs=2, metavar=("IN", "OUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return cluster_file(*map(Path, args.child))
    for name in args.which or list(ALL):
        print(f"\n{name}")
        ALL[name](args)
    return None


def row(what: str, figure: str, bar: str, ok: bool) -> None:
    print(f"  {what:<58} {figure:>14}   {bar:<18} {'ok' if ok else 'MISSED'}", flush=True)


def large_fleet(rng: np.random.Generator, devices: int) -> NDArray[np.float32]:
    """Return latencies (devices, 5) in ms: groups that lie 12 to 70 % apart, and 1 % anywhere."""
    offsets = np.log1p([0.0, 0.12, 0.25, 0.42, 0.70])
    profile = np.random.default_rng(0).uniform(0.4, 1.6, (5, 5))
    groups = rng.choice(5, devices, p=[0.55, 0.22, 0.12, 0.07, 0.04])
    logs = (offsets[:, None] * profile)[groups]
    logs += rng.normal(0, 0.015, (devices, 1)) + rng.normal(0, 0.01, (devices, 5))
    strays = rng.random(devices) < 0.01
    logs[strays] = rng.uniform(-0.1, 0.9, (int(strays.sum()), 5))
    latencies = np.array([20.0, 12.0, 3.0, 9.0, 7.0]) * np.exp(logs)
    return latencies.astype(np.float32)


def million(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        table, out = Path(folder) / "latencies.npy", Path(folder) / "found.npz"
        np.save(table, large_fleet(np.random.default_rng(1), args.devices))
        told, memory = _child("--child", str(table), str(out))
        with np.load(out) as found:
            points, labels = found["points"], found["labels"]
        print(
            f"  {args.devices} devices, {told['clusters']} clusters, noise {told['noise']:.1%}, "
            f"eps {told['eps']:.4f}, min_samples {told['min_samples']}"
        )
        row("cluster (the imports in it)", f"{told['wall_s']:.2f} s", "at most 2.5 s",
            told["wall_s"] <= 2.5)  # fmt: skip
        print(f"  {'processor time of that':<58} {told['cpu_s']:12.2f} s")
        row("memory of the whole process", f"{memory:.0f} MB", "at most 300 MB", memory <= 300)
        index = _exact(points, labels, told)
        row("ARI against exact DBSCAN", f"{index:.4f}", "at least 0.985", index >= 0.985)
        row("assign 100 000 new devices", f"{told['assign_s']:.2f} s", "at most 0.6 s",
            told["assign_s"] <= 0.6)  # fmt: skip
        _store(Path(folder), points)


def cluster_file(source: Path, out: Path) -> None:
    """Cluster a table: the process whose time and memory count."""
    latencies = np.load(source)
    wall, cpu = time.perf_counter(), time.process_time()
    from engine.fleet.clusters import cluster

    found = cluster(latencies)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    later = large_fleet(np.random.default_rng(2), 100_000)
    begin = time.perf_counter()
    found.places.assign(later)
    assign = time.perf_counter() - begin
    np.savez(out, points=found.features, labels=found.labels)
    print(
        json.dumps(
            {
                "wall_s": wall, "cpu_s": cpu, "assign_s": assign, "clusters": len(found.ids),
                "noise": float(np.mean(found.labels < 0)), "eps": found.eps,
                "min_samples": found.min_samples,
            }
        )
    )  # fmt: skip


def _exact(points: Array, labels: NDArray[np.int64], told: dict[str, Any]) -> float:
    """Return the agreement with exact DBSCAN, of which clusters below 1 % are noise as well."""
    from sklearn.metrics import adjusted_rand_score

    try:
        from dbscan import DBSCAN
    except ImportError:
        from sklearn.cluster import DBSCAN as Slow

        some = np.random.default_rng(3).choice(len(points), min(20_000, len(points)), replace=False)
        least = max(2, round(told["min_samples"] * len(some) / len(points)))
        print("  (package dbscan is not installed: scikit-learn on 20 000 of the devices)")
        exact = Slow(eps=told["eps"], min_samples=least).fit_predict(points[some])
        return float(adjusted_rand_score(_large(exact), labels[some]))
    begin = time.perf_counter()
    exact, _ = DBSCAN(np.ascontiguousarray(points, dtype=float), told["eps"], told["min_samples"])
    print(f"  {'exact DBSCAN took':<58} {time.perf_counter() - begin:12.2f} s")
    return float(adjusted_rand_score(_large(exact), labels))


def _large(labels: NDArray[Any]) -> NDArray[Any]:
    ids, member, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return np.where((counts >= 0.01 * len(labels)) & (ids >= 0), ids, -1)[member]


def _store(folder: Path, points: Array) -> None:
    from engine.fleet.membership import record_type
    from hdap_tui.store import memberships
    from hdap_tui.store.database import open_store

    store = open_store(folder / "fleet.db")
    ids = range(1, len(points) + 1)
    with store.write() as connection:
        connection.executemany(
            "INSERT INTO devices (id, name, position) VALUES (?, ?, ?)",
            ((one, f"edge-{one:07d}", one) for one in ids),
        )
    records = np.zeros(len(points), record_type(points.shape[1]))
    records["place"] = points
    wrote, wrote_cpu = _timed(lambda: memberships.write(store, ids, records))
    with store.read():
        read, read_cpu = _timed(lambda: memberships.read(store, records.dtype))
        _, again = memberships.read(store, records.dtype)
    assert np.array_equal(again, records)
    store.close()
    row("write a vector of each device", f"{wrote:.2f} s", "at most 4 s", wrote <= 4)
    row("read them all", f"{read:.2f} s", "at most 1 s", read <= 1)
    print(f"  {'processor time of these two':<58} {wrote_cpu:6.2f}, {read_cpu:.2f} s")


def _timed(action: Callable[[], Any]) -> tuple[float, float]:
    """Return the seconds that something takes, and those of the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - wall, time.process_time() - cpu


def small(args: argparse.Namespace) -> None:
    from benchmarks.small_fleets import fleet, score
    from engine.fleet.clusters import cluster

    means = []
    for groups in (1, 2, 3, 4):
        cell = []
        for models in (3, 4, 6):
            for seed in range(args.seeds):
                rng = np.random.default_rng([seed, groups, models])
                devices = int(rng.integers(max(4, 2 * groups), 31))
                latencies, truth = fleet(rng, devices, groups, models, 0.02, 0.08)
                cell.append(score(cluster(latencies).labels, truth))
        means.append(float(np.mean(cell)))
    print(f"  {3 * args.seeds} fleets of 4 to 30 devices a line, 2 % noise, 8 % or more apart")
    row("one group stays one cluster", f"{means[0]:.1%}", "at least 95 %", means[0] >= 0.95)
    for groups, mean in zip((2, 3, 4), means[1:], strict=True):
        row(f"{groups} groups: mean ARI", f"{mean:.3f}", "at least 0.9", mean >= 0.9)


def azure(args: argparse.Namespace) -> None:
    from sklearn.metrics import adjusted_rand_score

    from engine.fleet.clusters import cluster

    if not args.data.is_dir():
        print(f"  {args.data} is not there: name the folder with --data")
        return
    for kind in ("B8ms", "D8s_v5"):
        with np.load(args.data / f"short_westus2_{kind}.npz") as data:
            metrics = [str(name) for name in data["metrics"]]
            kept = [i for i, name in enumerate(metrics) if not any(o in name for o in LEFT_OUT)]
            values = data["values"][:, kept].astype(float)
            host = data["host_type"] if kind == "B8ms" else None
        found = cluster(np.where(values > 0, values, np.nan))
        noise = float(np.mean(found.labels < 0))
        sizes = [int(np.sum(found.labels == one)) for one in found.ids]
        print(f"  {kind}: {len(values)} machines, {len(kept)} measurements, clusters {sizes}")
        if host is not None:
            known = np.isin(host, (1, 2))
            index = float(adjusted_rand_score(host[known], found.labels[known]))
            row(
                "B8ms: ARI with the two kinds of host", f"{index:.3f}", "at least 0.9", index >= 0.9
            )
        else:
            row("D8s_v5: clusters", str(len(sizes)), "1", len(sizes) == 1)
            row("D8s_v5: noise", f"{noise:.1%}", "at most 5 %", noise <= 0.05)


def lasting(args: argparse.Namespace) -> None:
    """Rounds in which nothing changes but the noise."""
    from engine.fleet.clusters import cluster
    from engine.fleet.matching import match
    from engine.fleet.membership import Membership

    devices, rounds = 2000, 20
    for noise in (0.005, 0.01):
        rng = np.random.default_rng(5)
        level = large_fleet(rng, devices).astype(float)
        names = [f"d{i}" for i in range(devices)]

        def measured(
            rng: np.random.Generator = rng, level: Array = level, s: float = noise
        ) -> Array:
            return level * np.exp(rng.normal(0, s, level.shape))

        held = Membership.begin(names, measured(), noise)
        before, naive = held.labels, cluster(measured(), noise).labels
        flips = naive_flips = 0
        for _ in range(rounds):
            held.update(names, measured(), noise)
            flips += int(np.sum(held.labels != before))
            before = held.labels
            again = cluster(measured(), noise).labels
            ids = match(naive, again)
            again = np.array([ids.get(int(one), -1) for one in again])
            naive_flips += int(np.sum(again != naive))
            naive = again
        share, apart = flips / rounds / devices, naive_flips / rounds / devices
        print(f"  {devices} devices, {rounds} rounds, noise {noise:.1%}")
        print(f"  {'clustered anew each round, ids matched':<58} {apart:14.5f}")
        print(f"  {'held: moves a device and round though nothing changed':<58} {share:14.5f}")


def mean(args: argparse.Namespace) -> None:
    from engine.fleet.estimate import draw, estimate, plan, strata_of

    print(f"  {20 * args.seeds} samples a line, planned from an earlier round of all devices")
    for devices in (30, 300, 5000):
        for within in (1.0, 2.0):
            held, widths, counts = [], [], []
            for seed in range(20 * args.seeds):
                rng = np.random.default_rng([seed, devices])
                labels, level = _fleet_of_strata(rng, devices)
                everything = np.ones(devices, dtype=bool)
                earlier = level * np.exp(rng.normal(0, 0.005, devices))
                planned = plan(strata_of(earlier, labels, everything), within)
                rows = list(draw(labels, planned.allocation, rng))
                values = np.full(devices, np.nan)
                values[rows] = level[rows] * np.exp(rng.normal(0, 0.005, len(rows)))
                found = estimate(values, labels, repeatability=0.005)
                held.append(found.low_ms <= level.mean() <= found.high_ms)
                widths.append(found.within_percent)
                counts.append(len(rows))
            share = float(np.mean(held))
            print(
                f"  {devices} devices, asked ± {within:g} %: measured {np.mean(counts):.0f}, "
                f"came to ± {np.mean(widths):.2f} %"
            )
            row("the interval holds the fleet's mean", f"{share:.1%}", "93 to 97 %",
                0.93 <= share <= 0.97)  # fmt: skip


def _fleet_of_strata(rng: np.random.Generator, devices: int) -> tuple[NDArray[np.int64], Array]:
    """Return labels and latencies: three clusters 2 to 4 % wide, and 3 % of devices anywhere."""
    labels = rng.choice(4, devices, p=[0.03, 0.57, 0.25, 0.15]) - 1
    labels[:4] = [-1, 0, 1, 2]
    level = np.array([12.0, 10.0, 12.5, 16.0])[labels + 1]
    width = np.array([0.3, 0.02, 0.03, 0.04])[labels + 1]
    return labels, level * np.exp(rng.normal(0, 1, devices) * width)


ALL: dict[str, Callable[[argparse.Namespace], None]] = {
    "million": million,
    "small": small,
    "azure": azure,
    "lasting": lasting,
    "mean": mean,
}


def _child(*arguments: str) -> tuple[dict[str, Any], float]:
    """Run this module in a process of its own; return what it says, and the most MB it held."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.clusters", *arguments],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    told = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the process that clusters ended with status {status}")
    return json.loads(told), usage.ru_maxrss / 1e3 * 1.024


if __name__ == "__main__":
    main()
