"""Test images as devices get them: bytes of one file; their labels stay on this machine."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine import files
from hdap_tui.ssh.payload import Payload

MOST_IN_A_BLOCK = 20_000
"""Images of one block: their answers are one line of a result."""


@dataclass(frozen=True, kw_only=True)
class Images:
    """A file of test images, and in how many blocks they are shown."""

    payload: Payload
    shape: tuple[int, int, int]
    """Channels, height and width of each."""
    count: int
    each: int
    """How many one block shows; the last one may show fewer."""
    classes: int
    """How many classes there are."""

    @property
    def blocks(self) -> int:
        """How many blocks show them all."""
        return -(-self.count // self.each)


def choose(labels: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """Return which images of a split are taken: evenly over its classes, the same each time.

    Their order mixes the classes, so that every part of them is much like the whole.
    """
    generator = np.random.default_rng(0)
    order = generator.permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    places = np.linspace(0, len(labels) - 1, min(limit, len(labels)))
    return generator.permutation(by_class[places.astype(np.int64)])


def pack(images: NDArray[np.uint8], folder: Path, classes: int, blocks: int) -> Images:
    """Write images (N, C, H, W) as one file into a folder; return what devices are to have.

    Args:
        images: at least one.
        folder: where the file is to lie; it has to be there as long as devices are sent to.
        classes: how many classes there are.
        blocks: in how many blocks they are to be shown, about.

    Raises:
        OSError: it cannot be written.
    """
    data = np.ascontiguousarray(images).tobytes()
    path = folder / f"{hashlib.sha256(data).hexdigest()}.u8"
    files.write(path, data)
    count, channels, height, width = images.shape
    return Images(
        payload=Payload.of(path, "images"),
        shape=(channels, height, width),
        count=count,
        each=min(-(-count // blocks), MOST_IN_A_BLOCK),
        classes=classes,
    )
