"""Structured sparsity by training (DHSPG, HESSO) beside L1 pruning with fine-tuning.

    python -m benchmarks.sparsity --data ../shared/data/cifar10 \\
        --weights ../shared/data/weights_cifar10/resnet20_akamaster.safetensors

Half of the channels go, and everybody trains for as many epochs by the same recipe: L1 removes the
half of every group that has the smallest sum of absolute weights and then trains, the others train
first dense and then sparse. Which groups they take the channels from is up to them, so that the
multiply-accumulates differ and stand beside. Killed and started again, it goes on.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from benchmarks.servers import row
from engine import data, models
from engine.accelerator import processors
from engine.compress.designs import choose
from engine.compress.evaluate import accuracy, reestimate_batch_norm
from engine.compress.finetune import finetune
from engine.compress.groups import importance
from engine.compress.profile import macs
from engine.compress.prunable import prunable
from engine.compress.prune import prune
from engine.compress.recipe import Recipe
from engine.compress.sparsify import Sparsity, sparsify
from engine.data import Dataset

Method = Callable[[nn.Module, Path], nn.Module]
"""Prunes and trains a network, with a file for its checkpoints."""
DROP = 1.5
"""Percentage points below the unpruned network that DHSPG may end at most."""


class Study:
    """One network, pruned by each method to the same share of its channels."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.dataset: Dataset = data.load(options.data)
        self.network = models.load(options.network, 10, options.weights).eval()
        self.example = torch.from_numpy(self.dataset.test_images[:2]).float() / 255
        self.groups = prunable(self.network, self.example).groups
        self.kept, self.folder = options.kept, options.folder
        self.recipe = Recipe(
            epochs=options.epochs, lr=options.lr, batch=128, bf16=True, threads=processors(),
            distill=options.distill,
        )  # fmt: skip

    def l1(self, network: nn.Module, checkpoint: Path) -> nn.Module:
        """Prune every group by its L1 norms, then train."""
        scores = importance(network, self.groups, 1)
        design = choose(self.groups, [1 - self.kept] * len(self.groups), scores)
        pruned = prune(network, self.groups, design)
        reestimate_batch_norm(pruned, self.dataset.train_images[:512])
        finetune(pruned, self.dataset, self.recipe, teacher=self.teacher, checkpoint=checkpoint)
        return pruned

    def sparse(self, method: str) -> Method:
        """Return what trains to sparsity, and then removes the channels that are zero."""

        def train(network: nn.Module, checkpoint: Path) -> nn.Module:
            sparsity = Sparsity(method=method, kept=self.kept)  # type: ignore[arg-type]
            found = sparsify(
                network, self.groups, self.dataset, self.recipe, sparsity,
                teacher=self.teacher, checkpoint=checkpoint,
            )  # fmt: skip
            return prune(network, self.groups, found.design)

        return train

    @property
    def teacher(self) -> nn.Module | None:
        """The unpruned network, where it is imitated."""
        return self.network if self.recipe.distill else None

    def measured(
        self, name: str, make: Callable[[nn.Module, Path], nn.Module]
    ) -> tuple[float, int]:
        """Return a method's test accuracy and multiply-accumulates, as found before or by now."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            made = make(copy.deepcopy(self.network), self.folder / f"{name}.safetensors")
            found = accuracy(made, self.dataset.test_images, self.dataset.test_labels)
            path.write_text(json.dumps([found, macs(made, self.example)]))
        kept: tuple[float, int] = tuple(json.loads(path.read_text()))
        return kept


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/hdap-sparsity"))
    parser.add_argument("--kept", type=float, default=0.5, help="share of the channels")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--distill", type=float, default=0.0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(processors())
    study = Study(options)
    whole = accuracy(study.network, study.dataset.test_images, study.dataset.test_labels)
    unpruned = macs(study.network, study.example)
    print(f"{options.network}, {options.kept:.0%} of the channels, {options.epochs} epochs\n")
    print(row("method", "test accuracy", "against unpruned", "fewer MACs"))
    print(row(*["---"] * 4))
    print(row("none", f"{whole:.2%}", "", "1"))
    methods = {"L1": study.l1, "DHSPG": study.sparse("dhspg"), "HESSO": study.sparse("hesso")}
    found = {}
    for name, make in methods.items():
        found[name], cost = study.measured(name, make)
        change = f"{100 * (found[name] - whole):+.2f} points"
        print(row(name, f"{found[name]:.2%}", change, f"{unpruned / cost:.2f}x"), flush=True)
    good = found["DHSPG"] >= whole - DROP / 100 and found["DHSPG"] > found["L1"]
    print(f"\nDHSPG within {DROP} points and better than L1: {'yes' if good else 'no'}")


if __name__ == "__main__":
    main()
