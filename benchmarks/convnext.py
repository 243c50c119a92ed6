"""ConvNeXt on CIFAR-10: the table of arXiv 2409.02134, row by row, for both layouts of its block.

    python -m engine.models.train --network convnext-pico-cifar --threads 2 \\
        --data ../shared/data/cifar10 --out convnext.safetensors
    python -m benchmarks.convnext --data ../shared/data/cifar10 --weights convnext.safetensors \\
        [--networks convnext-pico-cifar convnext-pico-timm-cifar] [--sparsifier hesso] \\
        [--epochs 10] [--sparse-epochs 20] [--folder DIR] [--seconds 500]

*Edge AI: Evaluation of Model Compression Techniques for Convolutional Neural Networks* prunes and
quantizes torchvision's and timm's ConvNeXt Small, and finds 89.7 % less size with no loss of
accuracy where Only Train Once (OTO) and dynamic quantization come together. Here: half of each
layer's single weights to zero, the smallest (L1) or any (random; which share the document took, its
summary does not say); OTO by DHSPG or HESSO, trained on from the same weights; weights of linear
layers in int8, and their activations quantized as they come. Each as it is and fine-tuned by one
recipe, the original too, which shows what mere training brings. "Epochs" are those since the
original.

Both layouts have the same groups: the hidden channels of each block, which lie between its two
linear layers. All others stay whole, since a layer norm reads them. Of convnext-pico-cifar's 4.73 M
parameters 4.52 M are the weights of these layers. int8 makes the file 71 % smaller; what stays in
float, mostly the convolutions that halve the image, is 5 % of it. So 21 % of the hidden channels
may stay (`--kept`), even if they are all in the widest blocks.

Sizes are those of the ONNX files, accuracies those of all test images, latencies processor time of
ONNX Runtime on one thread, interleaved (`benchmarks.designs`); parameters, multiply-accumulates
(MACs) and non-zeros of a quantized network are those of the one it was made from. What was trained
is kept in the folder: killed, or out of time (status 75), it goes on when it is started again.
`--seconds` ends training; what is then made of it takes minutes more.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.convnext_study import Row, Study
from benchmarks.designs import CACHE, compare_files, in_pieces
from benchmarks.servers import row
from engine import accelerator, data, models
from engine.compress.presets import PRESETS, isa
from engine.runner import make_session

GOAL = 0.897
"""By how much OTO and quantization together are to be smaller."""
NETWORKS = ("convnext-pico-cifar", "convnext-pico-timm-cifar")
SETTINGS = ("data", "epochs", "sparse_epochs", "lr", "sparse_lr", "kept", "batch", "seed")
"""Options that a folder's networks depend on."""


def table(rows: Sequence[Row], times: Sequence[float], milliseconds: float) -> str:
    """Return the table as Markdown.

    Args:
        rows: the models, the original first.
        times: by how much each is faster than it.
        milliseconds: what it takes.
    """
    heads = (
        "method", "fine-tuned", "epochs", "accuracy", "bytes", "smaller", "gzip", "parameters",
        "MACs", "non-zeros", "ms", "times faster",
    )  # fmt: skip
    lines = [row(*heads), row(*("---" for _ in heads))]
    for one, faster in zip(rows, times, strict=True):
        sizes = one.profile
        assert sizes.macs is not None
        lines.append(
            row(
                one.title, "yes" if one.tuned else "no", one.epochs, f"{one.accuracy:.2%}",
                sizes.bytes, f"{one.smaller(rows[0]):.1%}", sizes.compressed_bytes,
                sizes.parameters, f"{sizes.macs / 1e6:.1f} M", sizes.nonzeros,
                f"{milliseconds / faster:.2f}", f"{faster:.2f}",
            )
        )  # fmt: skip
    return "\n".join(lines)


def goal(rows: Sequence[Row]) -> list[str]:
    """Tell, for OTO and quantization together, whether the document's goal was met."""
    original, longer = rows[0], rows[1]
    lines = []
    for one in rows:
        if not one.quantized or one.method == "original":
            continue
        less, more = one.smaller(original), one.accuracy - original.accuracy
        met = less >= GOAL and more >= 0
        lines.append(
            f"Goal {'met' if met else 'not met'}: {one.title}, "
            f"{'' if one.tuned else 'not '}fine-tuned, is {less:.2%} smaller (at least {GOAL:.1%} "
            f"asked) with {100 * more:+.2f} points of accuracy against the original (not less "
            f"asked), {100 * (one.accuracy - longer.accuracy):+.2f} against it fine-tuned."
        )
    return lines


def milliseconds(path: Path, images: Any, runs: int = 51) -> float:
    """Return the processor time of one inference, a median."""
    session = make_session(str(path), 1, "CPUExecutionProvider", flush=True)
    feed, times = {session.get_inputs()[0].name: images}, []
    for _ in range(runs):
        begun = time.thread_time_ns()
        session.run(None, feed)
        times.append((time.thread_time_ns() - begun) / 1e6)
    return float(np.median(times))


def study(spec: str, options: argparse.Namespace, dataset: data.Dataset, end: float) -> str:
    """Return what there is to say of one network."""
    one = Study(spec, options, dataset, end)
    rows = list(one.rows())
    files, images = [each.file for each in rows], one.example[:1].numpy()
    times = [1.0, *compare_files(files, images)]
    groups = one.prunable.groups
    return "\n".join(
        (
            f"\n## {spec}\n",
            f"{len(groups)} groups of {sum(g.channels for g in groups)} channels in all can be "
            f"pruned, {options.kept:.0%} stay; {one.prunable.sentence}. "
            f"Accuracy on {len(dataset.test_labels)} images.\n",
            table(rows, times, milliseconds(files[0], images)),
            "",
            *goal(rows),
        )
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status (0 done, 1 failed; 75: start it again)."""
    options = _parser().parse_args(arguments)
    end = time.monotonic() + options.seconds
    torch.set_num_threads(options.threads)
    try:
        options.folder.mkdir(parents=True, exist_ok=True)
        _same_settings(options)
        dataset = data.load(options.data, options.seed, models.image_size(options.networks[0]))
        with in_pieces():
            for spec in options.networks:
                print(study(spec, options, dataset, end), flush=True)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _same_settings(options: argparse.Namespace) -> None:
    """Refuse a folder whose networks were made otherwise.

    Raises:
        ValueError: they were.
    """
    digest = hashlib.sha256(options.weights.read_bytes()).hexdigest()
    chosen = {"weights": digest, **{name: str(vars(options)[name]) for name in SETTINGS}}
    path: Path = options.folder / "settings.json"
    if not path.exists():
        path.write_text(json.dumps(chosen, indent=1))
    elif (before := json.loads(path.read_text())) != chosen:
        others = [name for name in chosen if before.get(name) != chosen[name]]
        raise ValueError(
            f"{options.folder} holds networks of another {others[0]}: give another --folder"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="as with engine.models.train")
    parser.add_argument("--weights", type=Path, required=True, help="in either layout")
    parser.add_argument("--networks", nargs="+", default=NETWORKS, help="the layouts to try")
    parser.add_argument("--sparsifier", choices=("dhspg", "hesso"), default="dhspg")
    parser.add_argument("--kept", type=float, default=0.21, help="share of channels, for OTO")
    parser.add_argument("--epochs", type=int, default=10, help="of each fine-tuning")
    parser.add_argument("--lr", type=float, default=5e-4, help="of it")
    parser.add_argument("--sparse-epochs", type=int, default=20, help="of OTO")
    parser.add_argument("--sparse-lr", type=float, default=1e-3, help="of it")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=accelerator.processors())
    parser.add_argument(
        "--preset", choices=tuple(PRESETS), default=isa(platform.machine(), _flags())
    )
    parser.add_argument("--folder", type=Path, default=CACHE / "convnext")
    parser.add_argument("--seconds", type=float, default=1e9, help="how long to train")
    return parser


def _flags() -> list[str]:
    """Return what Linux says of the processor."""
    path = Path("/proc/cpuinfo")
    return path.read_text().split() if path.exists() else []


if __name__ == "__main__":
    raise SystemExit(main())
