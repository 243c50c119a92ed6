"""How good a network is, and the batch norms that pruning leaves behind."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from engine.compress.inference import evaluating


def accuracy(
    model: nn.Module, images: NDArray[np.uint8], labels: NDArray[np.int64], batch: int = 256
) -> float:
    """Return the share of images (N, C, H, W) uint8 that the network classifies rightly.

    Raises:
        ValueError: there are no images.
    """
    return evaluate(model, torch.from_numpy(images), torch.from_numpy(labels), batch)[0]


def reestimate_batch_norm(model: nn.Module, images: NDArray[np.uint8], batch: int = 128) -> None:
    """Measure the batch norms' means and variances anew, as plain averages over the images.

    After pruning, the old ones belong to another network. Weights do not change.

    Raises:
        ValueError: there are fewer than two images.
    """
    if len(images) < 2:
        raise ValueError("batch norms need two images at least")
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    try:
        with evaluating(model), torch.no_grad():
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # torch's word for a cumulative average
                norm.training = True
            for start in range(0, len(images), batch):
                part = torch.from_numpy(images[start : start + batch])
                if start == 0 or len(part) == batch:
                    model(part.float() / 255)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def evaluate(
    model: nn.Module, images: Tensor, labels: Tensor, batch: int = 256
) -> tuple[float, float]:
    """Return accuracy and mean loss on images (N, C, H, W) uint8.

    Raises:
        ValueError: there are no images.
    """
    if not len(images):
        raise ValueError("accuracy needs images, and there are none")
    right, loss = 0, 0.0
    with evaluating(model), torch.no_grad():
        for start in range(0, len(images), batch):
            logits = model(images[start : start + batch].float() / 255)
            y = labels[start : start + batch]
            right += int((logits.argmax(1) == y).sum())
            loss += float(functional.cross_entropy(logits, y, reduction="sum"))
    return right / len(images), loss / len(images)
