"""Read an ONNX file that nobody vouches for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx.external_data_helper import ExternalDataInfo

from engine.text import first_line

MAX_BYTES = 2 << 30
"""Of the file, and of the weights beside it: what one protobuf message can hold."""
MAX_NODES = 20_000
OLDEST_OPSET = 7
"""From here on an operator broadcasts as NumPy does."""

_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "QLinear", "Integer", "QAttention", "QGemm")


@dataclass(frozen=True)
class Source:
    """What a file holds."""

    path: Path
    proto: onnx.ModelProto
    """With all weights inside."""
    opset: int
    constants: Mapping[str, NDArray[np.generic]]
    """The initialisers."""
    input: str
    shape: tuple[int | None, ...]
    """Of the input; None where any size will do."""
    output: str


def read(path: Path) -> Source:
    """Read an ONNX file and check that it may be a network in float32.

    Raises:
        ValueError: there is no such file, it is too big or damaged, its weights lie outside its
            folder, it is quantized, or it does not have one input and one output.
    """
    proto = _parse(path)
    _bring_weights(path, proto)
    if proto.functions:
        proto = onnx.inliner.inline_local_functions(proto)
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        raise ValueError(f"{path}: not a valid ONNX file: {first_line(error)}") from error
    opset = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if opset < OLDEST_OPSET:
        raise ValueError(
            f"{path}: it is written in opset {opset}; export it again in {OLDEST_OPSET} or later"
        )
    graph = proto.graph
    if len(graph.node) > MAX_NODES:
        raise ValueError(f"{path}: {len(graph.node)} operators, more than {MAX_NODES}")
    for node in graph.node:
        if any(word in node.op_type for word in _QUANTIZED):
            raise ValueError(
                f"{path}: it is quantized ({node.op_type}), and integers cannot be trained: give "
                "the float file that it was made from"
            )
    constants = {i.name: _array(path, i) for i in graph.initializer}
    name, shape = _input(path, graph, constants)
    if len(graph.output) != 1:
        raise ValueError(
            f"{path}: it has {len(graph.output)} outputs ({_list(o.name for o in graph.output)}); "
            "a network here has one, the classes"
        )
    return Source(path, proto, opset, constants, name, shape, graph.output[0].name)


def _parse(path: Path) -> onnx.ModelProto:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ValueError(f"{path}: {size >> 20} MB, more than an ONNX file can have")
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ValueError(f"{path}: not an ONNX file, or a damaged one") from error
    if not proto.graph.node:
        raise ValueError(f"{path}: not an ONNX file, or one without operators")
    return proto


def _bring_weights(path: Path, proto: onnx.ModelProto) -> None:
    """Read weights that lie in files of their own; only the file's own folder is looked into."""
    outside = [i for i in proto.graph.initializer if i.data_location == onnx.TensorProto.EXTERNAL]
    if not outside:
        return
    folder, total = path.parent.resolve(), 0
    for tensor in outside:
        info = ExternalDataInfo(tensor)
        beside = (folder / info.location).resolve()
        if not info.location or not beside.is_relative_to(folder):
            raise ValueError(f"{path}: weights in {info.location!r}, outside the file's folder")
        if not beside.is_file():
            raise ValueError(f"{path}: its weights are missing: put {info.location} beside it")
        offset, rest = info.offset or 0, beside.stat().st_size
        length = info.length if info.length is not None else rest - offset
        total += length
        if offset < 0 or length < 0 or offset + length > rest:
            raise ValueError(f"{path}: {info.location} is shorter than {tensor.name} needs")
        if total > MAX_BYTES:
            raise ValueError(f"{path}: more than {MAX_BYTES >> 30} GB of weights")
        with beside.open("rb") as file:
            file.seek(offset)
            tensor.raw_data = file.read(length)
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def _array(path: Path, tensor: onnx.TensorProto) -> NDArray[np.generic]:
    if tensor.data_type in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16):
        raise ValueError(
            f"{path}: {tensor.name} has 16 bits a number: give the float32 file that it was "
            "made from"
        )
    try:
        return np.asarray(onnx.numpy_helper.to_array(tensor))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {tensor.name} is damaged: {first_line(error)}") from error


def _input(
    path: Path, graph: onnx.GraphProto, constants: Mapping[str, NDArray[np.generic]]
) -> tuple[str, tuple[int | None, ...]]:
    inputs = [i for i in graph.input if i.name not in constants]
    if len(inputs) != 1:
        raise ValueError(
            f"{path}: it has {len(inputs)} inputs ({_list(i.name for i in inputs)}); a network "
            "here has one, the images"
        )
    kind = inputs[0].type.tensor_type
    if kind.elem_type != onnx.TensorProto.FLOAT:
        name = onnx.TensorProto.DataType.Name(kind.elem_type).lower()
        raise ValueError(f"{path}: it reads {name} numbers; a network here reads float32 images")
    shape = tuple(d.dim_value if d.dim_value > 0 else None for d in kind.shape.dim)
    if len(shape) < 2:
        raise ValueError(f"{path}: its input has {len(shape)} axes; images have (N, C, H, W)")
    return inputs[0].name, shape


def _list(names: Iterable[str]) -> str:
    found = list(names)
    return ", ".join(found[:5]) + (", …" if len(found) > 5 else "")
