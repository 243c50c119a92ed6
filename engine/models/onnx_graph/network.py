"""A torch network that follows the steps of an ONNX file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Step:
    """One layer or function of the network."""

    inputs: tuple[str, ...]
    """Names of the tensors that it reads."""
    outputs: tuple[str, ...]
    """Names of the tensors that it gives; those of the ONNX file."""
    layer: str = ""
    """The layer's name in the network; empty: a function without tensors of its own."""
    function: Callable[..., Any] | None = None
    done: tuple[str, ...] = ()
    """Tensors that nobody reads after this step."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Step:
        return self  # nothing in it ever changes


class Network(nn.Module):
    """Layers under the names of the file's weights, and the order in which they are run."""

    def __init__(self, input: str, output: str) -> None:
        super().__init__()
        self.input, self.output = input, output
        self.steps: tuple[Step, ...] = ()

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W), scaled as the file wants them, to logits (N, classes)."""
        result: Tensor = self.values(images, (self.output,))[self.output]
        return result

    def values(self, images: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
        """Run the network and return those of its tensors, by their names in the file."""
        values: dict[str, Any] = {self.input: images}
        kept = {name: images for name in wanted if name == self.input}
        for step in self.steps:
            function = self.get_submodule(step.layer) if step.layer else step.function
            assert function is not None
            result = function(*[values[name] for name in step.inputs])
            given = (result,) if len(step.outputs) == 1 else result
            for name, tensor in zip(step.outputs, given, strict=True):
                values[name] = tensor
                if name in wanted:
                    kept[name] = tensor
            for name in step.done:
                del values[name]
        return kept

    def attach(self, name: str, layer: nn.Module) -> None:
        """Put a layer at a dotted name."""
        *path, last = name.split(".")
        place: nn.Module = self
        for part in path:
            if part not in place._modules:
                place.add_module(part, nn.Module())
            place = place.get_submodule(part)
        place.add_module(last, layer)
