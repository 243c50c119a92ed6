"""False alerts and delays of the drift charts, and the changes found in annotated series.

    python -m benchmarks.drift hourly --seeds 101 102 103 104 105
    python -m benchmarks.drift update --seeds 101 102 103
    python -m benchmarks.drift tcpd azure --data ../shared/data
    python -m benchmarks.drift small --fleets 30 --baseline 8

Each prints its figures beside the bar they are held against. `hourly`: 5 000 devices, most of
which never change. `update`: 2 000 devices become 6 % slower, at once or within 72 hours. Both
run the real monitor on simulated rounds (`benchmarks.drift_fleets`); the seeds are no others than
those of the command line, and no limit was chosen by them. `tcpd`: F1 as in TCPDBench (van den
Burg and Williams, arXiv 2003.06222) beside the published default settings. `azure`: three machines
over 483 days (CC-BY-4.0; Freischuetz et al., EuroSys 2025). `small`: twelve devices.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections import Counter
from collections.abc import Collection, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.drift_fleets import Watched, hourly, update
from engine.fleet.drift import Change, DriftSettings, FleetMonitor, Monitor, Signal, detect
from engine.fleet.series import rounds_of, watch
from engine.fleet.tables import Series

Array = NDArray[np.float64]
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
CPU = ("Stress-NG|CPU_Stress", "Stress-NG|Matrix_Math", "Sysbench|CPU")


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


def show_small(args: argparse.Namespace) -> None:
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


def _hourly(case: tuple[int, float]) -> Watched:
    return hourly(*case)


def show_hourly(args: argparse.Namespace) -> None:
    for rho, bars in ((0.0, (12, 6, 4)), (0.3, (20, 10, 6))):
        with ProcessPoolExecutor(args.workers) as pool:
            found = list(pool.map(_hourly, [(seed, rho) for seed in args.seeds]))
        weeks = sum(one.weeks for one in found)
        print(
            f"5 000 devices hourly, correlation {rho:g} (learned as "
            f"{np.mean([one.rho for one in found]):.2f}), seeds {_listed(args.seeds)}: "
            f"h {np.mean([one.h for one in found]):.1f}, jump at "
            f"{np.mean([one.jump_z for one in found]):.1f} sigma"
        )
        false = [signal for one in found for signal in one.false]
        kinds = Counter(f"{signal.scope} {signal.kind}" for signal in false)
        figure(
            f"false alerts a week, {weeks:.1f} weeks ({_listed(kinds.items())})",
            len(false) / weeks, 1, "{:.2f}",
        )  # fmt: skip
        for bar, size in zip(bars, sorted(found[0].delays), strict=True):
            delays = [delay for one in found for delay in one.delays[size]]
            text = f"samples until a step of {size:.0%} is told, {len(delays)} steps"
            figure(f"{text}, mean (95 %: {_part(delays)})", np.mean(delays), bar)
        ramps = [100 * reached for one in found for reached in one.ramps]
        figure(
            f"slowed down by, when a ramp of 2 % in 100 is told, mean (95 %: {_part(ramps)})",
            np.mean(ramps), 4, "{:.2f} %",
        )  # fmt: skip


def show_update(args: argparse.Namespace) -> None:
    for staged, told in ((0, False), (0, True), (72, True), (72, False)):
        how = f"within {staged} hours" if staged else "at once"
        print(f"2 000 devices, +6 % {how}, versions {'known' if told else 'not known'}:")
        for seed in args.seeds:
            said, _ = update(seed, staged, told)
            wide = {(s.scope, s.subject, s.kind) for s in said if s.scope != "device"}
            first = min((s.round for s in said if s.scope != "device"), default=-1)
            figure(f"seed {seed}: alerts of fleet or cohort {sorted(wide)}", len(wide), 1)
            figure(f"seed {seed}: alerts of devices", sum(s.scope == "device" for s in said), 25)
            print(f"    seed {seed}: told {first - 150} rounds after the first device")


def show_azure(args: argparse.Namespace) -> None:
    with np.load(args.data / "azure_vm_noise" / "long_westus2_D8s_v5.npz") as data:
        years, alerts = 0.0, 0
        for number, name in enumerate(data["metrics"].tolist()):
            if not name.startswith(CPU):
                continue
            times, machines = data[f"t{number}"], data[f"vm{number}"]
            values = data[f"v{number}"]
            series = []
            for machine in np.unique(machines).tolist():
                own = np.flatnonzero(machines == machine)
                own = own[np.argsort(times[own], kind="stable")]
                iso = [str(np.datetime64(int(t), "s")) for t in times[own]]
                series.append(Series(f"vm{machine}", iso, values[own].tolist()))
                years += float(np.ptp(times[own])) / (365.25 * 86400)
            said, _ = watch(rounds_of(series))
            alerts += len(said)
            print(f"  {name}: {len(said)} alerts")
            for one in said:
                size = "" if one.size_percent is None else f" {one.size_percent:+.1f} %"
                print(f"    round {one.round}: {one.subject} {one.kind}{size}")
        figure(f"alerts a machine-year, {years:.1f} machine-years", alerts / years, 1, "{:.2f}")


def figure(text: str, value: float, bar: float, form: str = "{:.1f}") -> None:
    """Print a figure beside the most that it may be."""
    verdict = "met" if value <= bar else "MISSED"
    print(f"  {text}: {form.format(value)} (at most {bar:g}: {verdict})")


def _part(values: Collection[float]) -> str:
    ordered = sorted(values)
    return f"{ordered[math.ceil(0.95 * len(ordered)) - 1]:.3g}"


def _listed(items: Iterable[object]) -> str:
    return ", ".join(
        " ".join(map(str, item)) if isinstance(item, tuple) else str(item) for item in items
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


def show_tcpd(args: argparse.Namespace) -> None:
    folder = args.data / "tcpd"
    annotations = json.loads((folder / "annotations.json").read_text())
    names = ("zero", "binseg", "pelt", "amoc", "bocpd")
    rows, alarms = [], 0
    print(f"{'series':20} {'here':>6} " + " ".join(f"{name:>6}" for name in names))
    for published in csv.DictReader((folder / "published_scores.csv").read_text().splitlines()):
        name = published["series"]
        whole = json.loads((folder / "series" / f"{name}.json").read_text())
        found = [c.onset_index for c in detect(whole["series"][0]["raw"])]
        alarms += len(found) if name == "quality_control_5" else 0
        row = [
            f1(list(annotations[name].values()), found),
            *(float(published[f"def_f1_{other}"]) for other in names),
        ]
        rows.append(row)
        print(f"{name:20} " + " ".join(f"{value:6.3f}" for value in row))
    means = np.mean(rows, axis=0)
    print(f"{'mean':20} " + " ".join(f"{value:6.3f}" for value in means))
    better = "met" if means[0] > max(means[1:3]) else "MISSED"
    print(f"  F1 above predicting nothing and BINSEG: {better}")
    figure("alarms on quality_control_5", alarms, 0, "{:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", choices=sorted(ALL), default=["hourly", "update"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[101, 102, 103])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--fleets", type=int, default=30)
    parser.add_argument("--baseline", type=int, default=8)
    args = parser.parse_args()
    for name in args.what:
        ALL[name](args)


ALL = {
    "azure": show_azure,
    "hourly": show_hourly,
    "small": show_small,
    "tcpd": show_tcpd,
    "update": show_update,
}


if __name__ == "__main__":
    main()
