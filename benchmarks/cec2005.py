"""Optimisers on seven functions of CEC2005, beside the published errors of NCS-C and its peers.

    python -m benchmarks.cec2005 --functions 12 --runs 5 --optimisers ncs phc ncs-authors cma

D = 30; the error is the best value found (every optimum is 0). Published: mean of 25 runs at
300 000 evaluations, Tang, Yang, Yao, arXiv 1504.04914. The shifts and rotations (Suganthan et
al., 2005) come as an .npz file; see `--data`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.search.optimisers import KINDS, Kind, make

Array = NDArray[np.float64]
DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "cec2005" / "cec2005_d30.npz"
DIMENSIONS = 30


@dataclass(frozen=True)
class Published:
    """Mean errors of the paper; the standard deviation where it gives one."""

    phc: str
    ncs: str
    cma: str
    sade: str


PUBLISHED = {
    6: Published("2.61e+01", "2.08e+01 ± 3.61e+00", "0", "4.76e+01"),
    8: Published("2.00e+01", "2.00e+01 ± 1.2e-02", "2.03e+01", "2.09e+01"),
    9: Published("1.07e+02", "9.36e+01 ± 1.38e+01", "4.12e+02", "1.99e-01"),
    10: Published("9.64e+01", "9.03e+01 ± 1.79e+01", "4.97e+01", "5.08e+01"),
    12: Published("7.53e+03", "1.57e+03 ± 1.52e+03", "1.28e+04", "3.11e+03"),
    13: Published("4.32e+00", "4.54e+00 ± 8.0e-01", "3.35e+00", "3.72e+00"),
    14: Published("1.34e+01", "1.24e+01 ± 3.3e-01", "1.47e+01", "1.26e+01"),
}

POPULATION: dict[Kind, int] = {"cma": 14, "de": 100}
"""CMA-ES's and pymoo's defaults for 30 dimensions; 10 for the others."""

BOX = {
    6: (-100.0, 100.0),
    8: (-32.0, 32.0),
    9: (-5.0, 5.0),
    10: (-5.0, 5.0),
    12: (-np.pi, np.pi),
    13: (-3.0, 1.0),
    14: (-100.0, 100.0),
}


def functions(data: Mapping[str, Array]) -> dict[int, Callable[[Array], Array]]:
    """Return the functions by number; each takes points (n, 30) and returns errors (n,)."""
    alpha = data["f12_alpha"]
    sine, cosine = data["f12_a"].T.copy(), data["f12_b"].T.copy()
    wanted = np.sin(alpha) @ sine + np.cos(alpha) @ cosine
    return {
        6: lambda x: _rosenbrock(x - data["f6_shift"] + 1),
        8: lambda x: _ackley((x - data["f8_shift"]) @ data["f8_rotation"]),
        9: lambda x: _rastrigin(x - data["f9_shift"]),
        10: lambda x: _rastrigin((x - data["f9_shift"]) @ data["f10_rotation"]),
        12: lambda x: np.square(wanted - np.sin(x) @ sine - np.cos(x) @ cosine).sum(axis=1),
        13: lambda x: _f8f2(x - data["f13_shift"] + 1),
        14: lambda x: _scaffer((x - data["f14_shift"]) @ data["f14_rotation"]),
    }


def _rosenbrock(z: Array) -> Array:
    a, b = z[:, :-1], z[:, 1:]
    return np.asarray((100 * (a * a - b) ** 2 + (a - 1) ** 2).sum(axis=1))


def _ackley(z: Array) -> Array:
    root = np.sqrt(np.square(z).mean(axis=1))
    waves = np.cos(2 * np.pi * z).mean(axis=1)
    return np.asarray(20 - 20 * np.exp(-0.2 * root) - np.exp(waves) + np.e)


def _rastrigin(z: Array) -> Array:
    return np.asarray((z * z - 10 * np.cos(2 * np.pi * z) + 10).sum(axis=1))


def _f8f2(z: Array) -> Array:
    following = np.roll(z, -1, axis=1)
    y = 100 * (z * z - following) ** 2 + (1 - z) ** 2
    return np.asarray((y * y / 4000 - np.cos(y) + 1).sum(axis=1))


def _scaffer(z: Array) -> Array:
    square = z * z + np.roll(z, -1, axis=1) ** 2
    return np.asarray(
        (0.5 + (np.sin(np.sqrt(square)) ** 2 - 0.5) / (1 + 0.001 * square) ** 2).sum(axis=1)
    )


SINGLE = tuple(kind for kind in KINDS if kind != "nsga2")
"""The optimisers of one objective."""


def error(kind: Kind, function: int, evaluations: int, seed: int, path: Path) -> float:
    """Run one search and return the best value that it found."""
    with np.load(path) as archive:
        evaluate = functions({name: archive[name] for name in archive.files})[function]
    low, high = (np.full(DIMENSIONS, end) for end in BOX[function])
    search = make(kind, low, high, evaluations, POPULATION.get(kind, 10), seed=seed)
    while not search.done:
        search.tell(evaluate(search.ask()))
    return search.best_value


def _task(arguments: tuple[Kind, int, int, int, Path]) -> float:
    return error(*arguments)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--functions", type=int, nargs="+", choices=sorted(BOX), default=[12])
    parser.add_argument("--optimisers", nargs="+", choices=SINGLE, default=["ncs", "phc"])
    parser.add_argument("--runs", type=int, default=5, help="seeds 0 .. runs - 1")
    parser.add_argument("--evaluations", type=int, default=300_000)
    parser.add_argument("--workers", type=int, choices=(1, 2), default=2)
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args()
    if not options.data.exists():
        parser.error(f"{options.data}: no such file; give the functions' constants with --data")
    begun = time.perf_counter()
    print(f"mean ± sd over {options.runs} runs of {options.evaluations} evaluations (median)")
    print(f"{'F':4}{'optimiser':13}{'here':34}published")
    with ProcessPoolExecutor(options.workers) as pool:
        for function in options.functions:
            for kind in options.optimisers:
                tasks = [
                    (kind, function, options.evaluations, seed, options.data)
                    for seed in range(options.runs)
                ]
                row = np.array(list(pool.map(_task, tasks)))
                spread = row.std(ddof=1) if len(row) > 1 else 0
                here = f"{row.mean():.3g} ± {spread:.3g} ({np.median(row):.3g})"
                paper = getattr(PUBLISHED[function], kind, "")
                print(f"{function:<4}{kind:13}{here:34}{paper}", flush=True)
            print(f"{function:<4}{'sade':13}{'':34}{PUBLISHED[function].sade}", flush=True)
    print(f"{time.perf_counter() - begun:.0f} s in all, {options.workers} processes")


if __name__ == "__main__":
    main()
