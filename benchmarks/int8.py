"""What int8 is worth on this processor: speed, and accuracy where there are trained weights.

    python -m benchmarks.int8 [--data ../shared/data/cifar10]
                              [--weights ../shared/data/weights_cifar10]

int8 against fp32 through ONNX Runtime on one thread, turn by turn, by processor time, with the
preset that the processor's own flags choose. Networks of convolutions are quantized statically,
ConvNeXt dynamically on its linear layers. Accuracy is that of the whole CIFAR-10 test split, for
ResNet-20 and -56; the others have random weights, which latency does not see.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from benchmarks.designs import compare_files
from benchmarks.servers import row
from engine import data, models
from engine.compress.export import Exported, export
from engine.compress.presets import Isa, isa
from engine.compress.quantize import onnx_accuracy, quantize_dynamic, quantize_static
from engine.runner import facts


@dataclass(frozen=True)
class Case:
    """A network, and what is asked of its int8 version with AVX-512 VNNI."""

    network: str
    speedup: float | None
    """Least speed-up."""
    way: Literal["static", "dynamic"] = "static"
    weights: str = ""
    """File of trained CIFAR-10 weights; empty: random ones."""


CASES = (
    Case("resnet20", 1.8, weights="resnet20_akamaster.safetensors"),
    Case("resnet56", None, weights="resnet56_akamaster.safetensors"),
    Case("mobilenetv1", 2.5),
    Case("resnet50", 3.2),
    Case("convnext-tiny", 2.2, "dynamic"),
)
DROP = 0.3
"""Percentage points of accuracy that may be lost."""


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="CIFAR-10")
    parser.add_argument("--weights", type=Path, help="folder of trained weights")
    parser.add_argument("--networks", nargs="+", default=[case.network for case in CASES])
    options = parser.parse_args()
    known = facts()
    preset = isa(known["machine"], known["isa"])
    dataset = data.load(options.data) if options.data else None
    print(f"{known.get('cpu_model')}: {preset}, ONNX Runtime {known['onnxruntime']}\n")
    print(row("network", "int8", "speed-up", "bar", "size", "accuracy", "change", "bar"))
    print(row(*["---"] * 8))
    for case in CASES:
        if case.network in options.networks:
            print(_measured(case, preset, options.weights, dataset), flush=True)


def _measured(case: Case, preset: Isa, weights: Path | None, dataset: data.Dataset | None) -> str:
    trained = weights is not None and dataset is not None and bool(case.weights)
    torch.manual_seed(0)
    side = models.NETWORKS[case.network].size
    if trained:
        assert weights is not None
        network = models.load(case.network, 10, weights / case.weights).eval()
    else:
        network = models.build(case.network, 10).eval()
    noise = np.random.default_rng(0).integers(0, 256, (8, 3, side, side), dtype=np.uint8)
    images = dataset.calibration_images if trained and dataset is not None else noise
    with tempfile.TemporaryDirectory() as folder:
        example = torch.from_numpy(images[:2]).float() / 255
        before = export(network, example, Path(folder) / "fp32.onnx")
        after = _quantized(case, before, Path(folder) / "int8.onnx", images, preset)
        [speedup] = compare_files([before.path, after.path], example[:1].numpy())
        cells = [
            case.network, case.way, f"{speedup:.2f}x",
            f"{case.speedup}x" if case.speedup and preset == "x86-vnni" else "-",
            f"{before.bytes / after.bytes:.2f}x smaller",
        ]  # fmt: skip
        if not (trained and dataset is not None):
            return row(*cells, "-", "-", "-")
        exact, rounded = (
            onnx_accuracy(file.path, dataset.test_images, dataset.test_labels)
            for file in (before, after)
        )
    return row(*cells, f"{rounded:.2%}", f"{100 * (rounded - exact):+.2f}", f"-{DROP}")


def _quantized(
    case: Case, source: Exported, target: Path, images: np.ndarray, preset: Isa
) -> Exported:
    if case.way == "dynamic":
        return quantize_dynamic(source.path, target, preset)
    return quantize_static(source.path, target, images, preset)


if __name__ == "__main__":
    main()
