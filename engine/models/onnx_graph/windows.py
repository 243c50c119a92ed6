"""Convolutions, pooling, slices and pads, and the option-A shortcuts made of the latter.

He et al. 2015 (arXiv 1512.03385, section 3.3): the shortcut takes every second pixel and pads the
channels with zeros. Exporters write it as slices, or pooling over one pixel, and a pad or a
concatenation. None of these tells a dependency graph which channel comes from which; the 1x1
convolution that they equal does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from torch import Tensor, nn
from torch.nn import functional

from engine.models.onnx_graph import layers
from engine.models.onnx_graph.builder import Builder, Node, Refused, Selection, Value

_LONGEST = 1 << 14  # pixels of a pad or a stride
_CONVOLUTIONS: tuple[Callable[..., nn.modules.conv._ConvNd], ...] = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
)
_TRANSPOSED: tuple[Callable[..., nn.modules.conv._ConvNd], ...] = (
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


def conv(builder: Builder, node: Node) -> None:
    """Build a convolution; pads that differ between the sides become a step of their own."""
    value, weight = builder.value(node.inputs[0]), builder.tensor(node, 1)
    rank = weight.ndim - 2
    if not 1 <= rank <= 3 or len(value.shape) != rank + 2:
        raise Refused(f"it has {rank} axes of pixels")
    kernel = list(weight.shape[2:])
    strides, dilations, pads = _geometry(node, value, kernel)
    half = len(pads) // 2
    if pads[:half] != pads[half:]:
        function = partial(functional.pad, pad=layers.torch_pads(pads))
        value, pads = builder.between(f"{node.outputs[0]} (padded)", function, value), [0] * rank
    groups = node.attribute("group", 1)
    layer = _CONVOLUTIONS[rank - 1](
        1, 1, kernel, stride=strides, padding=pads[:rank], dilation=dilations, bias=False
    )
    layer.groups, layer.out_channels = groups, weight.shape[0]
    layer.in_channels = weight.shape[1] * groups
    _finish(builder, node, layer, value)


def conv_transpose(builder: Builder, node: Node) -> None:
    """Build a transposed convolution."""
    value, weight = builder.value(node.inputs[0]), builder.tensor(node, 1)
    rank = weight.ndim - 2
    if not 1 <= rank <= 3 or node.attribute("output_shape") or _automatic(node) != "NOTSET":
        raise Refused("its pads follow from its output's shape")
    strides, dilations, pads = _geometry(node, value, list(weight.shape[2:]))
    if pads[:rank] != pads[rank:]:
        raise Refused("its pads differ between the sides")
    groups = node.attribute("group", 1)
    layer = _TRANSPOSED[rank - 1](
        1,
        1,
        list(weight.shape[2:]),
        stride=strides,
        padding=pads[:rank],
        output_padding=node.attribute("output_padding", [0] * rank),
        dilation=dilations,
        bias=False,
    )
    layer.groups, layer.in_channels = groups, weight.shape[0]
    layer.out_channels = weight.shape[1] * groups
    _finish(builder, node, layer, value)


def _finish(builder: Builder, node: Node, layer: nn.modules.conv._ConvNd, value: Value) -> None:
    if layer.groups < 1 or layer.out_channels % layer.groups:
        raise Refused(f"{layer.out_channels} channels do not fall into {layer.groups} groups")
    weight = builder.tensor(node, 1)
    layer.weight = nn.Parameter(weight, requires_grad=node.given(2) or not _selects(layer, weight))
    if node.given(2):
        layer.bias = nn.Parameter(builder.tensor(node, 2))
    builder.layer(node, layer, value)


def _selects(layer: nn.modules.conv._ConvNd, weight: Tensor) -> bool:
    """Tell whether a convolution only picks channels: a shortcut that was rewritten before.

    It has nothing to learn, no more than the slices and pads that it stands for.
    """
    if layer.groups > 1 or layer.transposed or weight[0, 0].numel() > 1:
        return False
    picks = weight.flatten(1)
    ones = (picks == 1).sum() == (picks != 0).sum() > 0
    return bool(ones) and int(picks.sum(0).max()) == 1 and int(picks.sum(1).max()) == 1


def pool(builder: Builder, node: Node) -> None:
    """Build average or maximum pooling."""
    value = builder.value(node.inputs[0])
    if len([name for name in node.outputs if name]) > 1 or node.attribute("storage_order", 0):
        raise Refused("the places of its maxima are read")
    kernel = list(node.attribute("kernel_shape"))
    strides, dilations, pads = _geometry(node, value, kernel)
    kind = node.kind.removesuffix("Pool")
    if kernel == [1, 1] and not any(pads):
        _skip(builder, node, value, (strides[0], strides[1]))
        return
    if kind == "Average" and any(d != 1 for d in dilations):
        raise Refused("it averages with gaps")
    function = partial(
        layers.pool,
        kind=kind,
        kernel=kernel,
        strides=strides,
        pads=pads,
        dilations=dilations,
        ceil=bool(node.attribute("ceil_mode", 0)),
        count_pads=bool(node.attribute("count_include_pad", 0)),
    )
    builder.function(node, function, value)


def slice_(builder: Builder, node: Node) -> None:
    """Build a slice; every so many-th pixel is left to whoever reads it."""
    value = builder.value(node.inputs[0])
    starts, ends = builder.integers(node, "starts", 1), builder.integers(node, "ends", 2)
    if starts is None or ends is None:
        raise Refused("it does not say what it takes")
    axes = builder.integers(node, "axes", 3) or list(range(len(starts)))
    steps = builder.integers(node, "steps", 4) or [1] * len(starts)
    slices = []
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        axis %= len(value.shape)
        if step < 1:
            raise Refused("it turns an axis around")
        first, last, step = slice(start, end, step).indices(value.shape[axis])
        if (first, last, step) != (0, value.shape[axis], 1):
            slices.append((axis, first, last, step))
    if any(axis == 0 for axis, *_ in slices):
        raise Refused("it takes some of the images")
    if not slices:
        builder.note(node.outputs[0], value)
    elif len(value.shape) == 4 and all(
        axis > 1 and first == 0 and last == value.shape[axis] for axis, first, last, _ in slices
    ):
        strides = {axis: step for axis, _, _, step in slices}
        _skip(builder, node, value, (strides.get(2, 1), strides.get(3, 1)))
    else:
        builder.function(node, partial(layers.cut, slices=tuple(slices)), value)


def pad(builder: Builder, node: Node) -> None:
    """Build a pad; channels of zeros become part of a shortcut."""
    value = builder.value(node.inputs[0])
    rank = len(value.shape)
    pads = builder.integers(node, "pads", 1) or []
    if node.given(3):
        chosen = [int(a) % rank for a in builder.constant(node, 3).reshape(-1)]
        full = [0] * 2 * rank
        for place, axis in enumerate(chosen):
            full[axis], full[rank + axis] = pads[place], pads[len(chosen) + place]
        pads = full
    if len(pads) != 2 * rank:
        raise Refused(f"it has {len(pads)} pads for {rank} axes")
    if max(map(abs, pads)) > _LONGEST:
        raise Refused(f"its pads are {pads}")
    fill = float(node.attribute("value", 0.0))
    if node.given(2):
        fill = float(builder.constant(node, 2).reshape(-1)[0])
    mode = {"edge": "replicate"}.get(
        node.attribute("mode", "constant"), node.attribute("mode", "constant")
    )
    elsewhere = [p for axis, p in enumerate(pads) if axis % rank != 1]
    if not any(pads):
        builder.note(node.outputs[0], value)
    elif mode == "constant" and fill == 0 and not any(elsewhere) and rank == 4 and min(pads) >= 0:
        _widen(builder, node, value, pads[1], pads[rank + 1])
    elif mode == "constant":
        function = partial(functional.pad, pad=layers.torch_pads(pads), value=fill)
        builder.function(node, function, value)
    elif mode in ("reflect", "replicate") and not (pads[0] or pads[1] or pads[rank]):
        inner = [p for axis, p in enumerate(pads) if axis % rank > 1]
        function = partial(functional.pad, pad=layers.torch_pads(inner), mode=mode)
        builder.function(node, function, value)
    else:
        raise Refused(f"it pads by {mode} along the channels")


def concatenate(builder: Builder, node: Node) -> None:
    """Build a concatenation; with channels of zeros it becomes part of a shortcut."""
    values = [builder.value(name) for name in node.inputs]
    rank = max(len(value.shape) for value in values)
    axis = node.attribute("axis") % rank
    data = [value for value in values if not _is_zero(value)]
    if axis == 1 and rank == 4 and len(data) == 1 < len(values):
        place = values.index(data[0])
        before = sum(value.shape[1] for value in values[:place])
        after = sum(value.shape[1] for value in values[place + 1 :])
        _widen(builder, node, data[0], before, after)
        return
    builder.function(node, partial(layers.concatenate, axis=axis), *values)


def _is_zero(value: Value) -> bool:
    return value.zero or (value.constant is not None and not np.any(value.constant))


def _skip(builder: Builder, node: Node, value: Value, strides: tuple[int, int]) -> None:
    """Note that only some pixels are taken."""
    chosen = value.selection or Selection(value, (1, 1), tuple(range(value.shape[1])))
    a, b = chosen.strides
    chosen = replace(chosen, strides=(a * strides[0], b * strides[1]))
    assert value.like is not None
    like = value.like[:, :, :: strides[0], :: strides[1]]
    builder.select(node.outputs[0], value, chosen, like)


def _widen(builder: Builder, node: Node, value: Value, before: int, after: int) -> None:
    """Note that channels of zeros are put around."""
    if value.shape[1] + before + after > 1 << 16:
        raise Refused(f"it would give {value.shape[1] + before + after} channels")
    chosen = value.selection or Selection(value, (1, 1), tuple(range(value.shape[1])))
    channels = (*(None,) * before, *chosen.channels, *(None,) * after)
    assert value.like is not None
    like = functional.pad(value.like, (0, 0, 0, 0, before, after))
    builder.select(node.outputs[0], value, replace(chosen, channels=channels), like)


def _geometry(
    node: Node, value: Value, kernel: list[int]
) -> tuple[list[int], list[int], list[int]]:
    """Return strides, dilations and pads (beginnings, then ends) of a window over pixels."""
    rank = len(kernel)
    strides = list(node.attribute("strides", [1] * rank))
    dilations = list(node.attribute("dilations", [1] * rank))
    pads = list(node.attribute("pads", [0] * 2 * rank))
    automatic = _automatic(node)
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        pads = [0] * 2 * rank
        for axis in range(rank):
            size, stride = value.shape[2 + axis], strides[axis]
            reach = (kernel[axis] - 1) * dilations[axis] + 1
            total = max(0, (-(-size // stride) - 1) * stride + reach - size)
            less, more = total // 2, total - total // 2
            lower = automatic == "SAME_LOWER"
            pads[axis], pads[rank + axis] = (more, less) if lower else (less, more)
    elif automatic == "VALID":
        pads = [0] * 2 * rank
    for name, numbers, length, least in (
        ("strides", strides, rank, 1),
        ("dilations", dilations, rank, 1),
        ("pads", pads, 2 * rank, 0),
    ):
        if len(numbers) != length or min(numbers) < least or max(numbers) > _LONGEST:
            raise Refused(f"its {name} are {numbers}")
    return strides, dilations, pads


def _automatic(node: Node) -> str:
    return str(node.attribute("auto_pad", "NOTSET"))
