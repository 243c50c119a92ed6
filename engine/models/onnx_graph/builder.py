"""The network in the making: what is known of each tensor while a graph is walked."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from engine.models.onnx_graph import layers
from engine.models.onnx_graph.file import Source
from engine.models.onnx_graph.naming import layer_name, unused
from engine.models.onnx_graph.network import Network, Step

Array = NDArray[np.generic]
_FLATTEN = partial(torch.flatten, start_dim=1)
MAX_ELEMENTS = 1 << 28
"""Of one tensor between two layers, or computed from constants."""


class Refused(ValueError):
    """Why an operator cannot be taken, for the end of a sentence."""


class Node:
    """One operator of the file."""

    def __init__(self, proto: onnx.NodeProto, opset: int) -> None:
        self.proto, self.opset = proto, opset
        self.name = proto.name or (proto.output[0] if proto.output else "")
        domain = "" if proto.domain in ("", "ai.onnx") else f"{proto.domain}."
        self.kind = f"{domain}{proto.op_type}"
        self.inputs = list(proto.input)
        self.outputs = list(proto.output)
        self._attributes = {a.name: a for a in proto.attribute}

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return an attribute: a number, a list of numbers, or a text."""
        if name not in self._attributes:
            return default
        value = onnx.helper.get_attribute_value(self._attributes[name])
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else value

    def given(self, index: int) -> bool:
        """Tell whether an optional input is there."""
        return index < len(self.inputs) and bool(self.inputs[index])


@dataclass(frozen=True)
class Selection:
    """Some pixels and channels of a tensor, and channels of zeros: an option-A shortcut."""

    source: Value
    strides: tuple[int, int]
    channels: tuple[int | None, ...]
    """Channels of the source; None: zeros."""


@dataclass
class Value:
    """What is known of one tensor."""

    name: str
    like: Tensor | None = None
    """A stand-in of the same shape, without numbers; None for constants."""
    constant: Array | None = None
    learnt: bool = False
    """It depends on the weights of a layer."""
    zero: bool = False
    selection: Selection | None = None
    """It is not computed yet, but selected from another."""
    permuted: tuple[Value, tuple[int, ...]] | None = None
    """It is another with its axes in this order."""
    softmax_of: Value | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, at the batch size at which the graph is walked."""
        if self.like is not None:
            return tuple(self.like.shape)
        assert self.constant is not None
        return self.constant.shape


class Builder:
    """Gathers layers and steps.

    Args:
        source: the file.
        shape: the input's shape, as the file orders it.
        channels_last: whether that is (N, H, W, C); the network reads (N, C, H, W) all the same.
    """

    def __init__(self, source: Source, shape: Sequence[int], channels_last: bool) -> None:
        self.source, self.opset = source, source.opset
        self._values = {n: Value(n, constant=array) for n, array in source.constants.items()}
        self._uses = Counter(name for node in source.proto.graph.node for name in node.input)
        self._uses[source.output] += 1
        self._steps: list[Step] = []
        self._layers: dict[str, nn.Module] = {}
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        name = source.input
        self._input = f"{name} (N, C, H, W)" if channels_last else name
        if channels_last:
            n, h, w, c = shape
            images = Value(self._input, self._stand_in((n, c, h, w)))
            self._values[name] = self.transposed(images, (0, 2, 3, 1), name)
        else:
            self._values[name] = Value(name, self._stand_in(shape))

    def _stand_in(self, shape: Sequence[int]) -> Tensor:
        """Return a tensor that has a shape, but no numbers: walking the graph costs nothing."""
        if math.prod(shape) > MAX_ELEMENTS:
            raise ValueError(f"{self.source.path}: its input is {list(shape)}: too large")
        with self._mode:
            return torch.empty(tuple(shape))

    def _run(self, function: Callable[..., Any], *likes: Tensor | None) -> Any:
        with self._mode, torch.no_grad():
            return function(*likes)

    def value(self, name: str) -> Value:
        """Return what is known of a tensor."""
        if name not in self._values:
            raise Refused(f"{name} is computed by nothing before it")
        return self._values[name]

    def constants(self, names: Sequence[str]) -> list[Array] | None:
        """Return the numbers of these tensors, or None where some are not known beforehand."""
        values = [self._values[n].constant if n else None for n in names]
        if any(v is None and n for v, n in zip(values, names, strict=True)):
            return None
        return [v for v in values if v is not None]

    def constant(self, node: Node, index: int) -> Array:
        """Return the numbers of an input that must be known beforehand."""
        found = self.value(node.inputs[index]).constant
        if found is None:
            raise Refused(f"{node.inputs[index]} is computed while the network runs")
        return found

    def integers(self, node: Node, attribute: str, index: int) -> list[int] | None:
        """Return integers that are an attribute or, in later opsets, an input."""
        if node.given(index):
            return [int(i) for i in self.constant(node, index).reshape(-1)]
        found = node.attribute(attribute)
        return None if found is None else [int(i) for i in found]

    def tensor(self, node: Node, index: int) -> Tensor:
        """Return weights, as a tensor of their own."""
        return self.parameter(self.constant(node, index))

    def parameter(self, array: Array) -> Tensor:
        """Return numbers of the file as a float32 tensor."""
        if array.dtype not in (np.float32, np.float64, np.int64, np.int32):
            raise Refused(f"its weights are {array.dtype}")
        return torch.from_numpy(np.array(array, dtype=np.float32))

    @property
    def read_names(self) -> set[str]:
        """Names of the tensors that some operator reads, or the output."""
        return {name for name, uses in self._uses.items() if uses > 0}

    def is_data(self, node: Node, index: int) -> bool:
        """Tell whether an input is computed while the network runs."""
        return self.value(node.inputs[index]).constant is None

    def select(self, name: str, value: Value, selection: Selection, like: Tensor) -> None:
        """Note a tensor that is selected from another; it is computed where somebody reads it."""
        self._values[name] = Value(name, like, learnt=value.learnt, selection=selection)

    def know(self, name: str, array: Array) -> None:
        """Note a tensor whose numbers are known."""
        self._values[name] = Value(name, constant=array)

    def note(self, name: str, value: Value) -> None:
        """Let a name of the file stand for a value that has one already."""
        self._values[name] = value
        if value.name != name:
            self._uses[value.name] += self._uses[name] - 1

    def layer(self, node: Node, layer: nn.Module, value: Value, weight: int = 1) -> None:
        """Add a layer that maps `value` to the node's output; named after that input."""
        wanted = layer_name(node.inputs[weight], node.proto.name, node.proto.op_type)
        name = self.hold(wanted, layer)
        self._values[node.outputs[0]] = self._emit(node.outputs[0], layer.eval(), [value], name)

    def hold(self, name: str, layer: nn.Module) -> str:
        """Keep a layer under this name, or one like it; return the name."""
        name = unused(name, self._layers)
        self._layers[name] = layer
        return name

    def function(self, node: Node, function: Callable[..., Any], *values: Value) -> Value:
        """Add a function that maps `values` to the node's output."""
        result = self._emit(node.outputs[0], function, list(values))
        self._values[node.outputs[0]] = result
        return result

    def between(self, name: str, function: Callable[..., Any], value: Value) -> Value:
        """Add a function whose result has no name in the file."""
        return self._emit(name, function, [value])

    def parts(self, node: Node, function: Callable[..., Any], value: Value) -> None:
        """Add a function with several outputs."""
        value = self.ready(value)
        found = self._run(function, value.like)
        self._steps.append(Step((value.name,), tuple(node.outputs), function=function))
        for name, like in zip(node.outputs, found, strict=True):
            self._values[name] = Value(name, like, learnt=value.learnt)

    def transposed(self, value: Value, axes: tuple[int, ...], name: str) -> Value:
        """Return a value with its axes in another order; two such steps become one, or none."""
        if value.permuted is not None:
            value, first = value.permuted
            axes = tuple(first[axis] for axis in axes)
        if axes == tuple(range(len(axes))):
            return value
        found = self._emit(name, partial(torch.permute, dims=axes), [value])
        found.permuted = (value, axes)
        return found

    def last_layer(self, value: Value) -> nn.Module | None:
        """Return the layer that gives this value, where nothing else reads it."""
        if not self._steps or self._uses[value.name] != 1 or value.selection:
            return None
        step = self._steps[-1]
        return self._layers[step.layer] if step.layer and step.outputs == (value.name,) else None

    def rename_last(self, name: str) -> None:
        """Let the last step give a tensor of another name: the next operator is part of it."""
        (old,) = self._steps[-1].outputs
        self._steps[-1] = replace(self._steps[-1], outputs=(name,))
        self._values[name] = replace(self._values[old], name=name)

    def ready(self, value: Value) -> Value:
        """Return the value itself; what was only selected so far gets its layer."""
        if value.constant is not None:
            raise Refused(f"it computes with {value.name}, numbers of the file, as if with images")
        if value.selection is None:
            return value
        chosen, value.selection = value.selection, None
        source = self.ready(chosen.source)
        if None not in chosen.channels:
            found = self._emit(value.name, partial(layers.every, strides=chosen.strides), [source])
        else:
            conv = self._selecting(chosen)
            wanted = layer_name("", value.name.removesuffix("_output_0"), "shortcut")
            name = self.hold(wanted if "shortcut" in wanted else "shortcut", conv)
            found = self._emit(value.name, conv, [source], name)
        value.like, value.learnt = found.like, found.learnt
        return value

    def _selecting(self, chosen: Selection) -> nn.Module:
        """Return the frozen 1x1 convolution that selects."""
        inputs, outputs = chosen.source.shape[1], len(chosen.channels)
        conv = nn.Conv2d(inputs, outputs, 1, stride=chosen.strides, bias=False)
        weight = torch.zeros(outputs, inputs, 1, 1)
        for row, channel in enumerate(chosen.channels):
            if channel is not None:
                weight[row, channel] = 1.0
        conv.weight = nn.Parameter(weight, requires_grad=False)
        return conv

    def _emit(
        self, name: str, function: Callable[..., Any], values: Sequence[Value], layer: str = ""
    ) -> Value:
        values = [self.ready(value) for value in values]
        like = self._run(function, *[value.like for value in values])
        if like.numel() > MAX_ELEMENTS:
            raise Refused(f"it would give {like.numel():,} numbers")
        inputs = tuple(value.name for value in values)
        self._steps.append(Step(inputs, (name,), layer, None if layer else function))
        own = self._layers[layer].parameters() if layer else ()
        learnt = any(p.requires_grad for p in own) or any(value.learnt for value in values)
        return Value(name, like, learnt=learnt)

    def finish(self) -> Network:
        """Return the network, without steps whose results nobody reads."""
        value = self.value(self.source.output)
        if value.constant is not None:
            raise ValueError(f"{self.source.path}: its output does not depend on its input")
        value = self.ready(value.softmax_of or value)
        if len(value.shape) > 2 and math.prod(value.shape[2:]) == 1:
            value = self._emit(f"{value.name} (N, classes)", _FLATTEN, [value])
        output = value.name
        network = Network(self._input, output)
        steps, needed = [], {output}
        for step in reversed(self._steps):
            if needed.isdisjoint(step.outputs):
                continue
            done = tuple(sorted({*step.inputs, *step.outputs} - needed))
            needed.update(step.inputs)
            steps.append(replace(step, done=done))
        used = {step.layer for step in steps}
        for name, layer in self._layers.items():
            if name in used:
                network.attach(name, layer)
        network.steps = tuple(reversed(steps))
        return network.eval()
