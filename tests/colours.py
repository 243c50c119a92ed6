"""A classifier that is easy to see through, whose class is the brightest channel, and images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx.parser
from numpy.typing import NDArray

CLASSES = 3


def classifier(path: Path, images: str = "float[n,3,8,8]", opset: int = 17) -> Path:
    """Write a network that gives the mean of each channel."""
    read = "f = Identity(x)" if images.startswith("float[") else "f = Cast <to = 1> (x)"
    body = f"{read} p = GlobalAveragePool(f) y = Flatten(p)"
    head = f'<ir_version: 8, opset_import: ["": {opset}]> g'
    batch = images.partition("[")[2].partition(",")[0]
    model = onnx.parser.parse_model(f"{head} ({images} x) => (float[{batch},3] y) {{ {body} }}")
    onnx.save(model, path)
    return path


def pictures(count: int, side: int = 8, seed: int = 5) -> tuple[NDArray[np.uint8], list[int]]:
    """Return images and the class that the classifier gives each."""
    generator = np.random.default_rng(seed)
    answers = generator.integers(0, CLASSES, count)
    found = generator.integers(0, 200, (count, CLASSES, side, side))
    found[np.arange(count), answers] += 50
    return found.astype(np.uint8), answers.tolist()


def dataset(path: Path, count: int, side: int = 8) -> float:
    """Write a dataset of so many test images; return how many of them the classifier gets right."""
    images, answers = pictures(count, side)
    labels = np.asarray(answers)
    labels[::5] = (labels[::5] + 1) % CLASSES
    np.savez(
        path, train_images=images[:40], train_labels=labels[:40], test_images=images,
        test_labels=labels, classes=np.asarray(["red", "green", "blue"]),
    )  # fmt: skip
    return float(np.mean(labels == np.asarray(answers)))
