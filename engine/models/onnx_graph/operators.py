"""The table: for each ONNX operator, what it becomes in torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.models.onnx_graph import layers, shapes, windows
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
    "Flatten": shapes.reshape,
    "Gather": shapes.gather,
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
    "ReduceMax": shapes.reduce,
    "ReduceMean": shapes.reduce,
    "ReduceMin": shapes.reduce,
    "ReduceSum": shapes.reduce,
    "Reshape": shapes.reshape,
    "Resize": shapes.resize,
    "Slice": windows.slice_,
    "Softmax": _softmax,
    "Split": shapes.split,
    "Squeeze": shapes.reshape,
    "Sum": _sum,
    "Transpose": shapes.transpose,
    "Unsqueeze": shapes.reshape,
    "Upsample": shapes.resize,
}
"""What is known, by name."""
