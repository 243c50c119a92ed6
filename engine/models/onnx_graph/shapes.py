"""Operators that change the shape of a tensor, or take a part of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from engine.models.onnx_graph import layers
from engine.models.onnx_graph.builder import Builder, Node, Refused

_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "ReduceMax": torch.amax,
    "ReduceMean": torch.mean,
    "ReduceMin": torch.amin,
    "ReduceSum": torch.sum,
}


def reduce(builder: Builder, node: Node) -> None:
    """Build a mean, sum, maximum or minimum over axes."""
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


def reshape(builder: Builder, node: Node) -> None:
    """Build whatever only changes the shape: Reshape, Flatten, Squeeze, Unsqueeze."""
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


def transpose(builder: Builder, node: Node) -> None:
    """Build another order of the axes."""
    value = builder.value(node.inputs[0])
    rank = len(value.shape)
    axes = tuple(node.attribute("perm", list(reversed(range(rank)))))
    if sorted(axes) != list(range(rank)):
        raise Refused(f"{list(axes)} is no order of {rank} axes")
    found = builder.transposed(value, axes, node.outputs[0])
    builder.note(node.outputs[0], found)


def split(builder: Builder, node: Node) -> None:
    """Build a split into several tensors."""
    value = builder.value(node.inputs[0])
    axis = node.attribute("axis", 0) % len(value.shape)
    if axis == 0:
        raise Refused("it takes some of the images")
    sizes = builder.integers(node, "split", 1)
    if sizes is None:
        size = math.ceil(value.shape[axis] / len(node.outputs))
        sizes = [size] * (len(node.outputs) - 1)
        sizes.append(value.shape[axis] - sum(sizes))
    builder.parts(node, partial(torch.split, split_size_or_sections=sizes, dim=axis), value)


def gather(builder: Builder, node: Node) -> None:
    """Build the choice of one entry of an axis."""
    value, index = builder.value(node.inputs[0]), builder.constant(node, 1)
    axis = node.attribute("axis", 0) % len(value.shape)
    if axis == 0 or index.size != 1:
        raise Refused("it takes more than one entry of an axis, or an image")
    entry = int(index.reshape(-1)[0]) % value.shape[axis]
    if index.ndim == 0:
        builder.function(node, partial(torch.select, dim=axis, index=entry), value)
    else:
        builder.function(node, partial(layers.cut, slices=((axis, entry, entry + 1, 1),)), value)


def resize(builder: Builder, node: Node) -> None:
    """Build an enlargement or reduction of height and width."""
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
