"""ConvNeXt (Liu et al. 2022, arXiv 2201.03545).

Parameter names are torchvision's: `features.0` the stem, `features.{1,3,5,7}` the stages with
`{i}.layer_scale` and `{i}.block.{0,2,3,5}` (depthwise convolution, layer norm, two linear layers),
`features.{2,4,6}` what halves the image between them, `classifier.{0,2}`. Checkpoints with timm's
names load too, in both forms of its block (linear layers or 1x1 convolutions); the network with
these names is :mod:`engine.models.convnext_timm`. For images of 32x32 the stem's patches are of 2x2
pixels.

Only the hidden channels of a block can be pruned: a layer norm over the others takes its mean and
variance over all of them, so that dropping one changes what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from engine.models.normalise import IMAGENET_MEAN, IMAGENET_STD, Normalise


class LayerNorm(nn.LayerNorm):
    """A layer norm over the channels of images (N, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise every pixel over its channels."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _ChannelsLast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class _ChannelsFirst(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)


class Block(nn.Module):
    """A depthwise convolution, two linear layers a pixel, and a shortcut around them."""

    def __init__(self, channels: int, hidden: int, kernel: int = 7) -> None:
        super().__init__()
        self.layer_scale = nn.Parameter(torch.full((channels, 1, 1), 1e-6))
        self.block = nn.Sequential(
            nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels),
            _ChannelsLast(),
            nn.LayerNorm(channels, eps=1e-6),
            nn.Linear(channels, hidden),
            nn.GELU(),
            nn.Linear(hidden, channels),
            _ChannelsFirst(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, H, W) to the same shape."""
        out: Tensor = x + self.layer_scale * self.block(x)
        return out


class ConvNeXt(nn.Module):
    """A stem that cuts the image into patches, and stages; each but the first halves it."""

    public_names: ClassVar = (
        (r"^stem\.", "features.0."),
        *((rf"^stages\.{n}\.downsample\.", f"features.{2 * n}.") for n in (1, 2, 3)),
        *((rf"^stages\.{n}\.blocks\.", f"features.{2 * n + 1}.") for n in (0, 1, 2, 3)),
        (r"^(features\.\d\.\d+)\.conv_dw\.", r"\1.block.0."),
        (r"^(features\.\d\.\d+)\.norm\.", r"\1.block.2."),
        (r"^(features\.\d\.\d+)\.mlp\.fc1\.", r"\1.block.3."),
        (r"^(features\.\d\.\d+)\.mlp\.fc2\.", r"\1.block.5."),
        (r"\.gamma$", ".layer_scale"),
        (r"^head\.norm\.", "classifier.0."),
        (r"^head\.fc\.", "classifier.2."),
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
        self.features = nn.Sequential(nn.Sequential(stem, LayerNorm(widths[0])))
        for number, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            if number:
                before = widths[number - 1]
                halve = nn.Conv2d(before, width, 2, stride=2)
                self.features.append(nn.Sequential(LayerNorm(before), halve))
            stage = (Block(width, 4 * width, kernel) for _ in range(count))
            self.features.append(nn.Sequential(*stage))
        self.classifier = nn.Sequential(
            LayerNorm(widths[-1]), nn.Flatten(1), nn.Linear(widths[-1], classes)
        )
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W) between 0 and 1 to logits (N, classes)."""
        x = self.features(self.normalise(images)).mean((2, 3), keepdim=True)
        logits: Tensor = self.classifier(x)
        return logits


def initialise(network: nn.Module) -> None:
    """Draw the weights of convolutions and linear layers anew, as both libraries do."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
