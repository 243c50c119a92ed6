"""Probe models: small ONNX networks that each feel one property of a device.

Devices that run one network equally fast may differ on the next. Three probes tell why: one
waits for arithmetic, one for memory, one for being called at all. They are built from a seed, so
that their bytes and digests are the same everywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

NAMES = ("compute", "bandwidth", "dispatch")

_OPSET, _IR_VERSION = 13, 8


def build(name: str) -> bytes:
    """Return a probe as the bytes of an ONNX file.

    Raises:
        ValueError: there is no probe of that name.
    """
    makers: dict[str, Callable[[], bytes]] = {
        "compute": compute,
        "bandwidth": bandwidth,
        "dispatch": dispatch,
    }
    if name not in makers:
        raise ValueError(f"there is no probe {name!r}: choose one of {', '.join(NAMES)}")
    return makers[name]()


def write(name: str, path: str | Path) -> str:
    """Write a probe to a file; return its SHA-256 in hex.

    Raises:
        ValueError: there is no probe of that name.
    """
    data = build(name)
    Path(path).write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def compute(layers: int = 10, channels: int = 64, size: int = 16) -> bytes:
    """Return dense 3x3 convolutions that fit the cache: bound by arithmetic (94 million MACs)."""
    rng = np.random.default_rng(1)
    net = _Net((1, channels, size, size))
    scale = np.sqrt(2 / (9 * channels))
    for _ in range(layers):
        weight = net.constant(scale * rng.standard_normal((channels, channels, 3, 3)))
        bias = net.constant(0.1 * rng.standard_normal(channels))
        net.add("Conv", weight, bias, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        net.add("Relu")
    net.add("GlobalAveragePool")
    return net.finish("compute")


def bandwidth(copies: int = 64, passes: int = 6) -> bytes:
    """Return element-wise passes over 4 MB: bound by memory, hardly any arithmetic."""
    rng = np.random.default_rng(2)
    net = _Net((1, 16, 32, 32))
    repeats = net.integers([1, 1, 8, copies // 8])
    net.add("Tile", repeats)
    for number in range(passes):
        constant = net.constant(1 + 0.01 * rng.standard_normal((1, 16, 1, 1)))
        net.add("Mul" if number % 2 else "Add", constant)
    net.add("ReduceMax", axes=[2, 3], keepdims=0)
    return net.finish("bandwidth")


def dispatch(rounds: int = 100) -> bytes:
    """Return a chain of 400 operators on eight numbers: bound by the cost of calling each."""
    rng = np.random.default_rng(3)
    net = _Net((1, 8))
    for _ in range(rounds):
        net.add("Mul", net.constant(1 + 0.1 * rng.standard_normal((1, 8))))
        net.add("Abs")
        net.add("Add", net.constant(0.1 * rng.standard_normal((1, 8))))
        net.add("Neg")
    return net.finish("dispatch")


def channels(width: int, layers: int = 4, size: int = 16) -> bytes:
    """Return 3x3 convolutions of one width, to be compared with neighbouring widths.

    The weights are all alike and made when the model is loaded: what is timed does not depend on
    their values, and the file has a few hundred bytes.
    """
    net = _Net((1, width, size, size))
    value = helper.make_tensor("value", TensorProto.FLOAT, [1], [1 / (9 * width)])
    weight = net.filled([width, width, 3, 3], value)
    for _ in range(layers):
        net.add("Conv", weight, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        net.add("Relu")
    net.add("GlobalAveragePool")
    return net.finish(f"channels-{width}")


class _Net:
    """A chain of operators in the making; each reads what the last one gave."""

    def __init__(self, shape: Sequence[int]) -> None:
        self._inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)]
        self._last = "images"
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def constant(self, values: NDArray[np.float64]) -> str:
        return self._keep(values.astype(np.float32))

    def integers(self, values: Sequence[int]) -> str:
        return self._keep(np.array(values, dtype=np.int64))

    def _keep(self, values: NDArray[np.float32] | NDArray[np.int64]) -> str:
        name = f"c{len(self._constants)}"
        self._constants.append(onnx.numpy_helper.from_array(values, name))
        return name

    def filled(self, shape: Sequence[int], value: onnx.TensorProto) -> str:
        """Return a tensor of equal values, which costs no room in the file."""
        name = f"filled{len(self._nodes)}"
        shape_name = self.integers(shape)
        self._nodes.append(helper.make_node("ConstantOfShape", [shape_name], [name], value=value))
        return name

    def add(self, operator: str, *constants: str, **attributes: Any) -> None:
        output = f"t{len(self._nodes)}"
        node = helper.make_node(operator, [self._last, *constants], [output], **attributes)
        self._nodes.append(node)
        self._last = output

    def finish(self, name: str) -> bytes:
        self._nodes[-1].output[0] = "logits"
        output = helper.make_empty_tensor_value_info("logits")
        output.type.tensor_type.elem_type = TensorProto.FLOAT
        graph = helper.make_graph(self._nodes, name, self._inputs, [output], self._constants)
        opsets = [helper.make_opsetid("", _OPSET)]
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="hdap"
        )
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        del model.graph.value_info[:]
        onnx.checker.check_model(model)
        data: bytes = model.SerializeToString(deterministic=True)
        return data
