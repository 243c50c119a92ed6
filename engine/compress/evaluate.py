"""How good a network is, and the batch norms that pruning leaves behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from engine.compress.inference import evaluating

_STATISTICS_BATCH = 96  # images that a batch norm's statistics need


def accuracy(
    model: nn.Module, images: NDArray[np.uint8], labels: NDArray[np.int64], batch: int = 256
) -> float:
    """Return the share of images (N, C, H, W) uint8 that the network classifies rightly.

    It runs on the device that the network lies on.

    Raises:
        ValueError: there are no images.
    """
    return evaluate(model, torch.from_numpy(images), torch.from_numpy(labels), batch)[0]


def accuracy_by_batch_statistics(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the accuracy, 0 to 1, with batch norms that normalise by the images at hand.

    A pruned network's own statistics are those of another one, and hide what its channels can
    still do. One pass, against the two of measuring the statistics anew and then evaluating,
    with much the same answer. The network is left as it was.

    Raises:
        ValueError: there are no images.
    """
    parts = max(1, round(len(images) / _STATISTICS_BATCH))
    with evaluating(model), _batch_statistics(model):
        return _classify(model, images, labels, -(-len(images) // parts))[0]


@contextmanager
def _batch_statistics(model: nn.Module) -> Iterator[None]:
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    tracks = [norm.track_running_stats for norm in norms]
    try:
        for norm in norms:
            # In training mode they normalise by the batch; not tracking, they forget it again.
            norm.training, norm.track_running_stats = True, False
        yield
    finally:
        for norm, track in zip(norms, tracks, strict=True):
            norm.track_running_stats = track


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
                part = torch.from_numpy(images[start : start + batch]).to(place(model))
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
    with evaluating(model):
        return _classify(model, images, labels, batch)


def answers(model: nn.Module, images: Tensor, batch: int = 256) -> Tensor:
    """Return the class (N,) that the network gives each image (N, C, H, W) uint8."""
    with evaluating(model), torch.no_grad():
        parts = [
            model(part.to(place(model)).float() / 255).argmax(1).cpu()
            for part in torch.split(images, batch)
        ]
    return torch.cat(parts)


def place(model: nn.Module) -> torch.device:
    """Return the device that a network lies on."""
    return next((tensor.device for tensor in model.parameters()), torch.device("cpu"))


def _classify(model: nn.Module, images: Tensor, labels: Tensor, batch: int) -> tuple[float, float]:
    """Return accuracy and mean loss, the network's layers in the modes that they are in."""
    if not len(images):
        raise ValueError("accuracy needs images, and there are none")
    device = place(model)
    # Summed where they arise: asking for each batch's numbers would make a GPU wait.
    right = torch.zeros((), dtype=torch.int64, device=device)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    with torch.no_grad():
        for start in range(0, len(images), batch):
            logits = model(images[start : start + batch].to(device).float() / 255).float()
            y = labels[start : start + batch].to(device)
            right += (logits.argmax(1) == y).sum()
            loss += functional.cross_entropy(logits, y, reduction="sum")
    return int(right) / len(images), float(loss) / len(images)
