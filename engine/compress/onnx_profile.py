"""What an ONNX file costs on paper, counted from the file alone: any file, float or quantized.

It counts what the file holds. Of a network that was trained with batch norms, an exported file has
these folded into the layers before them: a bias for each channel in place of a scale and a shift,
so that it has as many parameters fewer as there were normalised channels.
:func:`engine.compress.profile.profile` counts the network in torch, and so the batch norms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx
import onnx.inliner

from engine.compress import onnx_weights
from engine.compress.profile import Profile, file_sizes
from engine.text import first_line

Shape = tuple[int, ...]

# Operators that compute on the same shapes as a standard one, and which of their inputs it reads.
_LIKE: Mapping[str, tuple[str, slice]] = {
    "QLinearConv": ("Conv", slice(0, 4, 3)),
    "ConvInteger": ("Conv", slice(0, 2)),
    "QGemm": ("Gemm", slice(0, 4, 3)),
    "QLinearMatMul": ("MatMul", slice(0, 4, 3)),
    "MatMulInteger": ("MatMul", slice(0, 2)),
    "MatMulNBits": ("MatMul", slice(0, 2)),
    "QLinearAdd": ("Add", slice(0, 4, 3)),
    "QLinearMul": ("Mul", slice(0, 4, 3)),
    "QLinearConcat": ("Concat", slice(2, None, 3)),
    "QLinearAveragePool": ("AveragePool", slice(0, 1)),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", slice(0, 1)),
    "QLinearLeakyRelu": ("Identity", slice(0, 1)),
    "QLinearSigmoid": ("Identity", slice(0, 1)),
    "QLinearSoftmax": ("Identity", slice(0, 1)),
    "QuantizeLinear": ("QuantizeLinear", slice(0, 3)),
    "DequantizeLinear": ("DequantizeLinear", slice(0, 3)),
}
_SMALL = 1024
"""Numbers of a constant that may be a shape; of larger ones only their own shape counts."""


def profile_file(path: str | Path) -> Profile:
    """Count parameters, non-zeros, multiply-accumulates and bytes of an ONNX file.

    Multiply-accumulates are those of convolutions and matrix products, whatever arithmetic they are
    in, for a batch of one, or of as many as the file asks for. Where a shape depends on more
    than the batch, or an operator is not known here, they are None.

    Raises:
        ValueError: the file cannot be read, or is no ONNX network.
    """
    path = Path(path)
    size, compressed = file_sizes(path)
    try:
        proto = onnx.load(path)
        if proto.functions:
            proto = onnx.inliner.inline_local_functions(proto)
        parameters, nonzeros = onnx_weights.count(proto.graph)
    except Exception as error:
        # protobuf has an exception of its own for broken bytes, and a damaged tensor has many.
        raise ValueError(f"{path}: not a readable ONNX file: {first_line(error)}") from error
    if not proto.graph.node:
        raise ValueError(f"{path}: not an ONNX network: it computes nothing")
    return Profile(parameters, nonzeros, macs(proto), size, compressed)


def macs(proto: onnx.ModelProto) -> int | None:
    """Count the multiply-accumulates of a network for one image; None where that cannot be told."""
    plain = _plain(proto)
    if any(node.domain not in ("", "ai.onnx") for node in plain.graph.node):
        return None
    shapes = _shapes(plain)
    total = 0
    for node in plain.graph.node:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            found = _layer(node, shapes)
            if found is None:
                return None
            total += found
    return total


def _layer(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int | None:
    first, second, result = (shapes.get(n) for n in (*node.input[:2], node.output[0]))
    if first is None or second is None or result is None:
        return None
    if node.op_type == "ConvTranspose":
        return math.prod(first) * math.prod(second[1:])
    if node.op_type == "Conv":
        return math.prod(result) * math.prod(second[1:])
    transposed = onnx_weights.attributes(node).get("transA")
    return math.prod(result) * first[0 if transposed else -1]


def _plain(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the network with standard operators in place of those like them, for one image.

    Of its weights only the shapes are left.
    """
    plain = onnx.ModelProto(ir_version=max(proto.ir_version, 4))
    plain.opset_import.extend(proto.opset_import)
    held = onnx_weights.constants(proto.graph)
    for name, tensor in held.items():
        if math.prod(tensor.dims) <= _SMALL:
            plain.graph.initializer.append(tensor)
            plain.graph.initializer[-1].name = name
        else:
            _add_input(plain.graph, name, tensor.data_type, tensor.dims)
    for value in proto.graph.input:
        if value.name not in held:
            plain.graph.input.append(value)
            axes = plain.graph.input[-1].type.tensor_type.shape.dim
            if axes and not axes[0].dim_value:
                axes[0].dim_value = 1
    for node in onnx_weights.ordered(proto.graph):
        if node.output and node.output[0] not in held:
            plain.graph.node.append(_standard(node, plain.graph))
    return plain


def _standard(node: onnx.NodeProto, graph: onnx.GraphProto) -> onnx.NodeProto:
    given = onnx_weights.attributes(node)
    if node.op_type not in _LIKE or given.get("channels_last"):
        return node
    kind, inputs = _LIKE[node.op_type]
    like = onnx.NodeProto(op_type=kind, input=node.input[inputs], output=node.output[:1])
    like.attribute.extend(node.attribute)
    if node.op_type == "MatMulNBits":
        like.input[1] = f"{node.input[1]} unpacked"
        _add_input(graph, like.input[1], onnx.TensorProto.FLOAT, (given["K"], given["N"]))
    return like


def _add_input(graph: onnx.GraphProto, name: str, kind: int, shape: Iterable[int]) -> None:
    graph.input.append(onnx.helper.make_tensor_value_info(name, kind, list(shape)))


def _shapes(proto: onnx.ModelProto) -> dict[str, Shape]:
    """Return the shapes that follow from those of inputs and weights, where they are numbers."""
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    found = {tensor.name: tuple(tensor.dims) for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        axes = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(a.HasField("dim_value") for a in axes):
            found[value.name] = tuple(axis.dim_value for axis in axes)
    return found
