"""One network in many mixtures of precisions, each layer of which runs as it was asked to.

A file says what was asked for; the runtime decides at load. So every file is read back as it is
executed, and where a layer runs otherwise, the file is written again as what it is.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray

from engine.compress.calibrate import PERCENTILE, Method
from engine.compress.export import Exported, write_file
from engine.compress.inference import logits
from engine.compress.presets import Isa, Preset
from engine.compress.quantizer import Quantizer, slim
from engine.compress.weight_bits import four_bits, packable, packed

Precision = Literal["fp32", "int8", "int4"]
Policy = tuple[Precision, ...]
"""The precision of every layer, in the order of the file."""

PRECISIONS: tuple[Precision, ...] = ("fp32", "int8", "int4")
"""int8: weights and activations. int4: weights only, which are unpacked when the file is loaded;
the layer runs in float."""

_COMPARED = 128
"""Images on which a layer's error is measured."""

_LEAST = 1e-9
"""Share of the logits' power; an error that is smaller makes no difference."""


@dataclass(frozen=True)
class Layer:
    """One layer of the network on paper."""

    name: str
    weights: int
    """Numbers in its weight tensor; 0 where the file holds none."""
    macs: int
    """Multiply-accumulates for one image."""
    kernel: int
    """Kernel area: 9 for 3x3, 1 for a linear layer."""
    depthwise: bool


class Mixtures:
    """A float network, calibrated once, of which mixtures of precisions are written.

    Args:
        source: the float network, with one input (N, C, H, W) between 0 and 1.
        calibration: images (N, C, H, W) uint8 for the ranges of int8.
        preset: for which instruction set.
        method: how the ranges follow from the images.
        percentile: with the method "percentile".
        batch: calibration images a pass; None as the method needs.

    Raises:
        ValueError: as with `Quantizer`.
    """

    layers: tuple[Layer, ...]
    """What can have a precision of its own, in the order of the file."""
    fingerprint: str
    """SHA-256, hex, by which network, calibration, preset and runtime are told from others."""

    def __init__(
        self,
        source: str | Path,
        calibration: NDArray[np.uint8],
        preset: Isa | Preset = "x86-vnni",
        method: Method = "minmax",
        percentile: float = PERCENTILE,
        batch: int | None = None,
    ) -> None:
        import onnxruntime

        self._quantizer = Quantizer(source, calibration, preset, method, percentile, batch)
        names = self._quantizer.layers
        if packed(onnx.load(source).graph):
            raise ValueError(
                f"{source}: already quantized: give the float network that it was made from"
            )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "uniform.onnx"
            whole = self._quantizer.write(path, names)
            proto = onnx.load(path)
            integer = self._quantizer.write(path)
            able = set(self._quantizer.executed(path).integer)
        self.layers = _layers(proto, names)
        known = f"{whole.digest} {integer.digest} {onnxruntime.__version__}"
        self.fingerprint = hashlib.sha256(known.encode()).hexdigest()
        four = set(packable(proto.graph))
        self._able = {"fp32": set(names), "int8": able, "int4": four}

    def allowed(self, actions: Sequence[Precision]) -> NDArray[np.bool_]:
        """Return which of these precisions each layer can have, (layers, actions)."""
        return np.array([[layer.name in self._able[a] for a in actions] for layer in self.layers])

    def uniform(self, precision: Precision) -> Policy:
        """Return the policy that gives this precision to all layers that can have it."""
        able = self._able[precision]
        return tuple(precision if layer.name in able else "fp32" for layer in self.layers)

    def write(self, target: str | Path, policy: Policy) -> tuple[Exported, Policy]:
        """Write a mixture; return the file and the policy that it is executed by.

        Where ONNX Runtime runs a layer otherwise than asked, what it does is asked for, and the
        file written again; so the two never differ.

        Raises:
            ValueError: the policy is none for this network, or no file comes out that runs as
                its policy says.
        """
        self._check(policy)
        with tempfile.TemporaryDirectory() as folder:
            aside = Path(folder) / "mixture.onnx"
            for _ in range(2):
                found = self._write(aside, policy)
                if found == policy:
                    return write_file(aside.read_bytes(), Path(target)), policy
                policy = found
        raise ValueError("ONNX Runtime runs the network otherwise each time it is written")

    def errors(self, images: NDArray[np.uint8], actions: Sequence[Precision]) -> list[list[float]]:
        """Measure how much each layer disturbs the network when it alone has a precision.

        Returns:
            The power of the error at the logits relative to that of the logits, (layers, actions);
            0 for float, and for what a layer cannot have alone. One layer at a time: Nagel et al.:
            *A white paper on neural network quantization*, arXiv 2106.08295, section 3.6.
        """
        allowed, images = self.allowed(actions), images[:_COMPARED]
        whole = self.uniform("fp32")
        found = np.zeros(allowed.shape)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "mixture.onnx"
            exact = logits(self.write(path, whole)[0].path, images)
            power = max(float(np.square(exact).mean()), 1e-30)
            for layer, action in np.argwhere(allowed):
                policy = (*whole[:layer], actions[action], *whole[layer + 1 :])
                if policy == whole:
                    continue
                try:
                    self.write(path, policy)
                except ValueError:
                    continue  # its neighbours would not stay in float
                found[layer, action] = np.square(logits(path, images) - exact).mean() / power
        return [[float(error) for error in row] for row in found]

    def features(self, errors: ArrayLike) -> NDArray[np.float64]:
        """Return what there is to tell layers by, (layers, features), given their `errors`.

        Their weights, multiply-accumulates, kernels and errors in logarithms, whether they are
        depthwise, and their place.
        """
        sizes = [(layer.weights, layer.macs, layer.kernel) for layer in self.layers]
        return np.column_stack(
            [
                np.log1p(np.array(sizes, dtype=np.float64)),
                [layer.depthwise for layer in self.layers],
                np.arange(len(self.layers)),
                np.log(np.maximum(errors, _LEAST)),
            ]
        )

    def _check(self, policy: Policy) -> None:
        if len(policy) != len(self.layers):
            raise ValueError(f"a policy has {len(self.layers)} precisions, one a layer of the "
                             f"network, not {len(policy)}")  # fmt: skip
        check_precisions(policy)

    def _write(self, path: Path, policy: Policy) -> Policy:
        """Write a mixture as it is asked for; return how it is executed."""
        asked = {layer.name: p for layer, p in zip(self.layers, policy, strict=True)}
        four = [name for name, p in asked.items() if p == "int4" and name in self._able["int4"]]
        self._quantizer.write(path, [name for name, p in asked.items() if p != "int8"])
        if four:
            path.write_bytes(slim(four_bits(onnx.load(path), four)))
        integer = set(self._quantizer.executed(path).integer)
        return tuple(
            "int8" if name in integer else "int4" if name in four else "fp32" for name in asked
        )


def check_precisions(precisions: Sequence[str]) -> None:
    """Refuse what is no precision.

    Raises:
        ValueError: one is none.
    """
    unknown = sorted(set(precisions).difference(PRECISIONS))
    if unknown:
        raise ValueError(
            f"there is no precision {', '.join(unknown)}: only {', '.join(PRECISIONS)}"
        )


def _layers(proto: onnx.ModelProto, names: Sequence[str]) -> tuple[Layer, ...]:
    """Read the layers' sizes from a float network; a length that is not known counts as 1."""
    graph = onnx.shape_inference.infer_shapes(proto).graph
    shapes = {
        value.name: [max(d.dim_value, 1) for d in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.output)
    }
    tensors = {i.name: list(i.dims) for i in graph.initializer}
    nodes = {node.name: node for node in graph.node}
    found = []
    for name in names:
        node = nodes[name]
        weight, output = tensors.get(node.input[1], []), shapes.get(node.output[0], [])
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        count = int(np.prod(weight)) if weight else 0
        # Each weight of a convolution is used once an output pixel, of a linear layer once a row.
        pixels = output[2:] if node.op_type == "Conv" else output[1:-1]
        found.append(
            Layer(
                name=name,
                weights=count,
                macs=count * int(np.prod(pixels)),
                kernel=int(np.prod(weight[2:])) if node.op_type == "Conv" else 1,
                depthwise=groups > 1 and weight[1:2] == [1],
            )
        )
    return tuple(found)
