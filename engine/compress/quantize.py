"""Quantization on the ONNX side: int8 before a device sees the network, or while it runs.

- :func:`quantize_static`: weights and activations, whose ranges are measured on images beforehand.
  For convolutional networks.
- :func:`quantize_dynamic`: weights beforehand, activations by the range of each input. For networks
  of linear layers; needs no images.
- :func:`engine.compress.controlled.quantize_within`: static, with the layers that cost too much
  accuracy left in float.

Which signs and ranges are fast and exact depends on the processor:
:mod:`engine.compress.presets`. int8 is slower than float on some: only a measurement can tell.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from engine.compress.calibrate import PERCENTILE, Method
from engine.compress.executed import name_layers
from engine.compress.export import Exported, write_file
from engine.compress.inference import as_input, session
from engine.compress.presets import PRESETS, Isa, Preset, isa
from engine.compress.quantizer import Quantizer, quiet, refuse_quantized, slim

__all__ = [
    "PRESETS", "Isa", "Method", "Preset", "as_input", "isa", "onnx_accuracy", "quantize_dynamic",
    "quantize_static",
]  # fmt: skip

_DYNAMIC = ("MatMul", "Gemm", "Conv")


def quantize_static(
    source: str | Path,
    target: str | Path,
    images: NDArray[np.uint8],
    preset: Isa | Preset = "x86-vnni",
    batch: int | None = None,
    *,
    method: Method = "minmax",
    percentile: float = PERCENTILE,
    floating: Collection[str] = (),
) -> Exported:
    """Write an int8 version of an ONNX network.

    Args:
        source: the float network, with one input (N, C, H, W) between 0 and 1.
        target: the file to write, replaced only when all went well.
        images: calibration images (N, C, H, W) uint8.
        preset: for which instruction set.
        batch: how many images run at once, which bounds the memory; None as the method needs.
        method: how the ranges follow from what the images cause: "minmax", "entropy" or
            "percentile"; see :mod:`engine.compress.calibrate`.
        percentile: with the method "percentile".
        floating: names of layers that stay in float.

    Raises:
        ValueError: the source is no ONNX network, quantized already, or has no layer that has an
            integer kernel; there are no images; or a layer cannot stay in float.
    """
    return Quantizer(source, images, preset, method, percentile, batch).write(target, floating)


def quantize_dynamic(
    source: str | Path,
    target: str | Path,
    preset: Isa | Preset = "x86-vnni",
    operators: Sequence[str] = ("MatMul", "Gemm"),
) -> Exported:
    """Write a version of an ONNX network whose weights are int8, and activations while it runs.

    Convolutions are left in float unless asked for: the runtime has no fast kernel for them
    (onnxruntime issue 12854), and a network of convolutions becomes slower.

    Args:
        source: the float network.
        target: the file to write, replaced only when all went well.
        preset: for which instruction set; activations are always uint8.
        operators: whose weights: of "MatMul", "Gemm" and "Conv".

    Raises:
        ValueError: the source is no ONNX network, quantized already or has no such weights, or an
            operator has no kernel that quantizes while it runs.
    """
    missing = [name for name in operators if name not in _DYNAMIC]
    if missing or not operators:
        raise ValueError(
            f"ONNX Runtime has no kernel that quantizes {', '.join(missing) or 'nothing'} while "
            f"it runs: choose among {', '.join(_DYNAMIC)}"
        )
    refuse_quantized(Path(source))
    session(source)
    chosen = PRESETS[preset] if isinstance(preset, str) else preset
    proto = onnx.load(source)
    name_layers(proto.graph)
    tensors = {initializer.name for initializer in proto.graph.initializer}
    if not any(n.op_type in operators and n.input[1] in tensors for n in proto.graph.node):
        raise ValueError(
            f"{source}: it has no weights of {' or '.join(operators)} that could be quantized"
        )
    with tempfile.TemporaryDirectory() as folder, quiet():
        step = Path(folder) / "0.onnx"
        onnx.save(proto, step)
        for kinds in (("MatMul", "Gemm"), ("Conv",)):
            wanted = [name for name in kinds if name in operators]
            if wanted:
                step = _dynamic(step, wanted, chosen)
        return write_file(slim(onnx.load(step)), Path(target))


def onnx_accuracy(
    path: str | Path, images: NDArray[np.uint8], labels: NDArray[np.int64], batch: int = 256
) -> float:
    """Return the share of images (N, C, H, W) uint8 that an ONNX network classifies rightly.

    Raises:
        ValueError: it is no model that ONNX Runtime can run, or there are no images.
    """
    if not len(images):
        raise ValueError("accuracy needs images, and there are none")
    runtime = session(path)
    name = runtime.get_inputs()[0].name
    right = 0
    for start in range(0, len(images), batch):
        (logits,) = runtime.run(None, {name: as_input(images[start : start + batch])})
        right += int((logits.argmax(1) == labels[start : start + batch]).sum())
    return right / len(images)


def _dynamic(source: Path, operators: Sequence[str], preset: Preset) -> Path:
    """Quantize one kind of weights; return the file beside the source."""
    from onnxruntime import quantization

    target = source.with_name(f"{operators[0]}.onnx")
    convolutions = "Conv" in operators
    quantization.quantize_dynamic(
        source,
        target,
        op_types_to_quantize=list(operators),
        # Its kernel for convolutions knows a single scale, and is five times slower with signs.
        per_channel=preset.per_channel and not convolutions,
        weight_type=getattr(quantization.QuantType, "QUInt8" if convolutions else "QInt8"),
        reduce_range=preset.reduce_range,
    )
    return target
