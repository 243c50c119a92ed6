"""The front of `benchmarks.front` beside those of other pruners, at the same fine-tuning budget.

    python -m benchmarks.front … --folder F          # first, once for each seed
    python -m benchmarks.front_peers --folder F

For every outer iteration of that search, each peer prunes its own network of the stage before to
the same multiply-accumulates, and fine-tunes it by the same recipe for as many epochs:

- L1 uniform: every dependency group keeps the same share of its channels, those of the largest
  L1 norm;
- torch-pruning: its own pruner, group L2 importance, one threshold over the whole network.

All networks are then compared in one interleaved run on the emulated fleet and on this machine.
Where accuracies differ, a peer's speed at the search's accuracy is read off the straight lines
between its points. Killed and started again, it goes on.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.designs import compare_files
from benchmarks.front import hdap, running_lab
from benchmarks.servers import row
from engine import data, models
from engine.compress.evaluate import accuracy
from engine.compress.export import export
from engine.compress.finetune import Recipe, finetune
from engine.compress.groups import importance, trace
from engine.compress.profile import macs
from engine.compress.prune import prune
from engine.data import Dataset
from engine.fleet.geometry import measure_geometry
from engine.search.scoring import at_widths

Pruned = Callable[[nn.Module, torch.Tensor, float], nn.Module]
"""Prunes a network to so many multiply-accumulates, given an example of its input."""
_STEPS = 12
"""Halvings of the interval in which the right share of channels lies."""


@dataclass(frozen=True)
class Point:
    """A network of a front."""

    file: Path
    accuracy: float
    macs: float


def l1_uniform(network: nn.Module, example: torch.Tensor, budget: float) -> nn.Module:
    """Prune every group alike."""
    groups = trace(network, example)
    geometry = measure_geometry(network, groups, example)
    channels = np.array([group.channels for group in groups])

    def widths(share: float) -> tuple[int, ...]:
        return tuple(int(w) for w in np.maximum(1, np.rint(channels * share)))

    share = _search(lambda kept: float(geometry.macs(widths(kept)).sum()), budget)
    return prune(network, groups, at_widths(importance(network, groups, 1), widths(share)))


def torch_pruning(network: nn.Module, example: torch.Tensor, budget: float) -> nn.Module:
    """Prune by torch-pruning, globally."""
    import torch_pruning as tp

    def pruned(share: float) -> nn.Module:
        smaller = copy.deepcopy(network)
        classifier = [m for m in smaller.modules() if isinstance(m, nn.Linear)][-1]
        pruner = tp.pruner.BasePruner(
            smaller, example, tp.importance.GroupMagnitudeImportance(p=2), global_pruning=True,
            pruning_ratio=1 - share, max_pruning_ratio=0.9, ignored_layers=[classifier],
        )  # fmt: skip
        pruner.step()
        return smaller.eval()

    return pruned(_search(lambda kept: float(macs(pruned(kept), example)), budget))


PEERS: dict[str, Pruned] = {"L1 uniform": l1_uniform, "torch-pruning": torch_pruning}


def _search(macs_at: Callable[[float], float], wanted: float) -> float:
    """Return the largest share of channels found that keeps within the multiply-accumulates."""
    low, high = 0.05, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if macs_at(middle) <= wanted else (low, middle)
    return low


def front(
    name: str,
    network: nn.Module,
    dataset: Dataset,
    recipe: Recipe,
    budgets: Sequence[float],
    folder: Path,
) -> list[Point]:
    """Prune and fine-tune step by step, or read what was kept."""
    example = torch.from_numpy(dataset.test_images[:2]).float() / 255
    points = []
    for number, budget in enumerate(budgets, 1):
        stem = folder / f"{name.lower().replace(' ', '-')}-{number}"
        network = PEERS[name](network, example, budget)
        weights = stem.with_suffix(".safetensors")
        if weights.exists():
            network.load_state_dict(load_file(weights))
        else:
            kept = stem.with_suffix(".checkpoint")
            finetune(network, dataset, recipe, checkpoint=kept)
            save_file({k: v.contiguous() for k, v in network.state_dict().items()}, weights)
            kept.unlink(missing_ok=True)
        network.eval()
        file = export(network, example, stem.with_suffix(".onnx")).path
        found = accuracy(network, dataset.test_images, dataset.test_labels)
        points.append(Point(file, found, macs(network, example)))
        print(f"{name}, stage {number}: {found:.2%}, {budget / 1e6:.1f} M", flush=True)
    return points


def at_accuracy(points: Sequence[tuple[float, float]], wanted: float) -> float | None:
    """Return the best speed of a front at an accuracy; None where it has no point that low.

    Args:
        points: accuracy and speed of each network, the unpruned one among them.
        wanted: the accuracy.
    """
    if wanted < min(found for found, _ in points):
        return None
    speeds = [speed for found, speed in points if found >= wanted]
    for (a, fast), (b, slow) in pairwise(points):
        if min(a, b) <= wanted <= max(a, b) and a != b:
            speeds.append(fast + (slow - fast) * (wanted - a) / (b - a))
    return max(speeds, default=None)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="of a finished benchmarks.front")
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
    options = parser.parse_args()
    folder: Path = options.folder
    kept = json.loads((folder / "front.json").read_text())
    dataset = data.load(kept["data"], kept["seed"])
    network = models.load(kept["network"], len(dataset.classes), kept["weights"])
    recipe = Recipe(**kept["recipe"])
    searched = [Point(Path(p["file"]), p["accuracy"], p["macs"]) for p in kept["points"]]
    original, ours = searched[0], searched[1:]
    fronts = {"HDAP": ours}
    for name in options.peers:
        budgets = [point.macs for point in ours]
        fronts[name] = front(name, copy.deepcopy(network), dataset, recipe, budgets, folder)
    every = [point for points in fronts.values() for point in points]
    files = [original.file, *(point.file for point in every)]
    with running_lab(folder, kept["devices"]) as fleet:
        compared = hdap(fleet, "bench", *map(str, files), "--compare", "--json")["fleet"]
    emulated = dict(zip(files[1:], (float(pair["speedup"]) for pair in compared), strict=True))
    example = torch.from_numpy(dataset.test_images[:1]).float() / 255
    here = dict(zip(files[1:], compare_files(files, example.numpy()), strict=True))
    _print(fronts, original, emulated, here)


def _print(
    fronts: dict[str, list[Point]],
    original: Point,
    emulated: dict[Path, float],
    here: dict[Path, float],
) -> None:
    print("\n" + row("pruner", "fewer MACs", "test accuracy", "fleet mean (emulated)", "here"))
    print(row(*["---"] * 5))
    print(row("none", "1", f"{original.accuracy:.2%}", "1", "1"))
    for name, points in fronts.items():
        for point in points:
            speeds = (f"{emulated[point.file]:.2f}x", f"{here[point.file]:.2f}x")
            fewer = f"{original.macs / point.macs:.2f}x"
            print(row(name, fewer, f"{point.accuracy:.2%}", *speeds))
    print("\n" + row("at the accuracy of HDAP's", "against", "faster (emulated)", "faster here"))
    print(row(*["---"] * 4))
    for point in fronts["HDAP"]:
        for name, points in fronts.items():
            if name != "HDAP":
                cells = [_faster(point, points, original, speed) for speed in (emulated, here)]
                print(row(f"{point.accuracy:.2%}", name, *cells))


def _faster(point: Point, others: Sequence[Point], original: Point, speed: Any) -> str:
    line = [(original.accuracy, 1.0), *((p.accuracy, speed[p.file]) for p in others)]
    other = at_accuracy(line, point.accuracy)
    return "-" if other is None else f"{speed[point.file] / other:.2f}x"


if __name__ == "__main__":
    main()
