"""How a network is trained or fine-tuned, as plain data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from engine.accelerator import Wish


@dataclass(frozen=True)
class Recipe:
    """How to train."""

    epochs: int = 20
    lr: float = 0.01
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    """AdamW's beta 1."""
    nesterov: bool = False
    """With SGD only."""
    weight_decay: float = 1e-4
    batch: int = 64
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    step_epochs: int = 10
    """With the step schedule: after how many epochs the learning rate falls to a tenth."""
    augment: bool = True
    """Shift images by up to four pixels, and mirror them where the dataset allows."""
    distill: float = 0.0
    """Share of the loss that comes from the teacher, 0 to 1; with 1, labels are not looked at."""
    temperature: float = 4.0
    """Softens both distributions of the distillation (Hinton et al. 2015, arXiv 1503.02531)."""
    seed: int = 0
    threads: int = 1
    bf16: bool = False
    """Train in bfloat16, channels last, where the device has it."""
    warmup_epochs: float = 0.0
    """The learning rate rises to its value over so many epochs, then follows the schedule."""
    label_smoothing: float = 0.0
    """Share of a label that is spread over all classes (arXiv 1512.00567, section 7)."""
    keep_zeros: bool = False
    """Weights of convolutions and linear layers that are zero at the start stay exactly zero."""
    device: Wish = "auto"
    processes: int = 1
    """Processes that each learn a part of every batch and average their gradients; on a machine
    with CUDA one a GPU. More than one needs the extra hdap-tui[gpu]."""

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            ValueError: something does not; the sentence says what.
        """
        for name, good in (
            ("epochs", self.epochs >= 0),
            ("batch", self.batch >= 2),
            ("lr", self.lr > 0 and math.isfinite(self.lr)),
            ("optimizer", self.optimizer in ("sgd", "adamw")),
            ("threads", self.threads >= 1),
            ("step_epochs", self.step_epochs >= 1),
            ("temperature", self.temperature > 0),
            ("distill", 0 <= self.distill <= 1),
            ("warmup_epochs", 0 <= self.warmup_epochs < max(self.epochs, 1)),
            ("label_smoothing", 0 <= self.label_smoothing < 1),
            ("processes", self.processes >= 1),
        ):
            if not good:
                raise ValueError(f"the recipe's {name} cannot be {getattr(self, name)}")

    def rate(self, epoch: int, part: float, factor: float = 1.0) -> float:
        """Return the learning rate, times a factor, `part` (0 to 1) of the way through an epoch.

        Epochs count from 0.
        """
        rate, warm = self.lr * factor, self.warmup_epochs
        if epoch + part < warm:
            return rate * (epoch + part + 0.1) / (warm + 0.1)
        if self.schedule == "cosine":
            left = self.epochs - warm
            return rate * 0.5 * (1 + math.cos(math.pi * (epoch + part - warm) / left))
        if self.schedule == "step":
            return rate * 0.1 ** (epoch // self.step_epochs)
        return rate
