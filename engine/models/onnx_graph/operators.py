"""The table: for each ONNX operator, what it becomes in torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.models.onnx_graph import layers, windows
from engine.models.onnx_graph.builder import Builder, Node, Refused, Value


def _gemm(builder: Builder, node: Node) -> None:
    """alpha * A B + beta * C, with A the images' features."""
    if node.attribute("transA", 0):
        raise Refused("its first input is transposed")
    weight = builder.tensor(node, 1) * node.attribute("alpha", 1.0)
    weight = weight if node.attribute("transB", 0) else weight.T
    bias = None
    if node.given(2):
        bias = (builder.tensor(node, 2) * node.attribute("beta", 1.0)).reshape(-1)
        bias = bias.expand(weight.shape[0])
    builder.layer(node, _linear(weight, bias), builder.value(node.inputs[0]))


def _matmul(builder: Builder, node: Node) -> None:
    first, second = (builder.value(name) for name in node.inputs)
    if first.constant is None and second.constant is None:
        builder.function(node, torch.matmul, first, second)
        return
    if second.constant is None or second.constant.ndim != 2:
        raise Refused("the numbers that it multiplies with are no matrix on the right")
    builder.layer(node, _linear(builder.tensor(node, 1).T, None), first)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Module:
    layer = nn.Linear(1, 1, bias=False)
    layer.out_features, layer.in_features = weight.shape
    layer.weight = nn.Parameter(weight.contiguous())
    if bias is not None:
        layer.bias = nn.Parameter(bias.contiguous())
    return layer


def _batch_norm(builder: Builder, node: Node) -> None:
    if node.attribute("training_mode", 0) or len([o for o in node.outputs if o]) > 1:
        raise Refused("it is exported for training: export the network in evaluation mode")
    value = builder.value(node.inputs[0])
    kinds = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    scale, shift, mean, variance = (builder.tensor(node, index) for index in range(1, 5))
    layer = kinds[len(value.shape)](
        len(scale),
        eps=node.attribute("epsilon", 1e-5),
        momentum=1 - node.attribute("momentum", 0.9),
    )
    layer.load_state_dict(
        {"weight": scale, "bias": shift, "running_mean": mean, "running_var": variance},
        strict=False,
    )
    builder.layer(node, layer, value)


def _layer_norm(builder: Builder, node: Node) -> None:
    if len([o for o in node.outputs if o]) > 1:
        raise Refused("its mean or deviation is read")
    value, scale = builder.value(node.inputs[0]), builder.tensor(node, 1)
    axis = node.attribute("axis", -1) % len(value.shape)
    shape = value.shape[axis:]
    layer = nn.LayerNorm(shape, eps=node.attribute("epsilon", 1e-5), bias=node.given(2))
    layer.weight = nn.Parameter(scale.expand(shape).contiguous())
    if node.given(2):
        layer.bias = nn.Parameter(builder.tensor(node, 2).expand(shape).contiguous())
    builder.layer(node, layer, value)


def _instance_norm(builder: Builder, node: Node) -> None:
    value, scale = builder.value(node.inputs[0]), builder.tensor(node, 1)
    kinds = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}
    layer = kinds[len(value.shape)](len(scale), eps=node.attribute("epsilon", 1e-5), affine=True)
    layer.weight, layer.bias = nn.Parameter(scale), nn.Parameter(builder.tensor(node, 2))
    builder.layer(node, layer, value)


def _group_norm(builder: Builder, node: Node) -> None:
    value, scale = builder.value(node.inputs[0]), builder.tensor(node, 1)
    groups, channels = node.attribute("num_groups"), value.shape[1]
    shift = builder.tensor(node, 2)
    if len(scale) != channels:  # opset 18 had one number a group
        scale, shift = (t.repeat_interleave(channels // groups) for t in (scale, shift))
    layer = nn.GroupNorm(groups, channels, eps=node.attribute("epsilon", 1e-5))
    layer.weight, layer.bias = nn.Parameter(scale), nn.Parameter(shift)
    builder.layer(node, layer, value)


def _prelu(builder: Builder, node: Node) -> None:
    value, slope = builder.value(node.inputs[0]), builder.tensor(node, 1)
    per_channel = slope.numel() == 1 or (
        len(value.shape) - slope.ndim in (0, 1)
        and slope.numel() == value.shape[1]
        and slope.shape[slope.ndim - len(value.shape) + 1] == value.shape[1]
    )
    if not per_channel:
        raise Refused("its slopes are neither one number nor one a channel")
    layer = nn.PReLU(slope.numel())
    layer.weight = nn.Parameter(slope.reshape(-1))
    builder.layer(node, layer, value)


def _arithmetic(builder: Builder, node: Node) -> None:
    if len(node.inputs) != 2:
        raise Refused(f"it has {len(node.inputs)} inputs instead of two")
    first, second = (builder.value(name) for name in node.inputs)
    kind = node.kind
    if first.constant is None and second.constant is None:
        builder.function(node, layers.ARITHMETIC[kind], first, second)
        return
    value, constant = (first, second) if second.constant is not None else (second, first)
    array = constant.constant
    assert array is not None
    if array.size == 1 and array.ndim <= len(value.shape):
        number = float(array.reshape(-1)[0])
        function = partial(
            layers.with_number, operator=kind, number=number, first=constant is first
        )
        found = builder.function(node, function, value)
        found.zero = kind == "Mul" and number == 0
        return
    numbers = builder.parameter(array)
    while numbers.ndim and numbers.shape[0] == 1 and numbers.ndim > 1:
        numbers = numbers[0]
    added = numbers if kind == "Add" else -numbers
    subtracted = kind == "Sub" and constant is second
    if (kind == "Add" or subtracted) and _as_bias(builder, node, value, added):
        return
    layer = layers.Arithmetic(kind, numbers, constant is first, value.learnt)
    builder.layer(node, layer, value, 0 if constant is first else 1)


def _as_bias(builder: Builder, node: Node, value: Value, numbers: Tensor) -> bool:
    """Make what is added right after a layer its bias; tell whether that can be."""
    layer = builder.last_layer(value)
    axis = 1 if isinstance(layer, nn.modules.conv._ConvNd) else len(value.shape) - 1
    if not isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear)) or layer.bias is not None:
        return False
    if not layer.weight.requires_grad or numbers.numel() != value.shape[axis]:
        return False
    if numbers.ndim != len(value.shape) - axis:
        return False
    layer.bias = nn.Parameter(numbers.reshape(-1))
    builder.rename_last(node.outputs[0])
    return True


def _sum(builder: Builder, node: Node) -> None:
    builder.function(node, _total, *(builder.value(name) for name in node.inputs))


def _total(*tensors: Tensor) -> Tensor:
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total


def _unary(function: Callable[..., Any], **given: Any) -> Callable[[Builder, Node], None]:
    """Return a builder of a function of one tensor, with attributes and their defaults."""

    def build(builder: Builder, node: Node) -> None:
        found = {name: node.attribute(name, default) for name, default in given.items()}
        chosen = partial(function, **found) if found else function
        builder.function(node, chosen, builder.value(node.inputs[0]))

    return build


def _leaky_relu(builder: Builder, node: Node) -> None:
    slope = node.attribute("alpha", 0.01)
    function = partial(functional.leaky_relu, negative_slope=slope)
    builder.function(node, function, builder.value(node.inputs[0]))


def _gelu(builder: Builder, node: Node) -> None:
    function = partial(functional.gelu, approximate=node.attribute("approximate", "none"))
    builder.function(node, function, builder.value(node.inputs[0]))


def _clip(builder: Builder, node: Node) -> None:
    limits: dict[str, float] = {}
    for index, name in enumerate(("min", "max"), 1):
        if node.given(index):
            limits[name] = float(builder.constant(node, index).reshape(-1)[0])
        elif node.attribute(name) is not None:
            limits[name] = node.attribute(name)
    value = builder.value(node.inputs[0])
    if limits == {"min": 0.0, "max": 6.0}:
        builder.function(node, functional.relu6, value)
    elif limits:
        builder.function(node, partial(torch.clamp, **limits), value)
    else:
        builder.note(node.outputs[0], value)


def _softmax(builder: Builder, node: Node) -> None:
    value = builder.value(node.inputs[0])
    rank = len(value.shape)
    axis = node.attribute("axis", 1 if node.opset < 13 else -1) % rank
    if node.opset < 13 and any(size != 1 for size in value.shape[axis + 1 :]):
        raise Refused("it runs over several axes at once")
    log = node.kind == "LogSoftmax"
    function = partial(functional.log_softmax if log else functional.softmax, dim=axis)
    found = builder.function(node, function, value)
    if not log and axis == 1:
        found.softmax_of = value


def _same(builder: Builder, node: Node) -> None:
    if any(name and name in builder.read_names for name in node.outputs[1:]):
        raise Refused("its mask is read")
    builder.note(node.outputs[0], builder.value(node.inputs[0]))


def _cast(builder: Builder, node: Node) -> None:
    if node.attribute("to") != 1:
        raise Refused("it changes images to other numbers than float32")
    _same(builder, node)


def _global_pool(builder: Builder, node: Node) -> None:
    kind = node.kind.removeprefix("Global").removesuffix("Pool")
    function = partial(layers.global_pool, kind=kind)
    builder.function(node, function, builder.value(node.inputs[0]))


_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "ReduceMax": torch.amax,
    "ReduceMean": torch.mean,
    "ReduceMin": torch.amin,
    "ReduceSum": torch.sum,
}


def _reduce(builder: Builder, node: Node) -> None:
    value = builder.value(node.inputs[0])
    axes = builder.integers(node, "axes", 1)
    if not axes:
        if node.attribute("noop_with_empty_axes", 0):
            builder.note(node.outputs[0], value)
            return
        axes = list(range(len(value.shape)))
    axes = sorted(axis % len(value.shape) for axis in axes)
    function = _REDUCTIONS[node.kind]
    keep = bool(node.attribute("keepdims", 1))
    builder.function(node, partial(function, dim=tuple(axes), keepdim=keep), value)


def _reshape(builder: Builder, node: Node) -> None:
    value = builder.value(node.inputs[0])
    before = value.shape
    if node.kind == "Flatten":
        axis = node.attribute("axis", 1) % (len(before) + 1)
        after = [math.prod(before[:axis]), math.prod(before[axis:])]
    elif node.kind == "Reshape":
        after = _target(before, builder.integers(node, "shape", 1) or [], node)
    elif node.kind == "Squeeze":
        axes = builder.integers(node, "axes", 1)
        if axes is None:
            axes = [axis for axis, size in enumerate(before) if size == 1 and axis > 0]
        gone = {axis % len(before) for axis in axes}
        after = [size for axis, size in enumerate(before) if axis not in gone]
    else:
        axes = builder.integers(node, "axes", 1) or []
        rank = len(before) + len(axes)
        new, rest = {axis % rank for axis in axes}, iter(before)
        after = [1 if axis in new else next(rest) for axis in range(rank)]
    function = layers.reshaping(before, after)
    if function is None:
        builder.note(node.outputs[0], value)
    else:
        builder.function(node, function, value)


def _target(before: tuple[int, ...], wish: list[int], node: Node) -> list[int]:
    zeros_stay = not node.attribute("allowzero", 0)
    after = [before[i] if size == 0 and zeros_stay else size for i, size in enumerate(wish)]
    known = math.prod(size for size in after if size != -1)
    if after.count(-1) > 1 or math.prod(before) % max(known, 1):
        raise Refused(f"{list(before)} cannot become {wish}")
    after = [math.prod(before) // max(known, 1) if size == -1 else size for size in after]
    if math.prod(after) != math.prod(before):
        raise Refused(f"{list(before)} cannot become {wish}")
    return after


def _transpose(builder: Builder, node: Node) -> None:
    value = builder.value(node.inputs[0])
    rank = len(value.shape)
    axes = tuple(node.attribute("perm", list(reversed(range(rank)))))
    if sorted(axes) != list(range(rank)):
        raise Refused(f"{list(axes)} is no order of {rank} axes")
    found = builder.transposed(value, axes, node.outputs[0])
    builder.note(node.outputs[0], found)


def _split(builder: Builder, node: Node) -> None:
    value = builder.value(node.inputs[0])
    axis = node.attribute("axis", 0) % len(value.shape)
    sizes = builder.integers(node, "split", 1)
    if sizes is None:
        size = math.ceil(value.shape[axis] / len(node.outputs))
        sizes = [size] * (len(node.outputs) - 1)
        sizes.append(value.shape[axis] - sum(sizes))
    builder.parts(node, partial(torch.split, split_size_or_sections=sizes, dim=axis), value)


def _gather(builder: Builder, node: Node) -> None:
    value, index = builder.value(node.inputs[0]), builder.constant(node, 1)
    axis = node.attribute("axis", 0) % len(value.shape)
    if axis == 0 or index.size != 1:
        raise Refused("it takes more than one entry of an axis, or an image")
    entry = int(index.reshape(-1)[0]) % value.shape[axis]
    if index.ndim == 0:
        builder.function(node, partial(torch.select, dim=axis, index=entry), value)
    else:
        builder.function(node, partial(layers.cut, slices=((axis, entry, entry + 1, 1),)), value)


def _resize(builder: Builder, node: Node) -> None:
    value = builder.value(node.inputs[0])
    mode = node.attribute("mode", "nearest")
    where = node.attribute("coordinate_transformation_mode", "half_pixel")
    rank = len(value.shape)
    if node.given(3):
        sizes = [int(i) for i in builder.constant(node, 3).reshape(-1)]
    else:
        at = 2 if node.kind == "Resize" and node.opset > 10 else 1
        found = builder.constant(node, at) if node.given(at) else node.attribute("scales")
        sizes = [int(size * f) for size, f in zip(value.shape, np.ravel(found), strict=True)]
    if len(sizes) != rank or sizes[:2] != list(value.shape[:2]) or rank != 4:
        raise Refused("it changes more than height and width")
    if max(sizes) > 1 << 14 or mode not in ("nearest", "linear"):
        raise Refused(f"it resizes to {sizes}, {mode}")
    align = {} if mode == "nearest" else {"align_corners": where == "align_corners"}
    mode = mode if mode == "nearest" else "bilinear"
    function = partial(functional.interpolate, size=tuple(sizes[2:]), mode=mode, **align)
    builder.function(node, function, value)


def _local_response(builder: Builder, node: Node) -> None:
    function = partial(
        functional.local_response_norm,
        size=node.attribute("size"),
        alpha=node.attribute("alpha", 1e-4),
        beta=node.attribute("beta", 0.75),
        k=node.attribute("bias", 1.0),
    )
    builder.function(node, function, builder.value(node.inputs[0]))


TABLE: dict[str, Callable[[Builder, Node], None]] = {
    **{kind: _unary(function) for kind, function in layers.ELEMENTWISE.items()},
    **dict.fromkeys(layers.ARITHMETIC, _arithmetic),
    "AveragePool": windows.pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": windows.concatenate,
    "Conv": windows.conv,
    "ConvTranspose": windows.conv_transpose,
    "Dropout": _same,
    "Elu": _unary(functional.elu, alpha=1.0),
    "Flatten": _reshape,
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "GroupNormalization": _group_norm,
    "HardSigmoid": _unary(layers.hard_sigmoid, alpha=0.2, beta=0.5),
    "HardSwish": _unary(functional.hardswish),
    "Identity": _same,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": _leaky_relu,
    "LogSoftmax": _softmax,
    "LRN": _local_response,
    "MatMul": _matmul,
    "MaxPool": windows.pool,
    "PRelu": _prelu,
    "Pad": windows.pad,
    "ReduceMax": _reduce,
    "ReduceMean": _reduce,
    "ReduceMin": _reduce,
    "ReduceSum": _reduce,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": windows.slice_,
    "Softmax": _softmax,
    "Split": _split,
    "Squeeze": _reshape,
    "Sum": _sum,
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
    "Upsample": _resize,
}
"""What is known, by name."""
