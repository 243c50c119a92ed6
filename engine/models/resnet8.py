"""ResNet-8 of MLPerf Tiny (Banbury et al. 2021, arXiv 2106.07597): image classification.

Parameter names are `conv0`, `bn0`, `s{1..3}{a,b,c}` for the convolutions of the three stages (`c`
is the shortcut's), `n{1..3}{a,b}` for their batch norms, `fc`. The public weights come from
TensorFlow: the images are 0 to 255, convolutions with stride 2 pad below and to the right only,
and batch norms add 1e-3 to the variance. Published twice: with 16 filters, and with 40 and the
batch norms folded into the convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from engine.models.normalise import Normalise, initialise

RAW_MEAN = (0.0, 0.0, 0.0)
RAW_STD = (1 / 255, 1 / 255, 1 / 255)


class ResNet8(nn.Module):
    """Three stages of one block each; `norms` False: batch norms are folded already."""

    def __init__(
        self,
        classes: int = 10,
        widths: Sequence[int] = (16, 32, 64),
        mean: Sequence[float] = RAW_MEAN,
        std: Sequence[float] = RAW_STD,
        norms: bool = True,
    ) -> None:
        super().__init__()

        def norm(channels: int) -> nn.Module:
            return nn.BatchNorm2d(channels, eps=1e-3) if norms else nn.Identity()

        first, second, third = widths
        self.normalise = Normalise(mean, std)
        self.conv0, self.bn0 = nn.Conv2d(len(mean), first, 3, padding=1), norm(first)
        self.s1a, self.n1a = nn.Conv2d(first, first, 3, padding=1), norm(first)
        self.s1b, self.n1b = nn.Conv2d(first, first, 3, padding=1), norm(first)
        self.s2a, self.n2a = nn.Conv2d(first, second, 3, stride=2), norm(second)
        self.s2b, self.n2b = nn.Conv2d(second, second, 3, padding=1), norm(second)
        self.s2c = nn.Conv2d(first, second, 1, stride=2)
        self.s3a, self.n3a = nn.Conv2d(second, third, 3, stride=2), norm(third)
        self.s3b, self.n3b = nn.Conv2d(third, third, 3, padding=1), norm(third)
        self.s3c = nn.Conv2d(second, third, 1, stride=2)
        self.fc = nn.Linear(third, classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W) between 0 and 1, H and W even, to logits (N, classes)."""
        x = functional.relu(self.bn0(self.conv0(self.normalise(images))))
        y = functional.relu(self.n1a(self.s1a(x)))
        x = functional.relu(self.n1b(self.s1b(y)) + x)
        y = functional.relu(self.n2a(self.s2a(_below_and_right(x))))
        x = functional.relu(self.n2b(self.s2b(y)) + self.s2c(x))
        y = functional.relu(self.n3a(self.s3a(_below_and_right(x))))
        x = functional.relu(self.n3b(self.s3b(y)) + self.s3c(x))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def _below_and_right(x: Tensor) -> Tensor:
    """Pad as TensorFlow's "same" does for a 3x3 convolution with stride 2 on an even size."""
    return functional.pad(x, (0, 1, 0, 1))
