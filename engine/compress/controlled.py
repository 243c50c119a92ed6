"""Static int8 that loses no more accuracy than allowed: what hurts most stays in float.

How much a layer hurts is told by quantizing it alone: the power of the error that reaches the
logits, relative to the power of the logits (one layer at a time: Nagel et al.: *A white paper on
neural network quantization*, arXiv 2106.08295, section 3.6). It is finer than accuracy, which a few
hundred images count in steps. Layers go back to float in that order, as in NNCF's
`quantize_with_accuracy_control`, until the accuracy holds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.compress.calibrate import PERCENTILE, Method
from engine.compress.export import Exported
from engine.compress.inference import logits
from engine.compress.presets import Isa, Preset
from engine.compress.quantize import onnx_accuracy
from engine.compress.quantizer import Quantizer

_RANKED = 256  # images that are enough to put layers in order


class Unreachable(ValueError):
    """Every mixture of int8 and float loses more accuracy than allowed."""


@dataclass(frozen=True)
class Controlled:
    """A network in int8 but for some layers."""

    file: Exported
    accuracy: float
    """Share of the images, 0 to 1, as this machine's processor computes it."""
    float_accuracy: float
    """That of the float network."""
    floating: tuple[str, ...]
    """Layers that stayed in float, those that hurt most first."""
    integer: tuple[str, ...]
    """Layers that run in integers on the preset's processor, in the order of the file."""
    errors: tuple[tuple[str, float], ...]
    """How much each layer hurts, the most first; none where all could be quantized."""


def quantize_within(
    source: str | Path,
    target: str | Path,
    calibration: NDArray[np.uint8],
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    maximum_drop: float,
    preset: Isa | Preset = "x86-vnni",
    *,
    method: Method = "minmax",
    percentile: float = PERCENTILE,
    batch: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Controlled:
    """Write an int8 version with as few layers in float as its accuracy needs.

    The number of layers is found by bisection, which takes it that accuracy does not fall when more
    of them are in float. What is written was itself measured.

    Args:
        source: the float network, with one input (N, C, H, W) between 0 and 1.
        target: the file to write, replaced only when all went well.
        calibration: images (N, C, H, W) uint8 for the ranges.
        images: other images, by which accuracy is judged.
        labels: their classes (N,).
        maximum_drop: percentage points of accuracy that may be lost.
        preset: for which instruction set.
        method: how the ranges follow from the calibration images.
        percentile: with the method "percentile".
        batch: calibration images a pass; None as the method needs.
        progress: told in a sentence what was found.

    Raises:
        Unreachable: the drop is exceeded by every mixture that leaves at least one layer in int8.
        ValueError: as with `quantize_static`; or the drop is none.
    """
    if not maximum_drop >= 0:  # refuses NaN as well
        raise ValueError(f"the accuracy that may be lost is 0 points or more, not {maximum_drop}")
    quantizer = Quantizer(source, calibration, preset, method, percentile, batch)
    before = onnx_accuracy(source, images, labels)
    with tempfile.TemporaryDirectory() as folder:
        search = _Search(quantizer, Path(folder) / "int8.onnx", images, labels)
        errors: tuple[tuple[str, float], ...] = ()

        def holds(count: int) -> bool:
            found = search.accuracy([name for name, _ in errors[:count]])
            progress(f"{found:.2%} right with {count} of {len(quantizer.layers)} layers in float")
            return 100 * (before - found) <= maximum_drop + 1e-9

        count = 0
        if not holds(0):
            errors = search.errors(Path(source))
            progress("most sensitive: " + ", ".join(name for name, _ in errors[:3]))
            count = _fewest(holds, len(errors))
            if count == len(errors):
                raise Unreachable(_unreachable(search, before, maximum_drop))
    floating = tuple(name for name, _ in errors[:count])
    written = quantizer.write(target, floating)
    return Controlled(
        file=written,
        accuracy=search.found[frozenset(floating)],
        float_accuracy=before,
        floating=floating,
        integer=quantizer.executed(written.path).integer,
        errors=errors,
    )


class _Search:
    """Tries out which layers stay in float."""

    def __init__(
        self,
        quantizer: Quantizer,
        path: Path,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
    ) -> None:
        self.quantizer, self.path, self.images, self.labels = quantizer, path, images, labels
        self.found: dict[frozenset[str], float] = {}
        """Accuracies of what was tried, by the layers in float."""

    def accuracy(self, floating: list[str]) -> float:
        self.quantizer.write(self.path, floating)
        found = onnx_accuracy(self.path, self.images, self.labels)
        self.found[frozenset(floating)] = found
        return found

    def errors(self, source: Path) -> tuple[tuple[str, float], ...]:
        """Return each layer with the error that it makes alone, the largest first."""
        layers, images = self.quantizer.layers, self.images[:_RANKED]
        exact = logits(source, images)
        power = max(float(np.square(exact).mean()), 1e-30)
        found = []
        for layer in layers:
            self.quantizer.write(self.path, [other for other in layers if other != layer])
            error = np.square(logits(self.path, images) - exact).mean()
            found.append((layer, float(error) / power))
        # Where two are equal, the first in the file: everybody gets the same network.
        return tuple(sorted(found, key=lambda pair: -pair[1]))


def _fewest(holds: Callable[[int], bool], layers: int) -> int:
    """Return the smallest count for which it holds, given that it does not for none."""
    low, high = 0, layers
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _unreachable(search: _Search, before: float, maximum_drop: float) -> str:
    floating, best = max(search.found.items(), key=lambda item: (item[1], -len(item[0])))
    return (
        f"no mixture of int8 and float loses at most {maximum_drop:g} points: the best loses "
        f"{100 * (before - best):.2f}, with {len(floating)} of {len(search.quantizer.layers)} "
        "layers in float: keep the float network, or calibrate on more images or by another method"
    )
