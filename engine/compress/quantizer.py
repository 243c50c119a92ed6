"""Static int8 with some layers left in float, written so that they stay in float.

Weights and activations become int8 between pairs of quantize and dequantize operators (QDQ; Jacob
et al.: *Quantization and training of neural networks for efficient integer-arithmetic-only
inference*, CVPR 2018), from which ONNX Runtime builds integer kernels. The quantizer is ONNX
Runtime's.

ONNX Runtime's pass WeightBiasQuantization quantizes a float layer between integers again when a
device loads the file, with one scale for all its channels. The pass only looks at layers whose
input has a single scale. So each float layer gets a dequantize operator of its own with one scale a
channel, all equal: the same numbers, and default options leave the layer alone.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from engine.compress.calibrate import PERCENTILE, Method, ranges
from engine.compress.executed import INTEGER, Executed, executed, name_layers
from engine.compress.export import Exported, write_file
from engine.compress.inference import session
from engine.compress.presets import PRESETS, Isa, Preset

# What pays as int8. Scaling of the input and the mean over pixels stay in float.
_OPERATORS = ("Conv", "Gemm", "MatMul", "Add", "Relu", "Clip", "MaxPool", "AveragePool",
              "GlobalAveragePool", "Concat")  # fmt: skip
_LAYERS = ("Conv", "Gemm", "MatMul")
# These read what a layer wrote, and change none of it but by clipping or picking.
_PASSING = ("Relu", "Clip", "MaxPool", "AveragePool")
_OPSET = 13  # the first in which a scale a channel is possible
_QUANTIZED = {"QuantizeLinear", "DequantizeLinear", *INTEGER}


class Quantizer:
    """A float network, prepared and calibrated once, of which int8 versions are written.

    Args:
        source: the float network, with one input (N, C, H, W) between 0 and 1.
        images: calibration images (N, C, H, W) uint8.
        preset: for which instruction set.
        method: how the ranges of activations follow from the images.
        percentile: with the method "percentile".
        batch: images a pass of the calibration, which bounds its memory; None as the method needs.

    Raises:
        ValueError: the source is no ONNX network, quantized already, or has no layer that has an
            integer kernel; or there are no images, or not such as it reads.
    """

    layers: tuple[str, ...]
    """Names of the layers that can be quantized, in the order of the file."""

    def __init__(
        self,
        source: str | Path,
        images: NDArray[np.uint8],
        preset: Isa | Preset = "x86-vnni",
        method: Method = "minmax",
        percentile: float = PERCENTILE,
        batch: int | None = None,
    ) -> None:
        self.preset = PRESETS[preset] if isinstance(preset, str) else preset
        if not len(images):
            raise ValueError("quantization needs calibration images, and there are none")
        refuse_quantized(Path(source))
        with tempfile.TemporaryDirectory() as folder, quiet():
            prepared = Path(folder) / "prepared.onnx"
            self._proto, self.layers = _prepare(Path(source), prepared)
            self._ranges = ranges(prepared, images, _OPERATORS, method, percentile, batch)

    def write(self, target: str | Path, floating: Collection[str] = ()) -> Exported:
        """Write the network with these layers in float and all others in int8.

        The operators behind a float layer that only read its output stay in float with it. The file
        is replaced only when ONNX Runtime, asked with default options, keeps the layers in float.

        Raises:
            ValueError: the network has no layer of such a name, or a layer would not stay in float.
        """
        unknown = sorted(set(floating).difference(self.layers))
        if unknown:
            raise ValueError(f"the network has no layer {', '.join(unknown)} that can be quantized")
        with tempfile.TemporaryDirectory() as folder, quiet():
            proto = self._quantize(_with_what_reads(self._proto.graph, floating))
            _shield(proto.graph)
            aside = Path(folder) / "int8.onnx"
            aside.write_bytes(slim(proto))
            if floating:
                again = set(floating).intersection(self.executed(aside).integer)
                if again:
                    raise ValueError(
                        f"ONNX Runtime would quantize {', '.join(sorted(again))} again at load"
                    )
            return write_file(aside.read_bytes(), Path(target))

    def executed(self, path: str | Path) -> Executed:
        """Return which layers of a file written here run in integers on the preset's processor."""
        return executed(path, as_arm=self.preset.activations_signed)

    def _quantize(self, excluded: Collection[str]) -> onnx.ModelProto:
        from onnxruntime.quantization import QDQQuantizer, QuantType

        proto = onnx.ModelProto()
        proto.CopyFrom(self._proto)
        quantizer = QDQQuantizer(
            proto,
            per_channel=self.preset.per_channel,
            reduce_range=self.preset.reduce_range,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QInt8
            if self.preset.activations_signed
            else QuantType.QUInt8,
            tensors_range=self._ranges,
            nodes_to_quantize=[],
            nodes_to_exclude=sorted(excluded),
            op_types_to_quantize=list(_OPERATORS),
            extra_options={},
        )
        quantizer.quantize_model()
        written: onnx.ModelProto = quantizer.model.model
        return written


def refuse_quantized(path: Path) -> None:
    """Refuse what is not a float ONNX network.

    Raises:
        ValueError: it cannot be read, or is quantized already.
    """
    try:
        found = {node.op_type for node in onnx.load(path).graph.node}
    except Exception as error:
        # onnx lets protobuf's own error through, whose class depends on its build.
        raise ValueError(f"{path}: not a readable ONNX file") from error
    if found & _QUANTIZED:
        raise ValueError(f"{path}: already quantized: give the float network that it was made from")


def slim(proto: onnx.ModelProto) -> bytes:
    """Drop what quantizers add and no runtime needs; return the file."""
    used = {node.domain for node in proto.graph.node}
    kept = [entry for entry in proto.opset_import if entry.domain in used]
    del proto.opset_import[:], proto.graph.value_info[:], proto.metadata_props[:]
    proto.opset_import.extend(kept)
    proto.producer_name, proto.producer_version = "hdap", ""
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back the quantizer's advice on the root logger."""
    logger, level = logging.getLogger(), logging.getLogger().level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _prepare(source: Path, prepared: Path) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Simplify the network and name its nodes; return it with the names of its layers."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    session(source)
    opset = next((e.version for e in onnx.load(source).opset_import if not e.domain), 0)
    if opset < _OPSET:
        raise ValueError(f"{source}: opset {opset} has no int8 weights with a scale for each "
                         f"channel: export it with opset {_OPSET} or newer")  # fmt: skip
    # Symbolic shapes take seconds, and the shapes of a plain network are known without.
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    proto = onnx.load(prepared)
    named = name_layers(proto.graph)
    kinds = {node.name: node.op_type for node in proto.graph.node}
    layers = tuple(name for name in named if kinds[name] in _LAYERS)
    if not layers:
        raise ValueError(
            f"{source}: it has nothing that ONNX Runtime computes in int8: its operators are "
            f"{', '.join(sorted(set(kinds.values())))}, and quantized are {', '.join(_LAYERS)}"
        )
    onnx.save(proto, prepared)
    return proto, layers


def _with_what_reads(graph: onnx.GraphProto, floating: Collection[str]) -> set[str]:
    """Return the nodes that stay in float: the layers, and what reads them without arithmetic.

    An activation that a layer in float writes would otherwise be rounded to int8 by an addition.
    """
    writer = {output: node for node in graph.node for output in node.output}
    names = set(floating)

    def origin(tensor: str) -> str:
        node = writer.get(tensor)
        while node is not None and node.op_type in _PASSING:
            node = writer.get(node.input[0])
        return "" if node is None else node.name

    for node in graph.node:
        if node.op_type in _OPERATORS and node.op_type not in _LAYERS:
            names.update(node.name for tensor in node.input if origin(tensor) in set(floating))
    return names


def _shield(graph: onnx.GraphProto) -> None:
    """Give the input of every float layer one scale a channel, so that no pass quantizes it."""
    tensors = {initializer.name: initializer for initializer in graph.initializer}
    writer = {output: node for node in graph.node for output in node.output}
    own: dict[tuple[str, int], onnx.NodeProto] = {}
    for node in graph.node:
        before = writer.get(node.input[0]) if node.input else None
        if before is None or before.op_type != "DequantizeLinear":
            continue
        channels = _channels(node, tensors)
        if channels is None:
            continue
        key = before.output[0], channels
        if key not in own:
            own[key] = _each_channel(before, channels, tensors, graph)
        node.input[0] = own[key].output[0]
    read = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    nodes = []
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or node.output[0] in read:
            nodes.append(node)
        nodes.extend(new for (name, _), new in own.items() if name in node.output)
    del graph.node[:]
    graph.node.extend(nodes)


def _channels(node: onnx.NodeProto, tensors: dict[str, Any]) -> int | None:
    """Return the input channels of a layer with float weights; None where it is none."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm") or node.input[1] not in tensors:
        return None
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    shape = tensors[node.input[1]].dims
    if node.op_type == "Conv":
        return int(shape[1] * attributes.get("group", 1))
    if node.op_type == "ConvTranspose":
        return int(shape[0])
    return None if attributes.get("transA") else int(shape[1 if attributes.get("transB") else 0])


def _each_channel(
    node: onnx.NodeProto, channels: int, tensors: dict[str, Any], graph: onnx.GraphProto
) -> onnx.NodeProto:
    """Return a dequantize operator like this one with one scale for each channel."""
    names = []
    for tensor in node.input[1:]:
        value = onnx.numpy_helper.to_array(tensors[tensor])
        name = f"{tensor}_{channels}"
        if name not in tensors:
            tensors[name] = onnx.numpy_helper.from_array(np.repeat(value.ravel(), channels), name)
            graph.initializer.append(tensors[name])
        names.append(name)
    name = f"{node.output[0]}_{channels}"
    return onnx.helper.make_node(
        "DequantizeLinear", [node.input[0], *names], [name], name=name, axis=1
    )
