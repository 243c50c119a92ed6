"""VGG-16 with batch norms for small images (Simonyan and Zisserman 2014, arXiv 1409.1556).

Configuration D, batch norms after the convolutions. Parameter names are those of torchvision's
`vgg16_bn`: `features.{N}` (convolution, batch norm, ReLU, pooling in one list) and
`classifier.{0,3,6}`. As in the public CIFAR-10 checkpoints, the last feature map is one pixel and
the two hidden layers have 512 units.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from engine.models.normalise import CIFAR_MEAN, CIFAR_STD, Normalise, initialise

LAYERS = (2, 2, 3, 3, 3)
"""Convolutions before each pooling."""


class VGG(nn.Module):
    """Five stages of 3x3 convolutions, and three linear layers; reads 32x32 images."""

    def __init__(
        self,
        classes: int = 10,
        widths: Sequence[int] = (64, 128, 256, 512, 512),
        mean: Sequence[float] = CIFAR_MEAN,
        std: Sequence[float] = CIFAR_STD,
        hidden: int = 512,
    ) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std)
        layers: list[nn.Module] = []
        inputs = len(mean)
        for width, count in zip(widths, LAYERS, strict=True):
            for _ in range(count):
                conv = nn.Conv2d(inputs, width, 3, padding=1)
                layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
                inputs = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(inputs, hidden), nn.ReLU(), nn.Dropout(),
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(),
            nn.Linear(hidden, classes),
        )  # fmt: skip
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, 32, 32) between 0 and 1 to logits (N, classes)."""
        logits: Tensor = self.classifier(self.features(self.normalise(images)).flatten(1))
        return logits
