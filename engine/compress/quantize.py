"""Static int8 quantization on the ONNX side, with a preset for each instruction set.

Weights and activations become int8 between pairs of quantize and dequantize operators (QDQ),
from which ONNX Runtime builds integer kernels. Which signs and ranges are fast and exact depends
on the processor: see `PRESETS`.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from engine.compress.export import Exported, write_file
from engine.compress.inference import session

Isa = Literal["x86-vnni", "x86", "arm64"]

_QUANTIZED = {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger", "MatMulInteger"}
_VNNI = {"avx512_vnni", "avx_vnni", "avx512vnni", "avxvnni"}
# What pays as int8. Scaling of the input and the mean over pixels stay in float.
_OPERATORS = ("Conv", "Gemm", "MatMul", "Add", "Relu", "MaxPool", "AveragePool",
              "GlobalAveragePool", "Concat")  # fmt: skip


@dataclass(frozen=True)
class Preset:
    """How a processor wants its integers."""

    activations_signed: bool
    """Activations int8 rather than uint8."""
    reduce_range: bool = False
    """Weights of seven bits."""
    per_channel: bool = True
    """One scale for each output channel."""


PRESETS: dict[Isa, Preset] = {
    # One instruction multiplies uint8 by int8 and adds in 32 bits.
    "x86-vnni": Preset(activations_signed=False),
    # Without it two products are added in 16 bits, which eight-bit weights overflow.
    "x86": Preset(activations_signed=False, reduce_range=True),
    # SDOT multiplies int8 by int8.
    "arm64": Preset(activations_signed=True),
}


def isa(machine: str, flags: Collection[str] = ()) -> Isa:
    """Return the preset's name for a machine (`uname -m`) with these processor flags.

    Raises:
        ValueError: there is no preset for this kind of machine.
    """
    if machine.lower() in ("aarch64", "arm64"):
        return "arm64"
    if machine.lower() in ("x86_64", "amd64", "i686"):
        return "x86-vnni" if _VNNI.intersection(f.lower() for f in flags) else "x86"
    raise ValueError(f"there is no int8 preset for {machine!r}: only for x86_64 and aarch64")


def quantize_static(
    source: str | Path,
    target: str | Path,
    images: NDArray[np.uint8],
    preset: Isa | Preset = "x86-vnni",
    batch: int = 16,
) -> Exported:
    """Write an int8 version of an ONNX network.

    Args:
        source: the float network, with one input (N, C, H, W) between 0 and 1.
        target: the file to write, replaced only when all went well.
        images: calibration images (N, C, H, W) uint8; the smallest and largest values that they
            cause set the ranges.
        preset: for which instruction set.
        batch: how many images run at once.

    Raises:
        ValueError: the source is no ONNX network or quantized already, or there are no images.
    """
    if not len(images):
        raise ValueError("quantization needs calibration images, and there are none")
    _refuse_quantized(Path(source))
    chosen = PRESETS[preset] if isinstance(preset, str) else preset
    with tempfile.TemporaryDirectory() as folder:
        prepared, written = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
        with _quiet():
            _run(Path(source), prepared, written, images, chosen, batch)
        return write_file(_slim(onnx.load(written)), Path(target))


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


def as_input(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return uint8 images as the float32 between 0 and 1 that networks read."""
    return images.astype(np.float32) / np.float32(255)


def _refuse_quantized(path: Path) -> None:
    try:
        found = {node.op_type for node in onnx.load(path).graph.node}
    except Exception as error:
        # onnx lets protobuf's own error through, whose class depends on its build.
        raise ValueError(f"{path}: not a readable ONNX file") from error
    if found & _QUANTIZED:
        raise ValueError(f"{path}: already quantized: give the float network that it was made from")


def _run(
    source: Path,
    prepared: Path,
    written: Path,
    images: NDArray[np.uint8],
    preset: Preset,
    batch: int,
) -> None:
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    name = session(source).get_inputs()[0].name
    parts = (images[i : i + batch] for i in range(0, len(images), batch))
    feeds = ({name: as_input(part)} for part in parts)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            return next(feeds, None)

    types = quantization.QuantType
    # Symbolic shapes take seconds, and the shapes of a plain network are known without.
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    quantization.quantize_static(
        prepared,
        written,
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=list(_OPERATORS),
        activation_type=types.QInt8 if preset.activations_signed else types.QUInt8,
        weight_type=types.QInt8,
        per_channel=preset.per_channel,
        reduce_range=preset.reduce_range,
        calibrate_method=quantization.CalibrationMethod.MinMax,
    )


def _slim(proto: Any) -> bytes:
    """Drop what the quantizer adds and no runtime needs."""
    used = {node.domain for node in proto.graph.node}
    kept = [entry for entry in proto.opset_import if entry.domain in used]
    del proto.opset_import[:], proto.graph.value_info[:], proto.metadata_props[:]
    proto.opset_import.extend(kept)
    proto.producer_name, proto.producer_version = "hdap", ""
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the quantizer's advice on the root logger."""
    logger, level = logging.getLogger(), logging.getLogger().level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
