"""Networks own their normalisation, so that they read plain images wherever they run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2023, 0.1994, 0.2010)


class Normalise(nn.Module):
    """Shifts and scales images to the range that the network was trained on."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Normalise images (N, C, H, W) between 0 and 1."""
        return (images - self.mean) / self.std


class Normalised(nn.Module):
    """Somebody else's network, which expects normalised images, reading plain ones."""

    public_names: ClassVar = ((r"^(?!network\.|normalise\.)", "network."),)

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std)
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) between 0 and 1 to what the network gives."""
        out: Tensor = self.network(self.normalise(images))
        return out


def initialise(network: nn.Module) -> None:
    """Draw the learnt weights of convolutions and linear layers anew (He et al. 2015).

    The deviation follows what goes into a layer: arXiv 1502.01852, equation 10.
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.weight.requires_grad:
            nn.init.kaiming_normal_(module.weight)
