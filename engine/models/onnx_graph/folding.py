"""Operators whose result is known before the network runs: shapes, and numbers of the file."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from engine.models.onnx_graph.builder import MAX_ELEMENTS, Array, Builder, Node, Refused

_FOLDED = frozenset(
    """
    Abs Add And Cast CastLike Ceil Concat Constant ConstantOfShape Div Equal Expand Floor Gather
    Greater GreaterOrEqual Identity Less LessOrEqual Max Min Mod Mul Neg Not Or Pow Range
    Reciprocal ReduceMax ReduceMin ReduceProd ReduceSum Reshape Slice Split Sqrt Squeeze Sub
    Tile Transpose Unsqueeze Where
    """.split()  # noqa: SIM905
)


def fold(builder: Builder, node: Node) -> bool:
    """Compute the node now where that can be; tell whether it was."""
    if node.kind in ("Shape", "Size") and builder.is_data(node, 0):
        shape = builder.value(node.inputs[0]).shape
        part = shape[node.attribute("start", 0) : node.attribute("end", len(shape))]
        known = np.array(part if node.kind == "Shape" else math.prod(shape), dtype=np.int64)
        builder.know(node.outputs[0], known)
        return True
    for name in node.inputs:
        if name:
            builder.value(name)
    arrays = builder.constants(node.inputs)
    if arrays is None or node.kind not in (*_FOLDED, "Shape", "Size"):
        return False
    if node.kind == "Constant" and any(a.name.startswith("sparse") for a in node.proto.attribute):
        raise Refused("its numbers are stored sparsely")
    _bounded(node, arrays)
    given = [name for name in node.inputs if name]
    graph = onnx.helper.make_graph(
        [node.proto],
        "one",
        [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in dict.fromkeys(given)],
        [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in node.outputs],
    )
    opsets = [onnx.helper.make_opsetid("", node.opset)]
    evaluator = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=opsets))
    with np.errstate(all="ignore"):
        found = evaluator.run(None, dict(zip(given, arrays, strict=True)))
    for name, array in zip(node.outputs, found, strict=True):
        builder.know(name, np.asarray(array))
    return True


def _bounded(node: Node, arrays: list[Array]) -> None:
    """Refuse what would fill the memory; a few bytes of a file can ask for any amount."""
    size = max((array.size for array in arrays), default=0)
    if node.kind == "ConstantOfShape":
        size = math.prod(int(i) for i in arrays[0].reshape(-1))
    elif node.kind in ("Expand", "Tile"):
        size *= math.prod(max(1, int(i)) for i in arrays[1].reshape(-1))
    elif node.kind == "Range":
        start, limit, step = (float(array) for array in arrays)
        size = int(abs(limit - start) / max(abs(step), 1e-9))
    elif len(arrays) > 1:
        size = (
            math.prod(np.broadcast_shapes(*(a.shape for a in arrays))) if _spreads(node) else size
        )
    if size > MAX_ELEMENTS:
        raise Refused(f"it would give {size:,} numbers")


def _spreads(node: Node) -> bool:
    return node.kind in (
        "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max",
        "Min", "Mod", "Mul", "Or", "Pow", "Sub", "Where",
    )  # fmt: skip
