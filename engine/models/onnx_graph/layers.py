"""What ONNX's operators do, as torch functions that pickle; and the one layer torch has not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

Function = Callable[..., Any]

ARITHMETIC: dict[str, Function] = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Div": torch.div,
    "Pow": torch.pow,
    "Max": torch.maximum,
    "Min": torch.minimum,
}

ELEMENTWISE: dict[str, Function] = {
    "Abs": torch.abs,
    "Cos": torch.cos,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Log": torch.log,
    "Mish": functional.mish,
    "Neg": torch.neg,
    "Reciprocal": torch.reciprocal,
    "Relu": functional.relu,
    "Sigmoid": torch.sigmoid,
    "Sin": torch.sin,
    "Softplus": functional.softplus,
    "Softsign": functional.softsign,
    "Sqrt": torch.sqrt,
    "Tanh": torch.tanh,
}

_LARGEST: tuple[Function, ...] = (
    functional.max_pool1d,
    functional.max_pool2d,
    functional.max_pool3d,
)
_AVERAGE: tuple[Function, ...] = (
    functional.avg_pool1d,
    functional.avg_pool2d,
    functional.avg_pool3d,
)


class Arithmetic(nn.Module):
    """A tensor with numbers of the file: scales, shifts, layer scales, normalisations.

    Args:
        operator: a key of `ARITHMETIC`.
        value: the numbers, broadcast to the tensor.
        first: whether the numbers are the operator's first argument.
        learnt: whether they are trained; else they stay as they are.
    """

    value: Tensor

    def __init__(self, operator: str, value: Tensor, first: bool, learnt: bool) -> None:
        super().__init__()
        self.operator, self.first = operator, first
        if learnt:
            self.value = nn.Parameter(value)
        else:
            self.register_buffer("value", value)

    def forward(self, x: Tensor) -> Tensor:
        """Combine a tensor of any shape that the numbers fit."""
        pair = (self.value, x) if self.first else (x, self.value)
        result: Tensor = ARITHMETIC[self.operator](*pair)
        return result


def with_number(x: Tensor, operator: str, number: float, first: bool) -> Tensor:
    """Combine a tensor with one number."""
    if operator == "Max":
        return torch.clamp(x, min=number)
    if operator == "Min":
        return torch.clamp(x, max=number)
    if operator == "Div" and first:
        return number * torch.reciprocal(x)
    result: Tensor = ARITHMETIC[operator](number, x) if first else ARITHMETIC[operator](x, number)
    return result


def hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    """Return max(0, min(1, alpha * x + beta))."""
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return functional.hardsigmoid(x)
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


def global_pool(x: Tensor, kind: str) -> Tensor:
    """Reduce all pixels to one, (N, C, …) to (N, C, 1, …); `kind` is "Average" or "Max"."""
    if kind == "Average":
        return x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)
    return x.amax(dim=tuple(range(2, x.ndim)), keepdim=True)


def pool(
    x: Tensor,
    kind: str,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    ceil: bool,
    count_pads: bool,
) -> Tensor:
    """Pool over windows, by "Average" or "Max"; `pads` has all beginnings, then all ends."""
    rank = len(kernel)
    if kind == "Max":
        if any(pads) and not symmetric(pads, kernel):
            x, pads = functional.pad(x, torch_pads(pads), value=-torch.inf), [0] * 2 * rank
        largest = _LARGEST[rank - 1]
        return cast(Tensor, largest(x, kernel, strides, pads[:rank], dilations, ceil))
    average = _AVERAGE[rank - 1]
    if not any(pads) or symmetric(pads, kernel):
        return cast(Tensor, average(x, kernel, strides, pads[:rank], ceil, count_pads))
    padded = functional.pad(x, torch_pads(pads))
    found: Tensor = average(padded, kernel, strides, 0, ceil)
    if count_pads:
        return found
    inside = functional.pad(torch.ones_like(x[:1, :1]), torch_pads(pads))
    share: Tensor = average(inside, kernel, strides, 0, ceil)
    return found / share


def symmetric(pads: Sequence[int], kernel: Sequence[int]) -> bool:
    """Tell whether torch's own padding does: the same on both sides, at most half a window."""
    half = len(pads) // 2
    return list(pads[:half]) == list(pads[half:]) and all(
        2 * p <= k for p, k in zip(pads, kernel, strict=False)
    )


def torch_pads(pads: Sequence[int]) -> list[int]:
    """Order pads as torch does: the last axis first, its beginning and its end side by side."""
    half = len(pads) // 2
    return [p for axis in reversed(range(half)) for p in (pads[axis], pads[half + axis])]


def cut(x: Tensor, slices: Sequence[tuple[int, int, int, int]]) -> Tensor:
    """Slice by (axis, start, end, step)."""
    index = [slice(None)] * x.ndim
    for axis, start, end, step in slices:
        index[axis] = slice(start, end, step)
    return x[tuple(index)]


def every(x: Tensor, strides: tuple[int, int]) -> Tensor:
    """Take every so many-th pixel, from the first.

    As pooling over one pixel: a slice would tell the dependency graph less.
    """
    return functional.max_pool2d(x, 1, strides)


def concatenate(*tensors: Tensor, axis: int) -> Tensor:
    """Join along an axis."""
    return torch.cat(tensors, axis)


def reshaping(before: Sequence[int], after: Sequence[int]) -> Function | None:
    """Return the function between two shapes; None where they are the same.

    Where it can be said without the number of channels it is, so that it still holds when some
    are pruned. The first axis may have any size.
    """
    a, b = list(before), list(after)
    if a == b:
        return None
    for start in range(len(a)):
        for end in range(start + 1, len(a)):
            merged = 1
            for size in a[start : end + 1]:
                merged *= size
            if [*a[:start], merged, *a[end + 1 :]] == b:
                return partial(torch.flatten, start_dim=start, end_dim=end)
    for axis in range(len(b)):
        for width in range(2, len(b) - axis + 1):
            parts = b[axis : axis + width]
            whole = 1
            for size in parts:
                whole *= size
            if [*b[:axis], whole, *b[axis + width :]] == a:
                sizes = [-1, *parts[1:]] if axis == 0 else parts
                return partial(unflatten, axis=axis, sizes=tuple(sizes))
    return partial(torch.reshape, shape=(-1, *b[1:]))


def unflatten(x: Tensor, axis: int, sizes: Sequence[int]) -> Tensor:
    """Split an axis; where the others are one, it keeps whatever size it has."""
    others = [size for size in sizes if size != 1]
    if len(others) == 1:
        sizes = [-1 if size != 1 else 1 for size in sizes]
    return x.unflatten(axis, tuple(sizes))  # type: ignore[no-untyped-call, no-any-return]
