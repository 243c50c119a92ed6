"""How fast pruned networks train: as they are, and widened to the processor's blocks.

    python -m benchmarks.training [--network resnet56] [--threads 2] [--float32]

Networks that keep about two thirds of each group's channels, on multiples of 16, 8, 4 and on none,
with random weights and images of noise: speed sees neither. Milliseconds of an image, forwards,
backwards and the optimiser's step, in batches of 128; the least of several turns, in turn with the
others, since other work on the machine only ever adds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.servers import row
from engine import accelerator, models
from engine.compress.designs import Design
from engine.compress.groups import importance, trace
from engine.compress.padding import Padded, pad
from engine.compress.prune import prune
from engine.compress.recipe import Recipe
from engine.compress.updates import Update
from engine.search.scoring import at_widths

BATCH, BATCHES = 128, 2
SHARE = 0.66


def learner(network: nn.Module, padded: Padded | None, bf16: bool) -> Callable[[], None]:
    """Return what trains a network for some batches."""
    network = network.train().requires_grad_(True)
    images, labels = torch.rand(BATCH, 3, 32, 32), torch.randint(0, 10, (BATCH,))
    if bf16:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = images.to(memory_format=torch.channels_last)
    update = Update(padded.zeros if padded else ())
    update.begin(network, Recipe(lr=1e-4), BATCHES)

    def learn() -> None:
        for at in range(BATCHES):
            with accelerator.mixed(torch.device("cpu"), bf16):
                logits = network(images)
            update.optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
            update.step(at, 1e-4)

    return learn


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", default="resnet56")
    parser.add_argument("--threads", type=int, default=accelerator.processors())
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--float32", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    network = models.build(options.network).eval()
    groups = trace(network, torch.rand(2, 3, 32, 32))
    scores = importance(network, groups)
    bf16 = not options.float32
    ways = {"unpruned": learner(models.build(options.network), None, bf16)}
    for step in (16, 8, 4, 1):
        design = _near(scores, [group.channels for group in groups], step)
        pruned = prune(network, groups, design)
        padded = pad(pruned, network, groups, design, 16)
        name = f"multiples of {step}" if step > 1 else "odd widths"
        ways[name] = learner(pruned, None, bf16)
        ways[f"{name}, widened"] = learner(padded.network, padded, bf16)
    times: dict[str, list[float]] = {}
    for _ in range(options.turns):
        for name, learn in ways.items():
            began = time.perf_counter()
            learn()
            times.setdefault(name, []).append(1e3 * (time.perf_counter() - began))
    print(row(options.network, "ms an image", "by the unpruned"))
    print(row("---", "---", "---"))
    least = {name: min(each) / (BATCH * BATCHES) for name, each in times.items()}
    for name, ms in least.items():
        print(row(name, f"{ms:.2f}", f"{ms / least['unpruned']:.2f}"))


def _near(scores: list[np.ndarray], channels: list[int], step: int) -> Design:
    """Return the design that keeps about that share of each group."""
    wanted = [SHARE * width for width in channels]
    widths = [max(step, round(width / step) * step) for width in wanted]
    if step == 1:
        widths = [width + (width % 2 == 0) for width in widths]
    return at_widths(scores, tuple(min(w, c) for w, c in zip(widths, channels, strict=True)))


if __name__ == "__main__":
    main()
