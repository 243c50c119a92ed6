"""Folders of pictures as arrays: one folder a class.

shop/train/apple/*.jpg, shop/train/pear/*.jpg, shop/test/apple/*.jpg, ...
shop/apple/*.jpg, shop/pear/*.jpg               a fifth of each class becomes the test split
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
TEST_NAMES = ("test", "val", "valid", "validation")
LIMIT = 8 << 30
"""Bytes that the images of a dataset may take in memory."""

Split = tuple[NDArray[np.uint8], NDArray[np.int64]]


def is_folder_of_pictures(path: Path) -> bool:
    """Tell whether a folder has classes of pictures in it."""
    return bool(_classes(path / "train") or _classes(path))


def read(path: Path, seed: int, size: int | None = None) -> tuple[tuple[str, ...], Split, Split]:
    """Return the classes, in the order of their names, the training split and the test split.

    Args:
        path: the folder.
        seed: decides which pictures become the test split where there is no folder for it.
        size: pixels a side; the shorter side of a picture is brought to it and the middle cut
            out. None: all pictures must have one size already.

    Raises:
        ValueError: a picture cannot be read, the splits' classes differ, or it is too much.
    """
    if not _classes(path / "train"):
        classes = _classes(path)
        parts = [_divide(_pictures(path / name), seed) for name in classes]
        train, test = [part[0] for part in parts], [part[1] for part in parts]
    else:
        classes = _classes(path / "train")
        tests = [name for name in TEST_NAMES if _classes(path / name)]
        if not tests:
            raise ValueError(f"{path}: there is a folder train, and no folder test beside it")
        if unknown := set(_classes(path / tests[0])).difference(classes):
            raise ValueError(
                f"{path / tests[0]}: the class {sorted(unknown)[0]} is not in {path / 'train'}"
            )
        train = [_pictures(path / "train" / name) for name in classes]
        test = [_pictures(path / tests[0] / name) for name in classes]
    side = size or _side(next(file for files in train for file in files))
    count = sum(len(files) for files in (*train, *test))
    if count * 3 * side**2 > LIMIT:
        raise ValueError(
            f"{path}: {count} images of {side}x{side} pixels take more than {LIMIT >> 30} GB of "
            "memory: give a part of them, or a network for smaller images"
        )
    return tuple(classes), _load(train, side, size), _load(test, side, size)


def _classes(path: Path) -> list[str]:
    """Return the folders with pictures in a folder; those called as splits are none."""
    if not path.is_dir():
        return []
    splits = {"train", *TEST_NAMES}
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    return [p.name for p in folders if p.name not in splits and any(map(_is_picture, p.iterdir()))]


def _pictures(folder: Path) -> list[Path]:
    return sorted(filter(_is_picture, folder.iterdir())) if folder.is_dir() else []


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _divide(files: list[Path], seed: int) -> tuple[list[Path], list[Path]]:
    order = np.random.default_rng(seed).permutation(len(files))
    tests = set(order[: len(files) // 5].tolist())
    return (
        [file for number, file in enumerate(files) if number not in tests],
        [file for number, file in enumerate(files) if number in tests],
    )


def _load(files: Sequence[Sequence[Path]], side: int, size: int | None) -> Split:
    """Read the pictures of each class; images (N, 3, side, side)."""
    labels = np.repeat(np.arange(len(files)), [len(part) for part in files]).astype(np.int64)
    images = np.empty((len(labels), 3, side, side), dtype=np.uint8)
    for number, file in enumerate(file for part in files for file in part):
        picture = _open(file)
        if size is not None:
            picture = _middle(picture, size)
        elif picture.size != (side, side):
            raise ValueError(
                f"{file}: has {picture.size[0]}x{picture.size[1]} pixels and others "
                f"{side}x{side}: bring the pictures to one size"
            )
        images[number] = np.asarray(picture).transpose(2, 0, 1)
    return images, labels


def _side(file: Path) -> int:
    width, height = _open(file).size
    if width != height:
        raise ValueError(f"{file}: has {width}x{height} pixels: cut the pictures to squares")
    return int(width)


def _open(file: Path) -> Image:
    try:
        from PIL import Image
    except ImportError as error:
        raise ValueError(
            f"{file}: pictures need Pillow: install the extra hdap-tui[images]"
        ) from error
    try:
        with Image.open(file) as picture:
            return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file}: cannot be read as a picture: {error}") from error


def _middle(picture: Image, size: int) -> Image:
    """Bring the shorter side to `size` and cut the middle out."""
    from PIL import Image

    shorter = min(picture.size)
    if shorter != size:
        width, height = (max(size, round(length * size / shorter)) for length in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    left, top = ((length - size) // 2 for length in picture.size)
    return picture.crop((left, top, left + size, top + size))
