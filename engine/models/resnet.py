"""ResNets for small images (He et al. 2015, arXiv 1512.03385, section 4.2).

Parameter names are those of the public CIFAR-10 checkpoints (`conv1`, `bn1`,
`layer{1..3}.{i}.{conv1,bn1,conv2,bn2}`, `linear`), so that their weights load. The paper's
parameter-free shortcut "option A" (every second pixel, missing channels zero) is written as the
1x1 convolution with stride 2 that it equals: the function is the same, and a convolution, unlike
slicing and padding, tells a dependency graph which channel comes from which.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.models.normalise import IMAGENET_MEAN, IMAGENET_STD, Normalise, initialise


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    conv = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
    offset = max(0, (outputs - inputs) // 2)
    weight = torch.zeros(outputs, inputs, 1, 1)
    for channel in range(min(inputs, outputs)):
        weight[offset + channel, channel] = 1.0
    # Frozen: option A has nothing to learn.
    conv.weight = nn.Parameter(weight, requires_grad=False)
    return conv


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return functional.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """Three stages of `blocks` blocks each; depth 6 * blocks + 2."""

    fixed_names: ClassVar = (".shortcut.weight",)

    def __init__(
        self,
        blocks: int,
        classes: int = 10,
        widths: Sequence[int] = (16, 32, 64),
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std)
        self.conv1 = nn.Conv2d(len(mean), widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(widths[0], widths[0], blocks, stride=1)
        self.layer2 = _stage(widths[0], widths[1], blocks, stride=2)
        self.layer3 = _stage(widths[1], widths[2], blocks, stride=2)
        self.linear = nn.Linear(widths[2], classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W) between 0 and 1 to logits (N, classes)."""
        x = functional.relu(self.bn1(self.conv1(self.normalise(images))))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    rest = (Block(outputs, outputs, 1) for _ in range(blocks - 1))
    return nn.Sequential(Block(inputs, outputs, stride), *rest)
