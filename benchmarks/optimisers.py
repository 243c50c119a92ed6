"""Optimisers on the real pruning problem, at equal evaluations.

    python -m benchmarks.optimisers --network resnet20 --weights W.safetensors [--seconds 170]

A candidate's accuracy is that of the really pruned network on training images of CIFAR-10 (batch
norms by those images, nothing is fine-tuned); its latency relative to the unpruned network comes
from a surrogate of designs measured here with ONNX Runtime. An accuracy is estimated once for all
optimisers and kept, and so is every finished run: killed or out of time (status 75) the same
command goes on. The table counts the seeds that every optimiser has finished; JSON lies beside it.

`--emulate 7000` fits a small network to the first 7000 accuracies that are kept and searches on
that, which takes seconds: a stand-in, good for choosing settings, and no measurement.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.neural_network import MLPRegressor

from benchmarks.designs import CACHE, Designs, OutOfTimeError
from engine import data, models
from engine.compress.groups import importance, trace
from engine.fleet.surrogates import Surrogate
from engine.search import sampling
from engine.search.candidates import Accuracies
from engine.search.objective import Fitness
from engine.search.optimisers import KINDS, POPULATION, Kind, make
from engine.search.space import Space, Widths

Array = NDArray[np.float64]
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"

FOLDS = KFold(4, shuffle=True, random_state=0)
STEPS: dict[Kind, dict[str, Any]] = {
    "ncs": {"sigma": 0.3, "r": 0.9, "epoch": 5},
    "ncs-authors": {"sigma": 0.1, "r": 0.95, "epoch": 5},
    "phc": {"sigma": 0.3, "r": 0.9, "epoch": 5},
    "cma": {"sigma": 0.3},
}
SETTINGS: dict[Kind, dict[str, Any]] = {
    kind: {"population": POPULATION[kind], **STEPS.get(kind, {})} for kind in KINDS
}
"""How each is run, chosen on other seeds than those reported; the authors' variant keeps HDAP's own
values. Sigma is a share of the range."""


class Problem:
    """Genes of one outer iteration's box, and what they are worth.

    Args:
        options: the command's options.
        end: when to stop, on the monotonic clock.
    """

    def __init__(self, options: argparse.Namespace, end: float) -> None:
        network = models.load(options.network, 10, options.weights)
        self._end = end
        self._autocast = options.bf16
        groups = trace(network, torch.rand(1, 3, 32, 32))
        channels = tuple(group.channels for group in groups)
        self.space = Space(channels, channels, options.reach, options.multiple)
        self._surrogate = self._learn(options)
        images, labels = _subset(options)
        kind = f"{options.network}-{options.images}{'-bf16' if options.bf16 else ''}"
        path = options.folder / f"{kind}-accuracies.jsonl"
        self._emulator = Emulator(path, channels, options) if options.emulate else None
        self._accuracies = Accuracies(
            network,
            groups,
            importance(network, groups),
            images,
            labels,
            path,
            1,
            mixed=options.bf16,
        )
        self._fitness = Fitness(options.alpha, options.penalty)
        self._whole = float(self._surrogate.predict([channels])[0])
        self._reference = float(self._accuracy([channels])[0])

    def _learn(self, options: argparse.Namespace) -> Surrogate:
        """Measure designs, and fit the latencies."""
        designs = Designs(options.network, options.folder, self._end - time.monotonic())
        random = np.random.default_rng(0)
        chosen = [self.space.now]
        chosen += sampling.first(
            self.space, options.samples, random, {self.space.now}, wide=self.space.reach
        )
        surrogate = Surrogate(designs.geometry).fit(chosen, designs.ratios(chosen))
        error = surrogate.report.error
        print(
            f"{len(chosen)} designs measured: latency by {surrogate.report.kind}, cross-validated "
            f"error {error.mape:.1f} %, rank correlation {error.spearman:.3f}",
            file=sys.stderr,
        )
        return surrogate

    def __call__(self, genes: Array) -> tuple[list[Widths], Array, Array]:
        """Return widths, latency and accuracy kept of points (n, d), relative to the unpruned.

        Raises:
            OutOfTimeError: there was no time left.
        """
        if time.monotonic() > self._end:
            raise OutOfTimeError("what is done is kept; the same command goes on")
        widths = self.space.widths(genes)
        return widths, self._surrogate.predict(widths) / self._whole, self._kept(widths)

    def value(self, latency: Array, kept: Array) -> Array:
        """Return the fitness (n,)."""
        return self._fitness(latency, kept)

    def _kept(self, widths: Sequence[Widths]) -> Array:
        return self._accuracy(widths) / self._reference

    def _accuracy(self, widths: Sequence[Widths]) -> Array:
        if self._emulator is not None:
            return self._emulator(widths)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._autocast):
            return self._accuracies(widths)


class Emulator:
    """Accuracies by a small network fitted to those really estimated.

    What it misses there is put back, as noise that belongs to the design.
    """

    def __init__(self, path: Path, channels: Widths, options: argparse.Namespace) -> None:
        rows = [json.loads(line) for line in path.read_text().splitlines()[: options.emulate]]
        self._channels, self._images = np.array(channels), options.images
        x = np.array([row["widths"] for row in rows]) / self._channels
        y = np.array([row["accuracy"] for row in rows])
        self._fitted = [self._network(seed).fit(x, y) for seed in range(2)]
        near = y > 0.8 * y.max()
        missed = (y - cross_val_predict(self._network(0), x, y, cv=FOLDS))[near]
        self._noise = float(missed.std())
        self._known: dict[Widths, float] = {channels: float(rows[0]["accuracy"])}

    @staticmethod
    def _network(seed: int) -> MLPRegressor:
        return MLPRegressor(
            hidden_layer_sizes=(48, 48), alpha=1e-3, learning_rate_init=3e-3, early_stopping=True,
            n_iter_no_change=25, max_iter=400, random_state=seed,
        )  # fmt: skip

    def __call__(self, designs: Sequence[Widths]) -> Array:
        new = [widths for widths in dict.fromkeys(designs) if widths not in self._known]
        if new:
            x = np.array(new) / self._channels
            smooth = np.mean([fitted.predict(x) for fitted in self._fitted], axis=0)
            for widths, value in zip(new, smooth, strict=True):
                noise = self._noise * np.random.default_rng(widths).standard_normal()
                right = np.clip(np.rint((value + noise) * self._images), 0, self._images)
                self._known[widths] = float(right / self._images)
        return np.array([self._known[widths] for widths in designs])


def _subset(options: argparse.Namespace) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Training images; kept, for reading all of them takes longer than scoring many candidates."""
    path = options.folder / f"images-{options.images}.npz"
    if not path.exists():
        dataset = data.load(options.data)
        chosen = np.random.default_rng([0, 2]).permutation(len(dataset.train_labels))
        chosen = chosen[: options.images]
        images, labels = dataset.train_images[chosen], dataset.train_labels[chosen]
        np.savez(path, images=images, labels=labels)
    with np.load(path) as file:
        return file["images"], file["labels"]


@dataclass(frozen=True)
class Run:
    """What one optimiser found from one seed."""

    kind: Kind
    seed: int
    value: float
    """The best fitness."""
    latency: float
    kept: float
    widths: Widths
    hypervolume: float
    """Area that its front of latency and lost accuracy dominates, up to 1 of either."""
    distinct: int
    """How many different candidates it looked at."""


def search(problem: Problem, kind: Kind, seed: int, evaluations: int) -> Run:
    """Run one optimiser; its first population holds the unpruned network.

    Raises:
        OutOfTimeError: there was no time left.
    """
    upper = problem.space.upper
    settings = SETTINGS[kind]
    optimiser = make(
        kind, np.zeros(len(upper)), upper, evaluations, start=np.zeros(len(upper)),
        seed=seed, **settings,
    )  # fmt: skip
    seen: dict[Widths, tuple[float, float, float]] = {}
    while not optimiser.done:
        widths, latency, kept = problem(optimiser.ask())
        values = problem.value(latency, kept)
        both = np.stack([latency, 1 - kept], axis=1)
        optimiser.tell(values if optimiser.objectives == 1 else both)
        seen.update(zip(widths, zip(values, latency, kept, strict=True), strict=True))
    best = min(seen, key=lambda w: (seen[w][0], w))
    value, fastest, share = (float(v) for v in seen[best])
    points = np.array([(latency, 1 - kept) for _, latency, kept in seen.values()])
    return Run(kind, seed, value, fastest, share, best, hypervolume(points), len(seen))


def hypervolume(points: Array) -> float:
    """Return the area that points (n, 2) dominate within the unit square; both are minimised."""
    area, least = 0.0, 1.0
    for x, y in points[np.lexsort((points[:, 1], points[:, 0]))]:
        if x < 1 and y < least:
            area += (1 - x) * (least - max(y, 0.0))
            least = max(y, 0.0)
    return float(area)


def table(runs: Sequence[Run], kinds: Sequence[Kind], out: Path) -> None:
    """Print what the seeds say that all optimisers have finished, and write it as JSON."""
    by = {(run.kind, run.seed): run for run in runs}
    seeds = sorted({run.seed for run in runs if all((k, run.seed) in by for k in kinds)})
    if not seeds:
        print("no seed is finished by all optimisers yet")
        return
    values = np.array([[by[k, s].value for s in seeds] for k in kinds])
    ranks = stats.rankdata(values, axis=0).mean(axis=1)
    order = sorted(range(len(kinds)), key=lambda i: (ranks[i], np.median(values[i])))
    first = values[order[0]]
    print(f"{len(seeds)} seeds; p: Wilcoxon's signed ranks against the first")
    print("optimiser    median   quartiles       mean   rank  p      kept  hypervolume  distinct")
    rows = []
    for i in order:
        own = [by[kinds[i], s] for s in seeds]
        low, median, high = np.percentile(values[i], (25, 50, 75))
        same = np.allclose(values[i], first)
        p = 1.0 if same else float(stats.wilcoxon(values[i], first).pvalue)
        row = {
            "optimiser": kinds[i], "seeds": len(seeds), "median": median, "quartiles": [low, high],
            "mean": float(values[i].mean()), "rank": float(ranks[i]), "p": p,
            "kept": float(np.median([r.kept for r in own])),
            "hypervolume": float(np.median([r.hypervolume for r in own])),
            "distinct": float(np.median([r.distinct for r in own])),
        }  # fmt: skip
        rows.append(row)
        print(
            f"{kinds[i]:12} {median:.4f}  {low:.4f} {high:.4f}  {row['mean']:.4f}  "
            f"{ranks[i]:4.2f}  {p:.3f}  {row['kept']:.2f}  {row['hypervolume']:11.4f}  "
            f"{row['distinct']:8.0f}"
        )
    out.write_text(json.dumps({"table": rows, "runs": [vars(run) for run in runs]}, indent=1))
    print(f"written to {out}")


def main() -> int:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--weights", default="", help="default: the public ones of the network")
    parser.add_argument("--data", type=Path, default=SHARED / "cifar10")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--evaluations", type=int, default=1000)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--samples", type=int, default=80, help="designs measured")
    parser.add_argument("--reach", type=float, default=0.5, help="largest share to prune")
    parser.add_argument("--multiple", type=int, default=4, help="kept channels are multiples of it")
    parser.add_argument("--alpha", type=float, default=0.9)
    parser.add_argument("--penalty", choices=("replace", "add"), default="replace")
    parser.add_argument("--optimisers", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--bf16", action="store_true", help="score in bfloat16")
    parser.add_argument("--emulate", type=int, default=0, help="accuracies to learn from")
    parser.add_argument("--folder", type=Path, default=CACHE / "optimisers")
    parser.add_argument("--seconds", type=float, default=1e9, help="how long to go on")
    options = parser.parse_args()
    if not options.weights:
        options.weights = SHARED / "weights_cifar10" / f"{options.network}_akamaster.safetensors"
    options.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    name = "-".join(
        str(getattr(options, key))
        for key in ("network", "images", "evaluations", "reach", "multiple", "alpha", "penalty")
    )
    name += "-bf16" if options.bf16 else ""
    name += f"-emulated-{options.emulate}" if options.emulate else ""
    path = options.folder / f"{name}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    # A run counts only for the settings that it was made with.
    rows = [row for row in rows if row["settings"] == SETTINGS[row["kind"]]]
    runs = [Run(**{**row["run"], "widths": tuple(row["run"]["widths"])}) for row in rows]
    have = {(run.kind, run.seed) for run in runs}
    status = 0
    try:
        problem: Problem | None = None
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            for kind in options.optimisers:
                if (kind, seed) in have:
                    continue
                if problem is None:
                    problem = Problem(options, time.monotonic() + options.seconds)
                runs.append(search(problem, kind, seed, options.evaluations))
                row = {"kind": kind, "settings": SETTINGS[kind], "run": vars(runs[-1])}
                with path.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    except OutOfTimeError as error:
        print(error, file=sys.stderr)
        status = 75
    wanted = range(options.first_seed, options.first_seed + options.seeds)
    table([r for r in runs if r.seed in wanted], options.optimisers, path.with_suffix(".json"))
    return status


if __name__ == "__main__":
    sys.exit(main())
