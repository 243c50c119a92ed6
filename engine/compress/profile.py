"""What a network costs on paper: one row a model.

Paper is not a device: of two networks with equal multiply-accumulates one may be twice as slow.
The row describes, the measured latency decides.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.compress.inference import evaluating

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Profile:
    """One model's sizes."""

    parameters: int
    """Numbers in the network's parameters, frozen ones included."""
    nonzeros: int
    """Of these, how many are not zero."""
    macs: int | None
    """Multiply-accumulates of convolutions and linear layers for one image; None where a file does
    not tell them."""
    bytes: int | None = None
    """Size of the ONNX file; None where there is none yet."""
    compressed_bytes: int | None = None
    """Its size after gzip: what zeros and few bits save on the way to a device."""


@dataclass(frozen=True)
class Layer:
    """One convolution or linear layer as it ran."""

    name: str
    inputs: int
    outputs: int
    kernel: int
    """Kernel area: 9 for 3x3, 1 for a linear layer."""
    positions: int
    """Output pixels of one image."""
    groups: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return self.positions * self.outputs * (self.inputs // self.groups) * self.kernel


def profile(model: nn.Module, example: Tensor, path: str | Path | None = None) -> Profile:
    """Measure a network on paper, and its file where there is one.

    Args:
        model: the network; it is left as it was.
        example: an input; only its first image is used.
        path: its ONNX file.

    Raises:
        ValueError: the file cannot be read.
    """
    parameters = list(model.parameters())
    size, compressed = file_sizes(Path(path)) if path is not None else (None, None)
    return Profile(
        parameters=sum(p.numel() for p in parameters),
        nonzeros=sum(int(p.detach().count_nonzero()) for p in parameters),
        macs=macs(model, example),
        bytes=size,
        compressed_bytes=compressed,
    )


def macs(model: nn.Module, example: Tensor) -> int:
    """Count the multiply-accumulates of every matrix product and convolution for one image."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with evaluating(model), torch.no_grad(), counter:
        model(example[:1])
    # One multiply-accumulate is two operations.
    return int(counter.get_total_flops()) // 2


def layers(model: nn.Module, example: Tensor) -> tuple[Layer, ...]:
    """Return the convolutions and linear layers in the order in which they run."""
    import torch

    found: list[Layer] = []
    with _recording(model, found), evaluating(model), torch.no_grad():
        model(example[:1])
    return tuple(found)


def file_sizes(path: Path) -> tuple[int, int]:
    """Return a file's size in bytes, and what is left of it after gzip.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    # A fixed time stamp: the same file has the same size every time.
    return len(content), len(gzip.compress(content, compresslevel=6, mtime=0))


@contextmanager
def _recording(model: nn.Module, found: list[Layer]) -> Iterator[None]:
    from torch import nn

    def record(name: str) -> Any:
        def hook(module: Any, _inputs: Any, output: Tensor) -> None:
            if isinstance(module, nn.Linear):
                positions = output.numel() // output.shape[-1]
                sizes = (module.in_features, module.out_features, 1, positions, 1)
            else:
                area = module.weight[0, 0].numel()
                positions = output[0, 0].numel()
                sizes = (module.in_channels, module.out_channels, area, positions, module.groups)
            found.append(Layer(name, *sizes))

        return hook

    handles = [
        module.register_forward_hook(record(name))
        for name, module in model.named_modules()
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
