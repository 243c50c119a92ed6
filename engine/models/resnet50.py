"""ResNet-50 for images of 224x224 (He et al. 2015, arXiv 1512.03385, table 1).

Stride 2 lies in a block's 3x3 convolution, as in the public weights ("version 1.5"). Parameter
names are torchvision's, which are timm's as well: `conv1`, `bn1`,
`layer{1..4}.{i}.{conv1,bn1,conv2,bn2,conv3,bn3,downsample.0,downsample.1}`, `fc`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from engine.models.normalise import IMAGENET_MEAN, IMAGENET_STD, Normalise, initialise

EXPANSION = 4
"""Channels that leave a bottleneck, in widths of its middle."""


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut around them."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, 4 * width, H / stride, W / stride)."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        return functional.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ResNet50(nn.Module):
    """Four stages of bottlenecks."""

    def __init__(
        self,
        classes: int = 1000,
        widths: Sequence[int] = (64, 128, 256, 512),
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        blocks: Sequence[int] = (3, 4, 6, 3),
    ) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std)
        self.conv1 = nn.Conv2d(len(mean), widths[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(widths[0], widths[0], blocks[0], stride=1)
        self.layer2 = _stage(EXPANSION * widths[0], widths[1], blocks[1], stride=2)
        self.layer3 = _stage(EXPANSION * widths[1], widths[2], blocks[2], stride=2)
        self.layer4 = _stage(EXPANSION * widths[2], widths[3], blocks[3], stride=2)
        self.fc = nn.Linear(EXPANSION * widths[3], classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W) between 0 and 1 to logits (N, classes)."""
        x = functional.relu(self.bn1(self.conv1(self.normalise(images))))
        x = functional.max_pool2d(x, 3, stride=2, padding=1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def _stage(inputs: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    rest = (Bottleneck(EXPANSION * width, width, 1) for _ in range(blocks - 1))
    return nn.Sequential(Bottleneck(inputs, width, stride), *rest)
