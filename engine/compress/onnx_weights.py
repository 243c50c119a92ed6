"""The numbers in an ONNX file that were learnt, float or quantized, and how many are not zero."""

from __future__ import annotations

import math
from collections.abc import Mapping
from graphlib import TopologicalSorter
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from engine.compress.executed import LAYERS

# By operator: inputs that hold learnt numbers where they are constant, each with the input of its
# zero points. The weights of MatMulNBits are packed, and counted apart.
_LEARNT: Mapping[str, tuple[tuple[int, int | None], ...]] = {
    **dict.fromkeys(LAYERS, ((0, None), (1, None), (2, None))),
    "QLinearConv": ((3, 5), (8, None)),
    "ConvInteger": ((1, 3),),
    "QLinearMatMul": ((0, 2), (3, 5)),
    "MatMulInteger": ((0, 2), (1, 3)),
    "QGemm": ((0, 2), (3, 5), (6, None)),
    "MatMulNBits": ((5, None),),
    "BatchNormalization": ((1, None), (2, None)),
    "InstanceNormalization": ((1, None), (2, None)),
    "GroupNormalization": ((1, None), (2, None)),
    "LayerNormalization": ((1, None), (2, None)),
    "RMSNormalization": ((1, None),),
    "PRelu": ((1, None),),
    **dict.fromkeys(("RNN", "GRU", "LSTM"), ((1, None), (2, None), (3, None))),
}
# Operators of which a constant may be a bias, a scale a channel, a table, or no parameter at all.
_PERHAPS: Mapping[str, tuple[tuple[int, int | None], ...]] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), ((0, None), (1, None))),
    "Gather": ((0, None),),
    "QLinearAdd": ((0, 2), (3, 5)),
    "QLinearMul": ((0, 2), (3, 5)),
}
# These hand a constant on without new numbers.
_PASSING = ("QuantizeLinear", "DequantizeLinear", "Cast", "Identity", "Reshape", "Transpose",
            "Flatten", "Squeeze", "Unsqueeze")  # fmt: skip


def count(graph: onnx.GraphProto) -> tuple[int, int]:
    """Return how many numbers were learnt, and how many of them are not zero.

    A number of a quantized tensor counts once and is zero where it equals its zero point; scales
    and zero points do not count. Of a batch norm that is not folded, the running mean and variance
    do not count. A constant that is added or multiplied counts where it has more than one number
    and does not belong to the scaling of the images, before the first layer. Operators that are not
    known here, and those within If and Loop, are not looked into.

    Raises:
        ValueError: a tensor is damaged.
    """
    tensors = _Constants(graph)
    found: dict[str, tuple[int, int]] = {}
    behind: set[str] = set()  # what comes of a layer
    for node in ordered(graph):
        follows = any(name in behind for name in node.input)
        learnt = node.op_type in _LEARNT
        for position, zero_point in (_LEARNT if learnt else _PERHAPS).get(node.op_type, ()):
            read = node.input[position] if position < len(node.input) else ""
            name, dequantizer = tensors.origin(read)
            quantized = dequantizer is not None or zero_point is not None
            if name and (
                learnt
                or (tensors.is_parameter(name, quantized) and (follows or node.op_type == "Gather"))
            ):
                found.setdefault(name, tensors.count(name, node, zero_point, dequantizer))
        if node.op_type == "MatMulNBits":
            found[node.input[1]] = tensors.packed(node)
        if learnt or follows:
            # The scale that DynamicQuantizeLinear finds is multiplied by one that is no parameter.
            behind.update(node.output[:1] if "Dynamic" in node.op_type else node.output)
    return sum(size for size, _ in found.values()), sum(n for _, n in found.values())


def ordered(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the nodes so that each follows those whose outputs it reads.

    ONNX asks for that order; ONNX Runtime's quantizer does not keep to it.
    """
    writer = {output: at for at, node in enumerate(graph.node) for output in node.output if output}
    before = {
        at: {writer[name] for name in node.input if name in writer}
        for at, node in enumerate(graph.node)
    }
    return [graph.node[at] for at in TopologicalSorter(before).static_order()]


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return a node's attributes by name."""
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Return the tensors that a file holds, by name: initialisers and Constant nodes."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            value = attributes(node).get("value")
            if isinstance(value, onnx.TensorProto):
                found[node.output[0]] = value
    return found


class _Constants:
    """The constants of a graph, and what becomes of them before an operator reads them."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._tensors = constants(graph)
        self._writer = {output: node for node in graph.node for output in node.output}
        self._origins: dict[str, tuple[str, onnx.NodeProto | None]] = {}

    def origin(self, name: str) -> tuple[str, onnx.NodeProto | None]:
        """Return from which constant a tensor comes, and the node that dequantizes it.

        The name is empty where it comes from none.
        """
        if name not in self._origins:
            self._origins[name] = self._find_origin(name)
        return self._origins[name]

    def _find_origin(self, name: str) -> tuple[str, onnx.NodeProto | None]:
        if name in self._tensors:
            return name, None
        writer = self._writer.get(name)
        if writer is None or writer.op_type not in (*_PASSING, "Mul"):
            return "", None
        if writer.op_type == "Mul":  # whole numbers and their scale
            found = [self.origin(one)[0] for one in writer.input]
            return next((n for n in found if all(found) and self._whole(n)), ""), None
        constant, dequantizer = self.origin(writer.input[0])
        if writer.op_type == "DequantizeLinear" and constant and self._whole(constant):
            dequantizer = dequantizer or writer
        return constant, dequantizer

    def is_parameter(self, name: str, quantized: bool) -> bool:
        """Say whether a constant is more than one number, and no table of places or sizes."""
        many = math.prod(self._tensors[name].dims) > 1
        return many and (quantized or not self._whole(name))

    def count(
        self,
        name: str,
        node: onnx.NodeProto,
        zero_point: int | None,
        dequantizer: onnx.NodeProto | None,
    ) -> tuple[int, int]:
        """Count a constant's numbers and those that are not zero."""
        values = self._array(name)
        zero: Any = 0
        if dequantizer is not None:
            given = attributes(dequantizer)
            zero = self._zero(dequantizer, 2, values, given.get("axis", 1), given.get("block_size"))
        elif zero_point is not None:
            by_row = "Conv" in node.op_type or attributes(node).get("transB")
            zero = self._zero(node, zero_point, values, 0 if by_row else values.ndim - 1)
        return values.size, int(np.count_nonzero(values != zero))

    def packed(self, node: onnx.NodeProto) -> tuple[int, int]:
        """Count the weights of MatMulNBits: K x N numbers, a few bits each, in blocks along K."""
        given = attributes(node)
        rows, columns, size = given["K"], given["N"], given["block_size"]
        bits, blocks = given.get("bits", 4), -(-rows // size)
        if node.input[1] not in self._tensors:
            return 0, 0
        values = _unpacked(self._array(node.input[1]).reshape(columns, blocks, -1), bits, size)
        zero: NDArray[Any] = np.array(1 << (bits - 1))
        if len(node.input) > 3 and node.input[3] in self._tensors:
            zero = self._array(node.input[3])
            if zero.dtype == np.uint8:
                zero = _unpacked(zero.reshape(columns, -1), bits, blocks)
            zero = zero.reshape(columns, blocks, 1)
        differs = (values != zero).reshape(columns, -1)[:, :rows]  # the rest only fills the block
        return rows * columns, int(np.count_nonzero(differs))

    def _zero(
        self,
        node: onnx.NodeProto,
        position: int,
        values: NDArray[Any],
        axis: int,
        block: int | None = None,
    ) -> Any:
        """Return the zero points of a tensor in a shape that goes with its own."""
        name = node.input[position] if position < len(node.input) else ""
        if name not in self._tensors:
            return 0
        zero = self._array(name)
        if (zero == zero.flat[0]).all():
            return zero.flat[0]
        if block:
            return np.repeat(zero, block, axis).take(range(values.shape[axis]), axis)
        shape = [1] * values.ndim
        shape[axis] = -1
        return zero.reshape(shape)

    def _array(self, name: str) -> NDArray[Any]:
        values = np.asarray(onnx.numpy_helper.to_array(self._tensors[name]))
        if values.dtype.isbuiltin == 1:
            return values
        # numpy itself knows no integers of four bits and no bfloat16.
        return values.astype(np.int16 if self._whole(name) else np.float32)

    def _whole(self, name: str) -> bool:
        return "INT" in onnx.TensorProto.DataType.Name(self._tensors[name].data_type)


def _unpacked(data: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.int64]:
    """Return numbers of so many bits each, the lowest bits of a byte first, along the last axis."""
    single = np.unpackbits(data, axis=-1, bitorder="little", count=bits * count)
    split = single.reshape(*data.shape[:-1], count, bits)
    values: NDArray[np.int64] = (split * (1 << np.arange(bits))).sum(axis=-1)
    return values
