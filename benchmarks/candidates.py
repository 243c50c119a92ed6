"""Building and scoring candidates: time, memory, throughput, and what bfloat16 does to them.

    python -m benchmarks.candidates --network resnet56
    python -m benchmarks.candidates --epochs     # seconds of an epoch of fine-tuning instead

Designs keep 60 to 100 % of each group. Throughput is in images a second and process; parts are
timed in turn, the best of several rounds counts, for other work on the machine only ever adds.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import torch
from scipy.stats import spearmanr
from torch import nn

from engine import data, models
from engine.compress.finetune import Recipe, finetune
from engine.compress.groups import faults, importance, trace
from engine.compress.prune import Pruner, prune
from engine.search.candidates import Accuracies
from engine.search.executors import opened
from engine.search.scoring import Scorer, at_widths

CIFAR = Path(__file__).parents[2] / "shared/data"


def network_and_data(options: argparse.Namespace) -> tuple[nn.Module, data.Dataset]:
    """CIFAR-10 with public weights where they are there, else digits with random weights."""
    weights = CIFAR / f"weights_cifar10/{options.network}_akamaster.safetensors"
    if weights.exists():
        model = models.load_weights(models.build(options.network), weights)
        return model.eval(), data.load(CIFAR / "cifar10")
    print("no CIFAR-10 beside the project: random weights, digits")
    return models.build(options.network).eval(), data.load("digits")


def best(parts: dict[str, Callable[[], object]], rounds: int = 3) -> dict[str, float]:
    """Return the least seconds of each part; they are run in turn."""
    found = dict.fromkeys(parts, np.inf)
    for name in [*parts, *list(parts) * rounds]:
        begun = time.perf_counter()
        parts[name]()
        found[name] = min(found[name], time.perf_counter() - begun)
    return found


def building(model: nn.Module, options: argparse.Namespace) -> None:
    example = torch.rand(2, 3, 32, 32)
    groups = trace(model, example)
    begun = time.perf_counter()
    wrong = faults(model, groups, example)
    print(f"guard: {len(groups)} groups in {time.perf_counter() - begun:.1f} s, wrong: {[*wrong]}")
    scores = importance(model, groups)
    designs = [at_widths(scores, widths) for widths in drawn(scores, 20, seed=1)]
    pruner = Pruner(model, groups)
    for name, build in (
        ("a copy from scratch", lambda design: prune(model, groups, design)),
        ("a copy", pruner.copy),
        ("in the search", pruner.reuse),
    ):
        times = [best({"": partial(build, design)}, 1)[""] for design in designs]
        print(f"building, {name}: median {1e3 * float(np.median(times)):.1f} ms")
    process, before = psutil.Process(), 0
    for number, widths in enumerate(drawn(scores, options.count, seed=2), 1):
        with torch.inference_mode(False), torch.no_grad():
            pruner.reuse(at_widths(scores, widths))(example[:1, :, :8, :8])
        if number in (100, options.count):
            resident = process.memory_info().rss / 1e6
            print(f"memory after {number} candidates: {resident:.1f} MB ({resident - before:+.1f})")
            before = resident


def drawn(scores: list[np.ndarray], count: int, seed: int) -> list[tuple[int, ...]]:
    random, full = np.random.default_rng(seed), np.array([len(score) for score in scores])
    kept = np.ceil(full * random.uniform(0.6, 1, (count, len(full)))).astype(int)
    return [tuple(int(w) for w in row) for row in kept]


def scoring(model: nn.Module, dataset: data.Dataset, options: argparse.Namespace) -> None:
    groups = trace(model, torch.rand(2, 3, 32, 32))
    scores = importance(model, groups)
    images, labels = (
        split[: options.images] for split in (dataset.train_images, dataset.train_labels)
    )
    ready = torch.from_numpy(images)
    widths = drawn(scores, 12, seed=3)
    plain_network = prune(model, groups, at_widths(scores, widths[0]))
    plain_network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def plain(bf16: bool) -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            for part in ready.split(96):
                plain_network(part.float() / 255)

    scorers = {
        bf16: Scorer(model, groups, scores, images, labels, bf16=bf16) for bf16 in (False, True)
    }
    seconds = best(
        {
            "inference, float32": lambda: plain(False),
            "a candidate, float32": lambda: scorers[False](widths[0]),
            "inference, bfloat16": lambda: plain(True),
            "a candidate, bfloat16": lambda: scorers[True](widths[0]),
        },
        options.rounds,
    )
    for name, value in seconds.items():
        print(f"{name}: {len(images) / value:.0f} images a second, one thread")
    for kind in ("float32", "bfloat16"):
        share = seconds[f"inference, {kind}"] / seconds[f"a candidate, {kind}"]
        print(f"a candidate has {share:.0%} of the throughput of plain inference in {kind}")
    exact, rough = (np.array([scorers[b](w) for w in widths]) for b in (False, True))
    apart = np.abs(exact - rough)
    print(
        f"accuracy of {len(widths)} candidates, {exact.min():.3f} to {exact.max():.3f}: bfloat16 "
        f"is {apart.mean():.4f} off on average, {apart.max():.4f} at most, "
        f"rank correlation {spearmanr(exact, rough).statistic:.3f}"
    )


def executors(model: nn.Module, dataset: data.Dataset, options: argparse.Namespace) -> None:
    groups = trace(model, torch.rand(2, 3, 32, 32))
    scores = importance(model, groups)
    images, labels = (
        split[: options.images] for split in (dataset.train_images, dataset.train_labels)
    )
    widths = drawn(scores, 2 * options.candidates, seed=4)
    warm, timed = widths[: options.candidates], widths[options.candidates :]
    results = []
    for kind in ("one by one", "processes", "threads"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "accuracies.jsonl"
            what = (model, groups, scores, images, labels, path, 1)
            if kind == "one by one":
                accuracies = Accuracies(*what)
                results.append(_rate(kind, accuracies, warm, timed))
            else:
                with opened(kind, 2) as executor:  # type: ignore[arg-type]
                    accuracies = Accuracies(*what, executor=executor)
                    results.append(_rate(f"2 {kind}", accuracies, warm, timed))
    print(f"the same accuracies everywhere: {all(r == results[0] for r in results)}")


def _rate(
    name: str, accuracies: Accuracies, warm: list[tuple[int, ...]], timed: list[tuple[int, ...]]
) -> list[float]:
    begun = time.perf_counter()
    accuracies(warm[:2])
    start = time.perf_counter() - begun
    begun = time.perf_counter()
    found = accuracies(timed)
    rate = len(timed) / (time.perf_counter() - begun)
    print(f"{name}: {rate:.2f} candidates a second; the first two took {start:.1f} s")
    return [float(value) for value in found]


def epochs(model: nn.Module, dataset: data.Dataset, options: argparse.Namespace) -> None:
    """Seconds of an epoch of 5000 images, alone and with a teacher."""
    few = dataclasses.replace(
        dataset,
        train_images=dataset.train_images[:5000],
        train_labels=dataset.train_labels[:5000],
        selection_images=dataset.selection_images[:64],
        selection_labels=dataset.selection_labels[:64],
    )
    for distill in (0.0, 0.5):
        for bf16 in (False, True):
            recipe = Recipe(
                epochs=1, batch=128, bf16=bf16, distill=distill, threads=options.threads
            )
            student = prune(model, (), at_widths((), ()))
            begun = time.perf_counter()
            finetune(student, few, recipe, teacher=model if distill else None)
            print(
                f"an epoch of {len(few.train_labels)} images, {'bfloat16' if bf16 else 'float32'}"
                f"{', distilled' if distill else ''}: {time.perf_counter() - begun:.1f} s"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="resnet56", help="a built-in network for CIFAR")
    parser.add_argument("--images", type=int, default=512, help="on which candidates are scored")
    parser.add_argument("--count", type=int, default=10_000, help="built to watch the memory")
    parser.add_argument("--candidates", type=int, default=10, help="scored by each executor")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of the fine-tuning")
    parser.add_argument("--epochs", action="store_true", help="time fine-tuning instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, dataset = network_and_data(options)
    if options.epochs:
        epochs(model, dataset, options)
        return
    building(model, options)
    scoring(model, dataset, options)
    executors(model, dataset, options)


if __name__ == "__main__":
    main()
