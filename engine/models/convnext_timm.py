"""ConvNeXt (Liu et al. 2022, arXiv 2201.03545) with timm's layout.

The function of :mod:`engine.models.convnext`, under timm's names: `stem.{0,1}`,
`stages.{i}.downsample.{0,1}`, `stages.{i}.blocks.{j}` with `conv_dw`, `norm`, `mlp.{fc1,fc2}` and
`gamma`, `head.{norm,fc}`. The scale of a block is a vector here, and (channels, 1, 1) there.
Weights with torchvision's names load too, and so do those of timm's blocks of 1x1 convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from engine.models.convnext import LayerNorm, initialise
from engine.models.normalise import IMAGENET_MEAN, IMAGENET_STD, Normalise


class Mlp(nn.Module):
    """Two linear layers on the last axis."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., channels) to the same shape."""
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class Block(nn.Module):
    """A depthwise convolution, two linear layers a pixel, and a shortcut around them."""

    def __init__(self, channels: int, hidden: int, kernel: int = 7) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = Mlp(channels, hidden)
        self.gamma = nn.Parameter(torch.full((channels,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, H, W) to the same shape."""
        y = self.mlp(self.norm(self.conv_dw(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        out: Tensor = x + self.gamma.reshape(1, -1, 1, 1) * y
        return out


class Stage(nn.Module):
    """Blocks of one width; with a stride of 2, what halves the image comes before them."""

    def __init__(self, inputs: int, outputs: int, blocks: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.downsample: nn.Module = nn.Identity()
        if stride == 2:
            self.downsample = nn.Sequential(
                LayerNorm(inputs), nn.Conv2d(inputs, outputs, 2, stride=2)
            )
        self.blocks = nn.Sequential(*(Block(outputs, 4 * outputs, kernel) for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        out: Tensor = self.blocks(self.downsample(x))
        return out


class Head(nn.Module):
    """The mean over the pixels, normalised, and the classes."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.norm = LayerNorm(channels)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, H, W) to logits (N, classes)."""
        logits: Tensor = self.fc(self.norm(x.mean((2, 3), keepdim=True)).flatten(1))
        return logits


class ConvNeXt(nn.Module):
    """A stem that cuts the image into patches, and stages; each but the first halves it."""

    public_names: ClassVar = (
        (r"^features\.0\.", "stem."),
        *((rf"^features\.{2 * n}\.", f"stages.{n}.downsample.") for n in (1, 2, 3)),
        *((rf"^features\.{2 * n + 1}\.", f"stages.{n}.blocks.") for n in (0, 1, 2, 3)),
        (r"\.block\.0\.", ".conv_dw."),
        (r"\.block\.2\.", ".norm."),
        (r"\.block\.3\.", ".mlp.fc1."),
        (r"\.block\.5\.", ".mlp.fc2."),
        (r"\.layer_scale$", ".gamma"),
        (r"^classifier\.0\.", "head.norm."),
        (r"^classifier\.2\.", "head.fc."),
    )

    def __init__(
        self,
        classes: int = 1000,
        widths: Sequence[int] = (96, 192, 384, 768),
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        blocks: Sequence[int] = (3, 3, 9, 3),
        patch: int = 4,
        kernel: int = 7,
    ) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std)
        stem = nn.Conv2d(len(mean), widths[0], patch, stride=patch)
        self.stem = nn.Sequential(stem, LayerNorm(widths[0]))
        self.stages = nn.Sequential()
        inputs = widths[0]
        for number, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            self.stages.append(Stage(inputs, width, count, kernel, stride=2 if number else 1))
            inputs = width
        self.head = Head(widths[-1], classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W) between 0 and 1 to logits (N, classes)."""
        logits: Tensor = self.head(self.stages(self.stem(self.normalise(images))))
        return logits
