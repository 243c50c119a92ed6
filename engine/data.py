"""Labelled images, split four ways.

The *test* split is only ever reported, the *selection* split chooses (checkpoints, candidates),
the *calibration* split sets the ranges of a quantization, the rest is trained on. No image is in
two of them. Images stay uint8 in memory; networks normalise them themselves.

    >>> digits = load("digits")
    >>> digits.test_images.shape
    (360, 3, 32, 32)
"""

from __future__ import annotations

import io
import pickle
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine import pictures

if TYPE_CHECKING:
    from torch import Generator, Tensor

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]

_CIFAR_NAMES = (
    "airplane", "automobile", "bird", "cat", "deer",
    "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_MEBIBYTE = 1 << 20
_MAX_FILE = 2048 * _MEBIBYTE


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images in four disjoint splits; images (N, C, H, W) uint8, labels (N,) int64."""

    name: str
    classes: tuple[str, ...]
    train_images: Images
    train_labels: Labels
    selection_images: Images
    selection_labels: Labels
    calibration_images: Images
    calibration_labels: Labels
    test_images: Images
    test_labels: Labels
    mean: tuple[float, ...]
    """Mean of the training images a channel, images between 0 and 1."""
    std: tuple[float, ...]
    """Their standard deviation a channel."""
    mirrors: bool = True
    """Whether an image seen in a mirror keeps its class (a digit does not)."""


def load(source: str | Path, seed: int = 0, size: int | None = None) -> Dataset:
    """Read a dataset: "digits", a CIFAR-10 folder, a folder of pictures, or an .npz file.

    A CIFAR-10 folder holds the original Python batches, the original binary batches, or lossless
    WebP sheets of 40 x 25 images beside a `labels.npz`. A folder of pictures has a folder for each
    class, in `train` and `test` where it has these, else a fifth of each class is the test split;
    pictures are brought to `size` pixels a side. An .npz file holds `train_images`,
    `train_labels`, `test_images`, `test_labels` (images uint8, NHWC or NCHW) and, if wanted,
    `classes`. The same `seed` gives the same splits.

    Raises:
        ValueError: nothing readable is there, or images and labels do not fit each other.
    """
    if str(source) == "digits":
        return _digits(seed)
    path = Path(source).expanduser()
    if path.is_dir() and pictures.is_folder_of_pictures(path):
        names, (train, train_labels), (test, test_labels) = pictures.read(path, seed, size)
        return _split(path.name, names, train, train_labels, test, test_labels, seed)
    if path.is_dir():
        train, train_labels, test, test_labels = _folder(path)
        return _split(path.name, _CIFAR_NAMES, train, train_labels, test, test_labels, seed)
    if path.suffix == ".npz" and path.is_file():
        return _npz(path, seed)
    if not path.exists():
        raise ValueError(f'{source}: no such dataset: give "digits", a folder or an .npz file')
    raise ValueError(f"{path}: not a dataset: give a folder or an .npz file")


def augment(images: Tensor, generator: Generator, padding: int = 4, flip: bool = True) -> Tensor:
    """Shift each image by up to `padding` pixels (edges black) and mirror every second one.

    Works on a whole batch (N, C, H, W) of any type; draws only from `generator`.
    """
    import torch
    from torch.nn import functional

    n, channels, height, width = images.shape
    padded = functional.pad(images, (padding,) * 4)
    down, right = torch.randint(0, 2 * padding + 1, (2, n), generator=generator)
    rows = (down[:, None] + torch.arange(height))[:, None, :, None]
    columns = (right[:, None] + torch.arange(width))[:, None, None, :]
    which = torch.arange(n)[:, None, None, None]
    shifted = padded[which, torch.arange(channels)[None, :, None, None], rows, columns]
    if not flip:
        return shifted
    mirrored = torch.rand(n, generator=generator) < 0.5
    chosen = mirrored[:, None, None, None].to(images.device)
    return torch.where(chosen, shifted.flip(3), shifted)


def _digits(seed: int) -> Dataset:
    import torch
    from sklearn.datasets import load_digits
    from torch.nn import functional

    raw = load_digits()
    small = torch.from_numpy(np.asarray(raw.images, dtype=np.float32))[:, None] * (255 / 16)
    large = functional.interpolate(small, (32, 32), mode="bilinear", align_corners=False)
    images = large.round().to(torch.uint8).expand(-1, 3, -1, -1).numpy()
    labels = np.asarray(raw.target, dtype=np.int64)
    order = np.random.default_rng(seed).permutation(len(labels))
    test, train = order[:360], order[360:]
    names = tuple(str(digit) for digit in range(10))
    split = _split("digits", names, images[train], labels[train], images[test], labels[test], seed)
    return replace(split, mirrors=False)


def _split(
    name: str,
    classes: tuple[str, ...],
    images: NDArray[Any],
    labels: NDArray[Any],
    test_images: NDArray[Any],
    test_labels: NDArray[Any],
    seed: int,
) -> Dataset:
    """Take selection (an eighth, 5000 at most) and calibration (128 at most) from the training."""
    for part, x, y in (("train", images, labels), ("test", test_images, test_labels)):
        _check(name, part, x, y, len(classes))
    order = np.random.default_rng([seed, 1]).permutation(len(labels))
    selection = min(len(order) // 8, 5000)
    calibration = min(len(order) // 8, 128)
    chosen, ranged, rest = np.split(order, [selection, selection + calibration])
    train = np.ascontiguousarray(images[np.sort(rest)])
    mean, std = _moments(train)
    return Dataset(
        name=name,
        classes=classes,
        train_images=train,
        train_labels=labels[np.sort(rest)].astype(np.int64),
        selection_images=np.ascontiguousarray(images[chosen]),
        selection_labels=labels[chosen].astype(np.int64),
        calibration_images=np.ascontiguousarray(images[ranged]),
        calibration_labels=labels[ranged].astype(np.int64),
        test_images=np.ascontiguousarray(test_images),
        test_labels=test_labels.astype(np.int64),
        mean=mean,
        std=std,
    )


def _moments(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation a channel, from the histogram of the 256 values."""
    values = np.arange(256) / 255
    means, stds = [], []
    for channel in range(images.shape[1]):
        counts = np.bincount(images[:, channel].ravel(), minlength=256)
        mean = float(counts @ values / counts.sum())
        variance = float(counts @ (values - mean) ** 2 / counts.sum())
        means.append(round(mean, 4))
        stds.append(max(round(variance**0.5, 4), 1e-3))
    return tuple(means), tuple(stds)


def _check(name: str, part: str, images: NDArray[Any], labels: NDArray[Any], classes: int) -> None:
    where = f"{name}: the {part} split"
    if images.ndim != 4 or images.dtype != np.uint8:
        raise ValueError(
            f"{where} must hold uint8 images of four axes, not {images.dtype} {images.shape}"
        )
    if len(images) != len(labels):
        raise ValueError(f"{where} has {len(images)} images and {len(labels)} labels")
    if len(labels) < 16:
        raise ValueError(f"{where} has {len(labels)} images: 16 at least are needed")
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{where} must have one whole number as label of each image")
    least = -1 if part == "train" else 0  # -1: nobody has labelled the image
    if labels.min() < least or labels.max() >= classes:
        raise ValueError(
            f"{where} has a label {labels.min() if labels.min() < least else labels.max()}, "
            f"but there are only {classes} classes (0 to {classes - 1})"
        )


def _npz(path: Path, seed: int) -> Dataset:
    needed = ("train_images", "train_labels", "test_images", "test_labels")
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in needed if key not in file]
            if missing:
                raise ValueError(f"{path}: {missing[0]} is missing: needed are {', '.join(needed)}")
            train, train_labels, test, test_labels = (file[key] for key in needed)
            names = tuple(str(c) for c in file["classes"]) if "classes" in file else ()
    except (OSError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise ValueError(f"{path}: not a readable .npz file: {error}") from error
    train, test = (_channels_first(images) for images in (train, test))
    if not names and train_labels.size and np.issubdtype(train_labels.dtype, np.integer):
        names = tuple(str(c) for c in range(int(train_labels.max()) + 1))
    return _split(path.stem, names, train, train_labels, test, test_labels, seed)


def _channels_first(images: NDArray[Any]) -> NDArray[Any]:
    if images.ndim == 4 and images.shape[3] in (1, 3) and images.shape[1] not in (1, 3):
        return images.transpose(0, 3, 1, 2)
    return images


_Raw = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]


def _folder(path: Path) -> _Raw:
    if (path / "cifar-10-batches-py").is_dir():
        return _folder(path / "cifar-10-batches-py")
    if (path / "cifar-10-batches-bin").is_dir():
        return _folder(path / "cifar-10-batches-bin")
    if (path / "data_batch_1").is_file():
        names = [f"data_batch_{i}" for i in range(1, 6)]
        return *_batches(path, names, _python_batch), *_batches(path, ["test_batch"], _python_batch)
    if (path / "data_batch_1.bin").is_file():
        names = [f"data_batch_{i}.bin" for i in range(1, 6)]
        return *_batches(path, names, _binary_batch), *_batches(
            path, ["test_batch.bin"], _binary_batch
        )
    if any(path.glob("train_*.webp")):
        return _sheets(path)
    if not any(path.iterdir()):
        raise ValueError(f"{path}: the folder is empty: put the CIFAR-10 batches there")
    raise ValueError(
        f"{path}: no CIFAR-10 in this folder: expected data_batch_1, data_batch_1.bin or "
        "train_00.webp with labels.npz, or a folder of pictures for each class"
    )


def _batches(path: Path, names: list[str], read: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    parts = []
    for name in names:
        file = path / name
        if not file.is_file():
            raise ValueError(f"{file}: this batch is missing")
        parts.append(read(file))
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


class _NumpyOnly(pickle.Unpickler):
    """Reads dicts, lists and arrays; a pickle may otherwise run any code it likes."""

    allowed = frozenset({
        ("numpy", "dtype"), ("numpy", "ndarray"),
        ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
        ("numpy.core.numeric", "_frombuffer"), ("numpy._core.numeric", "_frombuffer"),
        ("_codecs", "encode"),
    })  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no image needs")
        return super().find_class(module, name)


def _python_batch(file: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    if file.stat().st_size > _MAX_FILE:
        raise ValueError(f"{file}: larger than any CIFAR-10 batch")
    try:
        content = _NumpyOnly(io.BytesIO(file.read_bytes()), encoding="bytes").load()
        data = np.asarray(content[b"data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
        labels = content.get(b"labels")
    except (pickle.UnpicklingError, EOFError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{file}: not a CIFAR-10 batch: {error}") from error
    if labels is None:
        raise ValueError(f"{file}: the labels are missing")
    return data, np.asarray(labels, dtype=np.int64)


def _binary_batch(file: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    raw = np.fromfile(file, dtype=np.uint8)
    if not raw.size or raw.size % 3073:
        raise ValueError(f"{file}: not a CIFAR-10 batch: its size is no multiple of 3073")
    rows = raw.reshape(-1, 3073)
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0].astype(np.int64)


def _sheets(path: Path) -> _Raw:
    try:
        from PIL import Image
    except ImportError as error:
        raise ValueError(
            f"{path}: WebP sheets need Pillow: install the extra hdap-tui[images]"
        ) from error
    if not (path / "labels.npz").is_file():
        raise ValueError(f"{path}: labels.npz is missing: images without labels cannot be used")
    parts: list[NDArray[Any]] = []
    with np.load(path / "labels.npz", allow_pickle=False) as labels:
        for split in ("train", "test"):
            sheets = []
            for file in sorted(path.glob(f"{split}_*.webp")):
                with Image.open(file) as image:
                    pixels = np.asarray(image.convert("RGB"))
                if pixels.shape != (25 * 32, 40 * 32, 3):
                    raise ValueError(f"{file}: a sheet is 1280 x 800 pixels, not {pixels.shape}")
                tiles = pixels.reshape(25, 32, 40, 32, 3).transpose(0, 2, 4, 1, 3)
                sheets.append(tiles.reshape(1000, 3, 32, 32))
            if not sheets or f"{split}_labels" not in labels:
                raise ValueError(f"{path}: the {split} images or their labels are missing")
            parts += [np.concatenate(sheets), labels[f"{split}_labels"].astype(np.int64)]
    return parts[0], parts[1], parts[2], parts[3]
