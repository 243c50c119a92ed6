"""MobileNetV1 (Howard et al. 2017, arXiv 1704.04861, table 1).

Parameter names are those of timm's `mobilenetv1_100`: `conv_stem`, `bn1`,
`blocks.{stage}.{i}.{conv_dw,bn1,conv_pw,bn2}`, `classifier`. For images of 32x32 the stem keeps
its stride at 1.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from engine.models.normalise import Normalise, initialise

TIMM_MEAN = (0.5, 0.5, 0.5)
TIMM_STD = (0.5, 0.5, 0.5)


class Separable(nn.Module):
    """A depthwise 3x3 convolution and a pointwise one."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(
            inputs, inputs, 3, stride=stride, padding=1, groups=inputs, bias=False
        )
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv_pw = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        x = functional.relu6(self.bn1(self.conv_dw(x)))
        return functional.relu6(self.bn2(self.conv_pw(x)))


class MobileNet(nn.Module):
    """A convolution and five stages of separable ones; all but the first halve the image."""

    def __init__(
        self,
        classes: int = 1000,
        widths: Sequence[int] = (32, 64, 128, 256, 512, 1024),
        mean: Sequence[float] = TIMM_MEAN,
        std: Sequence[float] = TIMM_STD,
        blocks: Sequence[int] = (1, 2, 2, 6, 2),
        stem_stride: int = 2,
    ) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std)
        stem, *stages = widths
        self.conv_stem = nn.Conv2d(len(mean), stem, 3, stride=stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.blocks = nn.Sequential()
        inputs = stem
        for number, (width, count) in enumerate(zip(stages, blocks, strict=True)):
            first = Separable(inputs, width, stride=2 if number else 1)
            rest = (Separable(width, width, stride=1) for _ in range(count - 1))
            self.blocks.append(nn.Sequential(first, *rest))
            inputs = width
        self.classifier = nn.Linear(inputs, classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W) between 0 and 1 to logits (N, classes)."""
        x = functional.relu6(self.bn1(self.conv_stem(self.normalise(images))))
        logits: Tensor = self.classifier(self.blocks(x).mean((2, 3)))
        return logits
