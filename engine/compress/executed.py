"""The layers of an ONNX file, and the arithmetic in which ONNX Runtime really computes each.

A file says what was asked for; the runtime decides at load. It leaves a layer in float where it has
no integer kernel, and its pass WeightBiasQuantization quantizes a layer that was left in float on
purpose (onnxruntime pull requests 22969 and 25673). So the graph is read back as it is executed.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx

from engine.compress.inference import optimised

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that hold a network's arithmetic."""
INTEGER = (
    "QLinearConv", "QLinearMatMul", "QGemm", "ConvInteger", "MatMulInteger",
    "MatMulIntegerToFloat", "DynamicQuantizeMatMul",
)  # fmt: skip
"""Operators that compute a layer in integers."""

_FLOAT = (*LAYERS, "FusedConv", "FusedGemm", "FusedMatMul")
# What quantizers and optimisers hang on a layer's name.
_ADDED = re.compile(r"_token_\d+$|(_MatMul)?_quant$")


@dataclass(frozen=True)
class Executed:
    """A network's layers by the arithmetic that they run in, each in the order of the file."""

    integer: tuple[str, ...]
    """Names of the layers in integers."""
    floating: tuple[str, ...]
    """Names of the layers in float."""


def executed(path: str | Path, as_arm: bool = False) -> Executed:
    """Return how a session with default options runs a network on this machine's processor.

    Args:
        path: the ONNX file; its layers are known by the names of their nodes.
        as_arm: take signed activations into integer kernels, as on ARM.

    Raises:
        ValueError: ONNX Runtime cannot run it, or the names do not tell its layers apart.
    """
    runs = optimised(path, as_arm).graph.node
    names = [
        _ADDED.sub("", node.name)
        for node in onnx.load(path).graph.node
        if node.op_type in _FLOAT + INTEGER
    ]
    found = {_ADDED.sub("", node.name) for node in runs if node.op_type in INTEGER}
    integer = tuple(name for name in names if name in found)
    floating = tuple(name for name in names if name not in found)
    counts = tuple(sum(node.op_type in kinds for node in runs) for kinds in (INTEGER, _FLOAT))
    if counts != (len(integer), len(floating)):
        raise ValueError(
            f"{path}: ONNX Runtime runs {counts[0]} layers in integers and {counts[1]} in float, "
            "but their names do not tell which"
        )
    return Executed(integer, floating)


def name_layers(graph: onnx.GraphProto) -> tuple[str, ...]:
    """Name every node of a float network, in place; return the layers' names in their order.

    A layer is called as its weight is, without the last ".weight"; where several share one, and
    where the weight is no tensor of the file, as its node or, where that has no name of its own
    either, by operator and number. No two nodes keep the same name.
    """
    tensors = {initializer.name for initializer in graph.initializer}
    weights = Counter(
        node.input[1] for node in graph.node if node.op_type in LAYERS and node.input[1] in tensors
    )
    taken: set[str] = set()
    layers = []
    for number, node in enumerate(graph.node):
        layer = node.op_type in LAYERS
        if layer and weights[node.input[1]] == 1:
            node.name = node.input[1].removesuffix(".weight")
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{number}"
        taken.add(node.name)
        if layer:
            layers.append(node.name)
    return tuple(layers)
