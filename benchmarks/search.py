"""How fast candidates pass through the search, accuracy left out.

    python -m benchmarks.search [--network resnet20] [--optimisers ncs …]

Three clusters whose latencies are a formula with 1 % of noise; a candidate passes through an
optimiser, whole channels, its twins rounded up to 4, 8 and 16, features and one surrogate a
cluster, each learned from 150 designs. Seconds are the processor's.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from engine import models
from engine.compress.groups import trace
from engine.fleet.geometry import Geometry, measure_geometry
from engine.fleet.surrogates import KINDS, Surrogate
from engine.search import sampling
from engine.search.optimisers import KINDS as OPTIMISERS
from engine.search.optimisers import Kind, make
from engine.search.space import Space, Widths


def surrogates(geometry: Geometry, kind: str, designs: list[Widths]) -> list[Surrogate]:
    random = np.random.default_rng(0)
    fitted = []
    for compute, memory in ((1.0, 1.0), (1.6, 1.0), (1.0, 2.0)):
        macs, moved = geometry.macs(designs, 16).sum(1), geometry.traffic(designs).sum(1)
        clean = compute * macs / 1e8 + memory * moved / 4e7 + 0.05
        noise = np.exp(0.01 * random.standard_normal(len(clean)))
        fitted.append(Surrogate(geometry, kind, multiple=16).fit(designs, clean * noise))  # type: ignore[arg-type]
    return fitted


def candidates_a_second(
    space: Space, geometry: Geometry, fitted: list[Surrogate], kind: Kind, n: int
) -> float:
    start = np.zeros(len(space.now))
    search = make(kind, start, space.upper, n, 0, start, seed=0)  # as many at once as in a job
    begun = time.process_time()
    while not search.done:
        genes = search.ask()
        plain = space.widths(genes)
        ways = [*plain, *(w for step in space.steps for w in space.aligned(plain, step))]
        features = geometry.features(ways, fitted[0].multiple)
        latency = np.mean([s.predict_features(features) for s in fitted], axis=0)
        latency = latency.reshape(-1, len(plain)).min(axis=0)
        values = latency if search.objectives == 1 else np.stack([latency, genes.sum(1)], axis=1)
        search.tell(values)
    return search.evaluations / (time.process_time() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--evaluations", type=int, default=20_000)
    parser.add_argument("--samples", type=int, default=150)
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--optimisers", nargs="+", choices=OPTIMISERS, default=OPTIMISERS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    side = 224 if options.network == "resnet50" else 32
    model, example = models.build(options.network).eval(), torch.rand(1, 3, side, side)
    groups = trace(model, example)
    geometry = measure_geometry(model, groups, example)
    channels = tuple(group.channels for group in groups)
    space = Space(channels, channels, reach=0.5, steps=(4, 8, 16))
    designs = sampling.first(space, options.samples, np.random.default_rng(0), set(), wide=0.8)
    print("surrogate  error   rank   fit    candidates a second: " + "  ".join(options.optimisers))
    for kind in KINDS:
        begun = time.perf_counter()
        fitted = surrogates(geometry, kind, designs)
        seconds = (time.perf_counter() - begun) / len(fitted)
        error = fitted[0].report.error
        print(f"{kind:9}  {error.mape:4.1f} %  {error.spearman:.3f}  {seconds:4.1f} s", end="")
        for optimiser in options.optimisers:
            speed = candidates_a_second(space, geometry, fitted, optimiser, options.evaluations)
            print(f"  {speed:{len(optimiser)}.0f}", end="", flush=True)
        print()


if __name__ == "__main__":
    main()
