"""The ranges of a float network's activations, measured on images a few at a time.

What lies outside a tensor's range is clipped, what lies inside is rounded to one of 256 steps. How
much to clip is the method's choice:

- "minmax": nothing.
- "percentile": what is larger than this percentage of all values.
- "entropy": as much as makes the distribution of 8-bit values most like that of the float ones
  (Kullback-Leibler divergence; Migacz: *8-bit inference with TensorRT*, GTC 2017).

The arithmetic is ONNX Runtime's. The last two look at every activation, and its own loop holds
those of all images in memory at once (onnxruntime issues 10503 and 12652); here each pass is added
to the histograms and forgotten, so the memory is that of one pass.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from engine.compress.inference import as_input, session

Method = Literal["minmax", "entropy", "percentile"]

METHODS: tuple[Method, ...] = ("minmax", "entropy", "percentile")
PERCENTILE = 99.999

# One value's smallest and largest are small; all its numbers are not.
_PASS = {"minmax": 16, "entropy": 4, "percentile": 4}
# ONNX Runtime's 128 are as many as there are steps to merge them into, so that nothing is ever
# clipped; TensorRT's 2048 take minutes in Python, and find about the same.
_ENTROPY_BINS = 512


def ranges(
    model: str | Path,
    images: NDArray[np.uint8],
    operators: Sequence[str],
    method: Method = "minmax",
    percentile: float = PERCENTILE,
    batch: int | None = None,
) -> Any:
    """Return the range of each float tensor around these operators, as ONNX Runtime's TensorsData.

    Args:
        model: the float network, with one input (N, C, H, W) between 0 and 1.
        images: (N, C, H, W) uint8.
        operators: types of operators whose inputs and outputs are wanted.
        method: how the range follows from the values.
        percentile: of the absolute values, 0 to 100; with the method "percentile".
        batch: images a pass; by default 16 where only extremes are kept, else 4.

    Raises:
        ValueError: there are no images, the method is none, the percentile is none, or the images
            are not what the network reads.
    """
    if not len(images):
        raise ValueError("quantization needs calibration images, and there are none")
    if method not in METHODS:
        raise ValueError(f"ranges come by {', '.join(METHODS)}, not by {method!r}")
    if not 0 < percentile <= 100:
        raise ValueError(f"a percentile lies above 0 and up to 100, not at {percentile}")
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    kinds = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }
    options = {
        "minmax": {},
        "entropy": {"num_bins": _ENTROPY_BINS},
        "percentile": {"percentile": percentile},
    }
    name = session(model).get_inputs()[0].name
    size = batch or _PASS[method]
    # The calibrator reports on standard output, which belongs to results.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        calibrator = create_calibrator(
            Path(model),
            list(operators),
            str(Path(folder) / "augmented.onnx"),
            kinds[method],
            extra_options=options[method],
        )
        for start in range(0, len(images), size):
            feed = {name: as_input(images[start : start + size])}
            try:
                calibrator.collect_data(_Once(feed))
            except Exception as error:
                # The runtime's classes of errors share no base of their own.
                raise ValueError(
                    f"the network cannot read the calibration images: {error}"
                ) from error
        return calibrator.compute_data()


class _Once:
    """One pass's input, as the calibrator wants to be fed."""

    def __init__(self, feed: dict[str, NDArray[np.float32]]) -> None:
        self._feeds: Iterator[dict[str, NDArray[np.float32]]] = iter([feed])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._feeds, None)
