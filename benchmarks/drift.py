"""False alerts and delays of the drift charts, and the changes found in annotated series.

    python -m benchmarks.drift fleet --fleets 30 --baseline 8
    python -m benchmarks.drift series --devices 500 --samples 1000
    python -m benchmarks.drift tcpd

`fleet`: twelve devices watched round by round, flat and with a step on some. `series`: single
devices with the noise pooled over a fleet, 2 % of the samples slow outliers. `tcpd`: F1 as in
TCPDBench (van den Burg and Williams, arXiv 2003.06222) beside the published default settings.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.fleet.drift import Change, DriftSettings, FleetMonitor, Monitor, Signal, detect

Array = NDArray[np.float64]
TCPD = Path(__file__).resolve().parents[2] / "shared" / "data" / "tcpd"


def watch_fleet(
    seed: int,
    noise: float,
    baseline: int,
    rounds: int,
    slow: Collection[int] = (),
    at: int = 0,
    size: float = 0.25,
    common: float = 0.0,
) -> list[Signal]:
    """Return what is said about twelve devices in three clusters."""
    rng = np.random.default_rng(seed)
    monitor = FleetMonitor(DriftSettings(baseline=baseline))
    level, clusters = rng.uniform(3, 30, 12), {f"d{i}": i // 4 for i in range(12)}
    said: list[Signal] = []
    for count in range(rounds):
        latencies = level * np.exp(rng.normal(0, noise, 12) + rng.normal(0, common))
        if count >= at:
            latencies[list(slow)] *= 1 + size
        said += monitor.update({f"d{i}": float(v) for i, v in enumerate(latencies)}, clusters)[0]
    return said


def fleet(args: argparse.Namespace) -> None:
    print(f"12 devices, baseline {args.baseline} rounds; {args.fleets} fleets a line")
    for noise in (0.015, 0.02, 0.025):
        for common in (0.0, 0.02):
            false = sum(
                len(watch_fleet(seed, noise, args.baseline, 200, common=common))
                for seed in range(args.fleets)
            )
            print(
                f"noise {noise:.1%}, common {common:.0%}: {false} false alerts in 200 flat rounds"
            )
        for slow in ((0,), (0, 1, 2), (0, 1, 2, 3)):
            delays, others = [], 0
            for seed in range(args.fleets):
                at = args.baseline + 10
                said = watch_fleet(seed, noise, args.baseline, at + 12, slow, at)
                names = {f"d{i}" for i in slow}
                first = {s.subject: s.round - at + 1 for s in reversed(said)}
                delays += [first.get(name, math.inf) for name in names]
                others += len(first.keys() - names)
            print(
                f"noise {noise:.1%}, 25 % step on {len(slow)}: rounds to the alert "
                f"mean {np.mean(delays):.2f}, 95 % {np.quantile(delays, 0.95):.0f}, "
                f"most {max(delays):.0f}; false {others}"
            )


def noisy(rng: np.random.Generator, samples: int) -> Array:
    """Return noise of 2.5 % with 2 % of slow outliers."""
    values = rng.normal(0, 0.025, samples)
    slow = rng.random(samples) < 0.02
    values[slow] += rng.exponential(0.15, int(slow.sum()))
    return values


def first_change(values: Array, settings: DriftSettings) -> Change | None:
    monitor = Monitor(settings)
    for value in values:
        told = monitor.update(float(value), sigma=0.025)
        if isinstance(told, Change):
            return told
    return None


def series(args: argparse.Namespace) -> None:
    for baseline in (60, 30, 8):
        settings = DriftSettings(baseline=baseline)
        flat = [
            first_change(noisy(np.random.default_rng(seed), args.samples), settings)
            for seed in range(args.devices)
        ]
        share = sum(c is not None for c in flat) / (args.devices * args.samples / 1000)
        print(f"baseline {baseline}: {share:.4f} false alerts in 1000 samples")
        for size in (0.05, 0.1, 0.2):
            delays, onsets = [], []
            for seed in range(min(args.devices, 200)):
                at = baseline + 20
                values = noisy(np.random.default_rng(seed), at + 400)
                values[at:] += math.log1p(size)
                change = first_change(values, settings)
                if change is not None and change.index >= at:
                    delays.append(change.index - at + 1)
                    onsets.append(abs(change.onset_index - at))
            print(
                f"  step {size:.0%}: delay mean {np.mean(delays):.1f}, "
                f"95 % {np.quantile(delays, 0.95):.0f}, found {len(delays)}, "
                f"onset off by {np.median(onsets):.0f} in the median"
            )


def matched(truth: Collection[int], found: Collection[int], margin: int = 5) -> int:
    """Count the true changes that have a found one of their own within the margin."""
    left, hits = set(found), 0
    for change in sorted(truth):
        near = sorted((abs(change - f), f) for f in left if abs(change - f) <= margin)
        if near:
            left.remove(near[0][1])
            hits += 1
    return hits


def f1(annotations: Collection[Collection[int]], found: Collection[int]) -> float:
    """Return F1 as TCPDBench counts: 0 always is a change, recall is a mean over annotators."""
    truths, predicted = [{0, *a} for a in annotations], {0, *found}
    precision = matched(set().union(*truths), predicted) / len(predicted)
    recall = float(np.mean([matched(truth, predicted) / len(truth) for truth in truths]))
    return 2 * precision * recall / (precision + recall)


def tcpd(args: argparse.Namespace) -> None:
    annotations = json.loads((args.data / "annotations.json").read_text())
    names = ("zero", "binseg", "pelt", "amoc", "bocpd")
    rows = []
    print(f"{'series':20} {'here':>6} " + " ".join(f"{name:>6}" for name in names))
    for published in csv.DictReader((args.data / "published_scores.csv").read_text().splitlines()):
        name = published["series"]
        whole = json.loads((args.data / "series" / f"{name}.json").read_text())
        found = [c.onset_index for c in detect(whole["series"][0]["raw"])]
        row = [
            f1(list(annotations[name].values()), found),
            *(float(published[f"def_f1_{other}"]) for other in names),
        ]
        rows.append(row)
        print(f"{name:20} " + " ".join(f"{value:6.3f}" for value in row))
    print(f"{'mean':20} " + " ".join(f"{value:6.3f}" for value in np.mean(rows, axis=0)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("fleet")
    one.add_argument("--fleets", type=int, default=30)
    one.add_argument("--baseline", type=int, default=8)
    one.set_defaults(run=fleet)
    two = commands.add_parser("series")
    two.add_argument("--devices", type=int, default=500)
    two.add_argument("--samples", type=int, default=1000)
    two.set_defaults(run=series)
    three = commands.add_parser("tcpd")
    three.add_argument("--data", type=Path, default=TCPD)
    three.set_defaults(run=tcpd)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
