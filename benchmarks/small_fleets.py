"""How well clusters are found in simulated small fleets: adjusted Rand index against the truth.

    python -m benchmarks.small_fleets --seeds 100

A device's latency is its compute, memory and overhead share times the factors of its group, times
log-normal noise. Every two groups lie `--gap` per cent apart or little more (root mean square
over the models); sizes are random, at least two. For one group the table gives the share of
fleets that stay one cluster without noise. "none" is inferred from the data.
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray

from engine.fleet.clusters import cluster

Array = NDArray[np.float64]

SHARES = np.array(
    [
        [0.85, 0.10, 0.05],
        [0.10, 0.85, 0.05],
        [0.10, 0.10, 0.80],
        [0.55, 0.30, 0.15],
        [0.30, 0.60, 0.10],
        [0.30, 0.30, 0.40],
    ]
)
"""Compute, memory and overhead of each model: three probes, then mixtures."""
MILLISECONDS = np.array([20.0, 12.0, 3.0, 9.0, 7.0, 5.0])


def profiles(rng: np.random.Generator, groups: int, models: int, gap: float) -> Array:
    """Return log-latencies (groups, models) against the first group, neighbours just apart."""
    found = [np.zeros(models)]
    while len(found) < groups:
        factors = rng.uniform(-0.3, 0.3, 3) * (rng.random(3) < 0.6)
        candidate = SHARES[:models] @ factors
        nearest = min(float(np.sqrt(np.mean((candidate - p) ** 2))) for p in found)
        if np.log1p(gap) <= nearest <= np.log1p(gap) + 0.02:
            found.append(candidate)
    return np.array(found)


def fleet(
    rng: np.random.Generator, devices: int, groups: int, models: int, noise: float, gap: float
) -> tuple[Array, NDArray[np.int64]]:
    """Return latencies (devices, models) in ms, and each device's group."""
    labels = np.concatenate(
        [np.repeat(np.arange(groups), 2), rng.integers(0, groups, devices - 2 * groups)]
    )
    rng.shuffle(labels)
    logs = profiles(rng, groups, models, gap)[labels] + rng.normal(0, noise, (devices, models))
    return MILLISECONDS[:models] * np.exp(logs), labels


def score(labels: NDArray[np.int64], truth: NDArray[np.int64]) -> float:
    """Return the adjusted Rand index; for one group, whether it stayed one."""
    from sklearn.metrics import adjusted_rand_score

    if len(np.unique(truth)) == 1:
        return float(np.all(labels == 0))
    return float(adjusted_rand_score(truth, labels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=100, help="fleets a cell")
    parser.add_argument("--gap", type=float, default=8.0, help="per cent between groups")
    parser.add_argument("--noise", type=float, nargs="+", default=[1.0, 2.0], help="per cent")
    parser.add_argument("--models", type=int, nargs="+", default=[3, 4, 6])
    parser.add_argument("--devices", type=int, nargs=2, default=[4, 29], help="least and most")
    args = parser.parse_args()
    if args.seeds < 1 or not 2 <= args.devices[0] <= args.devices[1]:
        parser.error("--seeds must be at least 1, --devices two ascending numbers from 2")
    if not all(1 <= models <= len(SHARES) for models in args.models):
        parser.error(f"--models must be 1 to {len(SHARES)}")
    print(
        f"{'models':>6} {'noise %':>7} {'repeatability':>13}  1 group  2 groups  3 groups  4 groups"
    )
    for models in args.models:
        for noise in args.noise:
            for known in (None, noise / 100):
                means = []
                for groups in (1, 2, 3, 4):
                    cell = []
                    for seed in range(args.seeds):
                        rng = np.random.default_rng([seed, groups])
                        least = max(args.devices[0], 2 * groups)
                        devices = int(rng.integers(least, max(args.devices[1], least) + 1))
                        latencies, truth = fleet(
                            rng, devices, groups, models, noise / 100, args.gap / 100
                        )
                        cell.append(score(cluster(latencies, known).labels, truth))
                    means.append(float(np.mean(cell)))
                name = "none" if known is None else f"{noise:g} %"
                row = "  ".join(f"{mean:8.3f}" for mean in means)
                print(f"{models:6d} {noise:7g} {name:>13} {row}", flush=True)


if __name__ == "__main__":
    main()
