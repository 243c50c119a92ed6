"""An ONNX model that sorts images into classes, on this machine: what it reads, what it answers.

It is run by the runner's own functions, so that a device that is shown the same images can only
differ by its runtime and its processor.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine import runner
from engine.accelerator import processors

_BATCH = 32  # images of one inference where the file leaves that open


class Classifier:
    """A loaded model.

    Args:
        path: the ONNX file.
        name: what sentences call it.

    Raises:
        ValueError: this machine cannot run it, or it does not read images.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        try:
            # What devices answer is compared with this, whatever processor they have.
            session = runner.make_session(
                str(path), processors(), "CPUExecutionProvider", exact=True
            )
            inputs = runner.make_feed(session, 1, None)
        except runner.ModelError as error:
            raise ValueError(f"{name} cannot be run on this machine: {error}") from error
        self._session = session
        (first, *others) = session.get_inputs()
        shape = list(first.shape or ())
        if others or len(shape) != 4:
            read = " and ".join(str(list(item.shape or ())) for item in (first, *others))
            raise ValueError(f"{name} reads {read}, not images [N, channels, height, width]")
        self._input = first.name
        self._dtype = str(inputs[first.name].dtype)
        self._fixed = [size if isinstance(size, int) and size > 0 else None for size in shape]

    @property
    def batch(self) -> int | None:
        """How many images one inference takes, where the file fixes that."""
        return self._fixed[0]

    @property
    def side(self) -> int | None:
        """How many pixels high its images are, where the file fixes that."""
        return self._fixed[2]

    def accept(self, images: NDArray[np.uint8], classes: int) -> None:
        """Refuse images (N, C, H, W) that it does not read, or that are of other classes than its.

        Raises:
            ValueError: with a sentence.
        """
        shape = images.shape[1:]
        for read, given in zip(self._fixed[1:], shape, strict=True):
            if read not in (None, given):
                raise ValueError(
                    f"{self.name} reads images {_said(self._fixed[1:])}, "
                    f"and these are {_said(shape)} (channels, height, width)"
                )
        numbers = self._scores(images[:1]).shape[1]
        if numbers != classes:
            raise ValueError(
                f"{self.name} tells {numbers} classes apart, and the images are of {classes}"
            )

    def answers(
        self, images: NDArray[np.uint8], cancelled: Callable[[], bool] = lambda: False
    ) -> list[int]:
        """Return the class that each image is given; fewer once it is no longer wanted.

        Raises:
            ValueError: the model fails on them.
        """
        found: list[int] = []
        batch = self.batch or _BATCH
        while len(found) < len(images) and not cancelled():
            part = images[len(found) : len(found) + batch]
            found += self._scores(part).argmax(1).tolist()
        return found

    def _scores(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        """Return a row of scores for each image; a small batch is filled up where it is fixed."""
        size = self.batch or len(images)
        shown = np.resize(images, (size, *images.shape[1:]))
        try:
            feed = {self._input: runner.as_read(shown, self._dtype)}
            scores = np.reshape(self._session.run(None, feed)[0], (size, -1))
        except Exception as error:  # the runtime's errors share no class of their own
            said = " ".join(str(error).split())[:300]
            raise ValueError(f"{self.name} cannot be run on these images: {said}") from error
        return scores[: len(images)]


def _said(sizes: Any) -> str:
    return "x".join("any" if size is None else str(size) for size in sizes)
