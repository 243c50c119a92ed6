"""A model on trial: which test images it is shown, and how what a device answers is judged.

Devices get the images and nothing else. Labels stay here, and so do this machine's own answers,
which tell a broken runtime from a poor model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine import data
from engine.accelerator import processors
from engine.classifier import Classifier
from hdap_tui import images
from hdap_tui.config import Settings
from hdap_tui.errors import SettingsError, UserError
from hdap_tui.jobs.origin import origin
from hdap_tui.store.records import ModelRow
from hdap_tui.visit import Bench

_SLOWER = 3.0
"""How many times a device is guessed to take what a core here takes, before it is known."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """Test images, their labels, and what this machine answers."""

    data: str
    """What the data is called."""
    images: NDArray[np.uint8]
    """(N, C, H, W)."""
    labels: NDArray[np.int64]
    available: int
    """How many test images the data has."""
    classes: int
    here: tuple[int, ...]
    """The class that each image is given on this machine."""
    here_s: float
    """Seconds that this took."""
    batch: int | None
    """How many images one inference takes, where the model's file fixes that."""

    @property
    def accuracy_here(self) -> float:
        """Share of the images that this machine classifies rightly."""
        return self.accuracy(self.here)

    def accuracy(self, answers: Sequence[int]) -> float:
        """Return the share of answers that are right."""
        return float(np.mean(np.asarray(answers) == self.labels))

    def agreement(self, answers: Sequence[int]) -> float:
        """Return the share of answers that are those of this machine."""
        return float(np.mean(np.asarray(answers) == np.asarray(self.here)))

    def bench(self, standard: Bench, folder: Path, time_limit_s: float) -> Bench:
        """Return how devices are shown the images, which are written into a folder."""
        packed = images.pack(self.images, folder, self.classes, standard.blocks_min)
        one = _SLOWER * self.here_s * processors() / len(self.images)
        return replace(
            standard,
            images=packed,
            blocks_min=packed.blocks,
            blocks_max=packed.blocks,
            block_s=round(one * packed.each, 2),
            batch=1 if self.batch else standard.batch,
            time_limit_s=time_limit_s,
        )


def prepare(
    settings: Settings,
    model: ModelRow,
    source: str | Path,
    limit: int,
    cancelled: Callable[[], bool],
) -> Trial:
    """Read the test images, see that they fit the model, and have this machine classify them.

    Args:
        settings: the fleet's.
        model: the model.
        source: where the images are, as `engine.data.load` takes it.
        limit: how many of them at most.
        cancelled: asked in between.

    Raises:
        SettingsError: there are none, or they do not fit the model.
        UserError: it is no longer wanted.
    """
    try:
        classifier = Classifier(Path(model.path), model.name)
        dataset = data.load(source, origin(settings, model).seed, classifier.side)
        classifier.accept(dataset.test_images, len(dataset.classes))
        taken = images.choose(dataset.test_labels, limit)
        shown = dataset.test_images[taken]
        began = time.monotonic()
        here = classifier.answers(shown, cancelled)
    except ValueError as error:
        raise SettingsError(f"{error}.") from error
    if len(here) < len(shown):
        raise UserError(f"{model.name} was not tried: it was cancelled.")
    return Trial(
        data=dataset.name,
        images=shown,
        labels=dataset.test_labels[taken],
        available=len(dataset.test_labels),
        classes=len(dataset.classes),
        here=tuple(here),
        here_s=time.monotonic() - began,
        batch=classifier.batch,
    )
